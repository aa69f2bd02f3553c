"""Whether a model is the one that a file was made for: in another dtype it is, with other weights it is not."""

import pytest
import torch
from char_tokenizers import char_model
from loaded_again import lens_for, named

import lenscope as ls
from lenscope.mappings.mapping import load_mapping


@pytest.fixture(scope="module")
def other():
    return char_model()


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("fitted_in", DTYPES)
@pytest.mark.parametrize("used_in", DTYPES)
def test_the_same_weights_in_another_dtype_are_the_same_model(fitted_in, used_in, tmp_path):
    if {fitted_in, used_in} == {torch.bfloat16, torch.float16}:
        pytest.skip("two roundings of a float32 checkpoint: neither can be told from the other")
    lens_for(named(fitted_in)).save(tmp_path)
    lens = load_mapping(tmp_path)
    lens.check(named(used_in), named(used_in))

    def head(model):
        model.lm_head.weight[7] *= 1.02

    def one_weight(model):
        model.model.layers[2].mlp.up_proj.weight[3, 5] *= 1.02

    def norm(model):
        model.model.norm.weight[0] += 0.05

    for change in (head, one_weight, norm):
        other = named(used_in, change)
        with pytest.raises(ls.LenscopeError, match="fitted from tiny-llama"):
            lens.check(other, other)


@pytest.mark.parametrize("native", [torch.bfloat16, torch.float16])
def test_a_16_bit_checkpoint_is_known_in_every_dtype(native):
    def rounded(model):
        model.to(native)

    lms = [named(dtype, rounded) for dtype in DTYPES]
    for a in lms:
        for b in lms:
            lens_for(a).check(b, b)


def test_in_one_dtype_every_byte_counts():
    def least(model):
        head = model.lm_head.weight
        head[7, 3] = torch.nextafter(head[7, 3], torch.tensor(torch.inf))

    other = named(torch.float32, least)
    lens = lens_for(named(torch.float32))
    with pytest.raises(ls.LenscopeError, match="load the weights it was fitted with"):
        lens.check(other, other)
    # nor is a float64 model compared by what 16 bits can hold
    wide = named(torch.float64, least)
    with pytest.raises(ls.LenscopeError, match="load the weights it was fitted with"):
        lens.check(wide, wide)
    lens.check(named(torch.float64), named(torch.float64))
    # which no 16-bit model can hold
    lens.check(named(torch.bfloat16, least), named(torch.bfloat16, least))
