"""Fine-tunes learn their text by AdamW's steps and leave the original alone."""

from itertools import pairwise

import numpy as np
import pytest
import tiny
import torch
from covariances_by_hand import sentences

import lenscope as ls
from lenscope.errors import LenscopeError
from lenscope.fitting.fine_tuning import fine_tune, next_token_loss, weights_of, with_weights


def loss(lm, batches):
    with torch.no_grad():
        return float(np.mean([next_token_loss(lm.model, b) for b in batches]))


def test_a_fine_tune_learns_its_text_and_leaves_the_original_alone():
    lm = ls.LM(tiny.model("llama"), tiny.tokenizer(), "tiny")
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    text = ls.Corpus.open(lm, sentences(40, seed=3), length=32)
    seen, test = text.split(0.2)
    held = list(test.batches(256, 2))
    steps: list[tuple[int, int]] = []
    after = fine_tune(lm, seen.batches(32 * 2 * 30, 2), lr=3e-3, progress=lambda *done: steps.append(done))
    assert loss(after, held) < loss(lm, held) - 1
    assert steps == [(n, 30) for n in range(1, 31)]
    for name, p in lm.model.named_parameters():
        assert torch.equal(p, before[name])
        assert p.grad is None
    assert all(p.grad is None for p in after.model.parameters())
    assert all(not torch.equal(p, before[name]) for name, p in after.model.named_parameters() if p.ndim == 2)
    assert after.name == "tiny fine-tuned"
    assert not after.model.training
    own = {p.data_ptr() for p in lm.model.parameters()}
    assert own.isdisjoint(p.data_ptr() for p in after.model.parameters())


def test_a_step_is_that_of_adamw():
    """Two steps by hand: the rates of warm-up and decay, cut gradients, only positions that count."""
    lm = ls.LM(tiny.model("llama", torch.float64), tiny.tokenizer(), "tiny")
    batches = list(ls.Corpus.open(lm, sentences(4), length=16).batches(64, 2))
    after = fine_tune(lm, batches, lr=1e-2)
    model = tiny.model("llama", torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    for batch, rate in zip(batches, (1e-2, 0.5e-2), strict=True):
        optimizer.param_groups[0]["lr"] = rate
        logits = model(batch.ids).logits.log_softmax(-1)
        nats = [-logits[b, t, batch.ids[b, t + 1]] for b in range(2) for t in range(15) if batch.counted[b, t]]
        total = torch.stack(nats).mean()
        assert float(next_token_loss(model, batch).detach()) == pytest.approx(float(total.detach()), abs=1e-12)
        optimizer.zero_grad()
        total.backward()
        size = torch.sqrt(sum((p.grad**2).sum() for p in model.parameters()))
        for p in model.parameters():
            p.grad *= torch.clamp(1 / (size + 1e-6), max=1)
        optimizer.step()
    for p, expected in zip(after.model.parameters(), model.parameters(), strict=True):
        assert (p - expected).abs().max() < 1e-9


def test_the_rate_rises_and_falls(monkeypatch, lm):
    rates: list[float] = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self, *a: (rates.append(self.param_groups[0]["lr"]), step(self, *a))[1]
    )
    fine_tune(lm, ls.Corpus.open(lm, sentences(12), length=16).batches(16 * 20, 1), lr=1.0e-3)
    assert len(rates) == 20
    assert rates[:2] == pytest.approx([0.5e-3, 1e-3])
    assert all(a > b for a, b in pairwise(rates[1:]))
    assert rates[-1] == pytest.approx(1e-3 / 19)


def test_weights_make_the_same_model_again(lm):
    batches = list(ls.Corpus.open(lm, sentences(4), length=16).batches(64, 2))
    after = fine_tune(lm, batches)
    again = with_weights(lm, weights_of(after))
    for a, b in zip(after.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(after.read("the cat").tensor, again.read("the cat").tensor)
    with pytest.raises(LenscopeError, match="names or shapes"):
        with_weights(lm, {**weights_of(after), "more": torch.zeros(1)})


def test_shared_weights_stay_shared():
    model = tiny.model("gemma2", torch.bfloat16)
    lm = ls.LM(model, tiny.tokenizer(), "tied")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    after = fine_tune(lm, ls.Corpus.open(lm, sentences(4), length=16).batches(32, 2))
    assert after.model.lm_head.weight is after.model.model.embed_tokens.weight
    assert after.dtype == torch.float32
    assert lm.dtype == torch.bfloat16
    assert sum(w.numel() for w in weights_of(after).values()) == sum(p.numel() for p in model.parameters())


def test_fine_tunes_that_cannot_be(lm):
    batches = list(ls.Corpus.open(lm, sentences(4), length=16).batches(64, 2))
    for some, rate in (([], 1e-4), (batches, 0), (batches, float("nan"))):
        with pytest.raises(LenscopeError, match="give a rate above 0 and at least one batch"):
            fine_tune(lm, some, lr=rate)
    with pytest.raises(LenscopeError, match=r"give a smaller lr|NaN or infinity"):
        fine_tune(lm, batches * 3, lr=1e30)
