"""Comparisons: distances equal their definitions, of two prompts and of two lenses."""

import io
import json

import numpy as np
import pytest
import tiny
import torch
from rich.console import Console

import lenscope as ls
from lenscope.measures import definitions as measures

PROMPT = "The capital of France is"


@pytest.mark.parametrize("architecture", ["llama", "gemma3n_text"])
def test_comparison_equals_the_definitions(architecture):
    lm = ls.LM(tiny.model(architecture, dtype=torch.float64), None, architecture)
    a, b = (tiny.ids(lm.model, 1, n, seed=n)[0].tolist() for n in (6, 8))
    c = ls.Lens(lm).compare(a, b)
    log_p = lm.unembed(lm.read(a)[:, :]).log_softmax(-1)
    log_q = lm.unembed(lm.read(b)[:, 2:]).log_softmax(-1)
    assert c.positions == tuple((n, n + 2) for n in range(6))
    assert np.allclose(c.js, measures.js(log_p, log_q), atol=1e-6)
    assert np.allclose(c.total_variation, measures.total_variation(log_p, log_q), atol=1e-6)
    assert np.allclose(c.kl, measures.kl(log_p, log_q), atol=1e-5)
    assert np.allclose(c.kl_back, measures.kl(log_q, log_p), atol=1e-5)
    assert np.array_equal(c.same_top, (log_p.argmax(-1) == log_q.argmax(-1)).numpy())
    same = ls.Lens(lm).compare(a, a)
    assert (same.js < 1e-12).all()
    assert same.same_top.all()


def test_two_lenses_on_one_prompt_compare(lm64):
    shifted = ls.Lens(lm64, lambda h, layer: h + 1.0, name="shifted")
    c = ls.Lens(lm64).compare(PROMPT, PROMPT, layers=[2], lens=shifted)
    assert c.lenses == ("logit lens", "shifted")
    assert (c.js > 0).all()


def render(table, width):
    out = io.StringIO()
    Console(width=width, file=out).print(table)
    return out.getvalue()


def test_comparisons_are_data_and_tables(lm):
    c = ls.Lens(lm).compare(PROMPT, "The capital of Italy is")
    json.dumps(c.to_json(), allow_nan=False)
    assert "above: first" in " ".join(render(c.table(width=100), 100).split())
    with pytest.raises(ls.LenscopeError, match=r"lens: is a LM; give a Lens, such as Lens\(lm\)"):
        ls.Lens(lm).compare("a", "b", lens=lm)
    with pytest.raises(ls.LenscopeError, match="there are js, total_variation"):
        c.table("entropy")
