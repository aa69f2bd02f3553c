"""Training with checkpoints, and depths against iterations learned: each against a computation of its own."""

import json
from dataclasses import replace
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from scipy.stats import rankdata, spearmanr
from torch.nn import functional
from transformers import AutoModelForCausalLM

import lenscope as ls
from lenscope.experiments.setting import Setting
from lenscope.experiments.tuned_lens_paper import difficulty
from lenscope.experiments.tuned_lens_paper import difficulty_examples as tokens
from lenscope.fitting import pretraining
from lenscope.fitting.optimizers import orthogonal
from lenscope.fitting.pretraining import Checkpoints, Plan, blank, pretrain
from lenscope.statistics import rank_correlations as association
from lenscope.text.corpus import TokenBatch

NAMES = ["Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal", "Ida", "Jo"]
TEXTS = [
    f"{a} went to the market with {b}, and {b} gave {a} {n * 7} apples. That was on day {n} of the {m}th week. " * 3
    for n, (a, b, m) in enumerate((a, b, m) for a in NAMES for b in NAMES[:3] for m in (2, 5))
]
PLAN = Plan(steps=7, rows=2, every=3, warmup=2, rate=0.01)


def small(**sizes):
    return blank(TEXTS, **{"vocabulary": 300, "layers": 2, "hidden_size": 32, "context": 32, **sizes})


def weights(lm):
    return {name: p.detach().clone() for name, p in lm.model.named_parameters()}


# -- training


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


# -- examples


def test_kinds_of_tokens():
    kinds = {
        ("x", " the"): "function words",
        ("x", "The"): "word continuations",
        ("\n", "The"): "function words",
        ("x", " theory"): "word starts",
        (" the", "ory"): "word continuations",
        ("-", "ory"): "word starts",
        (" in", " 12"): "numbers",
        ("a", ","): "punctuation and other",
        ("a", "<F0>"): "punctuation and other",
        (".", "\n\n"): "white space",
    }
    assert {pair: tokens.token_kind(*pair) for pair in kinds} == kinds


def test_examples_are_within_documents():
    held = ls.Corpus.open(small(), TEXTS[:20])
    found = tokens.next_token_examples(held, 256)
    every = [
        row
        for b in held.batches(None)
        for row in zip(*(t.tolist() for t in (b.ids, b.document, b.counted)), strict=True)
    ]
    assert len(every) > 16
    wanted = []
    for ids, document, counted in (every[k * len(every) // 8] for k in range(8)):
        for at in range(31):
            if counted[at] and counted[at + 1] and document[at] == document[at + 1]:
                wanted.append((ids[at], ids[at + 1], document[at]))
    assert list(zip(found.before.tolist(), found.target.tolist(), found.document.tolist(), strict=True)) == wanted
    assert [(ids[p], ids[p + 1]) for ids, at in found.rows for p in at] == [w[:2] for w in wanted]
    assert len({w[2] for w in wanted}) > 1
    with pytest.raises(ls.LenscopeError):
        tokens.next_token_examples(ls.Corpus.open(small(), ["a"]), 256)


def test_no_example_predicts_a_mark_or_another_document():
    """Where documents end with a mark of their own, or where nothing stands between them."""
    ids = torch.arange(10, 18)[None]
    document = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1]])
    counted = torch.tensor([[0, 1, 1, 0, 1, 1, 1, 1]], dtype=torch.bool)
    zero = torch.zeros(1, 8)
    batch = TokenBatch(torch.tensor([0]), ids, document, zero.bool(), counted, None, 1, None)
    held = SimpleNamespace(lm=small(), length=8, name="made up", batches=lambda tokens: iter([batch]))
    assert tokens.next_token_examples(held, 8).rows == [(ids[0].tolist(), [1, 5, 6])]


def test_baselines_count_tokens_and_pairs():
    text = ls.Corpus.open(small(), TEXTS[:6])
    known = tokens.count_tokens(text, 10_000)
    rows = [row for batch in text.batches(None) for row in batch.ids.tolist()]
    flat = [i for row in rows for i in row]
    pairs = [p for row in rows for p in pairwise(row)]
    a, b = pairs[5]
    new, other = [i for i in range(300) if i not in flat][:2]
    before, target = np.array([a, other]), np.array([b, new])
    p = [(flat.count(t) + 1) / (len(flat) + 300) for t in (b, new)]
    mixed = [
        -np.log((pairs.count((a, b)) + k * p[0]) / (flat.count(a) + k)) - np.log(k * p[1] / k) for k in (10, 100, 1000)
    ]
    single, double = tokens.counting_surprisals(known, before, target)
    assert single == pytest.approx(-np.log(p).mean(), abs=1e-12)
    assert double == pytest.approx(min(mixed) / 2, abs=1e-12)


# -- correlations


@pytest.fixture
def drawn():
    random = np.random.default_rng(0)
    n = 80
    z = random.normal(size=n)
    group = random.integers(0, 4, n)
    x = np.round(z + group + random.normal(size=n)).astype(int)
    y = np.round(2 * (z - group) + random.normal(size=n)).astype(int)
    return x, y, z, group, random.integers(0, 12, n)


def by_regression(x, y, given, group):
    """Ranks, what regression on groups and on ranks of the rest leaves of them, and the correlation of that."""
    design = np.stack([*(group == g for g in set(group.tolist())), *map(rankdata, given)], 1).astype(float)
    left = [r - design @ np.linalg.lstsq(design, r, rcond=None)[0] for r in (rankdata(x), rankdata(y))]
    return np.corrcoef(*left)[0, 1]


def test_rank_correlation_is_spearmans(drawn):
    x, y, z, group, _ = drawn
    one, none = np.ones(80), np.zeros(80, dtype=int)
    level = association.levels
    assert association.weighted_rank_correlation([level(x), level(y)], none, one) == pytest.approx(
        spearmanr(x, y).statistic, abs=1e-12
    )
    given = association.weighted_rank_correlation([level(v) for v in (x, y, z)], group, one)
    assert given == pytest.approx(by_regression(x, y, [z], group), abs=1e-10)
    assert abs(given - spearmanr(x, y).statistic) > 0.05
    weight = np.random.default_rng(1).integers(0, 4, 80)
    again = np.repeat(np.arange(80), weight)
    weighed = association.weighted_rank_correlation([level(v) for v in (x, y, z)], group, weight.astype(float))
    assert weighed == pytest.approx(by_regression(x[again], y[again], [z[again]], group[again]), abs=1e-10)
    assert np.isnan(association.weighted_rank_correlation([level(x), none], none, one))
    assert np.isnan(association.weighted_rank_correlation([level(x), level(y), level(x)], none, one))


def test_documents_are_resampled(drawn):
    x, y, z, _, document = drawn
    first, second, apart = association.correlations(y, [x, z], document, resamples=60, seed=3)
    random = np.random.default_rng(3).multinomial(12, np.full(12, 1 / 12), 60)
    members = [np.flatnonzero(document == d) for d in range(12)]
    made = []
    for times in random:
        rows = np.concatenate([m for m, t in zip(members, times, strict=True) for _ in range(t)])
        made.append([spearmanr(v[rows], y[rows]).statistic for v in (x, z)])
    made = np.array(made)
    from lenscope.statistics.intervals import percentiles

    for got, values in ((first, made[:, 0]), (second, made[:, 1]), (apart, made[:, 0] - made[:, 1])):
        assert got[1:] == pytest.approx(percentiles(values, 12), abs=1e-12)
    assert first.value == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert apart.value == pytest.approx(first.value - second.value, abs=1e-12)


def test_shuffling_stays_within_groups(drawn):
    x, _, _, group, _ = drawn
    made = association.shuffled_within(x, group, 0)
    assert not np.array_equal(made, x)
    for g in range(4):
        assert sorted(made[group == g]) == sorted(x[group == g])
        assert not np.array_equal(made[group == g], x[group == g])


# -- the experiment


def learned_by_hand(tops):
    return [next(k for k in range(len(c)) if len({*c[k:]}) == 1) for c in np.array(tops).T.tolist()]


def test_the_experiment_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(difficulty, "PLANS", {"quick": replace(PLAN, steps=14, rows=4, rate=0.03), "full": PLAN})
    monkeypatch.setattr(difficulty, "MEASURED", {"quick": 512, "full": 512})
    monkeypatch.setattr(difficulty, "FITTED", {"quick": 1024, "full": 1024})
    monkeypatch.setattr(difficulty, "TASK", 20)
    monkeypatch.setattr(difficulty, "correlations", partial(association.correlations, resamples=30))
    monkeypatch.setattr(difficulty, "blank", partial(blank, vocabulary=300, layers=3, hidden_size=32, context=32))
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": t}) for t in TEXTS))
    setting = Setting(
        ls.LM(tiny.model("llama"), tiny.tokenizer(), "tiny"), text=(str(path),), quick=True, folder=tmp_path
    )
    report = difficulty.EXPERIMENT.run(setting)
    report.save(tmp_path)
    made = Checkpoints.in_folder(tmp_path / "pretrained")
    assert list(made.steps) == report.settings["checkpoints"]

    # the same from plain transformers models and loops
    lm = made.load(made.steps[-1])
    held = ls.Corpus.open(lm, [path], epochs=1).split(0.1)[1]
    found = tokens.next_token_examples(held, 512)
    ids = torch.tensor([row for row, _ in found.rows])
    at = torch.zeros_like(ids, dtype=torch.bool)
    for row, (_, places) in zip(at, found.rows, strict=True):
        row[places] = True
    tops = []
    for step in made.steps:
        model = AutoModelForCausalLM.from_pretrained(made.path(step)).eval()
        with torch.no_grad():
            tops.append(model(input_ids=ids).logits.argmax(-1)[at].tolist())
    with torch.no_grad():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
        layers = [model.lm_head(model.model.norm(h))[at].argmax(-1).tolist() for h in states[:-1]]
        log_p = model(input_ids=ids).logits[at].log_softmax(-1)
        loss = functional.nll_loss(log_p, torch.from_numpy(found.target)).item()
        first = log_p.topk(2).values
    depth, learned = learned_by_hand([*layers, tops[-1]]), learned_by_hand(tops)
    row = report.tables["Spearman of depth and iteration learned"][0]
    assert row["task"] == "all"
    assert row["examples"] == len(learned)
    assert row["logit lens"].value == pytest.approx(spearmanr(depth, learned).statistic, abs=1e-9)
    right = np.array(tops[-1]) == found.target
    assert row["right"].value == pytest.approx(right.mean())
    controls = {r["control"]: r for r in report.tables["controls"]}
    goes = {r["of all examples"]: r["Spearman"].value for r in report.tables["what goes with iteration learned"]}
    for name, values in (
        ("entropy of the last prediction", -(log_p.exp() * log_p).sum(-1)),
        ("closeness of its first two tokens", first[:, 1] - first[:, 0]),
    ):
        assert goes[name] == pytest.approx(spearmanr(learned, values.numpy()).statistic, abs=2e-3)
    only = controls["right in the end and from then on"]["logit lens"].value
    assert only == pytest.approx(spearmanr(np.array(depth)[right], np.array(learned)[right]).statistic, abs=1e-9)
    assert report.tables["surprisal of held-out text in nats"][-1]["nats"] == pytest.approx(loss, abs=1e-5)
    assert row["tuned - logit"].value == pytest.approx(row["tuned lens"].value - row["logit lens"].value)
    assert "eplicate" in report.reading

    # finished trainings are not repeated, and checkpoints of one's own give the same
    monkeypatch.setattr(pretraining.PretrainingRun, "advance", lambda *_: pytest.fail("trained again"))
    assert difficulty.EXPERIMENT.run(setting).tables == report.tables
    (fitted,) = tmp_path.glob("lens-*")
    own = Setting(lm, text=(str(path),), lens=ls.load_lens(fitted, lm), quick=True)
    assert difficulty.EXPERIMENT.run(own).tables == report.tables
    with pytest.raises(ls.LenscopeError, match="give text"):
        difficulty.EXPERIMENT.run(Setting(lm))
