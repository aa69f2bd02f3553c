"""Which modes of running rows give a model's own numbers."""

import numpy as np
import pytest
import tiny
import torch

import lenscope as ls
from lenscope.engine import exact_modes, sweep
from lenscope.engine.patched_rows import PatchedRows
from lenscope.models.exactness import tolerance


@pytest.mark.parametrize("architecture", ["mistral", "gemma2", "gpt_neo"])
def test_a_window_shorter_than_the_prompt_is_heeded_for_one_token(architecture):
    """The last token alone is run over the shared prefix; what its window hides must stay hidden."""
    config = {"sliding_window": 4} if architecture != "gpt_neo" else {"window_size": 4}
    built = tiny.model(architecture, dtype=torch.float64)
    windowed = type(built)(type(built.config).from_dict({**built.config.to_dict(), **config})).double().eval()
    windowed.load_state_dict(built.state_dict())
    lm = ls.LM(windowed, None, architecture)
    ids = tiny.ids(windowed, 1, 20)[0].tolist()
    vectors = lm.read(ids)[[1, 2], -1]
    made = PatchedRows(
        (lm.prompt(ids),),
        np.zeros(2, dtype=np.int64),
        vectors,
        *(np.array(a) for a in ([0, 1], [1, 3], [19, 19], [0, 1], [0, 0])),
        (lambda h, v: v,),
    )
    plain = torch.cat([h for _, h in sweep.predict(lm, made, mode="plain")])
    for mode in ("cascade", "fork"):
        if exact_modes.mode_deviation(lm, mode) > tolerance(lm.runner):
            continue
        order, found = zip(*sweep.predict(lm, made, mode=mode), strict=True)
        assert torch.allclose(torch.cat(found)[np.argsort(np.concatenate(order))], plain, atol=1e-9), mode
    whole = ls.LM(built, None, "whole")
    assert not torch.allclose(whole.read(ids)[-1, -1], lm.read(ids)[-1, -1], atol=1e-3)
