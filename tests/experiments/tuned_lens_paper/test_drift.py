"""The experiment on drift reports what the text gives by hand."""

from math import log

import numpy as np
import pytest
import torch
from affine_lens import affine
from covariances_by_hand import cosines, covariance, sentences, stored, zeroed
from scipy import stats

import lenscope as ls
from lenscope.experiments.setting import Setting
from lenscope.experiments.text_groups import by_document, rows_of
from lenscope.experiments.tuned_lens_paper import drift
from lenscope.experiments.tuned_lens_paper import drift_fine_tuned as transplant
from lenscope.fitting.fine_tuning import weights_of
from lenscope.statistics.intervals import draws


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("text")
    for n, text in enumerate(sentences(80)):
        (path / f"{n}.txt").write_text(text)
    return path


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


def made(near, far, penalty):
    """Drift of five layers with given similarities one and more layers apart."""
    taken = draws(4, 10, 0)
    apart = np.abs(np.subtract.outer(np.arange(5), np.arange(5)))
    s = np.where(apart == 0, 1.0, np.where(apart == 1, near, far)) - apart / 1000
    stack = np.repeat(s[None], len(taken), 0)
    own = np.repeat(penalty(apart[:4, :4]).astype(float)[None], len(taken), 0)
    return drift.Drift((0, 1, 2, 3), stack**0.1, stack, np.full((len(taken), 5), 0.9), own, "bits per byte", 4)


def test_the_reading_follows_the_numbers():
    good = drift._drift_reading(made(0.9, 0.5, lambda d: d), 4)
    assert good.startswith("Drift replicates:")
    assert "lose less on similar layers replicates: penalty and similarity" in good
    assert "a Spearman correlation of -1 [-1, -1] over all pairs of layers" in good
    assert "Median penalties grow from 1.000 and 1.000" in good
    bad = drift._drift_reading(made(0.5, 0.9, lambda d: -d), 4)
    assert bad.startswith("Drift does not replicate:")
    assert "lose less on similar layers does not replicate" in bad
    assert "do not grow with distance" in bad
