"""Products in 16 bits are used where they are fast, unless the environment says otherwise."""

import pytest
import torch

import lenscope as ls
from lenscope.models import precision


@pytest.mark.parametrize("machine", [True, False])
def test_products_in_16_bits_can_be_switched_off_and_on(lm, lm64, monkeypatch, machine):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: machine, raising=False)
    monkeypatch.delenv(precision.SWITCH, raising=False)
    assert precision.fast_products(lm) == precision.low_precision(lm) == (torch.bfloat16 if machine else None)
    monkeypatch.setenv(precision.SWITCH, "1")
    assert precision.fast_products(lm) == precision.low_precision(lm) == torch.bfloat16
    assert precision.fast_products(lm64) is None
    monkeypatch.setenv(precision.SWITCH, "0")
    assert precision.fast_products(lm) is precision.low_precision(lm) is None
    monkeypatch.setenv(precision.SWITCH, "no")
    with pytest.raises(ls.LenscopeError, match="LENSCOPE_FAST_PRODUCTS 'no': set it to 0 or 1"):
        precision.fast_products(lm)
