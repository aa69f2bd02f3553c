"""Patched cells equal hooks on a tiny float64 Llama."""

import itertools

import numpy as np
import pytest
import torch
from cells_by_hand import PROMPT, TWO, answered, run_by_hand

import lenscope as ls
from lenscope.interventions.activation_patching import activation_patching


@pytest.mark.parametrize(("window", "answer", "alternative"), [(1, "o", "e"), (2, TWO, "e"), (4, "o", TWO)])
def test_patched_cells_are_hooks_on_the_model(lm64, raw, window, answer, alternative):
    clean, wrong = list(lm64.prompt(PROMPT).ids), list(lm64.prompt(PROMPT).ids)
    wrong[2], wrong[5] = wrong[5], wrong[2]
    n = lm64.n_layers
    [(run, found, totals)] = activation_patching(lm64, clean, wrong, answer, alternative, window=window)
    states = run_by_hand(lm64, clean)[1]
    wanted, rival = lm64.encoder.ids(answer), lm64.encoder.ids(alternative)

    def both(ids, puts=()):
        return [answered(run_by_hand(lm64, [*ids, *a[:-1]], puts)[0], a) for a in (wanted, rival)]

    full, none = both(clean), both(wrong)
    assert totals["clean_difference"] == pytest.approx(full[0] - full[1], abs=1e-9)
    assert (run.answer, run.alternative) == (answer, alternative)
    for layer, p in itertools.product(range(n + 1), range(len(clean))):
        around = range(max(0, layer - window // 2), min(n, layer + (window + 1) // 2 - 1) + 1)
        a, b = both(wrong, [(at, p, states[at, p]) for at in around])
        assert found["log_prob"][layer, p] == pytest.approx(a, abs=1e-9)
        assert found["log_effect"][layer, p] == pytest.approx(a - none[0], abs=1e-9)
        assert found["effect"][layer, p] == pytest.approx(np.exp(a) - np.exp(none[0]), abs=1e-9)
        assert found["difference"][layer, p] == pytest.approx(a - b, abs=1e-9)
        part = ((a - b) - (none[0] - none[1])) / ((full[0] - full[1]) - (none[0] - none[1]))
        assert found["recovered"][layer, p] == pytest.approx(part, abs=1e-7)


def test_the_difference_of_single_tokens_is_that_of_their_logits(lm64, raw):
    [(_, found, _)] = activation_patching(lm64, PROMPT, PROMPT, "o", "e", layers=[2], positions=-1)
    a, b = lm64.encoder.ids("o")[0], lm64.encoder.ids("e")[0]
    z = lm64.model(input_ids=torch.tensor([list(lm64.prompt(PROMPT).ids)])).logits[0, -1]
    assert found["difference"][0, 0] == pytest.approx((z[a] - z[b]).item(), abs=1e-9)


def test_equal_runs_recover_nothing_that_is_defined(lm64):
    found = activation_patching(lm64, PROMPT, PROMPT)
    assert np.isnan(found.measures["recovered"]).all()
    assert np.abs(found.measures["log_effect"]).max() < 1e-6
    base = lm64.unembed(lm64.read(PROMPT)[lm64.n_layers, -1])
    assert found.runs[0].answer == lm64.encoder.tokens([int(base.argmax())])[0]


def test_prompts_of_unequal_length_are_patched_at_pairs(lm64, raw):
    short = PROMPT[:-4]
    assert len(lm64.prompt(short)) != len(lm64.prompt(PROMPT))
    with pytest.raises(ls.LenscopeError, match=r"has \d+ tokens, the corrupted one \d+: give positions as pairs"):
        activation_patching(lm64, PROMPT, short)
    [(run, found, _)] = activation_patching(lm64, PROMPT, short, "o", layers=[1], positions=[("cat", 0), (-1, -2)])
    states, wanted = run_by_hand(lm64, lm64.prompt(PROMPT).ids)[1], lm64.encoder.ids("o")
    ids = lm64.prompt(short).ids
    assert run.places == ((0,), (len(ids) - 2,))
    cat = lm64.prompt(PROMPT).position("cat")
    for column, (a, b) in enumerate([(cat, 0), (-1, len(ids) - 2)]):
        log_p = run_by_hand(lm64, ids, [(1, b, states[1, a])])[0]
        assert found["log_prob"][0, column] == pytest.approx(answered(log_p, wanted), abs=1e-9)
