"""Covariances equal numpy's on stored states, fine-tunes leave the original alone, the experiment's numbers by hand."""

from itertools import pairwise
from math import log

import numpy as np
import pytest
import tiny
import torch
from affine_lens import affine
from scipy import stats

import lenscope as ls
from lenscope.directions.covariances import (
    Covariances,
    covariance_similarity,
    covariances,
    largest_components,
    pool_covariances,
    trimmed,
)
from lenscope.errors import LenscopeError
from lenscope.experiments.setting import Setting
from lenscope.experiments.text_groups import by_document, rows_of
from lenscope.experiments.tuned_lens_paper import drift
from lenscope.experiments.tuned_lens_paper import drift_fine_tuned as transplant
from lenscope.fitting.fine_tuning import fine_tune, next_token_loss, weights_of, with_weights
from lenscope.statistics import rank_correlations
from lenscope.statistics.intervals import draws
from lenscope.statistics.rank_correlations import rank_correlation

WORDS = ["the", "cat", "sat", "mat", "France", "Paris", "capital", "test", "this", "is", "number", "zebra", "quick"]


def sentences(count=40, seed=0, words=120):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, words)) for _ in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("text")
    for n, text in enumerate(sentences(80)):
        (path / f"{n}.txt").write_text(text)
    return path


@pytest.fixture(scope="module")
def corpus(lm64):
    return ls.Corpus.open(lm64, sentences(12), length=32)


def stored(lm, batches):
    """By hooks on the transformers model: the states (P, L, D) of every position that counts and predicts a token."""
    found = []
    blocks = lm.model.model.layers
    for batch in batches:
        kept: list[torch.Tensor] = []
        hooks = [blocks[0].register_forward_pre_hook(lambda _, args, kept=kept: kept.append(args[0]))]
        hooks += [
            b.register_forward_hook(lambda _m, _a, out, kept=kept: kept.append(out if torch.is_tensor(out) else out[0]))
            for b in blocks
        ]
        with torch.no_grad():
            lm.model(batch.ids)
        for hook in hooks:
            hook.remove()
        counted = batch.counted.clone()
        counted[:, -1] = False
        found.append(torch.stack([h[counted] for h in kept], 1))
    return torch.cat(found).numpy()


def covariance(x):
    """By numpy, of states (P, L, D)."""
    return np.stack([np.cov(x[:, n].T, bias=True) for n in range(x.shape[1])])


def cosines(matrices):
    size = [np.linalg.norm(m) for m in matrices]
    return np.array([[np.trace(a.T @ b) / s / t for b, t in zip(matrices, size, strict=True)]
                     for a, s in zip(matrices, size, strict=True)])  # fmt: skip


def zeroed(m, top):
    """Without its largest eigencomponents, all of them computed."""
    values, vectors = np.linalg.eigh(m)
    values[len(values) - top :] = 0
    return vectors @ np.diag(values) @ vectors.T


def test_covariances_are_numpys_of_stored_states(lm64, corpus, monkeypatch):
    monkeypatch.setattr("lenscope.models.batches.TOKENS_PER_RUN", 8 * 70)
    batches = rows_of(corpus, 320)
    x = stored(lm64, batches)
    found = covariances(lm64, batches)
    assert found.layers == (0, 1, 2, 3, 4)
    assert found.count == len(x) < 320
    assert found.means.numpy() == pytest.approx(x.mean(0), abs=1e-10)
    assert found.matrices.numpy() == pytest.approx(covariance(x), abs=1e-10)
    some = covariances(lm64, batches, [3, 1])
    assert some.layers == (3, 1)
    assert torch.allclose(some.matrices, found.matrices[[3, 1]], atol=1e-12, rtol=0)


def test_covariances_of_texts(lm64):
    texts = sentences(3, words=12)
    x = np.concatenate([lm64.read(t)[:, 1:-1].transpose(0, 1).numpy() for t in texts])
    assert covariances(lm64, texts).matrices.numpy() == pytest.approx(covariance(x), abs=1e-10)


def test_large_means_cost_no_digits(lm64, corpus, monkeypatch):
    """States far from zero: a sum of squares would lose their variance."""
    batches = rows_of(corpus, 96)
    plain = covariances(lm64, batches, [2])
    with lm64.edit(*[ls.Edit(2, n, torch.full((lm64.hidden_size,), 1e7), op=torch.add) for n in range(32)]):
        moved = covariances(lm64, batches, [2])
    assert (moved.means - plain.means - 1e7).abs().max() < 1e-6
    assert moved.matrices.numpy() == pytest.approx(plain.matrices.numpy(), abs=1e-6)


def test_parts_pool_to_the_whole(lm64, corpus):
    batches = rows_of(corpus, 256)
    parts = [covariances(lm64, some) for some in by_document(batches, 3)]
    whole = covariances(lm64, batches)
    both = pool_covariances(parts)
    assert both.count == whole.count
    assert torch.allclose(both.matrices, whole.matrices, atol=1e-11, rtol=0)
    assert torch.allclose(both.means, whole.means, atol=1e-12, rtol=0)
    # a part twice and another not at all, as a resample takes them
    x = [stored(lm64, some) for some in by_document(batches, 3)]
    again = pool_covariances(parts, [2, 0, 1])
    assert again.matrices.numpy() == pytest.approx(covariance(np.concatenate([x[0], x[0], x[2]])), abs=1e-10)


def test_pooling_refuses_what_does_not_fit(lm64, corpus):
    some = covariances(lm64, rows_of(corpus, 32), [1])
    with pytest.raises(LenscopeError, match="not all 0"):
        pool_covariances([some, some], [0, 0])
    with pytest.raises(LenscopeError, match="give one of each"):
        pool_covariances([some], [1, 2])
    other = Covariances((2,), some.count, some.means, some.matrices)
    with pytest.raises(LenscopeError, match="different layers"):
        pool_covariances([some, other])
    with pytest.raises(LenscopeError, match=r"rows: \[5, 6\] has no position that counts"):
        covariances(lm64, [[5, 6]])
    with pytest.raises(LenscopeError, match="no prediction counts"):
        covariances(lm64, [])


@pytest.mark.parametrize("top", [0, 1, 2, 5])
def test_similarity_is_the_frobenius_cosine_of_what_eigh_leaves(top):
    random = np.random.default_rng(0)
    matrices = []
    for n in range(4):
        x = random.normal(size=(50, 12)) + n
        # dimensions that outweigh all others, in different places
        x[:, [n, 5]] *= [20, 100]
        matrices.append(np.cov(x.T))
    given = torch.tensor(np.stack(matrices))
    left = trimmed(given, top)
    expected = np.stack([zeroed(m, top) for m in matrices])
    assert left.numpy() == pytest.approx(expected, abs=1e-8)
    assert covariance_similarity(left) == pytest.approx(cosines(expected), abs=1e-10)
    values, vectors = largest_components(given, top)
    assert values.numpy() == pytest.approx(np.stack([np.linalg.eigvalsh(m)[::-1][:top] for m in matrices]), rel=1e-10)
    assert vectors.shape == (4, 12, top)


def test_ties_between_cells_stay_ties():
    """Ranks of cells would turn on rounding: a plain product of matrices is not symmetric to the last digit."""
    found = covariance_similarity(
        torch.randn(31, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )
    assert (found == found.T).all()
    assert (np.diagonal(found) == 1).all()


def test_one_shared_rogue_dimension_hides_all_differences():
    """Two layers that vary in nothing else alike: cosine 1 with the component, 0 without."""
    a, b = np.diag([1e4, 1.0, 1, 0, 0]), np.diag([1e4, 0, 0, 1.0, 1])
    given = torch.tensor(np.stack([a, b]))
    assert covariance_similarity(given)[0, 1] > 0.999
    assert abs(covariance_similarity(trimmed(given, 1))[0, 1]) < 1e-12


def test_more_components_than_there_are_are_refused():
    with pytest.raises(LenscopeError, match="top 4: covariances of size 3 have 0–3 components"):
        trimmed(torch.eye(3)[None].double(), 4)


# -- fine-tuning


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
    with pytest.raises(LenscopeError, match=r"take a smaller one|NaN or infinity"):
        fine_tune(lm, batches * 3, lr=1e30)


# -- the experiment


@pytest.fixture
def small(monkeypatch):
    for module in (transplant, drift):
        monkeypatch.setattr(module, "TEXT", {"quick": 640, "full": 640})
        monkeypatch.setattr(module, "EVERY", {"quick": 3, "full": 3})
    monkeypatch.setattr(transplant, "FITTED", {"quick": 512, "full": 512})
    monkeypatch.setattr("lenscope.experiments.setting.FITTED", {"quick": 512, "full": 512})
    monkeypatch.setattr(transplant, "STEPS", {"quick": 6, "full": 6})
    monkeypatch.setattr(transplant, "RATE", 3e-3)
    monkeypatch.setattr(drift, "RESAMPLES", {"quick": 12, "full": 12})
    monkeypatch.setattr(drift, "GROUPS", 3)
    monkeypatch.setattr(transplant, "GROUPS", 3)


def test_the_report_is_what_the_text_gives(lm, folder, small, tmp_path, monkeypatch):
    setting = Setting(lm, text=(str(folder),), data=(str(folder),), quick=True, lens=affine(lm), folder=tmp_path)
    report = drift.EXPERIMENT.run(setting)
    assert list(report.tables) == [
        "similarity by distance", "similarity by layer", "transfer penalty in bits per byte", "penalty and similarity",
        "fine-tune, own loss in bits per byte", "fine-tune, KL in bits per byte",
        "fine-tune, cross-entropy in bits per byte",
    ]  # fmt: skip
    rows = rows_of(ls.Corpus.open(lm, folder).split(0.1)[1], 640)
    # similarities, from stored states
    matrices = covariance(stored(lm, rows).astype(np.float64))
    without = np.stack([zeroed(m, 2) for m in matrices])
    whole, left = cosines(matrices), cosines(without)
    for row in report.tables["similarity by distance"]:
        for name, s in ((drift.WHOLE, whole), (drift.TRIMMED, left)):
            assert row[name].value == pytest.approx(np.median(np.diagonal(s, row["distance"])), abs=1e-5)
            assert row[name].low <= row[name].high
    share = 1 - np.trace(without[1]) / np.trace(matrices[1])
    row = report.tables["similarity by layer"][1]
    assert row["variance in the top 2"].value == pytest.approx(share, abs=1e-5)
    assert row[f"with the next, {drift.TRIMMED}"].value == pytest.approx(left[1, 2], abs=1e-5)
    # penalties, translator by translator
    nats, sizes = np.zeros((4, 4)), 0
    for batch in rows:
        at = [p for p in range(63) if batch.counted[0, p] and (p + int(batch.row)) % 3 == 0]
        states = lm.read(batch.ids[0].tolist())
        following = batch.ids[0, [p + 1 for p in at]]
        sizes += int(batch.bytes[0, [p + 1 for p in at]].sum())
        for i in range(4):
            a, b = setting.translators.weights[i, 4]
            for j in range(4):
                q = lm.unembed(states[j, at] @ a.T + b).double().log_softmax(-1)
                nats[i, j] -= float(q[range(len(at)), following].sum())
    penalty = (nats - np.diagonal(nats)) / sizes / log(2)
    for row in report.tables["transfer penalty in bits per byte"]:
        d = row["distance"]
        assert row[drift.EARLIER].value == pytest.approx(np.median(np.diagonal(penalty, d)), abs=1e-5)
        assert row[drift.LATER].value == pytest.approx(np.median(np.diagonal(penalty, -d)), abs=1e-5)
    by_name = {(r["similarity"], r["cells"]): r["Spearman"].value for r in report.tables["penalty and similarity"]}
    off = ~np.eye(4, dtype=bool)
    expected = stats.spearmanr(left[:4, :4].round(10)[off], penalty[off]).statistic
    assert by_name[drift.TRIMMED, "off the diagonal"] == pytest.approx(expected, abs=1e-9)
    expected = stats.spearmanr(whole[:4, :4].round(10).ravel(), penalty.ravel()).statistic
    assert by_name[drift.WHOLE, "all cells"] == pytest.approx(expected, abs=1e-9)
    # the fine-tune has learned its text
    losses = {row["text"]: row for row in report.tables["fine-tune, own loss in bits per byte"]}
    assert losses[transplant.LEARNED]["difference"].high < 0
    kl = report.tables["fine-tune, KL in bits per byte"]
    assert {row["text"] for row in kl} == {"base text", transplant.LEARNED}
    for row in kl:
        apart = row["transferred"].value - row["fitted anew"].value
        assert row["transferred - fitted anew"].value == pytest.approx(apart, abs=1e-9)
    report.save(tmp_path)
    # what was done is kept, but for the weights of the fine-tune
    kept = {p.name for p in (tmp_path / "cached").iterdir()}
    assert kept == {"similarity", "fine-tuning", *(f"transfer {n}" for n in range(len(by_document(rows, 3))))}
    for module, name in ((drift, "transfer"), (drift, "covariances"), (transplant, "fine_tune"), (transplant, "fit")):
        monkeypatch.setattr(module, name, pytest.fail)
    again = drift.EXPERIMENT.run(
        Setting(lm, text=setting.text, data=setting.data, quick=True, lens=affine(lm), folder=tmp_path)
    )
    assert repr(again.tables) == repr(report.tables)
    assert again.reading == report.reading


def test_an_interrupted_fine_tune_goes_on_with_the_same_weights(lm, folder, small, tmp_path, monkeypatch):
    given = {"text": (str(folder),), "data": (str(folder),), "quick": True, "lens": affine(lm), "folder": tmp_path}
    seen: list[dict[str, torch.Tensor]] = []
    fit = transplant.fit

    def stopped(after, *_, **__):
        seen.append({n: w.clone() for n, w in weights_of(after).items()})
        raise KeyboardInterrupt

    monkeypatch.setattr(transplant, "fit", stopped)
    with pytest.raises(KeyboardInterrupt):
        transplant.transplant(Setting(lm, **given))
    monkeypatch.setattr(transplant, "fine_tune", pytest.fail)

    def goes_on(after, *args, **named):
        seen.append(weights_of(after))
        return fit(after, *args, **named)

    monkeypatch.setattr(transplant, "fit", goes_on)
    changed = transplant.transplant(Setting(lm, **given))
    assert all(torch.equal(w, seen[1][n]) for n, w in seen[0].items())
    assert changed.layers == (0, 1, 2, 3)
    assert not (tmp_path / "cached" / "fine-tuned model").exists()


def test_lenses_of_a_fine_tune_are_what_evaluate_gives(lm, folder, small):
    setting = Setting(lm, text=(str(folder),), data=(str(folder),), quick=True, lens=affine(lm))
    changed = transplant.transplant(setting)
    from lenscope.experiments.text_groups import thinned

    rows = thinned(rows_of(setting.held_out, 640), 3)
    e = ls.evaluate(lm, rows, {"logit lens": None, "t": setting.lens})
    for row in changed.lenses("kl"):
        if row["text"] == "base text":
            expected = e.measure("kl")[1, row["layer"]] * e.tokens / e.bytes / log(2)
            assert row["on the model before"].value == pytest.approx(expected, rel=1e-6)
    assert changed.losses()[0]["before"].value == pytest.approx(e.own["bits_per_byte"][0], rel=1e-6)


def test_partial_correlations_are_those_of_residual_ranks():
    random = np.random.default_rng(0)
    z = random.normal(size=80)
    x, y = z + random.normal(size=80), z - random.normal(size=80)
    ranks = [stats.rankdata(v) for v in (x, y, z)]
    rest = [r - np.polyval(np.polyfit(ranks[2], r, 1), ranks[2]) for r in ranks[:2]]
    assert rank_correlations.partial_rank_correlation(x, y, z) == pytest.approx(np.corrcoef(*rest)[0, 1], abs=1e-12)
    assert np.isnan(rank_correlation(np.ones(4), np.arange(4.0)))


def made(near, far, penalty):
    """Drift of five layers with given similarities one and more layers apart."""
    taken = draws(4, 10, 0)
    apart = np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
    s = np.where(apart == 0, 1.0, np.where(apart == 1, near, far)) - apart / 1000
    stack = np.repeat(s[None], len(taken), 0)
    own = np.repeat(penalty(apart[:4, :4]).astype(float)[None], len(taken), 0)
    return drift.Drift((0, 1, 2, 3), stack**0.1, stack, np.full((len(taken), 5), 0.9), own, "bits per byte", 4)


def test_the_reading_follows_the_numbers():
    good = drift._reading(made(0.9, 0.5, lambda d: d), 4)
    assert good.startswith("Drift replicates:")
    assert "trimmed similarity replicates: Spearman -1 [-1, -1] over all cells" in good
    assert "median penalties grow from 1.000 and 1.000" in good
    bad = drift._reading(made(0.5, 0.9, lambda d: -d), 4)
    assert bad.startswith("Drift does not replicate:")
    assert "trimmed similarity does not replicate" in bad
    assert "do not grow with distance" in bad
