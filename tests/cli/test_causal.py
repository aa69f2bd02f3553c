"""The command of causal bases: what it prints and saves is what the library gives."""

import json

import numpy as np
import pytest
import torch

import lenscope as ls
from lenscope.directions.basis import load_basis
from lenscope.directions.causal_basis import causal_basis, promoted
from lenscope.directions.influence import influence


def test_the_command_prints_and_saves_what_the_library_gives(run, model, text, tmp_path):
    asked = ["causal", "-m", model, "-d", text, "--layers", "1,3", "--k", "3", "--tokens", "256"]
    status, out, err = run(*asked, "-o", str(tmp_path / "out"))
    assert status == 0
    assert "layer 1" in out
    assert "fidelity" in out
    assert f"saved {tmp_path / 'out'}" in err
    lm = ls.load(model)
    basis = load_basis(tmp_path / "out")
    parts = ls.Corpus.open(lm, text, length=64).split(0.5)
    found, measured = (list(p.batches(256, 8)) for p in parts)
    torch.testing.assert_close(basis.energies, causal_basis(lm, found, None, [1, 3], k=3).energies)
    status, shown, _ = run(*asked, "--json")
    told = json.loads(shown)
    assert told == json.loads((tmp_path / "out" / "influence.json").read_text()) | {"provenance": told["provenance"]}
    np.testing.assert_allclose(told["influence_on_model"], influence(lm, measured, basis).model)
    assert told["promotes"][0][0] == lm.encoder.tokens(promoted(lm, basis)[0, 0, 0].tolist())


@pytest.mark.parametrize("wrong", [["--k", "0"], ["--tokens", "x"], ["--layers", "77"], ["--lens", "nowhere/at/all"]])
def test_mistakes_of_the_command_are_one_line(run, model, text, wrong):
    status, out, err = run("causal", "-m", model, "-d", text, *wrong)
    assert status == 2
    assert not out
    assert err.startswith("lenscope: ")
    assert err.count("\n") == 1
