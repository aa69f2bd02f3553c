"""The engine: any number of rows of patches, run as fast as the model's cache allows, each as if it ran alone.

Knows: how rows are packed into chunks within a memory budget, what is computed once for all of them, how tokens are
written row by row.
Does not know: what a row is made of (patched_rows.py), which way of running is exact (exact_modes.py), why a patch is
made, how distributions become results.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lenscope.engine.exact_modes import ExactModes
from lenscope.engine.patched_rows import GeneratedRow, HiddenKeys, PatchedRows, Patches
from lenscope.engine.plain_hooks import HookRunner
from lenscope.engine.prefix_cache import Prefixes
from lenscope.engine.staircase import Staircase
from lenscope.errors import LenscopeError
from lenscope.models.language_model import LM

# Bytes that the states, keys and values of the rows of one chunk may take.
BUDGET = 2 << 30
# Rows of a chunk: more of them do not make a product faster.
MOST = 2048
# So many rows of one target make a chunk of their own, whose prefix is held once.
FEW = 16

# choose(states (n, D), rows (n,), step) -> token ids (n,), their log-probabilities (n,), which rows end there (n,)
Choose = Callable[[Tensor, np.ndarray, int], tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Chunk:
    """Rows that run together in one way, sorted by where they part: all start at one position, at equal lengths."""

    rows: np.ndarray
    start: int
    mode: str


@torch.no_grad()
def predict(
    lm: LM, rows: PatchedRows, last: int = 1, budget: int = BUDGET, mode: str | None = None
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
def generate(
    lm: LM, rows: PatchedRows, choose: Choose, max_new_tokens: int, budget: int = BUDGET, mode: str | None = None
) -> Iterator[tuple[np.ndarray, list[GeneratedRow]]]:
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
        yield chunk.rows, [GeneratedRow(tuple(i), tuple(p)) for i, p in zip(written, log_probs, strict=True)]


def _chunks(lm: LM, rows: PatchedRows, last: int, new: int, budget: int, mode: str | None) -> Iterator[Chunk]:
    """Every row in exactly one chunk, those of one target and start together, as far as possible in the order given."""
    if lm.runner.editing:
        raise LenscopeError("inside edit(): Patchscopes run unedited models; give the edits as patches of their rows")
    if rows.vectors.shape[-1] != lm.hidden_size:
        raise LenscopeError(
            f"vectors of size {rows.vectors.shape[-1]}: {lm.name} has states of size {lm.hidden_size}; "
            "give a mapping f between the two models"
        )
    lengths = np.array([len(p) for p in rows.prompts])
    starts = np.minimum(rows.starts(), lengths[rows.target] - last)
    parted = rows.parted(lm.n_layers)
    for length in set(lengths.tolist()):
        lm.runner.require_causal_at(length)
    groups: dict[tuple[int, int], list[int]] = {}
    for n, key in enumerate(zip(rows.target.tolist(), starts.tolist(), strict=True)):
        groups.setdefault(key, []).append(n)
    packs: dict[tuple[int, int, int, str], list[int]] = {}
    for (target, start), members in groups.items():
        length = int(lengths[target])
        way = mode or fastest_exact_mode(lm, start, length, new)
        if len(rows.bars) and way != "cascade":
            raise LenscopeError(
                f"{lm.name}: its attention cannot be told which keys to leave out, so attention knockout and masked "
                "placeholders are not supported; the other methods are"
            )
        alone = way == "cascade" and (mode or len(members) >= FEW or len(rows.bars) or len(groups) == 1)
        if way == "cascade" and not alone:
            way = "fork" if exact(lm, "fork", start, length, new) else "cascade"
        packs.setdefault((target if alone else -1, start, length, way), []).extend(members)
    for (target, start, length, way), members in packs.items():
        kept = length - start + new + (start if target < 0 else 0)
        # a state and what a block makes of it; the inner layer of an MLP is several states wide
        room = kept * modes(lm).bytes_per_token + (length - start) * 40 * lm.hidden_size * rows.vectors.element_size()
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


def _prepare(
    lm: LM, rows: PatchedRows, chunk: Chunk, new: int, prefixes: Prefixes
) -> tuple[Staircase | HookRunner, Tensor]:
    """What runs a chunk, and the first ids it is fed."""
    start = 0 if chunk.mode == "plain" else chunk.start
    prompts = [rows.prompts[t].ids for t in rows.target[chunk.rows].tolist()]
    ids = torch.tensor([p[start:] for p in prompts], device=lm.runner.input_device)
    patches = Patches(rows, chunk.rows, start, lm)
    if chunk.mode == "plain":
        return HookRunner(lm, patches.layers, patches.apply), ids
    targets, origin = np.unique(rows.target[chunk.rows], return_inverse=True)
    if chunk.mode == "cascade":
        room = ids.shape[1] + max(0, new - 1)
        cache = prefixes.shared(prompts[0], start, len(chunk.rows), room)
    else:
        cache = prefixes.own([rows.prompts[t].ids[:start] for t in targets.tolist()])
    parted = rows.parted(lm.n_layers)[chunk.rows]
    bars = HiddenKeys(rows, chunk.rows) if len(rows.bars) else None
    return Staircase(lm, cache, origin, parted, modes(lm).batched, patches.apply, bars), ids


def modes(lm: LM) -> ExactModes:
    """Which ways of running rows are exact for a model."""
    return lm.runner.measured.once(("modes of rows",), lambda: ExactModes(generate))


def fastest_exact_mode(lm: LM, start: int = 0, length: int = 0, new: int = 0) -> str:
    """The fastest mode that gives this model's own numbers (`ExactModes.fastest`)."""
    return modes(lm).fastest(lm, start, length, new)


def exact(lm: LM, mode: str, start: int = 0, length: int = 0, new: int = 0) -> bool:
    """Whether rows may run in a mode (`ExactModes.exact`)."""
    return modes(lm).exact(lm, mode, start, length, new)


def mode_deviation(lm: LM, mode: str) -> float:
    """How far a mode moves the logits of short prompts from plain hooks (`ExactModes.gap`)."""
    return modes(lm).gap(lm, mode)
