"""Where the states of a sweep are read: prompts, positions, layers and answers in columns, each spot once.

Knows: that every place is checked, and named where it is wrong, before a model runs; how spots are known again.
Does not know: what states are patched into.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lenscope.contents import Brief
from lenscope.errors import LenscopeError, naming_place
from lenscope.models.language_model import LM
from lenscope.models.layers import check_layers
from lenscope.models.prompts import Prompt
from lenscope.statistics.derangements import derange
from lenscope.sweeps.listed_prompts import ListedPrompt


@dataclass(frozen=True, eq=False, repr=False)
class Spots(Brief):
    """S places whose states are read: `prompt` (S,) numbers `texts`, `position` (S,) is a token of it.

    `layers` (S,) numbers `layer_sets`, `answer` (S,) numbers `answers` (-1: none). `digest` (S, 16) bytes are of the
    prompt's ids, the position and the answer. `given` counts, for every layer set, how many places were asked for, also
    twice, with how many layers: {(set, layers): places}.
    """

    texts: tuple[str, ...]
    prompt: np.ndarray
    position: np.ndarray
    layers: np.ndarray
    layer_sets: tuple[tuple[int, ...], ...]
    answer: np.ndarray
    answers: tuple[str, ...]
    digest: np.ndarray
    given: dict[tuple[int, int], int]

    def __len__(self) -> int:
        return len(self.prompt)

    def others(self, seed: int) -> np.ndarray:
        """For every spot another one, of another prompt, and with another answer where it has one: (S,) numbers."""
        groups = [("answer", a) if a >= 0 else ("prompt", p) for a, p in zip(self.answer, self.prompt, strict=True)]
        try:
            return np.array(derange(groups, seed), dtype=np.int64)
        except LenscopeError as error:
            raise LenscopeError(
                f"controls: other-source needs other prompts, and answers, than a spot's own: {error}"
            ) from error


def named_layers(given: Sequence[Any], n_layers: int, name: str) -> list[int]:
    """Layers of a list of numbers, ranges as "0:31:5" and "all", in the order given; LenscopeError for others."""
    numbers: list[int] = []
    for one in given:
        if one == "all":
            numbers += range(n_layers + 1)
        elif isinstance(one, str):
            parts = one.split(":")
            try:
                bounds = [int(part) if part.strip() else None for part in parts]
                numbers += check_layers(slice(*bounds), n_layers, name)
                if len(parts) < 2:
                    raise ValueError
            except (ValueError, TypeError):
                raise LenscopeError(f"layers {one[:60]!r}: give numbers, a range such as 0:31:5, or all") from None
        else:
            numbers += check_layers(one, n_layers, name)
    return numbers


def read_spots(listed: Iterable[ListedPrompt], lm: LM) -> Spots:
    """The spots of prompts as they are listed; LenscopeError, which names the prompt, for places that it lacks."""
    texts: dict[str, int] = {}
    answers: dict[str, int] = {}
    layer_sets: dict[tuple[int, ...], int] = {}
    by_list: dict[str, tuple[int, int]] = {}
    places: dict[tuple[str, str], list[int]] = {}
    rows: list[np.ndarray] = []
    digests: list[bytes] = []
    given: dict[tuple[int, int], int] = {}
    for one in listed:
        key = repr(one.layers)
        if key not in by_list:
            with naming_place(_named(one)):
                numbers = named_layers(one.layers, lm.n_layers, lm.name)
            layers = layer_sets.setdefault(tuple(sorted(set(numbers))), len(layer_sets))
            by_list[key] = layers, len(numbers)
        number = texts.setdefault(one.text, len(texts))
        positions = places.get((one.text, repr(one.positions)))
        if positions is None:
            with naming_place(_named(one)):
                prompt = lm.prompt(one.text)
                positions = places[one.text, repr(one.positions)] = _positions(prompt, one.positions)
            if number == len(digests):
                digests.append(hashlib.blake2b(np.array(prompt.ids, dtype="<i8").tobytes(), digest_size=16).digest())
        answer = -1 if one.answer is None else answers.setdefault(one.answer, len(answers))
        given[by_list[key]] = given.get(by_list[key], 0) + len(positions)
        block = np.empty((len(positions), 4), dtype=np.int32)
        block[:] = number, 0, by_list[key][0], answer
        block[:, 1] = positions
        rows.append(block)
    columns = np.concatenate(rows)
    return _distinct_spots(columns, tuple(texts), tuple(layer_sets), tuple(answers), digests, given)


def _positions(prompt: Prompt, given: Sequence[Any]) -> list[int]:
    positions: list[int] = []
    for one in given:
        positions += range(len(prompt)) if one == "all" else [prompt.position(one)]
    return positions


def _named(one: ListedPrompt) -> str:
    text = one.text if len(one.text) <= 40 else one.text[:39] + "…"
    return f"{one.where} ({text!r})"


def _distinct_spots(
    columns: np.ndarray, texts: tuple[str, ...], layer_sets: tuple[tuple[int, ...], ...], answers: tuple[str, ...],
    digests: list[bytes], given: dict[tuple[int, int], int],
) -> Spots:  # fmt: skip
    """The spots without those that are there twice, in their order; what is asked for at other layers too is one."""
    by_prompt = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 16)
    # texts of one digest are one prompt: the number of the first of them
    _, first, number = np.unique(by_prompt, axis=0, return_index=True, return_inverse=True)
    same = first[number.reshape(-1)]
    key = np.stack([same[columns[:, 0]], columns[:, 1], columns[:, 3]], 1)
    _, first, number = np.unique(key, axis=0, return_index=True, return_inverse=True)
    number = number.reshape(-1)
    layers = columns[:, 2].copy()
    if len(first) < len(columns):
        several = np.flatnonzero(layers != layers[first[number]])
        merged: dict[int, set[int]] = {}
        for n in several.tolist():
            own = int(first[number[n]])
            merged.setdefault(own, set(layer_sets[layers[own]])).update(layer_sets[layers[n]])
        known = {one: n for n, one in enumerate(layer_sets)}
        for own, union in merged.items():
            layers[own] = known.setdefault(tuple(sorted(union)), len(known))
        layer_sets = tuple(known)
    chosen = np.sort(first)
    answer = columns[chosen, 3]
    content = np.zeros((len(chosen), 16 + 4), dtype=np.uint8)
    content[:, :16] = by_prompt[columns[chosen, 0]]
    content[:, 16:] = np.ascontiguousarray(columns[chosen, 1].astype("<i4")).view(np.uint8).reshape(-1, 4)
    tails = [b"", *(text.encode() for text in answers)]
    digest = b"".join(
        hashlib.blake2b(row.tobytes() + tails[a + 1], digest_size=16).digest()
        for row, a in zip(content, answer.tolist(), strict=True)
    )
    return Spots(
        texts,
        columns[chosen, 0],
        columns[chosen, 1],
        layers[chosen],
        layer_sets,
        answer,
        answers,
        np.frombuffer(digest, dtype=np.uint8).reshape(-1, 16),
        given,
    )
