"""What tests of patches compare with: the plain oracle, told where one vector is put."""

import numpy as np
from plain_hooks import put, run_with_hooks, write_greedily

# words of documents, and new tokens of a text
WORDS = ["the cat", "sat on", "a mat", "capital of", "France is", "Paris", "this is", "a test", "of the", "tokenizer"]
NEW = 3


def numbered(count=90, seed=0):
    """Documents that each repeat a number of their own."""
    random = np.random.default_rng(seed)
    return [" ".join(f"{word} {n}" for word in random.choice(WORDS, 14)) for n in range(100, 100 + count)]


def patched_logits(lm, prompt, layer, vector):
    """Logits after a prompt whose last state at a layer is a vector."""
    return run_with_hooks(lm.model, [prompt.ids], {layer: put(-1, vector)})[1][0, -1]


def written_after(model, ids, patch=None):
    """Greedy ids after `ids`; the patch puts a vector at (layer, position, vector)."""
    changes = {} if patch is None else {patch[0]: put(patch[1], patch[2])}
    return write_greedily(model, ids, NEW, changes)
