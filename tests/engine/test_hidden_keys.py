"""Keys that rows may not see, in blocks that attend in ways of their own."""

import numpy as np
import pytest
import tiny
import torch

import lenscope as ls
from lenscope.engine import sweep
from lenscope.engine.patched_rows import PatchedRows
from lenscope.models.edits import replace

LENGTH, KEY, PATCHED = 9, 2, 5


def run_by_hand(lm, ids, hidden, layer, vector):
    """The last state where the last query does not see a key in some blocks, with a state put at a layer."""

    def before(number, args, kwargs):
        mask = torch.full((LENGTH, LENGTH), -torch.inf, dtype=lm.dtype).triu(1)
        if hidden[0] <= number < hidden[1]:
            mask[-1, KEY] = -torch.inf
        given = kwargs["attention_mask"]
        mask = mask[None, None]
        return args, {**kwargs, "attention_mask": {"causal": mask} if isinstance(given, dict) else mask}

    hooks = [
        block.register_forward_pre_hook(lambda _, a, k, n=n: before(n, a, k), with_kwargs=True)
        for n, block in enumerate(lm.runner.anatomy.blocks)
    ]
    try:
        with lm.edit(ls.Edit(layer, PATCHED, vector)):
            return lm.read(ids)[-1, -1]
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize(
    "architecture", ["gemma3n_text", "gemma4_text", "longcat_flash", "deepseek_v3", "diffllama", "zaya"]
)
def test_keys_are_hidden_where_blocks_share_them_and_where_they_are_made_late(architecture):
    """Blocks that read the keys of another see what they may, not what that one may; rows part between the two."""
    lm = ls.LM(tiny.model(architecture, torch.float64), None, architecture)
    n, ids = lm.n_layers, tiny.ids(lm.model, 1, LENGTH)[0].tolist()
    vectors = lm.read(ids)[1, :2]
    blocks = [(0, 1), (n - 1, n), (1, n - 1), (0, n), (n, n)]
    layers = [n - 1, 1, 2, 0, 2]
    rows = np.arange(len(blocks))
    hidden = np.array([(row, *b, LENGTH - 1, -1, KEY) for row, b in zip(rows, blocks, strict=True)])
    one = np.zeros(len(rows), dtype=np.int64)
    patched = PatchedRows(
        (lm.prompt(ids),), one, vectors, rows, np.array(layers), one + PATCHED, rows % 2, one, (replace,), hidden
    )
    found = torch.zeros(len(rows), lm.hidden_size, dtype=lm.dtype)
    for which, h in sweep.predict(lm, patched):
        found[which] = h[:, 0]
    for row in rows:
        expected = run_by_hand(lm, ids, blocks[row], layers[row], vectors[row % 2])
        assert torch.allclose(found[row], expected, atol=1e-5 * float(expected.std())), blocks[row]
    assert not torch.allclose(found[0], found[4], atol=1e-3)
