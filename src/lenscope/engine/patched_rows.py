"""Rows of patches: which prompt each run reads, what is written into its states, what it may not see.

Knows: how patches of a few rows are found by layer and made in place.
Does not know: how keys are hidden (hidden_keys.py), how rows are run (chunked_runs.py), which ways of running them are
exact (exact_modes.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from lenscope.contents import Brief
from lenscope.models.edits import Operation
from lenscope.models.language_model import LM
from lenscope.models.prompts import Prompt

# change(layer, h, rows, fed): patch, in place, the states h (n, S, D) of the rows `rows` (n,), numbered as at first;
# `fed` others were fed before them
ApplyPatches = Callable[[int, Tensor, np.ndarray, int], None]


@dataclass(frozen=True, eq=False, repr=False)
class PatchedRows(Brief):
    """Many runs of target prompts, with what is written into each: input of `predict` and `generate`.

    Args:
        prompts: the target prompts.
        target: which prompt each of N rows reads, (N,).
        vectors: the vectors that are written, (K, D).
        row: the row of each of M patches, (M,).
        layer: the layer of each patch, (M,).
        position: the position of each patch, (M,).
        vector: which vector each patch writes, (M,).
        op: how it is written, by its number in `ops`, (M,). Patches of a row at one layer and position are made in
            order.
        ops: functions (state, vector) → state.
        hidden_keys: attention knockouts: (row, first block, block after the last, first query position, query position
            after the last or -1 for all that follow, key position).
        leader: the row (N,) that each row runs together with, in one chunk; its own number: it runs by itself. Empty:
            all rows do.
    """

    prompts: tuple[Prompt, ...]
    target: np.ndarray
    vectors: Tensor
    row: np.ndarray
    layer: np.ndarray
    position: np.ndarray
    vector: np.ndarray
    op: np.ndarray
    ops: tuple[Operation, ...]
    hidden_keys: np.ndarray = field(default_factory=lambda: np.zeros((0, 6), dtype=np.int64))
    leader: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.target)

    def only(self, numbers: np.ndarray) -> "PatchedRows":
        """The rows of these numbers, in that order, with what is written into them; each runs by itself."""
        if len(numbers) == len(self) and (numbers == np.arange(len(numbers))).all():
            return self
        number = np.full(len(self), -1)
        number[numbers] = np.arange(len(numbers))
        mine = np.flatnonzero(number[self.row] >= 0)
        hidden = self.hidden_keys[number[self.hidden_keys[:, 0]] >= 0]
        hidden = np.concatenate([number[hidden[:, :1]], hidden[:, 1:]], 1)
        columns = {name: getattr(self, name)[mine] for name in ("layer", "position", "vector", "op")}
        columns |= {"target": self.target[numbers], "row": number[self.row[mine]], "leader": self.leader[:0]}
        return replace(self, hidden_keys=hidden, **columns)

    def first_changed(self) -> np.ndarray:
        """(N,) the first position where a row differs from its plain prompt: its last one, if it never does."""
        lengths = np.array([len(p) for p in self.prompts])
        first = lengths[self.target] - 1
        np.minimum.at(first, self.row, self.position)
        np.minimum.at(first, self.hidden_keys[:, 0], self.hidden_keys[:, 3])
        return first

    def diverges_at(self, n_layers: int) -> np.ndarray:
        """(N,) the layer from which on a row's states are its own; n_layers + 1: never."""
        first = np.full(len(self), n_layers + 1)
        np.minimum.at(first, self.row, self.layer)
        np.minimum.at(first, self.hidden_keys[:, 0], self.hidden_keys[:, 1])
        return first


@dataclass(frozen=True, eq=False)
class GeneratedRow:
    """What one row wrote: token ids and their log-probabilities."""

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class WrittenStep:
    """The next token of some rows (n,): their numbers, token ids, log-probabilities, and which of them end with it."""

    rows: np.ndarray
    ids: np.ndarray
    log_probs: np.ndarray
    ended: np.ndarray


def in_one_batch(parts: Sequence[PatchedRows]) -> PatchedRows:
    """Rows of the same prompts as one set, in order; each runs by itself."""
    row_starts = np.cumsum([0, *map(len, parts)])
    vector_starts = np.cumsum([0, *(len(p.vectors) for p in parts)])
    op_starts = np.cumsum([0, *(len(p.ops) for p in parts)])
    first = np.array([1, 0, 0, 0, 0, 0])
    hidden = [p.hidden_keys + start * first for p, start in zip(parts, row_starts, strict=False)]
    return PatchedRows(
        prompts=parts[0].prompts,
        target=np.concatenate([p.target for p in parts]),
        vectors=torch.cat([p.vectors for p in parts]),
        row=np.concatenate([p.row + start for p, start in zip(parts, row_starts, strict=False)]),
        layer=np.concatenate([p.layer for p in parts]),
        position=np.concatenate([p.position for p in parts]),
        vector=np.concatenate([p.vector + start for p, start in zip(parts, vector_starts, strict=False)]),
        op=np.concatenate([p.op + start for p, start in zip(parts, op_starts, strict=False)]),
        ops=tuple(op for p in parts for op in p.ops),
        hidden_keys=np.concatenate(hidden),
    )


class Patches:
    """The patches of a chunk's rows, by layer; rows are numbered within the chunk, positions from its start."""

    def __init__(self, rows: PatchedRows, chunk: np.ndarray, start: int, lm: LM) -> None:
        number = np.full(len(rows), -1)
        number[chunk] = np.arange(len(chunk))
        mine = np.flatnonzero(number[rows.row] >= 0)
        self.ops = rows.ops
        self.by_layer: dict[int, list[tuple[int, np.ndarray, np.ndarray, Tensor]]] = {}
        # patches of one place are made in the order given: equal places never meet in one step
        place = np.stack([number[rows.row[mine]], rows.layer[mine], rows.position[mine]])
        turn = _turns(place)
        for layer, t, op in sorted(set(zip(place[1].tolist(), turn.tolist(), rows.op[mine].tolist(), strict=True))):
            these = (place[1] == layer) & (turn == t) & (rows.op[mine] == op)
            vectors = rows.vectors[torch.from_numpy(rows.vector[mine][these])].to(lm.device, lm.dtype)
            self.by_layer.setdefault(layer, []).append((op, place[0, these], place[2, these] - start, vectors))
        self.layers = sorted(self.by_layer)

    def apply(self, layer: int, h: Tensor, rows: np.ndarray, fed: int) -> None:
        """Patch h (n, S, D), the states of the chunk's rows `rows` (n,) behind the first `fed`, in place."""
        for op, row, position, vectors in self.by_layer.get(layer, ()):
            where = np.full(max(int(rows.max()), int(row.max())) + 1, -1)
            where[rows] = np.arange(len(rows))
            here = np.flatnonzero((where[row] >= 0) & (position >= fed) & (position < fed + h.shape[1]))
            if not len(here):
                continue
            i, j = torch.from_numpy(where[row[here]]).to(h.device), torch.from_numpy(position[here] - fed).to(h.device)
            v = vectors[torch.from_numpy(here)].to(h.device)
            h[i, j] = self.ops[op](h[i, j], v).to(h)


def _turns(place: np.ndarray) -> np.ndarray:
    """How many equal columns of `place` stand before each."""
    seen: dict[tuple[int, ...], int] = {}
    turns = []
    for key in zip(*place.tolist(), strict=True):
        turns.append(seen.get(key, 0))
        seen[key] = turns[-1] + 1
    return np.array(turns, dtype=np.int64)
