"""Bases are saved and loaded, exchanged and ablated along, and what they cannot be is refused."""

import pytest
import torch
from affine_lens import affine
from directions_by_hand import lm_of, rows_of

import lenscope as ls
from lenscope.directions.alignment import Alignment, alignment
from lenscope.directions.basis import Basis, load_basis
from lenscope.directions.causal_basis import causal_basis, random_basis
from lenscope.directions.influence import Influence, influence


def test_what_is_saved_is_loaded(tmp_path):
    lm = lm_of("gpt2")
    basis = causal_basis(lm, rows_of(lm), affine(lm), [1, 3], k=2)
    basis.save(tmp_path / "basis")
    again = load_basis(tmp_path / "basis")
    for name in ("directions", "energies", "mean", "spread"):
        assert torch.equal(getattr(again, name), getattr(basis, name))
    for name in ("layers", "kind", "lens", "model", "provenance"):
        assert getattr(again, name) == getattr(basis, name)
    (weights,) = (tmp_path / "basis").glob("basis-*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ls.LenscopeError, match="damaged"):
        load_basis(tmp_path / "basis")
    with pytest.raises(ls.LenscopeError, match="no basis"):
        load_basis(tmp_path)


def test_a_basis_is_exchanged_and_ablated_along_its_directions():
    lm = lm_of("gpt2")
    basis = random_basis(lm, rows_of(lm), None, [1], k=3).top(2)
    h, other = torch.randn(2, 4, lm.hidden_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v, mean = basis[1].double(), basis.mean[0].double()
    new = basis.exchanged(h, other, 1)
    torch.testing.assert_close(new @ v.T, other @ v.T, atol=1e-6, rtol=1e-6)
    rest = torch.eye(lm.hidden_size, dtype=torch.float64) - v.T @ v
    torch.testing.assert_close(new @ rest, h @ rest, atol=1e-5, rtol=1e-5)
    for d, one in enumerate(basis.ablated(h, 1)):
        torch.testing.assert_close(one, h + ((mean - h) @ v[d])[:, None] * v[d])


def test_mistakes_are_told():
    lm, other = lm_of("gpt2"), lm_of("llama")
    rows = rows_of(lm)
    basis = random_basis(lm, rows, None, [1], k=2)
    for wrong, call in {
        "k 33: states of tiny-gpt2 have 1–32": lambda: causal_basis(lm, rows, k=33),
        "layer 9: tiny-gpt2 has layers 0–4": lambda: causal_basis(lm, rows, layers=[9]),
        "needs at least 2": lambda: causal_basis(lm, [[5, 6]], layers=[1], k=1),
        r"rows: \[5\] has no position that counts: of its tokens \(1\) the first do": lambda: causal_basis(lm, [[5]]),
        "rows: is one string": lambda: causal_basis(lm, "text"),
        "no position counts": lambda: causal_basis(lm, []),
        "has no gradient": lambda: causal_basis(lm, rows, lambda h: h.detach(), [1], k=1),
        "extracted from tiny-gpt2": lambda: influence(other, rows_of(other), basis),
        "one has 8 of 8 positions": lambda: alignment(lm, rows[:1], basis),
        "layer 3: this basis has layers 1": lambda: basis[3],
        "k 3: this basis has 1–2": lambda: basis.top(3),
        "give \\(layers, k, D\\)": lambda: Basis(basis.directions[0], *([basis.mean] * 3), (1,), "", "", basis.model),
    }.items():
        with pytest.raises(ls.LenscopeError, match=wrong):
            call()
    with pytest.raises(ls.LenscopeError, match="lens 'x'"):
        alignment(lm, rows, basis).units("x", 1)


def test_results_show_themselves():
    lm = lm_of("gpt2")
    rows = rows_of(lm)
    basis = causal_basis(lm, rows, None, [1], k=3)
    found = influence(lm, rows, basis)
    assert isinstance(found, Influence)
    assert "48 tokens" in repr(found)
    assert found.table(1, [["a"], ["b"], ["c"]], limit=2).row_count == 2
    assert found.to_json()["influence_on_lens"] == found.lens.tolist()
    same = alignment(lm, rows, basis)
    assert isinstance(same, Alignment)
    assert "48 tokens" in repr(same)
