"""What endpoints answer is what the library gives, of every kind of request."""

import numpy as np
import pytest

import lenscope as ls
from lenscope.display.payload import unpacked_arrays

TEXT = "The capital of France is"


@pytest.fixture(scope="module")
def lens(view_models):
    return ls.Lens(view_models[0])


def close(arrays, trajectory):
    for name in ("entropy", "kl", "max_probability", "rank", "top_ids", "top_log_probs"):
        np.testing.assert_allclose(arrays[name], getattr(trajectory, name), rtol=1e-4, atol=1e-5)


def test_a_trajectory_is_that_of_the_library(view, lens):
    answer = view.post("trajectory", {"prompt": {"text": TEXT}, "lens": "logit lens"})
    assert answer.status_code == 200
    payload, own = answer.json(), lens.trajectory(TEXT)
    assert payload["kind"] == "trajectory"
    assert payload["text"] == TEXT
    assert payload["ids"] == list(own.ids)
    close(unpacked_arrays(payload), own)


def test_layers_positions_target_and_top_k_are_those_asked_for(view, lens):
    asked = {"layers": [0, -1], "positions": [1, -1], "target": 7, "top_k": 3}
    answer = view.post("trajectory", {"prompt": {"text": TEXT}, "lens": "logit lens", **asked}).json()
    own = lens.trajectory(TEXT, [0, -1], [1, -1], target=7, top_k=3)
    assert (answer["layers"], answer["positions"], answer["target"]) == ([0, 4], list(own.positions), 7)
    close(unpacked_arrays(answer), own)


def test_a_prompt_may_be_ids(view, lens):
    ids = [5, 6, 7, 8]
    answer = view.post("trajectory", {"prompt": {"ids": ids}, "lens": "logit lens"}).json()
    assert answer["ids"] == ids
    close(unpacked_arrays(answer), lens.trajectory(ids))


def test_another_lens_gives_other_numbers(view):
    first, second = (
        view.post("trajectory", {"prompt": {"text": TEXT}, "lens": name}).json()
        for name in ("logit lens", "random lens")
    )
    assert second["lens"] == "random lens"
    assert not np.allclose(unpacked_arrays(first)["entropy"], unpacked_arrays(second)["entropy"])


def test_a_comparison_is_that_of_the_library(view, lens):
    other = "The capital of Spain is"
    asked = {"first": {"text": TEXT}, "second": {"text": other}, "lens": "logit lens"}
    payload, own = view.post("comparison", asked).json(), lens.compare(TEXT, other)
    assert payload["kind"] == "comparison"
    np.testing.assert_allclose(unpacked_arrays(payload)["js"], own.js, rtol=1e-4, atol=1e-5)
    close(unpacked_arrays(payload["second"]), own.second)


def test_two_lenses_of_one_prompt_are_compared(view):
    asked = {"first": {"text": TEXT}, "second": {"text": TEXT}, "lens": "logit lens", "second_lens": "random lens"}
    payload = view.post("comparison", asked).json()
    assert payload["second"]["lens"] == "random lens"
    assert unpacked_arrays(payload)["js"].max() > 0


def test_ranks_are_those_of_the_library(view, lens):
    asked = {"prompt": {"text": TEXT}, "lens": "logit lens", "tokens": [3, 9], "layers": [0, 2, 4], "positions": [-1]}
    payload, own = view.post("ranks", asked).json(), lens.ranks(TEXT, [3, 9], [0, 2, 4], [-1])
    assert (payload["kind"], payload["ids"], payload["layers"]) == ("ranks", [3, 9], [0, 2, 4])
    arrays = unpacked_arrays(payload)
    assert arrays["rank"].shape == (2, 3, 1)
    np.testing.assert_array_equal(arrays["rank"], own.rank)
    np.testing.assert_allclose(arrays["log_prob"], own.log_prob, rtol=1e-4)


def test_what_is_written_comes_token_by_token_with_its_trajectory(view, view_models, lens):
    asked = {"prompt": {"text": TEXT}, "lens": "logit lens", "max_new_tokens": 6}
    events = view.events("generation", asked)
    names = [name for name, _ in events if name != "queue"]
    tokens = [data for name, data in events if name == "token"]
    assert names == ["start", *["token"] * len(tokens), "done"]
    own = view_models[0].generate(TEXT, 6)
    assert [token["id"] for token in tokens] == list(own.ids)
    start = dict(events)["start"]["payload"]
    assert start["positions"] == list(range(len(start["ids"])))
    assert [t["payload"]["positions"] for t in tokens] == [[len(start["ids"]) - 1 + n] for n in range(len(tokens))]
    assert events[-1][1]["reason"] in ("end", "length")
    whole = lens.trajectory([*start["ids"], *own.ids])
    for n, token in enumerate(tokens):
        arrays = unpacked_arrays(token["payload"])
        at = len(start["ids"]) - 1 + n
        np.testing.assert_allclose(arrays["entropy"][:, 0], whole.entropy[:, at], rtol=1e-3, atol=1e-4)


def test_drawn_texts_depend_on_the_seed_alone(view):
    asked = {"prompt": {"text": TEXT}, "lens": "logit lens", "max_new_tokens": 8, "temperature": 1.5}
    texts = [view.events("generation", {**asked, "seed": seed})[-1][1]["text"] for seed in (1, 2, 3)]
    assert len(set(texts)) > 1


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({"lens": "no lens"}, 422, "there are logit lens, random lens"),
        ({"layers": [5]}, 422, "layer 5"),
        ({"positions": [40]}, 422, "position 40"),
        ({"target": "no such token at all"}, 422, "token"),
        ({"target": 100_000}, 422, "token"),
        ({"prompt": {"text": ""}}, 422, "empty"),
        ({"prompt": {"ids": []}}, 422, "empty"),
        ({"prompt": {"ids": [100_000]}}, 422, "token 100000"),
        ({"prompt": {"text": "x", "ids": [1]}}, 422, "exactly one"),
        ({"prompt": {"turns": []}}, 422, "prompt.turns"),
        ({"prompt": {"turns": [{"role": "user", "content": "word " * 60}]}}, 413, "at most 40"),
        ({"prompt": {"ids": [5] * 41}}, 413, "at most 40"),
        ({"prompt": {"text": "word " * 60}}, 413, "at most 40"),
        ({"prompt": {"text": "x" * 300_000}}, 413, "at most 40"),
        ({"prompt": {"text": "x", "model": 7}}, 422, "model 7"),
        ({"top_k": 0}, 422, "top_k"),
        ({"top_k": "5"}, 422, "top_k"),
        ({"other": 1}, 422, "other"),
    ],
)
def test_what_cannot_be_granted_is_refused_in_one_line(view, asked, status, words):
    answer = view.post("trajectory", {"prompt": {"text": TEXT}, "lens": "logit lens", **asked})
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert words in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_too_much_to_write_is_refused(view):
    asked = {"prompt": {"text": TEXT}, "lens": "logit lens", "max_new_tokens": 13}
    answer = view.post("generation", asked)
    assert (answer.status_code, answer.json()["error"]) == (422, "max_new_tokens 13: this server writes at most 12")
