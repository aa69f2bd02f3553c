"""The Python that is copied runs, and gives what the page shows."""

import json

import numpy as np
import pytest

import lenscope as ls
from lenscope.display.payload import unpacked_arrays

TEXT = "It's \"The\\ capital\n of\u202e France"
PROMPT = {"text": TEXT}
TARGET = {"text": "hello, x", "at": -1}


@pytest.fixture
def run_snippet(view, served, monkeypatch):
    """The variables of the program for a request, run where the server's names stand for its models and files."""
    models = {m.source: m.lm for m in served.models}
    folders = {one.source: one.mapping for one in served.mappings.values()}
    lenses = {one.source: one.lens.f for one in served.lenses.values()}
    monkeypatch.setattr(ls, "load", lambda name, **_: models[name], raising=False)
    monkeypatch.setattr(ls, "load_mapping", lambda name: folders[name], raising=False)
    monkeypatch.setattr(ls, "load_lens", lambda name, _: lenses[name], raising=False)

    def call(endpoint, request):
        answer = view.post("export", {"endpoint": endpoint, "request": request, "format": "python"})
        assert answer.status_code == 200, answer.text
        assert answer.text.isprintable() or all(line.isprintable() for line in answer.text.splitlines())
        names: dict = {}
        exec(answer.text, names)
        return names

    return call


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"lens": "random lens"},
        {"layers": [0, -1], "positions": [0, -1], "target": 7, "top_k": 2},
        {"prompt": {"ids": [5, 6, 7]}},
        {"prompt": {"turns": [{"role": "user", "content": "hi \u202e"}]}},
    ],
)
def test_a_trajectory(view, run_snippet, asked):
    request = {"prompt": PROMPT, "lens": "logit lens", **asked}
    shown = view.post("trajectory", request).json()
    own = run_snippet("trajectory", request)["trajectory"]
    assert (list(own.ids), own.lens, own.target) == (shown["ids"], shown["lens"], shown["target"])
    for name, values in unpacked_arrays(shown).items():
        np.testing.assert_allclose(values, getattr(own, name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("asked", [{}, {"second_lens": "random lens", "layers": [1, 2]}])
def test_a_comparison(view, run_snippet, asked):
    request = {"first": PROMPT, "second": {"text": "other"}, "lens": "logit lens", **asked}
    shown = unpacked_arrays(view.post("comparison", request).json())
    own = run_snippet("comparison", request)["comparison"]
    np.testing.assert_allclose(shown["js"], own.js, rtol=1e-3, atol=1e-5)


def test_ranks(view, run_snippet):
    request = {"prompt": PROMPT, "lens": "logit lens", "tokens": [3, 4], "positions": [0]}
    shown = unpacked_arrays(view.post("ranks", request).json())
    np.testing.assert_array_equal(shown["rank"], run_snippet("ranks", request)["ranks"].rank)


@pytest.mark.parametrize("how", [{}, {"temperature": 1.3, "top_p": 0.9, "seed": 5}])
def test_a_generation(view, run_snippet, how):
    request = {"prompt": {"text": "hello"}, "lens": "logit lens", "max_new_tokens": 4, **how}
    events = view.events("generation", request)
    names = run_snippet("generation", request)
    assert names["written"].ids == [data["id"] for name, data in events if name == "token"]
    assert names["written"].text == events[-1][1]["text"]


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"operation": "add_norm_matched", "layers": [0, 3]},
        {"model": 1},
        {"model": 1, "mapping": "identity"},
        {"target": {"text": "a b c", "at": "b"}},
        {"contrast": 1.5},
    ],
)
def test_an_explanation(view, run_snippet, asked):
    request = {"prompt": PROMPT, "layer": 1, "position": -1, "target": TARGET, "max_new_tokens": 3, **asked}
    events = view.events("explanation", request)
    explanation = run_snippet("explanation", request)["explanation"]
    shown = {data["row"]: data["text"] for name, data in events if name == "end"}
    assert [shown[n] for n in range(len(shown))] == list(explanation.texts)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"kind": "generate", "max_new_tokens": 2},
        {"kind": "generate", "max_new_tokens": 3, "contrast": 2},
        {"answers": ["e"], "source_layers": [-1], "model": 1},
        {"answers": ["e"], "contrast": 0.7},
    ],
)
def test_a_grid(view, run_snippet, asked):
    request = {"prompt": PROMPT, "position": -1, "target": TARGET, "target_layers": [0, 2], **asked}
    exported = view.post("export", {"endpoint": "grid", "request": request, "format": "json"}).json()
    own = json.loads(json.dumps(run_snippet("grid", request)["grid"].to_json()))
    for whole in (exported, own):
        whole.pop("provenance")
        whole.pop("sha256", None)
    assert exported == own


@pytest.mark.parametrize("kind", ["predict", "generate"])
def test_no_contrast_is_not_said(view, kind):
    request = {"prompt": PROMPT, "position": -1, "target": TARGET, "kind": kind}
    asked = {contrast: {**request, "contrast": contrast} for contrast in (0, 0.5)}
    programs = {
        contrast: view.post("export", {"endpoint": "grid", "request": one, "format": "python"}).text
        for contrast, one in asked.items()
    }
    assert "contrast" not in programs[0]
    assert ", contrast=0.5)" in programs[0.5]


STATE = {"prompt": PROMPT, "layer": 1, "position": -1}


@pytest.mark.parametrize("asked", [{}, {"operation": "add_norm_matched", "lens": "random lens", "top_k": 2}])
def test_a_patched_trajectory(view, run_snippet, asked):
    request = {"prompt": {"text": "hello"}, "source": STATE, "into": {"layer": 2, "position": 0}, "lens": "logit lens"}
    shown = unpacked_arrays(view.post("patched_trajectory", {**request, **asked}).json())
    own = run_snippet("patched_trajectory", {**request, **asked})["trajectory"]
    np.testing.assert_allclose(shown["entropy"], own.entropy, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"positions": [-1], "operation": "replace"},
        {"vector": {"plus": STATE, "minus": {**STATE, "layer": 0}}, "temperature": 1.2, "seed": 4},
    ],
)
def test_steering(view, run_snippet, asked):
    request = {"prompt": {"text": "hello"}, "layer": 1, "strength": 2, "vector": {"plus": STATE}, "max_new_tokens": 4}
    events = view.events("steering", {**request, **asked})
    texts = run_snippet("steering", {**request, **asked})["texts"].texts
    assert {data["row"]: data["text"] for name, data in events if name == "end"} == dict(enumerate(texts))
