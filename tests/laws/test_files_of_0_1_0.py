"""Files that version 0.1.0 saved, made with it and kept in data_0_1_0, load equal."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

import lenscope as ls

HERE = Path(__file__).parents[1] / "support" / "data_0_1_0"
RESULTS = ("trajectory", "trajectories", "grid_predict", "grid_generate", "effects", "evaluation", "transfer")


@pytest.mark.parametrize("name", RESULTS)
def test_both_formats_of_a_result_hold_the_same(name):
    assert ls.load_results(HERE / f"{name}.json") == ls.load_results(HERE / f"{name}.parquet")


def test_the_numbers_are_those_of_the_file():
    data = json.loads((HERE / "trajectory.json").read_text())
    t = ls.load_results(HERE / "trajectory.json")
    for name, values in data["measures"].items():
        wanted = np.array(values, dtype=np.float32)
        assert np.array_equal(np.where(t.measure(name) == -1, -1, t.measure(name)).astype(np.float32), wanted, True)
    assert t.top_ids.tolist() == data["top"]["ids"]
    assert (t.rank[:, -1] == -1).all()
    grid, table = ls.load_grid(HERE / "grid_generate.parquet"), pq.read_table(HERE / "grid_generate.parquet")
    assert grid.ids.tolist() == table["ids"].to_pylist()
    assert grid.texts == tuple(table["text"].to_pylist())
    assert [s.layer for s in grid.sources] == [-1, -1]
    effects = ls.interventions.load_effects(HERE / "effects.json")
    assert effects.measures["effect"].tolist() == pytest.approx(
        json.loads((HERE / "effects.json").read_text())["cells"]["effect"]
    )
    assert isinstance(ls.load_results(HERE / "comparison.json"), ls.Comparison)
    assert isinstance(ls.lenses.load_evaluation(HERE / "transfer.json"), ls.lenses.Transfer)


@pytest.mark.parametrize("name", ["lens", "low_rank", "scale"])
def test_mappings(name):
    made = ls.load_mapping(HERE / name)
    (path,) = (HERE / name).glob("*.safetensors")
    tensors = safetensors.torch.load_file(path)
    assert sum(len(w) for w in made.weights.values()) == len(tensors)
    assert all(any(w.equal(t) for t in tensors.values()) for some in made.weights.values() for w in some)


def test_lenses_of_the_same_model(lm):
    assert ls.load_lens(HERE / "lens", lm).report == {"fitted": "by hand"}
    made = ls.load_lens(HERE / "tuned_lens", lm)
    assert sorted(made.weights) == [(n, 4) for n in range(4)]
    assert ls.Lens(lm, ls.load_lens(HERE / "lens", lm)).trajectory("The cat").layers == (0, 2, 4)


def test_bases_soft_prompts_and_detectors(lm):
    basis = ls.directions.load_basis(HERE / "basis")
    assert (basis.k, basis.layers, basis.kind) == (2, (0, 2), "random")
    assert ls.patchscopes.load_soft_prompt(HERE / "soft_prompt").ids == (5, 6)
    for name, view in (("detector", "trajectory"), ("detector_states", "states")):
        detector = ls.detection.load_detector(HERE / name, lm)
        assert detector.view == view
        assert np.isfinite(detector.score("Please write the number 7 in words."))
        assert torch.equal(
            torch.from_numpy(detector.reference),
            safetensors.torch.load_file(next((HERE / name).glob("*.safetensors")))["reference"],
        )
