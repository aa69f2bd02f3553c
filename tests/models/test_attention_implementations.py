"""Attention by another implementation for a while: every part's configuration is changed, and is as before then."""

import pytest
import tiny

from lenscope.models.attention_implementations import attention_by, eager_attention


def names(model):
    return [m.config._attn_implementation_internal for m in model.modules() if hasattr(m, "config")]


def test_all_parts_change_and_are_as_before(lm):
    model, before = lm.model, names(lm.model)
    with attention_by(model, lambda name: f"{name} too"):
        assert names(model) == [f"{name} too" for name in before]
    assert names(model) == before


def test_an_error_leaves_names_as_they_were(lm):
    before = names(lm.model)
    with pytest.raises(ZeroDivisionError), attention_by(lm.model, lambda name: "eager"):
        raise ZeroDivisionError
    assert names(lm.model) == before


@pytest.mark.parametrize(("own", "meanwhile"), [("sdpa", "eager"), ("flex_attention", "flex_attention"), (None, None)])
def test_eager_attention_stands_in_for_the_fused_one_of_torch_alone(own, meanwhile):
    model = tiny.model("llama")
    model.config._attn_implementation_internal = own
    with eager_attention(model):
        assert set(names(model)) == {meanwhile}
    assert set(names(model)) == {own}
