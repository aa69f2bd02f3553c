"""Training with checkpoints: steps by a computation of their own, interruptions, folders, blank models."""

from dataclasses import replace
from itertools import pairwise

import pytest
import tiny
import torch
from small_training import PLAN, TEXTS, small, weights

import lenscope as ls
from lenscope.fitting.optimizers import orthogonal
from lenscope.fitting.pretraining import Checkpoints, Plan, pretrain


def test_checkpoints_are_dense_at_first_then_even():
    assert Plan(steps=50, every=20).checkpoints == (0, 1, 2, 4, 8, 16, 20, 40, 50)
    assert Plan(steps=40, every=20).checkpoints == (0, 1, 2, 4, 8, 16, 20, 40)
    assert Plan(steps=3, every=20).checkpoints == (0, 1, 2, 3)
    assert Plan(steps=4, every=1).checkpoints == (0, 1, 2, 3, 4)
    with pytest.raises(ls.LenscopeError, match="positive"):
        Plan(steps=0)


def test_the_rate_rises_and_falls_to_a_tenth():
    plan = Plan(steps=100, warmup=10)
    sizes = [plan.decay(n) for n in range(101)]
    assert sizes[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert sizes[10] == pytest.approx(1)
    assert sizes[55] == pytest.approx(0.55)
    assert sizes[100] == pytest.approx(0.1)


def test_steps_are_those_of_muon_and_adam(lm64, tmp_path):
    """Against torch's clipping, Nesterov momentum and AdamW."""
    plan = replace(PLAN, steps=3, every=3)
    corpus = ls.Corpus.open(lm64, TEXTS, length=16)
    made = pretrain(corpus, plan, tmp_path).load(3)
    model = tiny.model("llama", dtype=torch.float64)
    named = dict(model.named_parameters())
    rest = {n: p for n, p in named.items() if "embed" in n or "lm_head" in n or "norm" in n}
    assert len(rest) == 3 + 2 * 4
    matrices = {n: p for n, p in named.items() if n not in rest}
    adam = torch.optim.AdamW(rest.values(), betas=(0.9, 0.95), weight_decay=0.0)
    buffers = dict.fromkeys(matrices, 0.0)
    for step, batch in enumerate(corpus.batches(3 * 2 * 16, 2)):
        model.zero_grad()
        # transformers' own loss is in float32
        log_p = model(input_ids=batch.ids).logits[:, :-1].log_softmax(-1)
        (-log_p.gather(-1, batch.ids[:, 1:, None]).mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        size = 0.01 * [0.5, 1.0, 1.0][step]
        adam.param_groups[0]["lr"] = size / 4
        adam.step()
        with torch.no_grad():
            for name, p in matrices.items():
                buffers[name] = 0.95 * buffers[name] + p.grad
                turned = orthogonal(p.grad + 0.95 * buffers[name])
                p -= size * max(1, p.shape[0] / p.shape[1]) ** 0.5 * turned
    for name, p in made.model.named_parameters():
        assert torch.allclose(p, named[name], rtol=0, atol=1e-9), name
    assert weights(lm64)["lm_head.weight"].equal(weights_of("llama")["lm_head.weight"])


def weights_of(kind):
    return dict(tiny.model(kind, dtype=torch.float64).named_parameters())


def test_a_killed_training_goes_on_bit_for_bit(tmp_path):
    corpus = ls.Corpus.open(small(), TEXTS, epochs=9)
    whole = pretrain(corpus, PLAN, tmp_path / "whole")
    assert whole.steps == PLAN.checkpoints == (0, 1, 2, 3, 6, 7)
    for killed in (2, 5):  # before and after a state was saved

        def stop(done, total, killed=killed):
            assert total == 7 * 2 * 32
            if done == killed * 2 * 32:
                raise KeyboardInterrupt

        folder = tmp_path / str(killed)
        with pytest.raises(KeyboardInterrupt):
            pretrain(corpus, PLAN, folder, progress=stop)
        seen = []
        again = pretrain(corpus, PLAN, folder, progress=lambda done, _, seen=seen: seen.append(done // 64))
        assert seen[0] == (1 if killed == 2 else 4)
        for step in whole.steps:
            one, other = weights(whole.load(step)), weights(again.load(step))
            assert all(one[name].equal(other[name]) for name in one)
        assert not (folder / "state").exists()
    moved = [weights(whole.load(step))["lm_head.weight"] for step in whole.steps]
    assert all(not a.equal(b) for a, b in pairwise(moved))
    seen = []
    assert pretrain(corpus, PLAN, tmp_path / "whole", progress=lambda *at: seen.append(at)) == whole
    assert not seen


def test_a_folder_is_of_one_training(tmp_path):
    corpus = ls.Corpus.open(small(), TEXTS, epochs=9)
    pretrain(corpus, replace(PLAN, steps=1), tmp_path / "a")
    with pytest.raises(ls.LenscopeError, match="of another plan"):
        pretrain(corpus, replace(PLAN, steps=2), tmp_path / "a")
    with pytest.raises(ls.LenscopeError, match="of another model"):
        pretrain(replace(corpus, lm=small(seed=1)), replace(PLAN, steps=1), tmp_path / "a")
    (tmp_path / "b" / "step-5").mkdir(parents=True)
    with pytest.raises(ls.LenscopeError, match="checkpoints of another training"):
        pretrain(corpus, PLAN, tmp_path / "b")


def test_checkpoints_are_found_by_their_names(tmp_path):
    for name in ("step-000003", "step20", "checkpoint-100", "steps-7", "other"):
        (tmp_path / name).mkdir()
    found = Checkpoints.in_folder(tmp_path)
    assert found.steps == (3, 20, 100)
    assert found.path(20).name == "step20"
    with pytest.raises(ls.LenscopeError, match="3, 20, 100"):
        found.path(7)
    assert Checkpoints.in_folder(tmp_path / "none").steps == ()


def test_a_blank_model_reads_its_own_vocabulary():
    lm = small()
    assert (lm.n_layers, lm.hidden_size, lm.vocab_size, lm.context) == (2, 32, 300, 32)
    ids = lm.tokenizer("Ada went to the market: é 漢!")["input_ids"]
    assert lm.tokenizer.decode(ids) == "Ada went to the market: é 漢!"
    assert len(lm.tokenizer(" market")["input_ids"]) < 7
    one, same, other = weights(lm), weights(small()), weights(small(seed=1))
    assert all(one[n].equal(same[n]) for n in one)
    assert not one["lm_head.weight"].equal(other["lm_head.weight"])
    with pytest.raises(ls.LenscopeError, match="a multiple"):
        small(hidden_size=40)
