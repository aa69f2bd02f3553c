"""How rows of patches are run in the modes they are given: any number of them, each as if it ran alone.

Knows: how rows are packed into chunks within a memory budget, what is computed once for all of them, how tokens are
written row by row.
Does not know: what a row is made of (patched_rows.py), which mode is exact (exact_modes.py), why a patch is made, how
distributions become results.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lenscope.engine.cache_layout import cache_layout
from lenscope.engine.hidden_keys import HiddenKeys
from lenscope.engine.patched_rows import GeneratedRow, PatchedRows, Patches, WrittenStep
from lenscope.engine.plain_hooks import HookRunner
from lenscope.engine.prefix_cache import Prefixes
from lenscope.engine.staircase import Staircase
from lenscope.errors import LenscopeError
from lenscope.models.interruption import check_interruption
from lenscope.models.language_model import LM

# modes, ways to run rows, fastest first
MODES = ("cascade", "fork", "steps", "plain")
# Bytes that the states, keys and values of the rows of one chunk may take.
CHUNK_BYTES = 2 << 30
# Rows of a chunk: more of them do not make a product faster.
MOST_ROWS = 2048
# So many rows of one target make a chunk of their own, whose prefix is held once.
ROWS_OF_OWN_CHUNK = 16

# choose(states (n, D), rows (n,), step) -> token ids (n,), their log-probabilities (n,), which rows end there (n,)
Choose = Callable[[Tensor, np.ndarray, int], tuple[np.ndarray, np.ndarray, np.ndarray]]
# mode(start, length, new, few): that of rows that start behind `start` tokens, are `length` long and write `new` more;
# `few`: not enough of them to have a prefix for themselves
ModeOf = Callable[[int, int, int, bool], str]


@dataclass(frozen=True, eq=False)
class Chunk:
    """Rows that run together in one mode, sorted by where they diverge: all start at one position, at equal lengths."""

    rows: np.ndarray
    start: int
    mode: str


@torch.no_grad()
def predict_rows(
    lm: LM, rows: PatchedRows, mode_of: ModeOf, last: int = 1, budget: int = CHUNK_BYTES
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """As `lenscope.engine.sweep.predict`, in the modes that `mode_of` gives.

    Args:
        lm: the model.
        rows: N rows.
        mode_of: the mode for a start and a length.
        last: how many positions, counted from the end of each row.
        budget: bytes that the states, keys and values of one chunk may take.
    """
    prefixes = Prefixes(lm)
    for chunk in _chunks(lm, rows, last, 0, budget, mode_of):
        check_interruption()
        runner, ids = _prepare(lm, rows, chunk, 0, prefixes)
        yield chunk.rows, runner.run(ids, last)


@torch.no_grad()
def generate_rows(
    lm: LM, rows: PatchedRows, choose: Choose, max_new_tokens: int, mode_of: ModeOf, budget: int = CHUNK_BYTES
) -> Iterator[tuple[np.ndarray, list[GeneratedRow]]]:
    """As `lenscope.engine.sweep.generate`, in the modes that `mode_of` gives.

    Args:
        lm: the model.
        rows: N rows.
        choose: which tokens follow the rows' last states, and which rows end.
        max_new_tokens: how many tokens a row writes at most.
        mode_of: the mode for a start and a length.
        budget: bytes that the states, keys and values of one chunk may take.
    """
    for chunk, steps in _written_chunks(lm, rows, choose, max_new_tokens, mode_of, budget):
        written: list[list[int]] = [[] for _ in chunk.rows]
        log_probs: list[list[float]] = [[] for _ in chunk.rows]
        for step in steps:
            for at, token, value in zip(step.rows.tolist(), step.ids.tolist(), step.log_probs.tolist(), strict=True):
                written[at].append(token)
                log_probs[at].append(value)
        yield chunk.rows, [GeneratedRow(tuple(i), tuple(p)) for i, p in zip(written, log_probs, strict=True)]


@torch.no_grad()
def written_steps(
    lm: LM, rows: PatchedRows, choose: Choose, max_new_tokens: int, mode_of: ModeOf, budget: int = CHUNK_BYTES
) -> Iterator[WrittenStep]:
    """As `lenscope.engine.sweep.write`, in the modes that `mode_of` gives.

    Args:
        lm: the model.
        rows: N rows.
        choose: which tokens follow the rows' last states, and which rows end.
        max_new_tokens: how many tokens a row writes at most.
        mode_of: the mode for a start and a length.
        budget: bytes that the states, keys and values of one chunk may take.
    """
    for chunk, steps in _written_chunks(lm, rows, choose, max_new_tokens, mode_of, budget):
        for step in steps:
            yield WrittenStep(chunk.rows[step.rows], step.ids, step.log_probs, step.ended)


def _written_chunks(
    lm: LM, rows: PatchedRows, choose: Choose, max_new_tokens: int, mode_of: ModeOf, budget: int
) -> Iterator[tuple[Chunk, Iterator[WrittenStep]]]:
    """The chunks and what each writes step by step, its rows numbered within the chunk."""
    prefixes = Prefixes(lm)
    for chunk in _chunks(lm, rows, 1, max_new_tokens, budget, mode_of):
        runner, ids = _prepare(lm, rows, chunk, max_new_tokens, prefixes)
        yield chunk, _steps(runner, ids, chunk.rows, choose, max_new_tokens)


def _steps(
    runner: Staircase | HookRunner, ids: Tensor, rows: np.ndarray, choose: Choose, most: int
) -> Iterator[WrittenStep]:
    """What a chunk's rows write, at most so many tokens; those that end leave the batch."""
    alive = np.arange(len(rows))
    for step in range(most):
        check_interruption()
        with torch.no_grad():
            h = runner.run(ids)[:, 0]
            tokens, values, ended = choose(h, rows[alive], step)
        yield WrittenStep(alive, tokens, values, ended)
        going_on = np.flatnonzero(~ended)
        if step == most - 1 or not len(going_on):
            break
        alive = alive[going_on]
        runner.grow(going_on, tokens[going_on])
        ids = torch.from_numpy(tokens[going_on])[:, None].to(h.device)


def _chunks(lm: LM, rows: PatchedRows, last: int, new: int, budget: int, mode_of: ModeOf) -> Iterator[Chunk]:
    """Every row in exactly one chunk, those of one target and start together, as far as possible in the order given."""
    if lm.runner.editing:
        raise LenscopeError("inside edit(): Patchscopes run unedited models; give the edits as patches of their rows")
    if rows.vectors.shape[-1] != lm.hidden_size:
        raise LenscopeError(
            f"vectors of size {rows.vectors.shape[-1]}: {lm.name} has states of size {lm.hidden_size}; "
            "give vectors of this size, or with those of another model a mapping f"
        )
    lengths = np.array([len(p) for p in rows.prompts])
    starts = np.minimum(rows.first_changed(), lengths[rows.target] - last)
    diverges_at = rows.diverges_at(lm.n_layers)
    for length in set(lengths.tolist()):
        lm.runner.require_causal_at(length)
    groups: dict[tuple[int, int], list[int]] = {}
    for n, key in enumerate(zip(rows.target.tolist(), starts.tolist(), strict=True)):
        groups.setdefault(key, []).append(n)
    packs: dict[tuple[int, int, int, str], list[int]] = {}
    for (target, start), members in groups.items():
        length = int(lengths[target])
        few = len(members) < ROWS_OF_OWN_CHUNK and not len(rows.hidden_keys) and len(groups) > 1
        mode = mode_of(start, length, new, few)
        if len(rows.hidden_keys) and not (mode == "cascade" and cache_layout(lm).maskable):
            raise LenscopeError(
                f"{lm.name}: its attention cannot be told which keys to leave out, so attention knockout and masked "
                "placeholders are not supported; the other methods are"
            )
        packs.setdefault((target if mode == "cascade" and not few else -1, start, length, mode), []).extend(members)
    for (target, start, length, mode), members in packs.items():
        held = length - start + new + (start if target < 0 else 0)
        bytes_per_token, bytes_per_row = 0, 0
        if mode != "plain":
            bytes_per_token, bytes_per_row = cache_layout(lm).bytes_per_token, cache_layout(lm).bytes_per_row
        # a state and what a block makes of it; the inner layer of an MLP is several states wide
        room = (
            bytes_per_row
            + held * bytes_per_token
            + (length - start) * 40 * lm.hidden_size * rows.vectors.element_size()
        )
        most = int(max(1, min(MOST_ROWS, budget // room)))
        for part in _rows_of_chunks(members, most, rows.leader):
            part = part[np.argsort(diverges_at[part], kind="stable")]
            if mode == "cascade" and target < 0:
                # one prefix at a time
                for one in np.unique(rows.target[part]):
                    yield Chunk(part[rows.target[part] == one], start, mode)
            else:
                yield Chunk(part, start, mode)


def _rows_of_chunks(members: list[int], most: int, leader: np.ndarray) -> Iterator[np.ndarray]:
    """Rows in parts of at most so many, but rows of one leader are never parted."""
    if not len(leader):
        yield from (np.array(members[at : at + most]) for at in range(0, len(members), most))
        return
    groups: dict[int, list[int]] = {}
    for n in members:
        groups.setdefault(int(leader[n]), []).append(n)
    part: list[int] = []
    for group in groups.values():
        if part and len(part) + len(group) > most:
            yield np.array(part)
            part = []
        part.extend(group)
    yield np.array(part)


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
    diverges_at = rows.diverges_at(lm.n_layers)[chunk.rows]
    hidden_keys = HiddenKeys(rows, chunk.rows) if len(rows.hidden_keys) else None
    one_by_one = chunk.mode == "steps"
    return Staircase(lm, cache, origin, diverges_at, cache_layout(lm), patches.apply, hidden_keys, one_by_one), ids
