"""The command of the web view: what it refuses before it starts, and a server that starts, answers and ends."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading

import httpx
import pytest

from lenscope.cli import serve


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--port", "70000"), "give 0–65535"),
        (("--port", "-1"), "give 0–65535"),
        (("--host", "0.0.0.0"), "give a --token as well"),
        (("--host", "::"), "give a --token as well"),
        (("--host", "nowhere.invalid", "--token", "long-enough"), "is no address of this machine"),
        (("--token", "short"), "at least 8"),
        (("--token", "with a space"), "without spaces"),
        (("--max-prompt-tokens", "0"), "at least 1"),
        (("--lens", "/nowhere"), "/nowhere"),
        (("--mapping", "/nowhere"), "/nowhere"),
        (("--target-model", "/nowhere"), "/nowhere"),
        (("-m", "/nowhere"), "/nowhere"),
        (("--port", "text"), "port"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(mistaken, model, arguments, words):
    given = arguments if "-m" in arguments else ("-m", model, *arguments)
    assert words in mistaken("serve", *given)


def test_a_port_that_is_taken_is_told(mistaken, model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = mistaken("serve", "-m", model, "--port", str(port))
    assert f"--port {port}" in line
    assert "0 for any" in line


def test_without_the_extra_it_says_what_to_install(mistaken, model, monkeypatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "fastapi" else object())
    assert 'run pip install "lenscope[serve]"' in mistaken("serve", "-m", model)


@pytest.fixture
def started(model):
    """Starts the command and gives the process and the address that it prints."""
    processes, timers = [], []

    def start(*arguments):
        command = [sys.executable, "-m", "lenscope", "serve", "-m", model, "--port", "0", *arguments]
        one = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ)
        processes.append(one)
        timers.append(threading.Timer(120, one.kill))
        timers[-1].start()
        line = one.stderr.readline()
        match = re.search(r"http://\S+", line)
        assert match, line + one.stderr.read()
        return one, match[0], line

    yield start
    for one, timer in zip(processes, timers, strict=True):
        timer.cancel()
        one.kill()
        one.wait(30)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_says_where_it_is_answers_and_ends(started, number):
    process, address, line = started()
    assert line.startswith("lenscope: ")
    assert httpx.get(f"{address}api/info").json()["model"]["name"] == "tiny-llama"
    page = httpx.get(address)
    assert page.status_code == 200
    assert page.text.startswith("<!doctype html>")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert out == ""
    assert "Traceback" not in err
    assert process.returncode in (0, 130) if number == signal.SIGINT else process.returncode in (0, -15, 143)


def test_what_clients_do_wrong_and_what_they_leave_open_is_not_told_when_it_ends(started):
    process, address, _ = started()
    port = int(address.rsplit(":", 1)[1].rstrip("/"))
    with socket.create_connection(("127.0.0.1", port)) as strange:
        strange.sendall(b"no request\r\n\r\n")
        assert strange.recv(100).startswith(b"HTTP/1.1 400")
    with socket.create_connection(("127.0.0.1", port)) as slow:
        kind = "content-type: application/json\r\ncontent-length: 100"
        slow.sendall(f"POST /api/tokenize HTTP/1.1\r\nhost: localhost\r\n{kind}\r\n\r\n{{".encode())
        httpx.get(f"{address}api/info")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert err.strip() in ("", "lenscope: interrupted")


def test_a_token_stands_in_the_address_and_is_needed(started):
    token = "a-secret-of-mine"
    _, address, _ = started("--token", token)
    assert address.endswith(f"/#token={token}")
    address = address.partition("#")[0]
    assert httpx.get(f"{address}api/info").status_code == 401
    assert httpx.get(f"{address}api/info", headers={"authorization": f"Bearer {token}"}).status_code == 200
