"""Explanations and grids are those of the library: controls, operations, mappings, other models."""

import numpy as np
import pytest

import lenscope as ls
from lenscope.display.payload import unpacked_arrays
from lenscope.models.edits import add
from lenscope.patchscopes import random_vectors

TEXT = "The capital of France is"
TARGET = {"text": "hello world, x", "at": -1}
STATE = {"prompt": {"text": TEXT}, "layer": 2, "position": -2}


def texts(events):
    return {data["row"]: data["text"] for name, data in events if name == "end"}


def rows(events):
    return dict(events)["start"]["rows"]


def test_an_explanation_is_what_the_library_writes_beside_its_controls(view, view_models):
    lm = view_models[0]
    request = {**STATE, "target": TARGET, "layers": [1, 3], "max_new_tokens": 5, "seed": 3}
    events = view.events("explanation", request)
    assert rows(events) == [
        {"row": 0, "kind": "state", "layer": 1},
        {"row": 1, "kind": "state", "layer": 3},
        {"row": 2, "kind": "unpatched", "layer": None},
        {"row": 3, "kind": "random", "layer": 1},
        {"row": 4, "kind": "random", "layer": 3},
    ]
    scope = ls.Patchscope(lm, ls.Target(TARGET["text"], at=-1))
    states = lm.read(TEXT, 2, -2)
    own = scope.generate(states, [1, 3], max_new_tokens=5).texts
    random = scope.generate(random_vectors(states, 3), [1, 3], max_new_tokens=5).texts
    plain = lm.generate(TARGET["text"], 5).text
    written = texts(events)
    assert [written[n] for n in range(5)] == [*own, plain.replace("</s>", ""), *random]
    assert events[-1] == ("done", {})
    tokens = [token for name, data in events if name == "tokens" for token in data["tokens"]]
    assert all(token["log_prob"] <= 0 for token in tokens)
    assert [token["row"] for token in tokens[:5]] == [0, 1, 2, 3, 4]


def test_an_operation_changes_what_is_written(view, view_models):
    lm = view_models[0]
    scope = ls.Patchscope(lm, ls.Target(TARGET["text"], at=-1), op=add)
    own = scope.generate(lm.read(TEXT, 2, -2), [2], max_new_tokens=5).texts
    request = {**STATE, "target": TARGET, "layers": [2], "max_new_tokens": 5}
    assert texts(view.events("explanation", {**request, "operation": "add"}))[0] == own[0]


def test_a_contrast_is_that_of_the_library_and_leaves_the_plain_target_as_it_is(view, view_models):
    lm = view_models[0]
    scope, states = ls.Patchscope(lm, ls.Target(TARGET["text"], at=-1)), lm.read(TEXT, 2, -2)
    request = {**STATE, "target": TARGET, "layers": [1, 3], "max_new_tokens": 5, "seed": 3}
    how = {"max_new_tokens": 5, "contrast": 1.5}
    events = view.events("explanation", {**request, "contrast": 1.5})
    written = [texts(events)[n] for n in range(5)]
    plain = [texts(view.events("explanation", request))[n] for n in range(5)]
    assert written[:2] == [*scope.generate(states, [1, 3], **how).texts]
    assert written[3:] == [*scope.generate(random_vectors(states, 3), [1, 3], **how).texts]
    assert written[2] == plain[2]
    assert written != plain
    log_probs = scope.generate(states, [1, 3], **how).log_probs
    tokens = [token for name, data in events if name == "tokens" for token in data["tokens"] if token["row"] == 0]
    np.testing.assert_allclose([t["log_prob"] for t in tokens], log_probs[0][: len(tokens)], atol=1e-4)


def test_another_model_explains_through_its_mapping(view, view_models):
    lm, other = view_models
    request = {**STATE, "target": TARGET, "layers": [2], "max_new_tokens": 4, "model": 1}
    scope = ls.Patchscope(other, ls.Target(TARGET["text"], at=-1), source_lm=lm)
    own = scope.generate(lm.read(TEXT, 2, -2), [2], max_new_tokens=4).texts
    # the mapping of the tests is the identity
    for mapping in (None, "across", "identity"):
        assert texts(view.events("explanation", {**request, "mapping": mapping}))[0] == own[0]


@pytest.mark.parametrize("contrast", [0, 0.7])
@pytest.mark.parametrize("kind", ["predict", "generate"])
def test_a_grid_is_that_of_the_library(view, view_models, kind, contrast):
    lm = view_models[0]
    request = {"prompt": {"text": TEXT}, "position": -1, "target": TARGET, "source_layers": [0, 2, 4], "kind": kind}
    request["contrast"] = contrast
    events = view.events("grid", {**request, "target_layers": [1, 3], "max_new_tokens": 3})
    progress = [data for name, data in events if name == "progress"]
    assert progress[-1]["done"] == progress[-1]["total"] == 6
    payload = dict(events)["result"]["payload"]
    assert payload["kind"] == "grid"
    assert events[-1][0] == "done"
    scope = ls.Patchscope(lm, ls.Target(TARGET["text"], at=-1))
    cells = [(source, layer) for source in (0, 2, 4) for layer in (1, 3)]
    states = lm.read(TEXT, positions=-1)
    how = {"contrast": contrast, **({} if kind == "predict" else {"max_new_tokens": 3})}
    own = getattr(scope, kind)(states, cells, **how)
    assert payload["provenance"]["contrast"] == contrast
    assert all(("with contrast 0.7" in unit) == bool(contrast) for unit in payload["measures"].values())
    arrays = unpacked_arrays(payload)
    for name in ("source", "layer", "ids"):
        np.testing.assert_array_equal(arrays[name], getattr(own, name))
    np.testing.assert_allclose(arrays["log_probs"], own.log_probs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("endpoint", "asked", "status", "words"),
    [
        ("explanation", {"layer": 5}, 422, "layer 5"),
        ("explanation", {"position": 60}, 422, "position 60"),
        ("explanation", {"layers": [9]}, 422, "layer 9"),
        ("explanation", {"layers": []}, 422, "layers"),
        ("explanation", {"target": {"name": "nothing"}}, 422, "there are identity"),
        ("explanation", {"target": {"text": "hello", "at": "absent"}}, 422, "not in the prompt"),
        ("explanation", {"target": {"name": "entity", "text": "x"}}, 422, "exactly one"),
        ("explanation", {"target": {}}, 422, "exactly one"),
        ("explanation", {"target": {"text": "word " * 60}}, 413, "at most 40"),
        ("explanation", {"model": 2}, 422, "models 0–1"),
        ("explanation", {"mapping": "nothing"}, 422, "there are across"),
        ("explanation", {"operation": "multiply"}, 422, "operation"),
        ("explanation", {"max_new_tokens": 13}, 422, "at most 12"),
        ("explanation", {"seed": -1}, 422, "seed"),
        ("explanation", {"contrast": -0.5}, 422, "contrast: Input should be greater than or equal to 0"),
        ("explanation", {"contrast": 1001}, 422, "contrast: Input should be less than or equal to 1000"),
        ("explanation", {"contrast": "0.5"}, 422, "contrast"),
        ("explanation", {"contrast": True}, 422, "contrast"),
        ("grid", {"contrast": -1}, 422, "contrast"),
        ("steering", {"contrast": 0.5}, 422, "contrast"),
        ("explanation", {"prompt": {"text": TEXT, "model": 1}}, 422, "model 1"),
        ("grid", {"source_layers": [5]}, 422, "layer 5"),
        ("grid", {"answers": [""]}, 422, "answers"),
        ("grid", {"kind": "other"}, 422, "kind"),
        ("steering", {"layer": 7}, 422, "layer 7"),
        ("steering", {"strength": 1e9}, 422, "strength"),
        ("steering", {"positions": [70]}, 422, "position 70"),
        ("steering", {"vector": {"plus": {**STATE, "layer": 7}}}, 422, "layer 7"),
        ("steering", {"max_new_tokens": 13}, 422, "at most 12"),
        ("patched_trajectory", {"into": {"layer": 5, "position": 0}}, 422, "layer 5"),
        ("patched_trajectory", {"into": {"layer": 1, "position": 70}}, 422, "position 70"),
        ("patched_trajectory", {"source": {**STATE, "position": 70}}, 422, "position 70"),
        ("patched_trajectory", {"mapping": "nothing"}, 422, "there are across"),
    ],
)
def test_what_cannot_be_granted_is_refused_before_the_stream(view, endpoint, asked, status, words):
    prompt = {"prompt": {"text": TEXT}}
    request = {
        "explanation": {**STATE, "target": TARGET, "max_new_tokens": 5},
        "grid": {**prompt, "position": -1, "target": TARGET, "max_new_tokens": 5},
        "steering": {**prompt, "layer": 1, "strength": 1, "vector": {"plus": STATE}, "max_new_tokens": 5},
        "patched_trajectory": {**prompt, "source": STATE, "into": {"layer": 1, "position": 0}, "lens": "logit lens"},
    }[endpoint]
    answer = view.post(endpoint, {**request, **asked})
    assert answer.status_code == status
    assert words in answer.json()["error"]


def test_a_mapping_that_does_not_fit_is_refused(view):
    answer = view.post("explanation", {**STATE, "target": TARGET, "mapping": "across", "max_new_tokens": 5})
    assert answer.status_code == 422
    assert "tiny" in answer.json()["error"]


def test_a_patched_trajectory_is_that_of_the_library(view, view_models):
    lm = view_models[0]
    lens = ls.Lens(lm)
    request = {
        "prompt": {"text": "hello world"}, "source": STATE, "into": {"layer": 1, "position": 0}, "lens": "logit lens",
    }  # fmt: skip
    payload = view.post("patched_trajectory", request).json()
    arrays = unpacked_arrays(payload)
    plain = lens.trajectory("hello world")
    assert payload["kind"] == "trajectory"
    np.testing.assert_allclose(arrays["entropy"][0], plain.entropy[0], rtol=1e-3)
    assert not np.allclose(arrays["entropy"][2:], plain.entropy[2:], rtol=1e-3)
    with lm.edit(ls.Edit(1, 0, lm.read(TEXT, 2, -2)[2, -2])):
        own = lens.trajectory("hello world")
    np.testing.assert_allclose(arrays["entropy"], own.entropy, rtol=1e-3, atol=1e-4)


def test_steering_writes_plainly_and_with_a_vector(view, view_models):
    lm = view_models[0]
    vector = {"plus": STATE, "minus": {"prompt": {"text": "other"}, "layer": 1, "position": 0}}
    request = {"prompt": {"text": TEXT}, "layer": 2, "strength": 1.5, "vector": vector, "max_new_tokens": 6}
    events = [e for e in view.events("steering", request) if e[0] != "queue"]
    assert events[0][0] == "start"
    assert events[0][1]["vector_norm"] > 0
    assert events[0][1]["state_norm"] > 0
    tokens = [[t["id"] for _, d in events if "tokens" in d for t in d["tokens"] if t["row"] == row] for row in (0, 1)]
    assert tokens[0] == list(lm.generate(TEXT, 6).ids)
    assert tokens[1] != tokens[0]
    assert sorted(d["row"] for name, d in events if name == "end") == [0, 1]
    still = view.events("steering", {**request, "strength": 0.0})
    texts_of = [d["text"] for name, d in still if name == "end"]
    assert texts_of[0] == texts_of[1]


def test_too_many_cells_are_refused(view, monkeypatch):
    from lenscope.web.limits import Limits

    monkeypatch.setattr(view.answers.served, "limits", Limits(rows=10))
    answer = view.post("grid", {"prompt": {"text": "hi"}, "position": -1, "target": TARGET})
    assert (answer.status_code, answer.json()["error"][:21]) == (422, "the grid has 25 cells")
    assert view.post("explanation", {**STATE, "target": TARGET}).status_code == 422


def test_an_error_within_a_stream_is_its_last_event(view):
    request = {"prompt": {"text": TEXT}, "position": -1, "target": TARGET, "answers": ["\u0000"]}
    events = [e for e in view.events("grid", request) if e[0] != "queue"]
    assert events[-1][0] in ("error", "done")
