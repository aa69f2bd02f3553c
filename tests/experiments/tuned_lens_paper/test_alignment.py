"""The experiment on alignment reports what the library gives."""

import pytest
from directions_by_hand import setting as setting
from directions_by_hand import text as text

from lenscope.directions.alignment import alignment
from lenscope.directions.causal_basis import random_basis


def test_the_alignment_experiment_reports_what_the_library_gives(setting, monkeypatch):
    from lenscope.experiments.tuned_lens_paper import alignment as experiment

    for name, small in {"FOUND_ON": 192, "MEASURED_ON": 256, "K": 4, "LAYERS": 3}.items():
        monkeypatch.setattr(experiment, name, {"quick": small, "full": 0})
    report = experiment.EXPERIMENT.run(setting)
    rows = report.tables["alignment"]
    lm = setting.lm
    first, second = setting.held_out.split(0.5)
    basis = random_basis(lm, list(first.batches(experiment.FOUND_ON["quick"], 8)), setting.lens, [0, 2, 3], k=4)
    again = alignment(
        lm, list(second.batches(experiment.MEASURED_ON["quick"], 8)), basis, {"tuned": setting.lens, "logit": None}
    )
    for row in rows:
        expected = again.estimate("logit", row["layer"])
        assert row["logit lens, random subspace"].value == pytest.approx(expected.value, abs=1e-5)
        same = row["tuned - logit, same exchanges"]
        assert same.low <= same.value <= same.high
    assert report.settings["documents"] > 1
    assert "Tuned above logit" in report.reading
