"""Runs of a tiny Llama by hand: states put, attention barred, noise added, and the answers' probabilities."""

import torch

PROMPT, OTHER = "The cat sat on the mat", "The dog sat on the log"


TWO = "is a"  # an answer of several tokens


def run_by_hand(lm, ids, puts=(), barred=(), noise=()):
    """log p (T, V) and states (L, T, D) of one run: states put at (layer, position), (block, query, key) barred."""
    blocks, length = lm.model.model.layers, len(ids)
    states = [None] * (len(blocks) + 1)

    def changed(layer, h):
        h = h.clone()
        for position, vector in noise if layer == 0 else ():
            h[0, position] += vector
        for at, position, vector in puts:
            if at == layer:
                h[0, position] = vector
        states[layer] = h[0]
        return h

    def before(block, args, kwargs):
        n = list(blocks).index(block)
        mask = torch.full((length, length), -torch.inf, dtype=torch.float64).triu(1)
        for at, query, key in barred:
            if at == n + 1:
                mask[query, key] = -torch.inf
        h = changed(0, args[0]) if n == 0 else args[0]
        return (h, *args[1:]), {**kwargs, "attention_mask": mask[None, None]}

    def after(block, args, output):
        return changed(list(blocks).index(block) + 1, output)

    hooks = [b.register_forward_pre_hook(before, with_kwargs=True) for b in blocks]
    hooks += [b.register_forward_hook(after) for b in blocks]
    with torch.no_grad():
        log_p = lm.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].log_softmax(-1)
    for hook in hooks:
        hook.remove()
    return log_p, torch.stack(states)


def answered(log_p, ids):
    return sum(float(log_p[n - len(ids), i]) for n, i in enumerate(ids))


def tokens(lm, text, answer):
    return list(lm.prompt(text).ids), lm.encoder.ids(answer)
