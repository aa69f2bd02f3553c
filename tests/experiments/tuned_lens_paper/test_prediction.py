"""The experiment on predictions: text in groups of documents, the bias-only lens, and numbers made again by hand."""

from dataclasses import replace
from math import log

import numpy as np
import pytest
import tiny
import torch

import lenscope as ls
from lenscope.errors import LenscopeError
from lenscope.experiments.setting import Setting
from lenscope.experiments.text_groups import by_document, predicted, rows_of, thinned
from lenscope.experiments.tuned_lens_paper import prediction
from lenscope.statistics.intervals import Estimate, draws, estimate_of_draws, percentiles
from lenscope.text.corpus import TokenBatch

WORDS = ["the", "cat", "sat", "mat", "France", "Paris", "capital", "test", "this", "is", "number", "zebra", "quick"]


def sentences(count=40, seed=0):
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, 120)) for _ in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("text")
    for n, text in enumerate(sentences(80)):
        (path / f"{n}.txt").write_text(text)
    return path


@pytest.fixture
def small(monkeypatch):
    """Fits of a few steps and little text: what is tested is the protocol."""
    monkeypatch.setattr(prediction, "FITTED", {"quick": 512, "full": 512})
    monkeypatch.setattr("lenscope.experiments.setting.FITTED", {"quick": 512, "full": 512})
    monkeypatch.setattr(prediction, "TEXT", {"quick": 256, "full": 256})


def batch(documents, counted=None, first=0):
    number = torch.tensor(documents)
    ids = torch.arange(number.numel()).view_as(number) + 10
    counted = torch.ones_like(number, dtype=torch.bool) if counted is None else torch.tensor(counted).bool()
    row = torch.arange(len(documents)) + first
    return TokenBatch(row, ids, number, number == -1, counted, ids * 2, first + len(documents), None)


def test_every_document_is_in_one_group_and_all_that_counts_in_some():
    some = [batch([[7, 7, 7, 3, 3]]), batch([[5, 5, 9, 9, 7]], [[0, 1, 1, 1, 1]], 1), batch([[2, 2, 2, 2, 2]], first=2)]
    # in the order in which they count: 7, 3, 5, 9, 2; the last position of a row predicts nothing
    parts = by_document(some, 2)
    seen = [{int(d) for b in part for d in b.document[:, :-1][b.counted[:, :-1]]} for part in parts]
    assert seen == [{7, 5, 2}, {3, 9}]
    assert sum(int(b.counted[:, :-1].sum()) for part in parts for b in part) == 4 + 3 + 4
    assert [[int(b.row[0]) for b in part] for part in parts] == [[0, 1, 2], [0, 1]]
    assert len(by_document(some, 10)) == 5


def test_thinned_text_keeps_a_share_of_each_row():
    some = batch([[0] * 64] * 4, [[0] + [1] * 63] * 4)
    (made,) = thinned([some], 4)
    assert made.counted.sum(1).tolist() == [15, 16, 16, 16]
    assert not (made.counted & ~some.counted).any()
    assert (made.counted.nonzero()[:, 1].view(-1)[:3] == torch.tensor([4, 8, 12])).all()
    assert len({tuple(row) for row in made.counted.tolist()}) == 4, "rows keep other positions"
    assert torch.equal(thinned([some], 1)[0].counted, some.counted)


def test_what_is_predicted_is_counted():
    some = batch([[0] * 5], [[0, 1, 0, 1, 1]])
    # tokens at positions 2 and 4, whose ids are 12 and 14, with twice as many bytes
    assert predicted([some]) == (2, 2 * (12 + 14))
    assert predicted([some, replace(some, bytes=None)]) == (4, None)


def test_rows_are_all_there_are(lm):
    corpus = ls.Corpus.open(lm, sentences(3), length=32)
    found = rows_of(corpus, 10**6)
    assert len(found) == len(list(corpus.batches(None, 1)))
    assert len(rows_of(corpus, 64)) == 2
    with pytest.raises(LenscopeError, match="less than one row"):
        rows_of(ls.Corpus.open(lm, ["short"], length=32), 64)


def test_draws_and_their_estimates():
    taken = draws(5, 2000, 0)
    assert taken.shape == (2001, 5)
    assert (taken[0] == 1).all()
    assert (taken.sum(1) == 5).all()
    assert taken[1:].var(0) == pytest.approx(np.full(5, 0.8), abs=0.1)
    values = np.array([0.5, *range(100), np.nan])
    assert estimate_of_draws(values, 5) == (0.5, *percentiles(np.arange(100.0), 5))
    assert np.isnan(estimate_of_draws(values, 1).low)


def test_the_report_is_what_the_text_gives(lm, folder, small, tmp_path):
    setting = Setting(lm, text=(str(folder),), data=(str(folder),), quick=True, folder=tmp_path)
    report = prediction.EXPERIMENT.run(setting)
    assert set(report.tables) == {
        "cross-entropy in nats", "KL in nats", "bias in bits", "bias beside GPT-Neo-2.7B", "bits per byte",
    }  # fmt: skip
    for name in ("cross-entropy in nats", "KL in nats", "bits per byte"):
        rows = report.tables[name]
        assert [row["layer"] for row in rows] == list(range(lm.n_layers + 1))
        assert list(rows[0]) == ["layer", "logit lens", "bias only", "tuned lens", "tuned - logit"]
        assert all(isinstance(row["tuned lens"], Estimate) for row in rows)
    # by hand, at one layer: every third position of the held-out rows
    layer, third = 2, prediction.EVERY["quick"]
    corpus = ls.Corpus.open(lm, folder).split(0.1)[1]
    logits: dict[str, list] = {"model": [], "logit lens": [], "tuned lens": [], "bias only": []}
    following, sizes = [], 0
    biases = setting.cached("biases", pytest.fail, tokens=512)
    weights = setting.translators.weights[layer, lm.n_layers]
    for row in corpus.batches(256, 1):
        at = [p for p in range(1, 63) if row.counted[0, p] and (p + int(row.row)) % third == 0]
        states = lm.read(row.ids[0].tolist())
        h = states[layer, at]
        made = {"model": states[lm.n_layers, at], "logit lens": h, "bias only": h + biases[layer],
                "tuned lens": h @ weights[0].T + weights[1]}  # fmt: skip
        for name, x in made.items():
            logits[name].append(lm.unembed(x).double().log_softmax(-1))
        following += [int(row.ids[0, p + 1]) for p in at]
        sizes += sum(int(row.bytes[0, p + 1]) for p in at)
    q = {name: torch.cat(rows) for name, rows in logits.items()}
    p = q["model"]
    assert sizes > len(following)
    for name in ("logit lens", "bias only", "tuned lens"):
        nats = -q[name][range(len(following)), following]
        value = {
            "cross-entropy in nats": float(nats.mean()),
            "KL in nats": float((p.exp() * (p - q[name])).sum(-1).mean()),
            "bits per byte": float(nats.sum()) / sizes / log(2),
        }
        for table, expected in value.items():
            assert report.tables[table][layer][name].value == pytest.approx(expected, abs=1e-4), (name, table)
        mean_p, mean_q = p.exp().mean(0), q[name].exp().mean(0)
        bias = float((mean_p * (mean_p / mean_q).log()).sum()) / log(2)
        assert report.tables["bias in bits"][layer][name].value == pytest.approx(bias, abs=1e-4)
    row = report.tables["KL in nats"][layer]
    assert row["tuned - logit"].value == pytest.approx(row["tuned lens"].value - row["logit lens"].value, abs=1e-9)
    own = report.tables["cross-entropy in nats"][-1]
    assert own["tuned lens"].value == pytest.approx(float(-p[range(len(following)), following].mean()), abs=1e-4)
    report.save(tmp_path)
    assert (tmp_path / "prediction.png").stat().st_size > 10_000
    # the same run again goes on from what is kept: no second fit of the biases
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction, "fit", pytest.fail)
        again = prediction.EXPERIMENT.run(Setting(lm, text=setting.text, data=setting.data, lens=None, quick=True,
                                       folder=tmp_path))  # fmt: skip
    assert [r["bias only"] for r in again.tables["KL in nats"]] == [r["bias only"] for r in report.tables["KL in nats"]]


def measured(tuned, logit, bias, high):
    """An evaluation of three lenses at two layers, with paired differences that end at `high`."""
    lenses = (prediction.LOGIT, prediction.BIAS, prediction.TUNED)
    values = np.full((3, 2, 3), 1.0)
    values[0, :, 0], values[2, :, 0] = logit, tuned
    apart = np.full((3, 2, 3), -1.0)
    apart[2, :, 0], apart[2, :, 2] = np.array(tuned) - logit, high
    apart[2, :, 1] = np.minimum(apart[2, :, 0], high) - 0.1
    biases = np.full((3, 2, 3), np.nan)
    biases[..., 0] = np.array([[4, 4], [1, 1], bias]) * log(2)
    measures = {"cross_entropy": values, "kl": values, "bias": biases}
    own = {name: np.zeros(3) for name in measures}
    less = biases[..., :1] - biases[:1, :, :1] + np.array([0, -0.1, 0.1])
    return ls.Evaluation("m", 2, lenses, (0, 1), prediction.LOGIT, 4, 4, 9, 20, measures,
                         {"cross_entropy": apart, "kl": apart, "bias": less}, own)  # fmt: skip


def test_the_reading_follows_the_numbers():
    good = prediction._prediction_reading(measured([1, 2], [3, 4], [0.5, 0.1], [-0.1, -0.1]), 0.3)
    assert good.startswith("Replicates:")
    assert "better than the logit lens at all 2 layers in cross-entropy" in good
    assert "0.50 bits at the input and 0.100–0.10 after it" in good
    bad = prediction._prediction_reading(measured([1, 5], [3, 4], [0.5, 5], [-0.1, 1.3]), 0.3)
    assert bad.startswith("Replicates in part:")
    assert "at 1 of 2 layers (not 1) in cross-entropy" in bad
    assert "The tuned lens's bias is smaller at 1 of 2 layers (not 1)" in bad
    worse = measured([1, 5], [3, 4], [0.5, 5], [-0.1, 1.3])
    for apart in worse.differences.values():
        apart[2, 1, 1] = 0.5
    assert "and worse at 1 " in prediction._prediction_reading(worse, float("nan"))


def test_samples_stand_in_for_text(small, monkeypatch):
    monkeypatch.setattr(prediction, "SAMPLED", {"quick": 256, "full": 256})
    monkeypatch.setattr("lenscope.experiments.setting.SAMPLED", {"quick": 256, "full": 256})
    lm = ls.LM(tiny.model("llama"), tiny.tokenizer(), "tiny-llama")
    report = prediction.EXPERIMENT.run(Setting(lm, quick=True))
    assert "bits per byte" not in report.tables
    assert report.settings["text"] == "samples of tiny-llama"
    assert np.isfinite(report.tables["KL in nats"][1]["bias only"].value)
