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


def test_every_part_gives_its_figures(gpu, monkeypatch, capsys):
    table, rows = run(gpu, monkeypatch, capsys)
    assert {row["part"] for row in rows} == set(gpu.SECTIONS)
    assert not [row for row in rows if "note" in row]
    assert all(row["seconds"] >= 0 for row in rows)
    # lenscope and plain hooks find the same tokens
    assert [row["equal"] for row in rows if "equal" in row] == [1.0, 1.0]
    assert [row["part"] for row in rows if "goal" in row] == ["trajectory", "fit"]
    assert any("goals" in line for line in table)


def test_a_part_without_memory_is_a_line_and_the_others_go_on(gpu, monkeypatch, capsys):
    def full(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(gpu.Bench, "stack", full)
    _, rows = run(gpu, monkeypatch, capsys, "--only", "trajectory", "grid")
    assert [row["note"] for row in rows if "note" in row] == ["OutOfMemoryError: out of memory"]
    assert [row["part"] for row in rows].count("grid") == 6


def test_what_would_begin_after_the_budget_is_left_out(gpu, monkeypatch, capsys):
    table, rows = run(gpu, monkeypatch, capsys, "--minutes", "0")
    assert not rows
    assert any("left out" in line for line in table)
