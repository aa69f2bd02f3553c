"""What tests of interventions see of a method: its numbers in float64."""

import importlib

import pytest


@pytest.fixture
def raw(monkeypatch):
    """What is found in float64, before it becomes float32 columns: (run, measures, totals) per prompt."""
    for method in ("causal_tracing", "activation_patching", "attention_knockout"):
        module = importlib.import_module(f"lenscope.interventions.{method}")
        monkeypatch.setattr(module, "as_effects", lambda lm, method, numbers, traced, how: traced)
