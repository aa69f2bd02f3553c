"""Several lenses of one run: each reads what it reads alone, KL equals its definition, mistakes are told in a line."""

from dataclasses import replace

import affine_lens
import numpy as np
import pytest
import tiny
import torch

import lenscope as ls
from lenscope.lenses.side_by_side import read_side_by_side
from lenscope.lenses.side_by_side_results import SideBySide
from lenscope.measures import definitions
from lenscope.models.runner import Runner

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def lenses(lm64):
    return {"logit lens": None, "tuned": affine_lens.affine(lm64), "shifted": lambda h, layer: h + 1.0}


def test_every_trajectory_is_that_of_its_lens_alone_from_one_run(lm64, lenses, monkeypatch):
    runs = []
    capture = Runner.capture
    monkeypatch.setattr(Runner, "capture", lambda *args, **how: runs.append(1) or capture(*args, **how))
    result = read_side_by_side(lm64, lenses, PROMPT, [0, 2, 4], slice(1, None), target="a", top_k=3)
    together = len(runs)
    assert isinstance(result, SideBySide)
    assert result.lenses == tuple(lenses)
    for name, f, trajectory in zip(lenses, lenses.values(), result.trajectories, strict=True):
        alone = ls.Lens(lm64, f, name=name).trajectory(PROMPT, [0, 2, 4], slice(1, None), target="a", top_k=3)
        created = trajectory.provenance["created"]
        assert trajectory == replace(alone, provenance={**alone.provenance, "created": created})
    assert len(runs) - together == together * len(lenses), "the model runs once for all lenses"


def test_kl_and_agreement_equal_their_definitions(lm64, lenses):
    result = read_side_by_side(lm64, lenses, PROMPT, [0, 2, 4])
    h = lm64.read(PROMPT)
    logs = [
        torch.stack([ls.Lens(lm64, f).logits(h[n, :], n) for n in result.layers]).log_softmax(-1)
        for f in lenses.values()
    ]
    for i, log_p in enumerate(logs):
        for j, log_q in enumerate(logs):
            assert np.allclose(result.kl[i, j], definitions.kl(log_p, log_q), atol=1e-5)
            same = (log_p.argmax(-1) == log_q.argmax(-1)).double().mean(-1)
            assert np.allclose(result.agreement[i, j], same)
    assert result.kl[0, 2].max() > 0
    assert result.agreement[0, 2].min() < 1


def test_several_prompts_give_a_list(lm64, lenses):
    two = read_side_by_side(lm64, lenses, [PROMPT, "a test"])
    assert [one.text for one in two] == [PROMPT, "a test"]
    assert np.allclose(two[1].kl, read_side_by_side(lm64, lenses, "a test").kl, atol=1e-6)


def test_states_within_blocks_are_read_through_functions_but_not_through_fitted_lenses(lm64, lenses):
    functions = {name: lenses[name] for name in ("logit lens", "shifted")}
    result = read_side_by_side(lm64, functions, PROMPT, points="mlp")
    assert result.layers == (1, 2, 3, 4)
    assert {t.points for t in result.trajectories} == {"mlp"}
    with pytest.raises(ls.LenscopeError, match="has no map for those"):
        read_side_by_side(lm64, lenses, PROMPT, points="mlp")


def test_layers_are_by_default_those_that_every_lens_has(lm64, lenses):
    few = affine_lens.affine(lm64)
    some = {pair: w for pair, w in few.weights.items() if pair[0] in (1, 3)}
    both = {"few": type(few)(some, few.source, few.target), "tuned": lenses["tuned"]}
    result = read_side_by_side(lm64, both, PROMPT)
    assert result.layers == (1, 3, 4)
    with pytest.raises(ls.LenscopeError, match="layer 2: few has maps for the layers 1, 3"):
        read_side_by_side(lm64, both, PROMPT, [2, 3])


def test_mistakes_are_told(lm64, lenses):
    other = ls.LM(tiny.model("gpt2", seed=3), tiny.tokenizer(), "other")
    for wrong in ({"a": None}, {}, [None, None]):
        with pytest.raises(ls.LenscopeError, match="at least two by name"):
            read_side_by_side(lm64, wrong, PROMPT)
    with pytest.raises(ls.LenscopeError, match="two of them have the same name"):
        read_side_by_side(lm64, {"logit lens": None, "": None}, PROMPT)
    with pytest.raises(ls.LenscopeError, match="fitted from"):
        read_side_by_side(other, {"logit lens": None, "tuned": lenses["tuned"]}, [1, 2])
