"""A result of every kind, of a tiny model."""

from functools import cache

import affine_lens
import tiny
import torch

import lenscope as ls
from lenscope.lenses.side_by_side import read_side_by_side

TEXTS = ["The cat sat on the mat.", "The capital of France is Paris.", "This is a test."]
KINDS = ("trajectory", "comparison", "side by side", "predicted", "generated", "effects", "evaluation", "transfer")
# those that Parquet files hold
TABLES = tuple(k for k in KINDS if k != "comparison")


@cache
def every_result():
    """Results by kind; who changes one copies it first."""
    lm = ls.LM(tiny.model("llama"), tiny.tokenizer(), "tiny-llama")
    f = affine_lens.affine(lm)
    lens = ls.Lens(lm, f, name="tuned")
    scope = ls.Patchscope(lm, "cat -> cat; ?")
    states = lm.read("The cat", layers=[1, 4], positions=-1)
    return {
        "trajectory": ls.Lens(lm).trajectory("The cat sat", top_k=3),
        "comparison": ls.Lens(lm).compare("The cat", "The mat", lens=lens, layers=[0, 4]),
        "side by side": read_side_by_side(lm, {"logit lens": None, "tuned": f}, "The cat", layers=[0, 2, 4], top_k=2),
        "predicted": scope.predict(states, [4, 0], top_k=3, answers=["a"]),
        "generated": scope.generate(torch.stack([torch.full((32,), k) for k in (1.0, 2.0)]), [1, 3], stop=["e", "t"]),
        "effects": ls.interventions.causal_tracing(
            lm, ["The cat sat", "The mat is"], ["cat", "mat"], samples=2, layers=[2, 0]
        ),
        "evaluation": ls.evaluate(lm, TEXTS, {"logit lens": None, "tuned": f}, layers=[0, 2]),
        "transfer": ls.transfer(lm, TEXTS, f, layers=[0, 3]),
    }
