"""Bases and ablations by hand: heads and blocks of tiny models, energies by definition, runs with plain hooks."""

import json
import random

import pytest
import tiny
import torch
from affine_lens import affine

import lenscope as ls
from lenscope.experiments.setting import Setting

WORDS = "the cat sat on a mat in this capital city of France and Paris is it while tests of tokens go on"


# final norm and head of each family, and how their product becomes logits
TAILS = {
    "llama": lambda m, h: m.lm_head(m.model.norm(h)),
    "gpt2": lambda m, h: m.lm_head(m.transformer.ln_f(h)),
    "cohere": lambda m, h: m.lm_head(m.model.norm(h)) * m.config.logit_scale,
    "gemma2": lambda m, h: (
        torch.tanh(m.lm_head(m.model.norm(h)) / m.config.final_logit_softcapping) * m.config.final_logit_softcapping
    ),
}


BLOCKS = {
    "llama": lambda m: m.model.layers,
    "gpt2": lambda m: m.transformer.h,
    "bloom": lambda m: m.transformer.h,
    "gemma3n_text": lambda m: m.model.layers,
}


def lm_of(kind, dtype=torch.float64):
    return ls.LM(tiny.model(kind, dtype=dtype), tiny.tokenizer(), f"tiny-{kind}")


def rows_of(lm, count=6, length=9):
    return [tiny.ids(lm.model, 1, length, n)[0].tolist() for n in range(count)]


def states(lm, rows, layer):
    """Of all positions that count, row after row: not of the first one."""
    return lm.read(rows, layer).tensor[:, 0, 1:].flatten(0, 1)


def behind(h, new):
    """States (1, T, D) with those after position 0 replaced by `new`."""
    return torch.cat([h[:, :1], new], 1)


def kl(a, b):
    p, q = a.log_softmax(-1), b.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def ablate(h, v, mean):
    return h + ((mean - h) @ v)[..., None] * v


def sigma(tail, f, h, v, mean=None):
    """The definition, by the model's own modules."""
    return kl(tail(f(h)), tail(f(ablate(h, v, h.mean(0) if mean is None else mean)))).mean()


def unit(size, seed=0):
    v = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return v / v.norm()


def hooked(lm, kind, row, layer, change):
    """The last block's output of a row when `change` is made at a layer, by hooks of one's own."""
    blocks, kept = BLOCKS[kind](lm.model), []

    def pre(_, args, kwargs):
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    def post(_, args, out):
        return (change(out[0]), *out[1:]) if isinstance(out, tuple) else change(out)

    if layer == 0:
        hook = blocks[0].register_forward_pre_hook(pre, with_kwargs=True)
    else:
        hook = blocks[layer - 1].register_forward_hook(post)
    last = blocks[-1].register_forward_hook(lambda _, args, out: kept.append(out[0] if isinstance(out, tuple) else out))
    try:
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([row]), use_cache=False).logits[0]
    finally:
        hook.remove()
        last.remove()
    return logits


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    draw = random.Random(0)
    words = WORDS.split()
    path.write_text("\n".join(json.dumps({"text": " ".join(draw.choices(words, k=60))}) for _ in range(300)))
    return str(path)


@pytest.fixture(scope="module")
def setting(text, tmp_path_factory):
    lm = lm_of("llama", torch.float32)
    return Setting(lm, data=(text,), text=(text,), lens=affine(lm), quick=True, folder=tmp_path_factory.mktemp("run"))
