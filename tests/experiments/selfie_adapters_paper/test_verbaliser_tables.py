"""Rows and sentences on planted scores, by hand."""

from functools import partial

import numpy as np
import pytest

from lenscope.experiments.selfie_adapters_paper import verbaliser_tables as module
from lenscope.experiments.selfie_adapters_paper.verbaliser_tables import VerbalisedLabels
from lenscope.patchscopes.control_runs import BIAS, NONE, RANDOM, SHUFFLED, TEXT, UNIT, VECTOR
from lenscope.patchscopes.with_controls import ControlledScores, ControlledTexts
from lenscope.statistics.intervals import bootstrap

N = 40


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch):
    monkeypatch.setattr("lenscope.statistics.estimates.bootstrap", partial(bootstrap, resamples=50))
    monkeypatch.setattr(module, "bootstrap", partial(bootstrap, resamples=50))


CELLS = ((-1, 0),)


def column(value, step=0.0):
    return value + step * np.arange(N, dtype=float)[:, None] / N


def likelihoods(vector=-2.0):
    scores = {VECTOR: column(vector, 1), TEXT: column(-1.0), NONE: column(-7.0), RANDOM: column(-4.0)}
    return ControlledScores(CELLS, {**scores, SHUFFLED: column(-3.5, 1), UNIT: column(-6.0, 1), BIAS: column(-3.0, 1)})


def words(first=0, others=50):
    ranks = {way: column(others) for way in (TEXT, NONE, RANDOM, SHUFFLED, UNIT, BIAS)}
    mine = np.where(np.arange(N) % 4 == 0, 5, first)[:, None].astype(float)
    exact = {way: column(0.0) for way in (VECTOR, *ranks)}
    texts = {way: np.full((N, 1), "x", dtype=object) for way in exact}
    ranked = ControlledScores(CELLS, {VECTOR: mine, **ranks})
    return VerbalisedLabels(ControlledTexts(CELLS, texts), ranked, ControlledScores(CELLS, exact), 100)


def tables(scores, one):
    return {
        "likelihood": module.likelihood_rows(scores), "words": module.word_rows(one),
        "shapes": [{"map": "affine"}],
        "contrast": [module.weight_row(w, one, one, one) for w in (0.0, 0.5)],
        "kinds never seen": [module.kind_row("animals", scores, one, UNIT)],
    }  # fmt: skip


def test_rows_by_hand():
    rows = {row["way"]: row for row in module.likelihood_rows(likelihoods())}
    assert rows[UNIT]["vector less it"].value == pytest.approx(4)
    assert rows[VECTOR]["vector less it"] is None
    assert rows[SHUFFLED]["p (Holm)"] < 0.05
    rows = {row["way"]: row for row in module.word_rows(words())}
    assert rows[VECTOR]["recall@1"].value == 0.75
    assert rows[VECTOR]["recall@10"].value == 1
    assert rows[SHUFFLED]["vector less it, @1"].value == 0.75
    assert rows["chance"]["recall@10"].value == 0.1


def test_the_bias_has_its_share_of_the_gain():
    share = module.bias_share(likelihoods(), UNIT)
    assert share.share.value == pytest.approx(0.75)
    assert share.vector.value == pytest.approx(1)
    none = likelihoods(-8.0)
    assert np.isnan(module.bias_share(none, UNIT).share.value)
    without = ControlledScores(CELLS, {way: v for way, v in none.scores.items() if way != BIAS})
    assert module.bias_share(without, UNIT) is None


def test_the_verdict_goes_by_intervals():
    whole = tables(likelihoods(), words())
    for scores, one, verdict in (
        (likelihoods(), words(), "Replicates: of 40 topics"),
        (likelihoods(), words(50, 0), "Replicates in part: "),
        (likelihoods(-9.0), words(50, 0), "Does not replicate: "),
    ):
        shown = whole | {"likelihood": module.likelihood_rows(scores), "words": module.word_rows(one)}
        lines = module.verbaliser_reading(scores, one, UNIT, module.bias_share(likelihoods(), UNIT), shown)
        assert lines[0].startswith(verdict)
        assert "Contrast: on other topics no weight is better" in "\n".join(lines)
        assert lines[-1].startswith("Never seen, animals (40): recall@10")
        assert ("nothing shows that" in lines[1]) == (verdict[0] == "D")
