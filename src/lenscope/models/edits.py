"""Edits of the residual stream: what is written where, and by which operation.

Knows: how a vector is put at (layer, position, row) of a batch that is running.
Does not know: models, hooks (runner.py places them), or what an edit is meant to show.
"""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lenscope.contents import Brief
from lenscope.errors import LenscopeError
from lenscope.models.batches import Running
from lenscope.models.inputs import integer
from lenscope.models.prompts import Positions, Prompt

# (N, D) states as they are, (N, D) vectors given → (N, D) states as they shall be
Operation = Callable[[Tensor, Tensor], Tensor]


def replace(h: Tensor, v: Tensor) -> Tensor:
    """h ← v: the patch of Patchscopes (Ghandeharioun et al. 2024, §3.1)."""
    return v


def add(h: Tensor, v: Tensor) -> Tensor:
    """h ← h + v: steering; scale v beforehand."""
    return h + v


def add_norm_matched(h: Tensor, v: Tensor) -> Tensor:
    """h ← h + ‖h‖ v/‖v‖: a step as long as the state itself (Activation Oracles, arXiv 2512.15674)."""
    return (_wide(h) + _along(v, h)).to(h.dtype)


def replace_norm_matched(h: Tensor, v: Tensor) -> Tensor:
    """h ← ‖h‖ v/‖v‖: the direction of v at the length of the state it replaces."""
    return _along(v, h).to(h.dtype)


def _along(v: Tensor, h: Tensor) -> Tensor:
    """‖h‖ v/‖v‖, in float32 or wider."""
    wide_h, wide_v = _wide(h), _wide(v)
    return wide_h.norm(dim=-1, keepdim=True) * wide_v / wide_v.norm(dim=-1, keepdim=True).clamp_min(1e-30)


def _wide(h: Tensor) -> Tensor:
    # a sum of squares passes float16's largest number, 65,504, where no number of the state is near it
    return h.float() if h.dtype in (torch.float16, torch.bfloat16) else h


@dataclass(frozen=True, eq=False, repr=False)
class Edit(Brief):
    """One change of hidden states at a layer, which `LM.edit` makes.

    Args:
        layer: where: 0 is the first block's input, n_layers the last block's output.
        position: one or several places of each prompt: an index, a substring, a slice or a list of them.
        vector: what is written: (D,) for all places, (P, D) one for each, or (B, P, D) for each prompt too.
        op: how: a function (states, vectors) → states, both (N, D). By default the vector replaces the state.
        row: the number of the only prompt of a batch that is edited; None: every prompt.
    """

    layer: int
    position: Positions
    vector: Tensor
    op: Operation = replace
    row: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "vector", as_vectors(self.vector, f"edit at layer {self.layer}"))
        if self.row is not None:
            object.__setattr__(self, "row", integer(self.row, "row"))

    def targets(self, running: Running) -> tuple[list[int], list[int], Tensor] | None:
        """The rows and columns (of the padded batch) and vectors (N, D) of this edit; None if it has none here."""
        if self.row is not None and not 0 <= self.row < running.total:
            raise LenscopeError(f"row {self.row}: {running.total} prompts are running, rows 0–{running.total - 1}")
        rows: list[int] = []
        columns: list[int] = []
        vectors = []
        for row, (number, prompt) in enumerate(zip(running.numbers, running.prompts, strict=True)):
            if self.row in (None, number):
                places = prompt.positions(self.position)
                rows += [row] * len(places)
                columns += [running.batch.before[row] + p for p in places]
                vectors.append(self._vectors(number, len(places), running.total))
        return (rows, columns, torch.cat(vectors)) if vectors else None

    def apply(self, h: Tensor, running: Running) -> Tensor:
        """`h` (B, T, D) with the edit made; `h` itself is left as it was."""
        targets = self.targets(running)
        if targets is None:
            return h
        rows, columns, vectors = targets
        if vectors.shape[-1] != h.shape[-1]:
            raise LenscopeError(
                f"edit at layer {self.layer}: the vector has {vectors.shape[-1]} numbers, a state of this model "
                f"{h.shape[-1]}; map it first"
            )
        edited = h.clone()
        values = self.op(h[rows, columns], vectors.to(h)).to(h)
        if not torch.isfinite(values).all():
            name = getattr(self.op, "__name__", "op")
            raise LenscopeError(
                f"edit at layer {self.layer}: {name} makes states that are NaN or infinite in "
                f"{str(h.dtype).removeprefix('torch.')}; scale the vector down, or load the model in float32"
            )
        edited[rows, columns] = values
        return edited

    def require_finite(self) -> None:
        """Raise LenscopeError for a vector with NaN or infinity: everything after it would be NaN."""
        if not torch.isfinite(self.vector).all():
            raise LenscopeError(f"edit at layer {self.layer}: the vector holds NaN or infinity; give finite numbers")

    def _vectors(self, row: int, places: int, batch: int) -> Tensor:
        v = self.vector
        if v.ndim == 3:
            if v.shape[0] != batch:
                raise LenscopeError(f"edit at layer {self.layer}: {v.shape[0]} rows of vectors for {batch} prompts")
            v = v[row]
        if v.ndim == 1:
            v = v.expand(places, -1)
        if v.ndim != 2 or v.shape[0] != places:
            raise LenscopeError(
                f"edit at layer {self.layer}: vectors of shape {tuple(self.vector.shape)} for {places} positions; "
                "give (D,), (positions, D) or (prompts, positions, D)"
            )
        return v


# a prompt, its states (T, D) in float32 or wider, the positions asked for (P) → what is added to their states (P, D)
Change = Callable[[Prompt, Tensor, list[int]], Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class ComputedEdit(Brief):
    """A change at one layer that is computed of each prompt's own states as they come; `LM.edit` makes it.

    Of each prompt alone, so that it is what it would be in no batch. Only the prompt's own positions are changed.

    Args:
        layer: where: 0 is the first block's input, n_layers the last block's output.
        position: one or several places of each prompt: an index, a substring, a slice or a list of them; None: all.
        change: what is added to states: a function (prompt, states (T, D), positions (P)) → (P, D).
        name: what errors call it.
    """

    layer: int
    position: Positions | None
    change: Change
    name: str = "change"

    def apply(self, h: Tensor, running: Running) -> Tensor:
        """`h` (B, T, D) with the edit made; `h` itself is left as it was."""
        edited = h.clone()
        for row, prompt in enumerate(running.prompts):
            start = running.batch.before[row]
            places = sorted(set(prompt.positions(self.position)))
            states = _wide(h[row, start : start + len(prompt)])
            values = (states[places] + self.change(prompt, states, places)).to(h)
            if not torch.isfinite(values).all():
                raise LenscopeError(
                    f"edit at layer {self.layer}: {self.name} makes states that are NaN or infinite in "
                    f"{str(h.dtype).removeprefix('torch.')}; make it weaker, or load the model in float32"
                )
            edited[row, [start + p for p in places]] = values
        return edited

    def require_finite(self) -> None:
        """Nothing: what is written is not known before it is computed."""


def as_vectors(value: Any, what: str) -> Tensor:
    """Numbers as a tensor: a tensor, an array or lists; LenscopeError, which begins with `what`, for all else."""
    if isinstance(value, Tensor):
        return value
    try:
        vectors = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise LenscopeError(f"{what}: {type(value).__name__} is no vector; give a tensor or an array") from error
    if vectors.dtype == torch.bool or vectors.is_complex() or not vectors.ndim:
        raise LenscopeError(f"{what}: {vectors.dtype} of shape {tuple(vectors.shape)} is no vector; give real numbers")
    return vectors if vectors.is_floating_point() else vectors.float()


@dataclass(frozen=True, eq=False)
class EditBlock:
    """One open `with` block in which the model of a runner is edited."""

    runner: Any


# The blocks of edits that are open here: in this thread, or in this task of an event loop.
open_blocks: ContextVar[tuple[EditBlock, ...]] = ContextVar("lenscope_open_blocks", default=())
