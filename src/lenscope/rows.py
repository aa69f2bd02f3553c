"""The engine: any number of rows of patches, run as fast as the model's cache allows, each as if it ran alone.

Knows: how rows are packed into chunks within a memory budget, what is computed once for all of them, how tokens are
written row by row, and which way of running was seen to be exact for a model (`sharing`).
Does not know: why a patch is made, how distributions become results.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from lenscope.anatomy import deviation
from lenscope.edits import Operation, replace
from lenscope.errors import LenscopeError
from lenscope.model import LM
from lenscope.plain import Plain
from lenscope.prefixes import Prefixes, size
from lenscope.prompts import Prompt
from lenscope.readout import FAILURES
from lenscope.staircase import Batched, Staircase, batched_arguments

# Bytes that the states, keys and values of the rows of one chunk may take.
BUDGET = 2 << 30
# Rows of a chunk: more of them do not make a product faster.
MOST = 2048
# So many rows of one target make a chunk of their own, whose prefix is held once.
FEW = 16

# ways to run rows, fastest first
MODES = ("cascade", "fork", "plain")

# choose(states (n, D), rows (n,), step) -> token ids (n,), their log-probabilities (n,), which rows end there (n,)
Choose = Callable[[Tensor, np.ndarray, int], tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Rows:
    """N runs of target prompts with patches: which prompt each row reads, and what is written into its states.

    `target` (N,) numbers the `prompts`. Patch m writes, for row `row[m]`, at `layer[m]` and `position[m]`,
    ops[op[m]](state, vectors[vector[m]]); patches of a row at one layer and position are made in order. `vectors` is
    (K, D). `bars` are attention knockouts: (row, first block, block after the last, first query position, query
    position after the last or -1 for all that follow, key position).
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
    bars: np.ndarray = field(default_factory=lambda: np.zeros((0, 6), dtype=np.int64))

    def __len__(self) -> int:
        return len(self.target)

    def starts(self) -> np.ndarray:
        """(N,) the first position where a row differs from its plain prompt: its last one, if it never does."""
        lengths = np.array([len(p) for p in self.prompts])
        first = lengths[self.target] - 1
        np.minimum.at(first, self.row, self.position)
        np.minimum.at(first, self.bars[:, 0], self.bars[:, 3])
        return first

    def parted(self, n_layers: int) -> np.ndarray:
        """(N,) the layer from which on a row's states are its own; n_layers + 1: never."""
        first = np.full(len(self), n_layers + 1)
        np.minimum.at(first, self.row, self.layer)
        np.minimum.at(first, self.bars[:, 0], self.bars[:, 1])
        return first


@dataclass(frozen=True, eq=False)
class Chunk:
    """Rows that run together in one way, sorted by where they part: all start at one position, at equal lengths."""

    rows: np.ndarray
    start: int
    mode: str


@dataclass(frozen=True, eq=False)
class Written:
    """What one row wrote: token ids and their log-probabilities."""

    ids: tuple[int, ...]
    log_probs: tuple[float, ...]


@torch.no_grad()
def predict(
    lm: LM, rows: Rows, last: int = 1, budget: int = BUDGET, mode: str | None = None
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """The last layer's states of every row at the last `last` positions, by chunks: row numbers (n,), (n, last, D).

    `mode` forces a way of running (MODES); by default the fastest that was measured to be exact for this model.
    Raises LenscopeError where the vectors are not of the model's size, or inside an edit.
    """
    prefixes = Prefixes(lm)
    for chunk in _chunks(lm, rows, last, 0, budget, mode):
        runner, ids = _prepare(lm, rows, chunk, 0, prefixes)
        yield chunk.rows, runner.run(ids, last)


@torch.no_grad()
def write(
    lm: LM, rows: Rows, choose: Choose, max_new_tokens: int, budget: int = BUDGET, mode: str | None = None
) -> Iterator[tuple[np.ndarray, list[Written]]]:
    """What every row writes, token by token as `choose` says, chunk by chunk: row numbers (n,), what they wrote.

    Rows that end leave the batch. Otherwise as `predict`.
    """
    prefixes = Prefixes(lm)
    for chunk in _chunks(lm, rows, 1, max_new_tokens, budget, mode):
        runner, ids = _prepare(lm, rows, chunk, max_new_tokens, prefixes)
        written: list[list[int]] = [[] for _ in chunk.rows]
        log_probs: list[list[float]] = [[] for _ in chunk.rows]
        alive = np.arange(len(chunk.rows))
        for step in range(max_new_tokens):
            h = runner.run(ids)[:, 0]
            tokens, values, ended = choose(h, chunk.rows[alive], step)
            for at, token, value in zip(alive.tolist(), tokens.tolist(), values.tolist(), strict=True):
                written[at].append(token)
                log_probs[at].append(value)
            kept = np.flatnonzero(~ended)
            if step == max_new_tokens - 1 or not len(kept):
                break
            alive = alive[kept]
            runner.grow(kept, tokens[kept])
            ids = torch.from_numpy(tokens[kept])[:, None].to(h.device)
        yield chunk.rows, [Written(tuple(i), tuple(p)) for i, p in zip(written, log_probs, strict=True)]


def _chunks(lm: LM, rows: Rows, last: int, new: int, budget: int, mode: str | None) -> Iterator[Chunk]:
    """Every row in exactly one chunk, those of one target and start together, as far as possible in the order given."""
    if lm.editing:
        raise LenscopeError("inside edit(): Patchscopes run unedited models; give the edits as patches of their rows")
    if rows.vectors.shape[-1] != lm.hidden_size:
        raise LenscopeError(
            f"vectors of size {rows.vectors.shape[-1]}: {lm.name} has states of size {lm.hidden_size}; "
            "give a mapping f between the two models"
        )
    lengths = np.array([len(p) for p in rows.prompts])
    starts = np.minimum(rows.starts(), lengths[rows.target] - last)
    parted = rows.parted(lm.n_layers)
    best = mode or fastest(lm)
    if len(rows.bars) and best != "cascade":
        raise LenscopeError(
            f"{lm.name}: its attention cannot be told which keys to leave out, so attention knockout and masked "
            "placeholders are not supported; the other methods are"
        )
    groups: dict[tuple[int, int], list[int]] = {}
    for n, key in enumerate(zip(rows.target.tolist(), starts.tolist(), strict=True)):
        groups.setdefault(key, []).append(n)
    packs: dict[tuple[int, int, int], list[int]] = {}
    for (target, start), members in groups.items():
        alone = best == "cascade" and (mode or len(members) >= FEW or len(rows.bars) or len(groups) == 1)
        packs.setdefault((target if alone else -1, start, int(lengths[target])), []).extend(members)
    for (target, start, length), members in packs.items():
        way = best if target >= 0 or best != "cascade" else mode or _second(lm)
        kept = length - start + new + (start if target < 0 else 0)
        # a state and what a block makes of it; the inner layer of an MLP is several states wide
        room = kept * _known(lm).bytes_per_token + (length - start) * 40 * lm.hidden_size * rows.vectors.element_size()
        most = int(max(1, min(MOST, budget // room)))
        for at in range(0, len(members), most):
            some = np.array(members[at : at + most])
            some = some[np.argsort(parted[some], kind="stable")]
            if way == "cascade" and target < 0:
                # one prefix at a time
                for one in np.unique(rows.target[some]):
                    yield Chunk(some[rows.target[some] == one], start, way)
            else:
                yield Chunk(some, start, way)


def _second(lm: LM) -> str:
    """How to run rows of many targets, few of each, on a model whose prefix could be shared."""
    return "fork" if gap(lm, "fork") <= lm.tolerance() else "cascade"


def _prepare(lm: LM, rows: Rows, chunk: Chunk, new: int, prefixes: Prefixes) -> tuple[Staircase | Plain, Tensor]:
    """What runs a chunk, and the first ids it is fed."""
    start = 0 if chunk.mode == "plain" else chunk.start
    prompts = [rows.prompts[t].ids for t in rows.target[chunk.rows].tolist()]
    ids = torch.tensor([p[start:] for p in prompts], device=lm.anatomy.ids.device)
    patches = _Patches(rows, chunk.rows, start, lm)
    if chunk.mode == "plain":
        return Plain(lm, patches.layers, patches.apply), ids
    targets, origin = np.unique(rows.target[chunk.rows], return_inverse=True)
    if chunk.mode == "cascade":
        room = ids.shape[1] + max(0, new - 1)
        cache = prefixes.shared(prompts[0], start, len(chunk.rows), room)
    else:
        cache = prefixes.own([rows.prompts[t].ids[:start] for t in targets.tolist()])
    parted = rows.parted(lm.n_layers)[chunk.rows]
    bars = _Bars(rows, chunk.rows) if len(rows.bars) else None
    return Staircase(lm, cache, origin, parted, _known(lm).batched, patches.apply, bars), ids


class _Patches:
    """The patches of a chunk's rows, by layer; rows are numbered within the chunk, positions from its start."""

    def __init__(self, rows: Rows, chunk: np.ndarray, start: int, lm: LM) -> None:
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

    def apply(self, layer: int, h: Tensor, rows: np.ndarray) -> None:
        """Patch h (n, S, D), the states of the chunk's rows `rows` (n,), in place."""
        for op, row, position, vectors in self.by_layer.get(layer, ()):
            where = np.full(max(int(rows.max()), int(row.max())) + 1, -1)
            where[rows] = np.arange(len(rows))
            here = np.flatnonzero(where[row] >= 0)
            if not len(here):
                continue
            i, j = torch.from_numpy(where[row[here]]).to(h.device), torch.from_numpy(position[here]).to(h.device)
            v = vectors[torch.from_numpy(here)].to(h.device)
            h[i, j] = self.ops[op](h[i, j], v).to(h)


class _Bars:
    """The keys that a chunk's rows may not see, by block."""

    def __init__(self, rows: Rows, chunk: np.ndarray) -> None:
        number = np.full(len(rows), -1)
        number[chunk] = np.arange(len(chunk))
        mine = rows.bars[number[rows.bars[:, 0]] >= 0].copy()
        mine[:, 0] = number[mine[:, 0]]
        self.bars = mine

    def allowed(self, block: int, rows: np.ndarray, batch: int, queries: int, keys: int) -> Tensor | None:
        """(batch, queries, keys) of which key each query may see, the first rows being `rows`; None: all of them."""
        bars = self.bars[(self.bars[:, 1] <= block) & (block < self.bars[:, 2])]
        where = np.full(max(int(rows.max(initial=0)), int(bars[:, 0].max(initial=0))) + 1, -1)
        where[rows] = np.arange(len(rows))
        bars = bars[(where[bars[:, 0]] >= 0) & (bars[:, 5] < keys)]
        if not len(bars):
            return None
        found = torch.ones(batch, queries, keys, dtype=torch.bool)
        for q in range(queries):
            at = keys - queries + q
            hit = bars[(bars[:, 3] <= at) & ((at < bars[:, 4]) | (bars[:, 4] < 0))]
            found[where[hit[:, 0]], q, hit[:, 5]] = False
        return found


def _turns(place: np.ndarray) -> np.ndarray:
    """How many equal columns of `place` stand before each."""
    seen: dict[tuple[int, ...], int] = {}
    turns = []
    for key in zip(*place.tolist(), strict=True):
        turns.append(seen.get(key, 0))
        seen[key] = turns[-1] + 1
    return np.array(turns, dtype=np.int64)


@dataclass
class _Known:
    """What was measured of a model: how far each mode is from the plain way, by the same probe."""

    batched: Batched = field(default_factory=dict)
    bytes_per_token: int = 0
    states: Tensor | None = None
    gaps: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


_models: WeakKeyDictionary[LM, _Known] = WeakKeyDictionary()


def _known(lm: LM) -> _Known:
    if lm not in _models:
        _models[lm] = _Known()
    return _models[lm]


def fastest(lm: LM) -> str:
    """The fastest of MODES that gives this model's own numbers."""
    return next(m for m in MODES if gap(lm, m) <= lm.tolerance())


def gap(lm: LM, mode: str) -> float:
    """How far a way of running moves the logits from plain hooks over whole prompts; infinite where it fails.

    Measured once, on patches at early and late layers, in the middle and at the end of prompts, with two more tokens
    written after them; as `lenscope.anatomy.deviation`.
    """
    known = _known(lm)
    if mode not in known.gaps:
        try:
            if known.states is None:
                known.gaps["plain"] = 0.0
                known.states = _probe(lm, "plain")
            if mode != "plain" and not known.bytes_per_token:
                prefix = Prefixes(lm).own([tuple(row) for row in lm.anatomy.ids.tolist()])
                known.bytes_per_token = 1 + size(prefix) // lm.anatomy.ids.numel()
                known.batched = batched_arguments(lm)
            if mode != "plain":
                known.gaps[mode] = deviation(_probe(lm, mode), known.states)
        except FAILURES as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            known.gaps[mode] = float("inf")
            known.failures[mode] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return known.gaps[mode]


def _probe(lm: LM, mode: str) -> Tensor:
    """Logits of a few patched rows at three steps of writing given tokens, (steps · rows, V)."""
    ids = lm.anatomy.ids.tolist()
    prompts = (lm.prompt(ids[0]), lm.prompt(ids[2]))
    n = lm.n_layers
    rows: list[int] = []
    layers: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    single = (((0, 6),), ((n, 6),), ((n // 2, 3),), ((1, 4), (n - 1, 6)), ((n // 2, 0),))
    for target, some in ((0, single), (0, (((n // 2, 6),), ())), (1, (((n // 2, 6),), ()))):
        for patches in some:
            for layer, position in patches:
                rows.append(len(targets))
                layers.append(layer)
                positions.append(position)
            targets.append(target)
    vectors = lm.anatomy.states[n // 2][1, :4].flip(-1)
    made = Rows(
        prompts,
        np.array(targets),
        vectors,
        np.array(rows),
        np.array(layers),
        np.array(positions),
        np.arange(len(rows)) % len(vectors),
        np.zeros(len(rows), dtype=np.int64),
        (replace,),
    )
    found = torch.zeros(3, len(made), lm.hidden_size, dtype=lm.dtype, device=lm.device)

    def choose(h: Tensor, some: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found[step, some] = h
        # several rows write the same, some another token, and one row ends early
        tokens = np.array([ids[2][(r + step) // 3 % 2] for r in some])
        return tokens, np.zeros(len(some)), some == (4 if step == 1 else -1)

    for _ in write(lm, made, choose, 3, mode=mode):
        pass
    found[2, 4] = 0
    return lm.own_logits(found.flatten(0, 1))
