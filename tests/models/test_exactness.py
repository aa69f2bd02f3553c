"""Which fast ways are exact for a model."""

import pytest
import tiny
import torch

import lenscope as ls
from lenscope.models import exactness, generation
from lenscope.models.exactness import tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_rounding_is_not_taken_for_a_wrong_cache_or_padding(dtype):
    """What is wrong in float32 is still seen; what is only rounded runs together and from the cache."""
    for architecture, right in (("llama", True), ("gpt2", True), ("roberta", False)):
        lm = ls.LM(tiny.model(architecture, dtype=dtype), None, architecture)
        lm.generate([[20, 30, 40], [50, 60]], 2)
        assert (generation.check_generation(lm.runner).cached <= tolerance(lm.runner)) == right
        assert (generation.check_generation(lm.runner).padded <= tolerance(lm.runner)) == right
        assert exactness.right_padding_deviation(lm.runner) <= tolerance(lm.runner)
