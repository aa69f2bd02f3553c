"""Who may ask: hosts, origins, sites, tokens, sizes and types of bodies; what every answer carries."""

import socket

import pytest
from view_server import serve_both, serving

TOKEN = "a-long-secret-token"
ASKED = {"prompt": {"text": "hello"}}


@pytest.fixture(scope="module")
def locked(view_models):
    with serving(serve_both(*view_models), TOKEN, ("0.0.0.0",)) as server:
        yield server


def raw(server, data):
    """What the server answers to bytes, until it closes the connection or is silent."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(data)
        answer = b""
        while not answer.endswith(b"}") and (part := connection.recv(65536)):
            answer += part
    return answer


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST", "localhost:{port}", "127.0.0.1:1"])
def test_the_loopbacks_names_are_answered(view, host):
    answer = view.client.get("/api/info", headers={"host": host.format(port=view.port)})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "host", ["example.com", "localhost.example.com", "127.0.0.1.nip.io", "[::2]", "localhost:x", "[::1", "0.0.0.0", ""]
)
def test_other_names_are_refused(view, host):
    for path in ("/api/info", "/", "/app/index.html", "/nothing"):
        answer = view.client.get(path, headers={"host": host})
        assert answer.status_code == 421
        assert "host" in answer.json()["error"]


def test_no_host_and_two_hosts_are_refused(view):
    for lines in (b"", b"Host: localhost\r\nHost: example.com\r\n"):
        answer = raw(view, b"GET /api/info HTTP/1.1\r\n" + lines + b"\r\n")
        assert answer.split()[1] in (b"400", b"421")


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_only_the_same_origin_may_ask(view, method):
    path = "/api/info" if method == "GET" else "/api/tokenize"

    def status(**headers):
        return view.client.request(method, path, json=ASKED if method == "POST" else None, headers=headers).status_code

    own = f"127.0.0.1:{view.port}"
    assert status(origin=f"http://{own}") == 200
    for origin in ("null", "http://example.com", "http://127.0.0.1", "http://127.0.0.1:1", f"file://{own}", own, "*"):
        assert status(origin=origin) == 403
    # the name in the host is the one that counts
    assert status(origin=f"http://localhost:{view.port}") == 403
    for site, expected in (("same-origin", 200), ("none", 200), ("cross-site", 403), ("same-site", 403)):
        assert status(**{"sec-fetch-site": site}) == expected


def test_a_link_elsewhere_opens_the_page_and_nothing_else(view):
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert view.client.get("/", headers=headers).status_code in (200, 404)
    assert view.client.get("/", headers={**headers, "sec-fetch-dest": "iframe"}).status_code == 403
    assert view.client.get("/api/info", headers=headers).status_code == 403


def test_every_answer_carries_the_policy_and_none_allows_other_origins(view):
    for path in ("/", "/api/info", "/nothing", "/view/text.js"):
        headers = view.client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'; style-src 'self'")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert not [name for name in headers if name.startswith("access-control")]
    answer = view.client.options("/api/info", headers={"access-control-request-method": "POST"})
    assert answer.status_code == 405


def test_only_json_is_taken(view):
    body = b'{"prompt": {"text": "hello"}}'
    for kind, status in (
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("Application/JSON", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/json; charset=utf-16", 415),
        ("application/jsonp", 415),
        ("", 415),
    ):
        answer = view.client.post("/api/tokenize", content=body, headers={"content-type": kind})
        assert answer.status_code == status, kind
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    assert view.client.post("/api/tokenize", content=body, headers=headers).status_code == 415


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nothing",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"prompt": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001,
        b'{"prompt": {"ids": [' + b"9" * 5000 + b"]}}",
        b'{"prompt": {"text": "\\ud800"}}',
        b'{"prompt": {"ids": [1e400]}}',
        b'{"prompt": {"ids": [NaN]}}',
        b'{"prompt": null}',
        b"[]",
        b'"text"',
    ],
    ids=range(13),
)
def test_what_is_no_request_is_refused(view, body):
    answer = view.client.post("/api/tokenize", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert "\n" not in answer.json()["error"]


def test_a_body_that_is_too_large_is_refused_before_it_is_read(view):
    head = b"POST /api/tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    # only the head is sent
    answer = raw(view, head + b"Content-Length: 2000000\r\n\r\n")
    assert answer.split()[1] == b"413"
    assert b"at most 1048576 bytes" in answer

    def chunks():
        for _ in range(40):
            yield b" " * 65536

    headers = {"content-type": "application/json"}
    assert view.client.post("/api/tokenize", content=chunks(), headers=headers).status_code == 413


def test_with_a_token_every_call_needs_it(locked):
    for headers in (
        {},
        {"authorization": TOKEN},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": "Bearer"},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": f"Bearer {TOKEN[:-1]}"},
        {"authorization": b"Bearer \xe4"},
    ):
        for answer in (
            locked.client.get("/api/info", headers=headers),
            locked.client.get("/api/openapi.json", headers=headers),
            locked.client.get("/api/nothing", headers=headers),
            locked.client.post("/api/tokenize", json=ASKED, headers=headers),
        ):
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
    for scheme in ("Bearer", "bearer"):
        answer = locked.client.get("/api/info", headers={"authorization": f"{scheme} {TOKEN}"})
        assert answer.status_code == 200
    # the page itself holds nothing secret, and takes the token from its address
    assert locked.client.get("/view/text.js").status_code == 200


def test_with_a_token_a_server_of_all_addresses_may_have_any_name(locked):
    headers = {"host": f"my-machine:{locked.port}", "authorization": f"Bearer {TOKEN}"}
    assert locked.client.get("/api/info", headers=headers).status_code == 200
    assert locked.client.get("/api/info", headers={**headers, "origin": "http://example.com"}).status_code == 403


def test_websockets_are_refused(view):
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    upgrade += b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    answer = raw(view, b"GET /api/info HTTP/1.1\r\nHost: localhost\r\n" + upgrade + b"\r\n")
    assert answer.split()[1] != b"101"
