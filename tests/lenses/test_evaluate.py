"""Evaluations equal what full logits in float64 give, intervals cover, interruptions keep what was measured."""

from math import log, sqrt
from statistics import NormalDist

import numpy as np
import pytest
import tiny
import torch
from evaluated import affine, rows_of
from memory import Largest

import lenscope as ls
from lenscope.lenses import summed_measures
from lenscope.lenses.evaluate import EvaluationInterrupted, evaluate, transfer
from lenscope.lenses.evaluation_results import MEASURES
from lenscope.measures import streamed as reduction
from lenscope.text import predictions
from lenscope.text.corpus import TokenBatch


def plain(lm, rows, positions=None):
    """By hooks on the transformers model: states (L, P, D) of all layers, and the next tokens, row after row.

    At `positions` of each row, by default all that predict a token but position 0.
    """
    blocks, states, following = lm.model.model.layers, [], []
    for n, ids in enumerate(rows):
        kept = []
        hooks = [blocks[0].register_forward_pre_hook(lambda _, args, kept=kept: kept.append(args[0]))]
        hooks += [
            b.register_forward_hook(lambda _m, _a, out, kept=kept: kept.append(out if torch.is_tensor(out) else out[0]))
            for b in blocks
        ]
        with torch.no_grad():
            lm.model(torch.tensor([ids]))
        for hook in hooks:
            hook.remove()
        at = list(range(1, len(ids) - 1)) if positions is None else positions[n]
        states.append(torch.stack([h[0, at] for h in kept]))
        following += [ids[p + 1] for p in at]
    return torch.cat(states, 1), np.array(following)


def probabilities(lm, h):
    with torch.no_grad():
        return torch.softmax(lm.model.lm_head(lm.model.model.norm(h)), -1).numpy()


def by_hand(q, p, following):
    """Every measure but bits per byte, from probabilities (P, V) of a lens and of the model."""
    picked = q[np.arange(len(q)), following]
    confidence, right = q.max(1), q.argmax(1) == following
    calibration = 0.0
    for n in range(15):
        inside = (confidence >= n / 15) & (confidence < (n + 1) / 15 + (n == 14))
        if inside.any():
            calibration += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    mean_p, mean_q = p.mean(0), q.mean(0)
    return {
        "cross_entropy": -np.log(picked).mean(),
        "kl": (p * (np.log(p) - np.log(q))).sum(1).mean(),
        "agreement": (q.argmax(1) == p.argmax(1)).mean(),
        "entropy": -(q * np.log(q)).sum(1).mean(),
        "calibration": calibration,
        "bias": (mean_p * np.log(mean_p / mean_q)).sum(),
    }


@pytest.mark.parametrize(("piece", "kept", "tokens"), [(1 << 21, 1 << 28, 8192), (1, 20_000, 96), (1 << 13, 2000, 8)])
def test_measures_equal_full_logits(lm64, monkeypatch, piece, kept, tokens):
    monkeypatch.setattr(reduction, "PIECE_BYTES", piece)
    monkeypatch.setattr(reduction, "EXPONENTIALS_BYTES", kept)
    monkeypatch.setattr("lenscope.models.batches.TOKENS_PER_RUN", tokens)
    rows, tuned = rows_of(lm64), affine(lm64)
    drift = torch.linspace(-1, 1, lm64.hidden_size, dtype=torch.float64)
    lenses = {"logit": None, "tuned": tuned, "drift": lambda h, layer: h + (layer + 1) * drift}
    e = evaluate(lm64, rows, lenses)
    assert e.lenses == ("logit", "tuned", "drift")
    assert e.layers == tuple(range(lm64.n_layers))
    assert (e.baseline, e.rows, e.units, e.tokens) == ("logit", 4, 4, 21)
    h, following = plain(lm64, rows)
    p = probabilities(lm64, h[-1])
    for name, expected in by_hand(p, p, following).items():
        assert e.own[name][0] == pytest.approx(expected, abs=1e-9), name
    for layer in e.layers:
        a, b = (w.double() for w in tuned.weights[(layer, lm64.n_layers)])
        for i, mapped in enumerate((h[layer], h[layer] @ a.T + b, h[layer] + (layer + 1) * drift)):
            for name, expected in by_hand(probabilities(lm64, mapped), p, following).items():
                assert e.measure(name)[i, layer] == pytest.approx(expected, abs=1e-9), (name, i, layer)
    assert np.isnan(e.measure("bits_per_byte")).all()
    assert e.bytes is None


@pytest.mark.parametrize("architecture", ["gemma3n_text", "gemma2"])
def test_readouts_that_make_whole_rows_and_soft_caps(architecture):
    lm = ls.LM(tiny.model(architecture, dtype=torch.float64), None, architecture)
    rows = rows_of(lm, (7, 4))
    e = evaluate(lm, rows, layers=[2])
    states = [lm.read(r)[:, 1:-1] for r in rows]
    h, p = (lm.unembed(torch.cat([s[n] for s in states])).softmax(-1).numpy() for n in (2, lm.n_layers))
    expected = by_hand(h, p, np.array([i for r in rows for i in r[2:]]))
    for name, value in expected.items():
        assert e.measure(name)[0, 0] == pytest.approx(value, abs=1e-6 if architecture == "gemma3n_text" else 1e-9), name


def token_batch(lm):
    """Two rows of a corpus: three documents, with marks that are not counted, and the bytes of each token."""
    ids = torch.tensor(rows_of(lm, (10, 10), 7))
    document = torch.tensor([[0] * 6 + [1] * 4, [1] * 3 + [2] * 7])
    begins = torch.zeros(2, 10, dtype=torch.bool)
    begins[0, [0, 6]] = begins[1, 3] = True
    counted = ~begins
    counted[:, 0] = False
    sizes = torch.arange(20).view(2, 10) ** 2 % 7 * (~begins)
    return TokenBatch(torch.arange(2), ids, document, begins, counted, sizes, 2, None)


def test_a_corpus_says_what_counts_and_what_is_resampled(lm64):
    batch = token_batch(lm64)
    e = evaluate(lm64, [batch])
    positions = [[1, 2, 3, 4, 5, 7, 8], [1, 2, 4, 5, 6, 7, 8]]
    h, following = plain(lm64, batch.ids.tolist(), positions)
    p = probabilities(lm64, h[-1])
    for layer in e.layers:
        for name, expected in by_hand(probabilities(lm64, h[layer]), p, following).items():
            assert e.measure(name)[0, layer] == pytest.approx(expected, abs=1e-9)
    size = sum(int(batch.bytes[n, at + 1]) for n, some in enumerate(positions) for at in some)
    bits = -np.log2(p[np.arange(14), following]).sum()
    assert (e.rows, e.units, e.tokens, e.bytes) == (2, 3, 14, size)
    assert e.own["bits_per_byte"][0] == pytest.approx(bits / size, abs=1e-9)
    unknown = TokenBatch(**{**vars(batch), "bytes": None})
    assert np.isnan(evaluate(lm64, [batch, unknown]).own["bits_per_byte"]).all()


def test_of_texts_the_bytes_are_known(lm64):
    texts = ["The cat sat. Ünïcode too.", "Paris is it"]
    e = evaluate(lm64, texts)
    prompts = [lm64.prompt(t) for t in texts]
    # position 0 does not count, so that the token at position 1 is not predicted either
    first = [p.text[: p.spans[1][1]] for p in prompts]
    size = sum(len(t.encode()) - len(f.encode()) for t, f in zip(texts, first, strict=True))
    assert e.bytes == size
    nats = e.own["cross_entropy"][0] * sum(len(p) - 2 for p in prompts)
    assert e.own["bits_per_byte"][0] == pytest.approx(nats / size / log(2), abs=1e-9)


# 97.5 percentiles of Student's t by degrees of freedom, from tables
STUDENT = {3: 3.1824, 7: 2.3646, 19: 2.0930, 59: 2.0010}


def tails(units):
    at = 100 * NormalDist().cdf(-sqrt(units / (units - 1)) * STUDENT[units - 1])
    return at, 100 - at


@pytest.mark.parametrize(("lengths", "groups"), [((9, 5, 12, 3), 4), ((4,) * 23, 10)])
def test_intervals_of_bias_are_a_jackknifes_over_groups_of_rows(lm64, lengths, groups):
    """Each group of rows left out in turn: the same measured on the others alone."""
    rows, lenses = rows_of(lm64, lengths), {"tuned": affine(lm64), "logit": None}
    e = evaluate(lm64, rows, lenses, layers=[1])
    others = [[r for n, r in enumerate(rows) if n % 10 != group] for group in range(groups)]
    left = np.array([evaluate(lm64, some, lenses, layers=[1]).measure("bias")[:, 0] for some in others])
    t = {4: 3.182446305284263, 10: 2.2621571627409915}[groups]
    for i in range(2):
        error = np.sqrt((groups - 1) ** 2 / groups * left[:, i].var(ddof=1))
        value = e.measure("bias")[i, 0]
        assert np.allclose(e.interval("bias")[i, 0], [max(0, value - t * error), value + t * error], rtol=1e-6)
    apart = left[:, 0] - left[:, 1]
    value, low, high = e.differences["bias"][0, 0]
    assert value == pytest.approx(e.measure("bias")[0, 0] - e.measure("bias")[1, 0])
    assert np.allclose((high - low) / 2, t * np.sqrt((groups - 1) ** 2 / groups * apart.var(ddof=1)), rtol=1e-6)
    assert (low + high) / 2 == pytest.approx(value)


def test_intervals_are_percentiles_of_resampled_rows(lm64, monkeypatch):
    """Resamples drawn here, of the mean of every row measured alone."""
    monkeypatch.setattr(summed_measures, "RESAMPLES", 20_000)
    rows, tuned = rows_of(lm64, (10, 6, 13, 3, 8, 8, 16, 5)), affine(lm64)
    e = evaluate(lm64, rows, {"tuned": tuned, "logit": None}, layers=[1])
    assert e.baseline == "logit"
    each = [evaluate(lm64, [r], {"tuned": tuned, "logit": None}, layers=[1]) for r in rows]
    n = np.array([len(r) - 2 for r in rows])
    every = np.random.default_rng(5).integers(0, 8, (20_000, 8))
    for name in ("cross_entropy", "kl", "agreement", "entropy"):
        values = np.array([one.measure(name)[:, 0] for one in each])
        drawn = (values * n[:, None])[every].sum(1) / n[every].sum(1)[:, None]
        slack = 0.02 * np.ptp(drawn, axis=0).max()
        assert np.allclose(e.interval(name)[:, 0], np.percentile(drawn, tails(8), axis=0).T, atol=slack), name
        apart = drawn[:, 0] - drawn[:, 1]
        value, low, high = e.differences[name][0, 0]
        assert value == pytest.approx(e.measure(name)[0, 0] - e.measure(name)[1, 0], abs=1e-12)
        assert np.allclose((low, high), np.percentile(apart, tails(8)), atol=0.02 * np.ptp(apart)), name
        assert np.array_equal(e.differences[name][1, 0], [0, 0, 0])
    assert np.isnan(each[0].interval("bias")).all()
    assert np.isnan(each[0].interval("kl")).all()
    monkeypatch.setattr(summed_measures, "RESAMPLES", 50)
    first, again, other = (evaluate(lm64, rows, layers=[1], seed=seed).interval("kl") for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_units_beyond_a_number_are_grouped(lm64, monkeypatch):
    rows = rows_of(lm64, (4,) * 7)
    whole = evaluate(lm64, rows)
    monkeypatch.setattr(predictions, "UNITS", 3)
    e = evaluate(lm64, rows)
    assert (whole.units, e.units) == (7, 3)
    for name in ("kl", "calibration", "bias"):
        assert np.allclose(e.measure(name), whole.measure(name), atol=1e-12)


def test_a_lens_without_weights_for_a_layer_is_not_measured_there(lm64):
    rows = rows_of(lm64)
    e = evaluate(lm64, rows, {"some": affine(lm64, [1, 2]), "logit": None})
    assert np.isnan(e.measure("kl")[0, [0, 3]]).all()
    assert np.isfinite(e.measure("kl")[0, [1, 2]]).all()
    alone = evaluate(lm64, rows, {"some": affine(lm64, [1, 2])}, layers=[2])
    assert alone.measure("kl")[0, 0] == pytest.approx(e.measure("kl")[0, 2], abs=1e-12)
    assert alone.baseline is None
    assert alone.differences == {}
    last = evaluate(lm64, rows, {"some": affine(lm64, [1, 2])}, layers=[-1])
    assert last.measure("kl")[0, 0] == pytest.approx(0, abs=1e-12)
    assert last.measure("cross_entropy")[0, 0] == pytest.approx(e.own["cross_entropy"][0], abs=1e-12)


def test_mistakes_are_told(lm64, lm):
    rows = rows_of(lm64)
    foreign = affine(ls.LM(tiny.model("llama", seed=3), None, "other"))
    with pytest.raises(ls.LenscopeError, match="no prediction counts"):
        evaluate(lm64, [])
    for short in ([5], [5, 6], [5, 1, 6], "a"):
        message = (
            r"^rows: .* has no position that counts: of its tokens \(\d\) the first and the last do not count, nor do "
            "special ones; give a text of 3 tokens or more, or leave it out$"
        )
        with pytest.raises(ls.LenscopeError, match=message):
            transfer(lm64, [*rows, short], affine(lm64))
    with pytest.raises(ls.LenscopeError, match="one string"):
        evaluate(lm64, "text")
    with pytest.raises(ls.LenscopeError, match="none given"):
        evaluate(lm64, rows, {})
    with pytest.raises(ls.LenscopeError, match="layer 9"):
        evaluate(lm64, rows, layers=[9])
    with pytest.raises(ls.LenscopeError, match="fitted from other"):
        evaluate(lm64, rows, {"tuned": foreign})
    with pytest.raises(ls.LenscopeError, match="no weights for any of the layers 0"):
        evaluate(lm64, rows, {"some": affine(lm64, [1])}, layers=[0])
    with pytest.raises(ls.LenscopeError, match="gives states of shape"):
        evaluate(lm64, rows, {"short": lambda h: h[:, :-1]})
    with pytest.raises(ls.LenscopeError, match="logits hold NaN or infinity"):
        evaluate(lm64, rows, {"broken": lambda h: h * torch.nan})
    with pytest.raises(ls.LenscopeError, match="the same for all layers"):
        transfer(lm64, rows, lambda h: h)
    with pytest.raises(ls.LenscopeError, match="layer 0: f has maps for the layers 1"):
        transfer(lm64, rows, affine(lm64, [1, 2]), layers=[0, 1])
    with pytest.raises(ls.LenscopeError, match="there are cross_entropy"):
        evaluate(lm64, rows, layers=[1]).measure("loss")


def test_an_interruption_keeps_what_was_measured(lm64, monkeypatch):
    monkeypatch.setattr("lenscope.models.batches.TOKENS_PER_RUN", 8)  # a row at a time
    rows, told = rows_of(lm64), []

    def progress(done, total):
        told.append((done, total))

    whole = evaluate(lm64, rows, progress=progress)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert whole.rows == 4
    told.clear()
    evaluate(lm64, iter(token_batch(lm64) for _ in range(2)), progress=progress)
    assert told[-1] == (2, 0)

    calls = 0

    def f(h, layer):
        nonlocal calls
        calls += 1
        if calls == 2 * lm64.n_layers + 2:  # within the third row
            raise KeyboardInterrupt
        return h + layer

    with pytest.raises(EvaluationInterrupted) as stopped:
        evaluate(lm64, rows, {"f": f})
    calls = -(10**6)
    expected = evaluate(lm64, rows[:2], {"f": f})
    kept = stopped.value.result
    assert (kept.rows, kept.tokens) == (2, 10)
    for name in MEASURES:
        assert np.array_equal(kept.values[name], expected.values[name], equal_nan=True), name
    assert kept.provenance["ids_sha256"] == expected.provenance["ids_sha256"] != whole.provenance["ids_sha256"]

    def stop(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(EvaluationInterrupted) as stopped:
        transfer(lm64, rows, affine(lm64), progress=stop)
    assert np.array_equal(stopped.value.result.kl, transfer(lm64, rows[:2], affine(lm64)).kl)
    with pytest.raises(EvaluationInterrupted) as stopped:
        evaluate(lm64, rows, {"f": lambda h: 1 / 0 if calls > 0 else (_ for _ in ()).throw(KeyboardInterrupt)})
    assert stopped.value.result is None


def test_transfer_equals_full_logits(lm64):
    rows, tuned = rows_of(lm64), affine(lm64)
    t = transfer(lm64, rows, tuned)
    h, following = plain(lm64, rows)
    p = probabilities(lm64, h[-1])
    assert t.layers == tuple(range(lm64.n_layers))
    assert t.tokens == 21
    for i, layer in enumerate(t.layers):
        a, b = (w.double() for w in tuned.weights[(layer, lm64.n_layers)])
        for j, tested in enumerate(t.layers):
            expected = by_hand(probabilities(lm64, h[tested] @ a.T + b), p, following)
            assert t.cross_entropy[i, j] == pytest.approx(expected["cross_entropy"], abs=1e-9)
            assert t.kl[i, j] == pytest.approx(expected["kl"], abs=1e-9)
    penalty = t.penalty()
    assert np.array_equal(np.diagonal(penalty), np.zeros(lm64.n_layers))
    assert penalty[0, 2] == pytest.approx(t.cross_entropy[0, 2] - t.cross_entropy[2, 2], abs=1e-12)
    later = [penalty[i + 1, i] for i in range(lm64.n_layers - 1)]
    assert t.by_distance(1) == pytest.approx(np.median(later), abs=1e-12)
    assert t.by_distance(-3, "kl") == pytest.approx(t.kl[0, 3] - t.kl[3, 3], abs=1e-12)
    assert np.isnan(t.by_distance(9))
    some = transfer(lm64, rows, tuned, layers=[0, 3])
    assert np.allclose(some.kl, t.kl[np.ix_([0, 3], [0, 3])], atol=1e-12)
    assert some.by_distance(-3) == pytest.approx(t.by_distance(-3), abs=1e-12)


def test_memory_does_not_grow_with_the_text(lm, monkeypatch):
    monkeypatch.setattr(reduction, "EXPONENTIALS_BYTES", 8 * 2 * lm.vocab_size * 4)
    monkeypatch.setattr("lenscope.models.batches.TOKENS_PER_RUN", 8 * 64)
    rows, lens = rows_of(lm, (32,) * 10), {"tuned": affine(lm)}
    with Largest() as largest:
        evaluate(lm, rows, lens)
    weights = max(p.numel() for p in lm.model.parameters())
    states = 64 * (lm.n_layers + 1) * lm.hidden_size
    assert largest.numel <= max(weights, states, 8 * lm.vocab_size)
