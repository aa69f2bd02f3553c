"""A benchmark that waits for a lent machine runs: its tiny shape goes the way that the large ones go."""

import importlib
import json
import sys

import house
import pytest
import torch


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(house.ROOT / "benchmarks"))
    yield importlib.import_module("gpu")
    for name in ("gpu", "timing", "sweep_baselines"):
        sys.modules.pop(name, None)


def run(gpu, monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", "--device", "cpu", *arguments])
    gpu.main()
    *table, closing = capsys.readouterr().out.splitlines()
    return table, json.loads(closing)["results"]


def test_every_part_gives_its_figures_and_one_without_memory_loses_no_other(gpu, monkeypatch, capsys):
    def full(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(gpu.Bench, "stack", full)
    table, rows = run(gpu, monkeypatch, capsys)
    assert [row["note"] for row in rows if "note" in row] == ["OutOfMemoryError: out of memory"]
    assert [row["part"] for row in rows] == ["trajectory"] * 3 + ["fit"] * 4 + ["grid"] * 6
    assert all(row["seconds"] >= 0 for row in rows if "note" not in row)
    # lenscope and plain hooks find the same tokens
    assert [row["equal"] for row in rows if "equal" in row] == [1.0, 1.0]
    assert [row["part"] for row in rows if "goal" in row] == ["trajectory", "fit"]
    assert any("goals" in line for line in table)
    # what would begin after the budget is left out
    table, rows = run(gpu, monkeypatch, capsys, "--minutes", "0")
    assert not rows
    assert any("left out" in line for line in table)
