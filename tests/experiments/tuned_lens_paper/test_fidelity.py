"""The experiment on causal fidelity reports what the library gives."""

import numpy as np
import pytest
import torch
from directions_by_hand import setting as setting
from directions_by_hand import text as text

from lenscope.directions.basis import Basis
from lenscope.directions.causal_basis import random_basis
from lenscope.directions.influence import Influence, influence
from lenscope.experiments.tuned_lens_paper import fidelity
from lenscope.models.same_model import model_identity
from lenscope.statistics.rank_correlations import rank_correlation


def test_the_fidelity_experiment_reports_what_the_library_gives(setting, monkeypatch):
    for name, small in {"FOUND_ON": 192, "MEASURED_ON": 128, "K": 4, "LAYERS": 3}.items():
        monkeypatch.setattr(fidelity, name, {"quick": small, "full": 0})
    report = fidelity.EXPERIMENT.run(setting)
    rows = report.tables["fidelity"]
    assert [r["layer"] for r in rows] == [0, 2, 3]
    lm = setting.lm
    parts = setting.held_out.split(0.5)
    sizes = fidelity.FOUND_ON["quick"], fidelity.MEASURED_ON["quick"]
    found, measured = (list(p.batches(n, 8)) for p, n in zip(parts, sizes, strict=True))
    basis = random_basis(lm, found, setting.lens, [2], k=4)
    again = influence(lm, measured, basis, setting.lens)
    assert rows[1]["random directions"].value == pytest.approx(again.fidelity()[0].value)
    sums = report.tables["influence"]
    assert sums[1]["random, model"] == pytest.approx(again.model[0].sum(), rel=1e-5)
    assert sums[1]["random, lens"] == pytest.approx(again.lens[0].sum(), rel=1e-5)
    for row in rows:
        assert row["minus random directions"].value == pytest.approx(
            row["causal basis"].value - row["random directions"].value
        )
    assert "Fidelity" in report.reading
    assert fidelity.EXPERIMENT.run(setting).tables["influence"] == sums


def test_fidelities_are_compared_over_all_layers(lm64):
    """Directions whose influences agree at every layer, beside some that disagree, and some of both."""
    k, draw = 40, np.random.default_rng(0)
    nothing = torch.zeros(2, k, lm64.hidden_size)
    basis = Basis(
        nothing, nothing[..., 0], nothing[:, 0], nothing[..., 0], (1, 2), "random", "l", model_identity(lm64), {}
    )

    def made(sign):
        lens = draw.random((2, k))
        model = sign * lens if sign else draw.random((2, k))
        return Influence(basis, np.stack([lens, model])[:, None], np.ones(1), {})

    same, opposite, noise = made(1), made(-1), made(0)
    assert fidelity._mean_difference(same, opposite, 0) == (2, 2, 2)
    assert fidelity._mean_difference(same, same, 0) == (0, 0, 0)
    found = fidelity._mean_difference(same, noise, 0)
    each = [1 - rank_correlation(noise.lens[n], noise.model[n]) for n in range(2)]
    assert found.value == pytest.approx(np.mean(each))
    # the standard error of a mean of two correlations of 40 unrelated pairs is 1 / sqrt(2 * 39)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 / np.sqrt(78), rel=0.3)
