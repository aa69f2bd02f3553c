"""Single tokens that are read from a state, where transformers reads them otherwise than within a text."""

import pytest
import tiny
import torch

import lenscope as ls
from lenscope.models.deviations import deviation
from lenscope.models.single_tokens import single_tokens_as_texts


def last_of(model, ids, name, **given):
    with torch.no_grad():
        carried = getattr(model(input_ids=ids[:, :-1], use_cache=True), name)
        return model(input_ids=ids[:, -1:], use_cache=True, **{name: carried}, **given).logits[:, -1]


@pytest.mark.parametrize(("architecture", "name"), [("zamba2", "past_key_values"), ("rwkv", "state")])
def test_a_token_from_a_state_is_that_of_the_text_only_within_the_block(architecture, name):
    model = tiny.model(architecture)
    lm = ls.LM(model, None, architecture)
    ids = tiny.ids(model, 3, 8, seed=2)
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits[:, -1]
    with single_tokens_as_texts(lm.runner.anatomy.blocks):
        assert deviation(last_of(model, ids, name), whole) <= 1e-4
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks
    # what this is for: where it is no longer so in transformers, it can go
    without = last_of(model, ids, name)
    assert without.shape != whole.shape or deviation(without, whole) > 1e-4


def test_rows_of_rwkv_that_are_written_together_are_those_written_alone():
    lm = ls.LM(tiny.model("rwkv"), None, "rwkv")
    many = [tiny.ids(lm.model, 1, 7, seed=n)[0].tolist() for n in (3, 4)]
    assert [one.ids for one in lm.generate(many, 4)] == [lm.generate(ids, 4).ids for ids in many]
