"""Knocked-out attention equals masks on the blocks of a tiny float64 Llama."""

import numpy as np
import pytest
import tiny
import torch
from cells_by_hand import PROMPT, TWO, answered, run_by_hand, tokens

import lenscope as ls
from lenscope.interventions.attention_knockout import attention_knockout
from lenscope.interventions.causal_tracing import causal_tracing


@pytest.mark.parametrize(
    ("window", "keys", "queries", "answer"),
    [(1, "cat", -1, "o"), (3, "cat sat", -1, TWO), (2, [0, 3], [3, 5], "o"), (4, None, -1, "o"), (1, [-1], -1, "o")],
)
def test_knocked_out_attention_is_a_mask_on_each_block(lm64, raw, window, keys, queries, answer):
    [(run, found, totals)] = attention_knockout(lm64, PROMPT, keys, answer, queries=queries, window=window)
    ids, wanted = tokens(lm64, PROMPT, answer)
    text, n = [*ids, *wanted[:-1]], lm64.n_layers
    base = answered(run_by_hand(lm64, text)[0], wanted)
    assert totals["clean_log_prob"] == pytest.approx(base, abs=1e-9)
    asking = [len(ids) - 1, *range(len(ids), len(text))] if queries == -1 else queries
    for layer in range(1, n + 1):
        around = range(max(1, layer - window // 2), min(n, layer + (window + 1) // 2 - 1) + 1)
        for column, place in enumerate(run.places):
            barred = [(b, q, k) for b in around for q in asking for k in place if k <= q]
            lp = answered(run_by_hand(lm64, text, barred=barred)[0], wanted)
            assert found["log_prob"][layer - 1, column] == pytest.approx(lp, abs=1e-9)
            assert found["effect"][layer - 1, column] == pytest.approx(np.exp(lp) - np.exp(base), abs=1e-9)
    assert np.abs(found["log_effect"]).max() > 1e-4


def test_knockout_windows_are_a_fifth_of_the_blocks(lm64):
    assert attention_knockout(lm64, PROMPT, "cat").provenance["window"] == 1

    class Deep:
        n_layers = 48

    found = [max(1, n // 5 - (n // 5 + 1) % 2) for n in (4, 12, 30, Deep.n_layers)]
    assert found == [1, 1, 5, 9]


def test_models_without_a_maskable_attention_say_so():
    lm = ls.LM(tiny.model("mamba", dtype=torch.float64), tiny.tokenizer(), "tiny-mamba")
    with pytest.raises(ls.LenscopeError, match="attention knockout and masked placeholders are not supported"):
        attention_knockout(lm, PROMPT, "cat")
    assert len(causal_tracing(lm, PROMPT, "cat", samples=1, layers=[1], positions=[-1])) == 1
