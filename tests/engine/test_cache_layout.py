"""What is seen of a model's cache: whose layers are where, whose keys are made late, whose can be hidden."""

import numpy as np
import pytest
import tiny

import lenscope as ls
from lenscope.engine import sweep
from lenscope.engine.cache_layout import cache_layout
from lenscope.engine.patched_rows import PatchedRows
from lenscope.models.edits import replace


@pytest.mark.parametrize(
    ("architecture", "layers", "late", "maskable"),
    [
        ("llama", ((0,), (1,), (2,), (3,)), False, True),
        ("gemma4_text", ((0,), (1,), (), ()), False, True),
        ("longcat_flash", ((0, 1), (2, 3), (4, 5), (6, 7)), True, True),
        ("deepseek_v32", ((0,), (1,), (2,), (3,)), True, False),
    ],
)
def test_layers_of_the_cache_belong_to_the_blocks_that_write_them(architecture, layers, late, maskable):
    layout = cache_layout(ls.LM(tiny.model(architecture), None, architecture))
    assert (layout.layers, layout.late, layout.maskable) == (layers, late, maskable)


def test_keys_that_cannot_be_hidden_are_refused_not_shown():
    """An index chooses keys here, and copies of a cache are made for each row: no mask would be heeded."""
    lm = ls.LM(tiny.model("deepseek_v32"), None, "deepseek_v32")
    prompt = lm.prompt(tiny.ids(lm.model, 1, 6)[0].tolist())
    one = np.zeros(1, dtype=np.int64)
    hidden = np.array([[0, 0, lm.n_layers, 5, -1, 2]])
    rows = PatchedRows((prompt,), one, lm.read(prompt)[1, :1], one, one, one + 3, one, one, (replace,), hidden)
    with pytest.raises(ls.LenscopeError, match="cannot be told which keys to leave out"):
        list(sweep.predict(lm, rows))
