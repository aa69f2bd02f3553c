"""What models carry from token to token: going on from it in pieces, and rows of it that are picked."""

import pytest
import tiny
import torch

import lenscope as ls
from lenscope.models.carried_states import nothing_read, picked_rows
from lenscope.models.deviations import deviation

# a cache, a cache under another name, a list of states, a state for each block, states in modules, states beside layers
KINDS = ["bamba", "mamba", "rwkv", "xlstm", "recurrent_gemma", "minimax", "qwen4_exp_text"]


@pytest.fixture(scope="module", params=KINDS)
def lm(request):
    return ls.LM(tiny.model(request.param), None, request.param)


def fed(lm, carried, ids):
    with lm.runner.exclusive.alone(), torch.no_grad(), carried.passed(ids) as given:
        return lm.model(input_ids=ids, **given).logits


def test_tokens_one_by_one_give_what_the_whole_text_gives(lm):
    ids = tiny.ids(lm.model, 3, 9, seed=4)
    with torch.no_grad():
        whole = lm.model(input_ids=ids, use_cache=False).logits
    carried = nothing_read(lm.runner)
    pieces = [fed(lm, carried, ids[:, :4]), *(fed(lm, carried, ids[:, n : n + 1]) for n in range(4, 9))]
    assert carried.seen == 9
    assert deviation(torch.cat(pieces, 1)[:, -5:], whole[:, -5:]) <= 1e-4


def test_a_twin_goes_on_without_changing_what_it_goes_on_from(lm):
    ids = tiny.ids(lm.model, 2, 8, seed=4)
    layers = range(lm.n_layers)
    prefix = nothing_read(lm.runner)
    fed(lm, prefix, ids[:, :5])
    first = prefix.twin()
    index = torch.tensor([1, 0, 1])
    answers = []
    for carried in (first, prefix.twin()):
        for block in layers:
            carried.arrange(block, [block], lambda one: picked_rows(one, index))
        answers.append([fed(lm, carried, ids[index, n : n + 1]) for n in range(5, 8)])
    assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))
    with torch.no_grad():
        whole = lm.model(input_ids=ids, use_cache=False).logits
    assert deviation(answers[0][-1][:, 0], whole[index, -1]) <= 1e-4


def test_what_blocks_keep_in_their_modules_is_not_left_there():
    lm = ls.LM(tiny.model("recurrent_gemma"), None, "recurrent_gemma")
    ids = tiny.ids(lm.model, 2, 6, seed=4)
    blocks = [m for m in lm.model.modules() if hasattr(m, "conv1d_state")]

    def left():
        return [t for m in blocks for t in (m.conv1d_state, m.rg_lru.recurrent_states)]

    carried, before = nothing_read(lm.runner), left()
    fed(lm, carried, ids[:, :5])
    assert blocks
    assert all(a is b for a, b in zip(left(), before, strict=True))
    # what others read in between is nothing to it
    other = nothing_read(lm.runner)
    fed(lm, other, tiny.ids(lm.model, 2, 4, seed=9))
    with torch.no_grad():
        whole = lm.model(input_ids=ids, use_cache=False).logits
    assert deviation(fed(lm, carried, ids[:, 5:])[:, 0], whole[:, -1]) <= 1e-4
