"""Small fits of a tuned lens: their model, text and recipe, and what is compared of their lenses."""

import random
from collections.abc import Callable

import tiny
import torch

import lenscope as ls
from lenscope.fitting.recipes import Recipe
from lenscope.fitting.tuned_lens import fit

TOKENS, LENGTH, ROOM = 4000, 32, 300_000


def documents(count=150, seed=0):
    draw = random.Random(seed)
    return [[draw.randrange(10, 300) for _ in range(draw.randrange(30, 90))] for _ in range(count)]


def make(kind="llama", dtype=torch.float32, **changed):
    return ls.LM(tiny.model(kind, dtype), tiny.tokenizer(), kind)


def fitted(lm, docs=None, **changed):
    return fit(lm, docs or documents(), **{"tokens": TOKENS, "length": LENGTH, "room": ROOM, **changed})


def weights(lens):
    return {pair: [w.clone() for w in found] for pair, found in lens.weights.items()}


def same(a, b):
    return all(torch.equal(x, y) for pair in a.weights for x, y in zip(a.weights[pair], b.weights[pair], strict=True))


SMALL = Recipe(columns=64, tokens_per_step=256)


def stop_at(tokens: int) -> Callable[[int, int], None]:
    def progress(done, _):
        if done >= tokens:
            raise KeyboardInterrupt

    return progress
