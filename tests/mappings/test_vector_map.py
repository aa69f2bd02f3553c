"""Small maps of vectors: the formula of every shape, per layer or shared, and what is refused."""

import itertools
import re

import pytest
import torch
from torch.testing import assert_close

import lenscope as ls
from lenscope.mappings import mapping as mappings
from lenscope.mappings.vector_map import VectorMap

D, OUT, R = 5, 3, 2
TENSORS = {
    "scale_only": {"scale": ()},
    "affine": {"scale": (), "bias": (D,)},
    "low_rank": {"scale": (), "U": (D, R), "V": (R, D), "bias": (D,)},
    "low_rank_only": {"U": (OUT, R), "V": (R, D), "bias": (OUT,)},
    "full": {"W": (OUT, D), "bias": (OUT,)},
}


def drawn(shape: str, layers: int | None = None, seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    front = () if layers is None else (layers,)
    return {name: torch.randn((*front, *size), generator=draw) for name, size in TENSORS[shape].items()}


def by_hand(h: torch.Tensor, w: dict[str, torch.Tensor], normalize: bool) -> torch.Tensor:
    """The formula, one vector at a time."""
    rows = []
    for one in h.reshape(-1, h.shape[-1]):
        n = one / one.square().sum().sqrt() if normalize else one
        total = w["bias"].to(h) if "bias" in w else torch.zeros(1, dtype=h.dtype)
        if "scale" in w:
            total = total + w["scale"].to(h) * n
        if "U" in w:
            total = total + w["U"].to(h) @ (w["V"].to(h) @ n)
        if "W" in w:
            total = total + w["W"].to(h) @ n
        rows.append(total)
    return torch.stack(rows).reshape(*h.shape[:-1], -1)


@pytest.mark.parametrize(("shape", "normalize"), itertools.product(TENSORS, (True, False)))
def test_the_tensors_tell_the_shape_and_give_the_formula(shape, normalize):
    weights = drawn(shape)
    f = VectorMap(**weights, normalize=normalize)
    assert f.shape == shape
    assert f.rank == (R if "rank" in shape else None)
    h = torch.randn(2, 4, D, dtype=torch.float64)
    assert_close(f(h), by_hand(h, weights, normalize), rtol=1e-12, atol=1e-12)
    assert_close(f(h[0]), f(h)[0], rtol=1e-12, atol=1e-12)
    assert f(h).dtype == torch.float64
    assert f(h.float()).dtype == f(h.bfloat16()).dtype == torch.float32
    assert_close(f(h.float()).double(), f(h), rtol=1e-5, atol=1e-5)
    again = VectorMap(**f.tensors(), **f.settings())
    assert mappings.mapping_hash(again) == mappings.mapping_hash(f)


@pytest.mark.parametrize("shape", TENSORS)
def test_layers_have_weights_of_their_own_or_share_them(shape):
    weights = drawn(shape, layers=2)
    f = VectorMap(**weights, layers=[4, 7])
    h = torch.randn(6, D, dtype=torch.float64)
    for number, layer in enumerate((4, 7)):
        mine = {name: w[number] for name, w in weights.items()}
        assert_close(f(h, layer), by_hand(h, mine, True), rtol=1e-12, atol=1e-12)
        assert f(h, layer).equal(VectorMap(**mine)(h))
        assert f(h, layer).equal(VectorMap(**mine)(h, layer))
        assert f(h, layer).equal(VectorMap(**{n: w[None] for n, w in mine.items()}, layers=(layer,))(h))
    with pytest.raises(ls.LenscopeError, match=re.escape("layer 5: this map has weights for layers 4, 7")):
        f(h, 5)
    with pytest.raises(ls.LenscopeError, match="layer None: this map"):
        f(h)
    assert (mappings.argument_count(f), mappings.argument_count(VectorMap(**drawn(shape)))) == (2, 1)


def test_the_zero_vector_is_mapped_to_the_bias_and_every_other_one_has_a_direction():
    f = VectorMap(**drawn("affine"))
    assert f.bias is not None
    assert f(torch.zeros(2, D)).equal(f.bias.expand(2, D))
    h = torch.randn(3, D)
    # whose squares are no float32 numbers
    assert_close(f(h * 1e-30), f(h))
    assert_close(f(h * 1e30), f(h))


def test_maps_are_told_apart_by_their_contents():
    weights = drawn("low_rank")
    other = {**weights, "bias": weights["bias"] + 1e-3}
    several = {name: w[None] for name, w in weights.items()}
    maps = [
        VectorMap(**weights),
        VectorMap(**weights, normalize=False),
        VectorMap(**other),
        VectorMap(**several, layers=(3,)),
        VectorMap(**several, layers=(4,)),
        VectorMap(**{n: w for n, w in weights.items() if n != "bias"}),
    ]
    assert len({mappings.mapping_hash(f) for f in maps}) == len(maps)
    assert mappings.mapping_hash(VectorMap(**drawn("low_rank"))) == mappings.mapping_hash(maps[0])
    before = mappings.mapping_hash(maps[0])
    weights["bias"].zero_()
    assert mappings.mapping_hash(maps[0]) == before
    assert repr(maps[0]) == "VectorMap(low_rank, rank 2, 5 → 5)"


def test_a_scale_may_be_a_vector_of_one_number():
    assert VectorMap(scale=torch.tensor([2.0])).tensors()["scale"].shape == ()
    assert VectorMap(scale=torch.ones(2, 1), layers=(0, 1)).tensors()["scale"].shape == (2,)
    assert VectorMap(scale=torch.tensor(2.0), normalize=False)(torch.ones(7)).equal(torch.full((7,), 2.0))


ONE = torch.tensor(1.0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "map: has nothing; give a scale, U and V"),
        ({"bias": torch.ones(D)}, "map: has bias; give a scale"),
        ({"U": torch.ones(D, R)}, "map: has U; give a scale, U and V"),
        ({"scale": "much"}, "map: scale str: is no tensor of numbers"),
        ({"scale": torch.ones(2)}, "map: scale of shape (2,); it must have 0 axes"),
        ({"W": torch.ones(0, D)}, "map: W of shape (0, 5); it must have 2 axes, none empty"),
        ({"W": torch.full((D, D), torch.nan)}, "map: W holds NaN or infinity"),
        ({"scale": ONE * torch.inf}, "map: scale holds NaN or infinity"),
        ({"U": torch.ones(D, R), "V": torch.ones(3, D)}, "map: V has 3 rows, and the U's rank is 2"),
        ({"W": torch.ones(D, D), "bias": torch.ones(3)}, "map: bias has 3 numbers, and the width"),
        ({"scale": ONE, "U": torch.ones(3, R), "V": torch.ones(R, D)}, "map: a scale keeps a vector's width"),
        ({"scale": ONE, "W": torch.ones(3, D)}, "map: a scale keeps a vector's width"),
        ({"scale": ONE, "layers": [0, 1]}, "map: scale of shape (); it must have 1 axes"),
        ({"scale": torch.ones(3), "layers": [0, 1]}, "map: scale is of 3 layers, and there are 2"),
        ({"scale": ONE, "layers": 3}, "layers 3: give a list of layers"),
        ({"scale": torch.ones(2), "layers": [1, 1]}, "layers (1, 1): give whole numbers from 0 on"),
        ({"scale": torch.ones(1), "layers": [-1]}, "layers (-1,): give whole numbers from 0 on"),
    ],
)
def test_what_makes_no_map_is_refused(given, said):
    with pytest.raises(ls.LenscopeError, match=re.escape(said)):
        VectorMap(**given)


def test_vectors_of_another_width_are_refused():
    with pytest.raises(ls.LenscopeError, match="vectors of 6 numbers: this map takes 5"):
        VectorMap(**drawn("affine"))(torch.ones(2, 6))
