"""Soft prompts: vectors learned to make a model go on from a patched state as the state's own context would.

Knows: what they are trained on, the only gradients through a frozen model's whole run, their files.
Does not know: how patches are run without gradients, which methods use them (patchscopes/methods.py).
"""

import random
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from lenscope.contents import Brief
from lenscope.errors import LenscopeError
from lenscope.models.language_model import LM, PromptLike
from lenscope.models.layers import check_layers
from lenscope.models.progress import Progress
from lenscope.models.readout import wide
from lenscope.models.residual_stream import forward_kwargs
from lenscope.models.same_model import model_identity
from lenscope.patchscopes.soft_prompt import FIXED_PROMPTS, SoftPrompt
from lenscope.text.beginnings import Beginnings, check_texts, part_texts

# texts that are read together; sources whose runs are compared together
TEXTS, AT_ONCE = 16, 32


def fit_soft_prompt(
    lm: LM,
    texts: Iterable[str],
    layer: int,
    *,
    target_layer: int | None = None,
    start: PromptLike = FIXED_PROMPTS[0],
    ahead: int = 3,
    steps: int = 300,
    batch: int = 16,
    learning_rate: float = 0.03,
    per_text: int = 8,
    length: int = 128,
    held_out: float = 0.1,
    seed: int = 0,
    progress: Progress | None = None,
) -> SoftPrompt:
    """A prompt that makes the model say what comes after a state of `layer`: Future Lens (Pal et al. 2023, §3.4).

    Minimises KL(p ‖ q), averaged over sources and over 0…`ahead` tokens further on: p is the model's own next-token
    distribution there, q that after the soft prompt, patched with the source's state, and the text's tokens so far.
    Vectors start as the layer-0 states of `start`, and move by Adam, whose rate, in units of their standard deviation,
    falls linearly to 0; what has the least loss on held-out texts is returned, so never worse there than `start`.
    The paper's has 10 vectors, drawn at random, and no held-out texts. Sources are `per_text` random positions of
    each text, cut to `length` tokens, but not the first one nor special tokens, attention sinks.

    `target_layer` is by default `layer`. Half of the fraction `held_out` of texts selects; on the other half `report`
    has per token ahead "kl" (nats) and "precision_at_1" (agreement of the top token) and the same for two controls:
    `_start`, the prompt as it started, and `_shuffled`, the learned one with other texts' states. Raises LenscopeError
    for numbers out of range and too few texts.

    Args:
        lm: the model, which stays as it is.
        texts: what it is learned on.
        layer: the layer of the sources' states.
        target_layer: the layer that they are patched into; None: the same.
        start: the prompt whose layer-0 states the vectors begin as.
        ahead: how many tokens after the next one are predicted too.
        steps: steps of Adam.
        batch: sources of a step.
        learning_rate: the first rate, in units of the vectors' standard deviation.
        per_text: sources of a text at most.
        length: tokens of a text that are read at most.
        held_out: the fraction of the texts that is not learned from.
        seed: fixes whatever is drawn.
        progress: called with how much is done and how much there is.
    """
    (layer,) = check_layers((layer,), lm.n_layers, lm.name)
    (to,) = check_layers((layer if target_layer is None else target_layer,), lm.n_layers, lm.name)
    for name, value, minimum in (
        ("ahead", ahead, 0),
        ("steps", steps, 1),
        ("batch", batch, 1),
        ("per_text", per_text, 1),
    ):
        if value < minimum:
            raise LenscopeError(f"{name} {value}: give at least {minimum}")
    if not 0 < learning_rate < float("inf") or not 0 < held_out < 1:
        raise LenscopeError(
            f"learning_rate {learning_rate}, held_out {held_out}: give a rate above 0 and a fraction between 0 and 1"
        )
    if lm.runner.editing or lm.model.training:
        raise LenscopeError(f"{lm.name}: is being edited or in training mode; end the edit or call model.eval() first")
    prompt = lm.prompt(start)
    draw = random.Random(seed)
    parts = _three_parts(_beginnings(lm, texts, length, ahead), held_out, draw)
    train, select, measure = (_gather(lm, part, layer, ahead, per_text, draw) for part in parts)
    first = lm.read(prompt, 0).tensor[0, 0].to(torch.promote_types(lm.dtype, torch.float32))
    spread = first.std()
    moved = torch.zeros_like(first, requires_grad=True)
    adam = torch.optim.Adam([moved], learning_rate)
    best, least = first, float(_evaluate(lm, prompt.ids, first, to, select)[0].mean())
    order: list[int] = []
    losses = []
    for step in range(steps):
        adam.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
        while len(order) < batch:
            order += draw.sample(range(len(train.h)), len(train.h))
        pairs, order = train.take(order[:batch]), order[batch:]
        with torch.enable_grad():
            loss = divergence(lm, prompt.ids, first + spread * moved, to, pairs)[0].mean()
            (moved.grad,) = torch.autograd.grad(loss, [moved])
        adam.step()
        losses.append(float(loss.detach()))
        if (step + 1) % max(1, steps // 10) == 0 or step == steps - 1:
            now = (first + spread * moved).detach()
            held = float(_evaluate(lm, prompt.ids, now, to, select)[0].mean())
            if held < least:
                best, least = now, held
        if progress is not None:
            progress(step + 1, steps)
    evaluated = {
        "": _evaluate(lm, prompt.ids, best, to, measure),
        "_start": _evaluate(lm, prompt.ids, first, to, measure),
        "_shuffled": _evaluate(lm, prompt.ids, best, to, measure, shuffled=True),
    }
    measured = [
        {"ahead": n}
        | {f"kl{name}": float(kl[n]) for name, (kl, _) in evaluated.items()}
        | {f"precision_at_1{name}": float(hit[n]) for name, (_, hit) in evaluated.items()}
        for n in range(ahead + 1)
    ]
    counts = dict(zip(("fitted", "selecting", "measured"), map(len, (train.h, select.h, measure.h)), strict=True))
    report = {"sources": counts, "steps": steps, "batch": batch, "learning_rate": learning_rate, "seed": seed}
    report |= {"length": length, "start": prompt.text, "ahead": measured, "losses": losses}
    return SoftPrompt(best.float(), prompt.ids, layer, to, model_identity(lm), report)


@dataclass(frozen=True, eq=False, repr=False)
class Pairs(Brief):
    """Sources h (n, D), the tokens that follow them, ids (n, A), and the last layer's states, final (n, A + 1, D)."""

    h: Tensor
    ids: Tensor
    final: Tensor

    def take(self, rows: Sequence[int]) -> "Pairs":
        """Some of them."""
        at = torch.tensor(rows)
        return Pairs(self.h[at], self.ids[at], self.final[at])


def divergence(lm: LM, ids: Sequence[int], vectors: Tensor, layer: int, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """KL(p ‖ q) in nats and whether the top tokens agree, (n, A + 1) each; differentiable in `vectors` (K, D).

    q is read after the tokens `ids` (K,) with `vectors` at layer 0 and each source at `layer` of the last of them.

    Args:
        lm: the model.
        ids: the tokens (K,) of the soft prompt.
        vectors: their layer-0 states (K, D).
        layer: the layer that sources are patched into.
        pairs: sources, the tokens that follow them, and the last layer's states there.
    """
    k, n = len(ids), len(pairs.h)

    def soft(h: Tensor) -> Tensor:
        return torch.cat([vectors.to(h).expand(n, -1, -1), h[:, k:]], 1)

    def put(h: Tensor) -> Tensor:
        return torch.cat([h[:, : k - 1], pairs.h.to(h)[:, None], h[:, k:]], 1)

    device = lm.runner.input_device
    read = torch.cat([torch.tensor([list(ids)] * n), pairs.ids], 1).to(device)
    last = pairs.final.shape[1]
    wanted = forward_kwargs(lm.model, use_cache=False, logits_to_keep=last)
    with lm.runner.exclusive.alone(), ExitStack() as undo:
        undo.callback(lm.runner.hook(0, soft).remove)
        undo.callback(lm.runner.hook(layer, put).remove)
        logits = lm.model(input_ids=read, **wanted).logits[:, -last:]
    q = wide(logits).log_softmax(-1)
    p = lm.unembed(pairs.final).log_softmax(-1).to(q)
    return (p.exp() * (p - q)).sum(-1), p.argmax(-1) == q.argmax(-1)


@torch.no_grad()
def _evaluate(
    lm: LM, ids: Sequence[int], vectors: Tensor, layer: int, pairs: Pairs, *, shuffled: bool = False
) -> tuple[Tensor, Tensor]:
    """Mean KL and agreement per token ahead, (A + 1,) each; `shuffled`: with the states of other texts."""
    h = pairs.h.roll(len(pairs.h) // 2, 0) if shuffled else pairs.h
    given = Pairs(h, pairs.ids, pairs.final)
    rows = [list(range(at, min(at + AT_ONCE, len(h)))) for at in range(0, len(h), AT_ONCE)]
    parts = [divergence(lm, ids, vectors, layer, given.take(part)) for part in rows]
    kl, hit = (torch.cat(column).double().mean(0) for column in zip(*parts, strict=True))
    return kl, hit


def _beginnings(lm: LM, texts: Iterable[str], length: int, ahead: int) -> list[tuple[int, ...]]:
    """The token ids of each text once, cut to `length`; too short ones are left out."""
    check_texts(texts)
    beginnings = Beginnings(lm, length)
    cut = (beginnings.of(text).ids for text in dict.fromkeys(texts) if text)
    return [ids for ids in cut if _places(lm, ids, ahead)]


def _places(lm: LM, ids: tuple[int, ...], ahead: int) -> list[int]:
    """Positions of a row that are sources: no attention sink (the first, special tokens); `ahead` + 1 tokens follow."""
    spelling = lm.encoder.spelling
    special = () if spelling is None else spelling.special
    return [at for at in range(1, len(ids) - ahead) if ids[at] not in special]


def _three_parts(
    texts: list[tuple[int, ...]], held_out: float, draw: random.Random
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Texts to learn from, to select with, and to measure with, at random."""
    held = max(4, round(held_out * len(texts)))
    if len(texts) < held + 1:
        raise LenscopeError(f"texts: {len(texts)} are long enough, and {held} are to be held out; give more texts")
    return part_texts(texts, held, draw)


def _gather(lm: LM, texts: list[tuple[int, ...]], layer: int, ahead: int, per_text: int, draw: random.Random) -> Pairs:
    """`per_text` sources of each text, at random."""
    h, following, final = [], [], []
    count = ceil(len(texts) / TEXTS)
    for together in (texts[n::count] for n in range(count)):
        states = lm.read(together, (layer, lm.n_layers)).tensor
        for row, ids in enumerate(together):
            places = _places(lm, ids, ahead)
            for at in draw.sample(places, min(per_text, len(places))):
                h.append(states[row, 0, at])
                following.append(ids[at + 1 : at + 1 + ahead])
                final.append(states[row, 1, at : at + 1 + ahead])
    return Pairs(torch.stack(h), torch.tensor(following, dtype=torch.long), torch.stack(final))
