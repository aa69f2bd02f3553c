"""Topic vectors: the state in which a model is about to answer a request for a topic, less the mean over topics.

Knows: which prompt is read where, what of it is read once for all titles; the same for any token with a label.
Does not know: what vectors are for, files.

Vectors of SelfIE adapters (arXiv 2602.10352): the last prompt token of a chat turn `Tell me about {title}.` at about
60 % of the depth.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, final

import torch
from torch import Tensor

from lenscope.contents import Brief
from lenscope.engine.read_prefix import ReadPrefix
from lenscope.errors import LenscopeError
from lenscope.models.deviations import FAILURES, deviation
from lenscope.models.exactness import reads_together, tolerance
from lenscope.models.language_model import LM
from lenscope.models.layers import Layers, check_layers
from lenscope.models.progress import Progress
from lenscope.models.prompts import Position, Prompt
from lenscope.models.residual_stream import forward_kwargs
from lenscope.models.runner import EnoughRead

TEMPLATE = "Tell me about {}."
# for models without a chat template
PLAIN_TURN = "Question: {}\nAnswer:"
# the depth that is read where no layer is given
DEPTH = 0.6
# prompts that are read together
TOPICS_AT_ONCE = 32
# a common prefix of fewer tokens is not worth a cache
SHORTEST_PREFIX = 8


@final
@dataclass(frozen=True, eq=False, repr=False)
class CenteredVectors(Brief):
    """Labelled states less their mean: `topic_vectors` and `labelled_states` make them.

    Attributes:
        vectors: a vector for each row and layer, (N, L, D), less the mean over rows.
        labels: what each row is called, (N,).
        layers: the layers that were read, (L,).
        mean: what was taken from the states, (L, D).
    """

    vectors: Tensor
    labels: tuple[str, ...]
    layers: tuple[int, ...]
    mean: Tensor


@final
@dataclass(frozen=True)
class LabelledToken:
    """A token of a prompt (an index, or a substring: its last token), and what its state is to be called."""

    prompt: str
    token: Position
    label: str


def usual_layer(lm: LM) -> int:
    """Give the layer whose states are read where none is named: at about 60 % of the depth."""
    return round(DEPTH * lm.n_layers)


def topic_vectors(
    lm: LM,
    titles: Sequence[str],
    layers: Layers | None = None,
    template: str = TEMPLATE,
    *,
    progress: Progress | None = None,
) -> CenteredVectors:
    """Read a vector for each title: the last prompt token's state of a chat turn about it, less the mean over titles.

    The turn is in the model's chat template; for a model without one it is a question and the beginning of an answer.

    Args:
        lm: the model.
        titles: what the vectors are to stand for, (N,), two at least.
        layers: the layers that are read; None: one, at about 60 % of the depth.
        template: what the user says, with {} where the title stands.
        progress: called with how many titles are read, and how many there are.

    Raises LenscopeError for a template without {}, empty titles, and fewer than two.
    """
    if template.count("{}") != 1:
        raise LenscopeError(f"template {template!r}: give a text with one {{}}, where the title stands")
    if isinstance(titles, str):
        raise LenscopeError("titles: is one text; give a list of titles")
    bad = next((n for n, t in enumerate(titles) if not isinstance(t, str) or not t.strip()), None)
    if bad is not None:
        raise LenscopeError(f"titles: number {bad}, {titles[bad]!r}, is no text; leave it out")
    if len(titles) < 2:
        raise LenscopeError(f"titles: {len(titles)}; give two at least, since their mean is taken away")
    numbers = check_layers(usual_layer(lm) if layers is None else layers, lm.n_layers, lm.name)
    front, back = template.split("{}")
    chats = bool(getattr(lm.tokenizer, "chat_template", None))
    prompts = [
        lm.chat(front + title + back) if chats else lm.prompt(PLAIN_TURN.format(front + title + back))
        for title in titles
    ]
    return _centered(last_states(lm, prompts, numbers, progress), titles, numbers)


def labelled_states(
    lm: LM, rows: Sequence[LabelledToken], layers: Layers | None = None, *, progress: Progress | None = None
) -> CenteredVectors:
    """Read a state for each row, of its token, less the mean over rows: of entities, or of subjects of a relation.

    Args:
        lm: the model.
        rows: tokens and labels, two at least.
        layers: the layers that are read; None: one, at about 60 % of the depth.
        progress: called with how many rows are read, and how many there are.

    Raises LenscopeError for a token that its prompt does not have, and for fewer than two rows.
    """
    if len(rows) < 2:
        raise LenscopeError(f"rows: {len(rows)}; give two at least, since their mean is taken away")
    numbers = check_layers(usual_layer(lm) if layers is None else layers, lm.n_layers, lm.name)
    prompts = []
    for row in rows:
        whole = lm.prompt(row.prompt)
        end = whole.position(row.token) + 1
        # what comes behind a token does not change its states
        prompts.append(Prompt(whole.text, whole.ids[:end], whole.tokens[:end], whole.spans[:end]))
    return _centered(last_states(lm, prompts, numbers, progress), [row.label for row in rows], numbers)


def _centered(states: Tensor, labels: Sequence[str], layers: tuple[int, ...]) -> CenteredVectors:
    mean = states.mean(0)
    return CenteredVectors(states - mean, tuple(labels), layers, mean)


def last_states(lm: LM, prompts: Sequence[Prompt], layers: Sequence[int], progress: Progress | None = None) -> Tensor:
    """The states of each prompt's last token at some layers, in float32 or wider: (N, L, D).

    What all prompts begin with is read once, where that gives this model's own numbers, as was seen on two of them.
    """
    out = torch.zeros(
        len(prompts), len(layers), lm.hidden_size, dtype=torch.promote_types(lm.dtype, torch.float32), device=lm.device
    )
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    prefix = _shared_beginning(lm, prompts, order, layers)
    for at in range(0, len(order), TOPICS_AT_ONCE):
        rows = order[at : at + TOPICS_AT_ONCE]
        mine = [prompts[n] for n in rows]
        if prefix is None:
            states = lm.read(mine, tuple(layers), -1).tensor[:, :, 0]
        else:
            states = _behind(lm, prefix, mine, layers)
        out[rows] = states.to(out)
        if progress is not None:
            progress(min(at + TOPICS_AT_ONCE, len(order)), len(order))
    return out


def _shared_beginning(
    lm: LM, prompts: Sequence[Prompt], order: Sequence[int], layers: Sequence[int]
) -> "Prefix | None":
    """What all prompts begin with, read, where going on from it is exact; None where not, or where it is short."""
    first, *others = (p.ids for p in prompts)
    length = min(len(ids) for ids in (first, *others)) - 1
    for ids in others:
        length = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first[:length], ids, strict=False)))
    short, long = prompts[order[0]], prompts[order[-1]]
    if length < SHORTEST_PREFIX or lm.runner.stream is not None or not reads_together(lm.runner, len(short), len(long)):
        return None
    two = [short, long]
    plain = lm.read(two, tuple(layers), -1).tensor[:, :, 0]
    try:
        prefix = Prefix(ReadPrefix(lm, first[:length]), length)
        apart = deviation(_behind(lm, prefix, two, layers).flatten(0, 1), plain.flatten(0, 1))
    except FAILURES as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return None
    return prefix if apart <= tolerance(lm.runner) else None


@dataclass(frozen=True, eq=False)
class Prefix:
    """A prefix that was read, and its number of tokens."""

    read: ReadPrefix
    length: int


def _behind(lm: LM, prefix: Prefix, prompts: Sequence[Prompt], layers: Sequence[int]) -> Tensor:
    """The last tokens' states of prompts that go on from a prefix, (B, L, D)."""
    runner, rest = lm.runner, [p.ids[prefix.length :] for p in prompts]
    longest = max(map(len, rest))
    # padding behind a prompt's end is seen by none of its tokens
    ids = torch.tensor([[*one, *[one[-1]] * (longest - len(one))] for one in rest], device=runner.input_device)
    taken: dict[int, Tensor] = {}
    rows, last = torch.arange(len(rest)), torch.tensor([len(one) - 1 for one in rest])

    def take(layer: int, h: Tensor) -> None:
        taken[layer] = h[rows.to(h.device), last.to(h.device)].to(lm.device)
        if layer == max(layers):
            raise EnoughRead

    carried = prefix.read.rows(len(rest))
    with runner.exclusive.alone(), ExitStack() as undo, torch.no_grad():
        for layer in sorted(set(layers)):
            undo.callback(runner.hook(layer, lambda h, layer=layer: take(layer, h)).remove)
        given: dict[str, Any] = undo.enter_context(carried.passed(ids))
        try:
            lm.model(input_ids=ids, **forward_kwargs(lm.model, **given))
        except EnoughRead:
            pass
    states = torch.stack([taken[layer] for layer in layers], 1)
    runner.require_finite(states, max(layers))
    return states
