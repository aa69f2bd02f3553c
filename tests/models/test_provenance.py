"""Provenance: it names what numbers came from, and the hash covers every weight."""

import re

import pytest
import tiny
import torch

import lenscope as ls

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def trajectory(lm):
    return ls.Lens(lm).trajectory(PROMPT)


def test_provenance_names_what_the_numbers_came_from(trajectory):
    p = trajectory.provenance
    assert p["dtype"] == "float32"
    assert re.fullmatch("sha256:[0-9a-f]{64}", p["model_hash"])
    assert {"lenscope", "torch", "transformers", "attention", "readout", "revision", "created"} <= set(p)


def test_the_model_hash_covers_every_weight_and_notices_changes():

    from lenscope.models.identity import model_hash

    model = tiny.model("gpt2")
    first = model_hash(model)
    assert first == model_hash(tiny.model("gpt2"))
    with torch.no_grad():
        model.transformer.h[2].mlp.c_fc.weight[5, 7] += 1e-3
    assert model_hash(model) != first
