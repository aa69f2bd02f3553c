"""The server as clients meet it: paths, errors, streams, queues, readers that leave, many clients at once."""

import json
import threading
import time

import numpy as np
import pytest
import tiny
from view_server import serve_both, serving

import lenscope as ls
from lenscope.display.payload import unpacked_arrays
from lenscope.web.served import Served, ServedModel

LENS = {"lens": "logit lens"}


@pytest.fixture
def slow(view_models, monkeypatch):
    """A server whose model sleeps before each block, and where nothing is remembered."""
    lm = ls.LM(tiny.model("llama"), tiny.tokenizer(), "slow-llama")
    served = serve_both(lm, view_models[1], queue=2)
    with serving(served) as server:
        server.seconds = 0.2
        for block in lm.runner.anatomy.blocks:
            block.register_forward_pre_hook(lambda *_: time.sleep(server.seconds))
        yield server


def asked(text, **more):
    return {"prompt": {"text": text}, **LENS, **more}


def test_paths_and_methods_that_there_are_not(view):
    for method, path, status in (
        ("GET", "/api", 404),
        ("GET", "/api/nothing", 404),
        ("POST", "/api/nothing", 404),
        ("GET", "/api/trajectory", 405),
        ("PUT", "/api/trajectory", 405),
        ("DELETE", "/api/info", 405),
        ("POST", "/api/info", 405),
        ("GET", "/api/trajectory/", 404),
        ("GET", "/docs", 404),
        ("GET", "/redoc", 404),
        ("GET", "/app/../served.py", 404),
        ("GET", "/app/%2e%2e/served.py", 404),
        ("GET", "/app/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "//etc/passwd", 404),
        ("GET", "/view/", 404),
    ):
        answer = view.client.request(method, path, json={} if method == "POST" else None)
        assert answer.status_code == status, (method, path)
        assert list(answer.json()) == ["error"]
        assert status != 405 or answer.headers["allow"]


def test_information_says_what_there_is(view, view_models):
    info = view.client.get("/api/info").json()
    lm = view_models[0]
    assert info["version"] == ls.__version__
    assert info["model"] == {
        "name": "tiny-llama", "n_layers": 4, "vocab_size": lm.vocab_size, "context": lm.context, "chat": True,
    }  # fmt: skip
    assert [m["name"] for m in info["explaining_models"]] == ["tiny-llama", "tiny-gpt2"]
    assert [m["mapping"] for m in info["explaining_models"]] == [None, "across"]
    assert [lens["name"] for lens in info["lenses"]] == ["logit lens", "random lens"]
    assert info["mappings"] == ["identity", "across"]
    assert {"name", "text", "at"} == set(info["targets"][0])
    assert info["limits"]["prompt_tokens"] == 40
    assert len(info["examples"]) == 5
    assert info["measures"]["kl"].startswith("nats")


def test_tokens_of_a_prompt_and_tokens_by_their_text(view, view_models):
    lm = view_models[0]
    own = lm.prompt("The capital of France")
    answer = view.post("tokenize", {"prompt": {"text": "The capital of France"}}).json()
    assert (answer["ids"], answer["tokens"]) == (list(own.ids), list(own.tokens))
    hits = view.client.get("/api/tokens", params={"query": own.tokens[1].strip()}).json()
    assert {"id": own.ids[1], "text": own.tokens[1]} in hits
    assert len(view.client.get("/api/tokens", params={"query": "e"}).json()) == 20
    assert view.client.get("/api/tokens", params={"query": "7"}).json()[0] == {
        "id": 7,
        "text": lm.encoder.tokens([7])[0],
    }
    assert view.client.get("/api/tokens", params={"query": ""}).json() == []
    assert view.client.get("/api/tokens", params={"query": "x" * 201}).status_code == 422
    assert view.client.get("/api/tokens").status_code == 422


def test_the_same_request_does_not_run_again(view):
    request = asked("remember this")
    first = view.post("trajectory", request)
    assert view.idle()
    before = view.answers.workers[0].done
    assert view.post("trajectory", request).content == first.content
    assert view.post("trajectory", {**request, "top_k": 5, "layers": None}).content == first.content
    assert view.answers.workers[0].done == before
    stream = view.events("generation", asked("remember this", max_new_tokens=2))
    assert view.idle()
    before = view.answers.workers[0].done
    assert view.events("generation", asked("remember this", max_new_tokens=2)) == [e for e in stream if e[0] != "queue"]
    assert view.answers.workers[0].done == before


def test_a_full_queue_is_told_with_when_to_come_again(slow):
    threads, statuses = [], []
    for n in range(6):
        threads.append(
            threading.Thread(target=lambda n=n: statuses.append(slow.post("trajectory", asked(f"text {n}"))))
        )
        threads[-1].start()
        time.sleep(0.05)
    for thread in threads:
        thread.join(60)
    refused = [s for s in statuses if s.status_code == 429]
    assert len(refused) == 3
    assert sum(s.status_code == 200 for s in statuses) == 3
    assert all(int(s.headers["retry-after"]) > 0 and "busy" in s.json()["error"] for s in refused)


def test_who_waits_is_told_its_place(slow):
    first = slow.stream("generation", asked("first", max_new_tokens=2))
    next(first)
    events = slow.events("generation", asked("second", max_new_tokens=1))
    assert events[0] == ("queue", {"position": 1})
    assert events[-1][0] == "done"
    assert list(first)[-1][0] == "done"


@pytest.mark.parametrize("endpoint", ["trajectory", "generation"])
def test_a_reader_that_leaves_frees_the_worker_within_a_second(slow, endpoint):
    import httpx

    request = asked("nobody waits for this", **({"max_new_tokens": 12} if endpoint == "generation" else {}))
    slow.seconds = 0.3
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{slow.address}/api/{endpoint}", json=request, timeout=0.4)
    assert slow.idle(1.0)
    slow.seconds = 0
    assert slow.ready()
    assert not [m for m in slow.answers.served.lm.model.modules() if len(m._forward_hooks)]
    assert slow.post("trajectory", asked("somebody waits for this")).status_code == 200


def test_a_reader_that_leaves_the_queue_leaves_its_place(slow):
    import httpx

    running = threading.Thread(target=lambda: slow.post("trajectory", asked("it takes a while")))
    running.start()
    time.sleep(0.1)
    for n in range(6):  # more than there are places
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{slow.address}/api/trajectory", json=asked(f"gone {n}"), timeout=0.05)
        time.sleep(0.02)
    assert slow.post("trajectory", asked("the next")).status_code == 200
    running.join(60)


def test_two_models_work_at_once(slow):
    request = {"prompt": {"text": "hello"}, "position": -1, "target": {"text": "x"}, "source_layers": [1]}
    assert slow.events("grid", {**request, "model": 1})[-1][0] == "done"
    slow.seconds = 0.5
    started = time.monotonic()
    running = threading.Thread(target=lambda: slow.post("trajectory", asked("the first model is busy")))
    running.start()
    time.sleep(0.1)
    assert slow.client.get("/api/info").status_code == 200
    assert slow.post("tokenize", {"prompt": {"text": "hello"}}).status_code == 200
    assert time.monotonic() - started < 2
    running.join(60)


def test_a_failure_of_the_server_is_one_line_and_the_next_request_works(view_models, monkeypatch):
    served = Served([ServedModel(view_models[0])])
    lens = served.lens("logit lens")
    monkeypatch.setattr(lens, "trajectory", lambda *_, **__: 1 / 0)
    with serving(served) as server:
        answer = server.post("trajectory", asked("hello"))
        assert (answer.status_code, list(answer.json())) == (500, ["error"])
        assert "ZeroDivisionError" in answer.json()["error"]
        monkeypatch.setattr(lens, "generate", lambda *_, **__: [][1])
        events = server.events("generation", asked("hello", max_new_tokens=1))
        assert [name for name, _ in events] == ["error"]
        monkeypatch.setattr(lens, "trajectory", _out_of_memory)
        answer = server.post("trajectory", asked("hello"))
        assert (answer.status_code, answer.json()["error"]) == (413, "out of memory: ask for less at once")
        monkeypatch.undo()
        assert server.post("trajectory", asked("hello")).status_code == 200


def _out_of_memory(*_, **__):
    raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes")


def test_eight_clients_get_their_own_answers(view, view_models):
    """Each client has prompts of its own; every answer is that of its prompt."""
    lens = ls.Lens(view_models[0])
    texts = {client: [f"client {client} asks {n} things" for n in range(4)] for client in range(8)}
    expected = {text: lens.trajectory(text) for many in texts.values() for text in many}
    wrong = []

    def work(client):
        for text in texts[client]:
            while (answer := view.post("trajectory", asked(text))).status_code == 429:
                time.sleep(0.05)
            payload = answer.json()
            if payload["text"] != text or not np.allclose(
                unpacked_arrays(payload)["entropy"], expected[text].entropy, rtol=1e-3, atol=1e-4
            ):
                wrong.append((client, text, payload.get("text")))
            while True:
                try:
                    events = view.events("generation", asked(text, max_new_tokens=2))
                    break
                except AssertionError as error:
                    if "429" not in str(error):
                        raise
                    time.sleep(0.05)
            if dict(events)["start"]["payload"]["text"] != text or events[-1][0] != "done":
                wrong.append((client, text, events))

    threads = [threading.Thread(target=work, args=(client,)) for client in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not wrong
    assert view.idle()


def test_the_description_of_the_api_names_every_path(view):
    paths = view.client.get("/api/openapi.json").json()["paths"]
    assert {"/api/info", "/api/tokens", "/api/tokenize", "/api/trajectory", "/api/grid", "/api/generation"} <= set(
        paths
    )
    assert json.dumps(paths).count("HTTPValidationError") == 0


def test_the_description_of_the_api_has_the_contrast_of_states_in_words(view):
    schemas = view.client.get("/api/openapi.json").json()["components"]["schemas"]
    with_contrast = {
        name: one["properties"]["contrast"] for name, one in schemas.items() if "contrast" in one.get("properties", {})
    }
    assert {*with_contrast} == {"ExplanationIn", "GridIn"}
    for field in with_contrast.values():
        assert (field["default"], field["minimum"], field["maximum"]) == (0.0, 0, 1000)
        assert "no contrast" in field["description"]
