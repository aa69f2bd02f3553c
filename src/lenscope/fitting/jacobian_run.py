"""The run of a Jacobian lens: rows of text, whose Jacobians are added to the sums of two halves of the documents.

Knows: which row is run when and by which process, which tokens are sources and targets, when sums are saved.
Does not know: how a graph is differentiated (jacobian_passes.py), when enough was read (jacobian_lens.py).
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lenscope.distributed.processes import Group
from lenscope.distributed.sharding import is_sharded
from lenscope.errors import LenscopeError
from lenscope.fitting.jacobian_passes import LayerGraph, LayerGraphs, without_weight_gradients
from lenscope.fitting.jacobian_sums import JacobianSums
from lenscope.fitting.jacobian_texts import adopt_old_names, require_unread_rows, text_name, text_name_with_paths
from lenscope.models.interruption import check_interruption
from lenscope.models.language_model import LM
from lenscope.models.load_options import dtype_name
from lenscope.models.precision import low_precision
from lenscope.text.corpus import Corpus, TokenBatch

# Source positions of a row where each is the target of itself alone: so many runs of one token a row.
ALONE = 8
# Seconds between two savings of the sums.
SAVED_EVERY = 60.0


@dataclass(frozen=True)
class Targets:
    """Which target positions a source position counts: "later" is itself and all later ones, "same" itself alone."""

    name: str = "later"

    def __post_init__(self) -> None:
        if self.name not in ("later", "same"):
            raise LenscopeError(f"targets {self.name!r}: give 'later' or 'same'")


def low_products(lm: LM, sums: JacobianSums) -> torch.dtype | None:
    """The 16-bit dtype in which products are faster here; None where there is none, or the sums were made without."""
    return low_precision(lm) if sums.settings.get("products") != dtype_name(lm.dtype) else None


def sources_of(counted: Tensor) -> Tensor:
    """Which positions (T,) bool of a row are sources and targets, of those that count."""
    places = counted.clone()
    # the last token of a row predicts what is not there
    places[-1] = False
    return places


class JacobianRun:
    """Adds the Jacobians of rows of two halves of a text to their sums.

    Args:
        lm: the model.
        halves: the two parts of the text, which have no document in common.
        graphs: what makes the graphs of rows.
        targets: which target positions count.
        sums: what is added to, and where reading goes on.
        part: this run reads, of every so many rows, one: (number, of how many).
        group: the processes that share the rows.
        rule: within it gradients follow a rule of their own; by default they are the model's.
    """

    saved_every = SAVED_EVERY

    def __init__(
        self, lm: LM, halves: tuple[Corpus, Corpus], graphs: LayerGraphs, targets: Targets, sums: JacobianSums,
        part: tuple[int, int], group: Group,
        rule: Callable[[LM], AbstractContextManager[object]] | None = None,
    ) -> None:  # fmt: skip
        self.lm, self.halves, self.graphs, self.targets, self.sums = lm, halves, graphs, targets, sums
        self.part, self.group, self.rule = part, group, rule or (lambda _: nullcontext())
        self._about = halves[0].provenance()
        self.name, self._old_name = text_name(self._about, part), text_name_with_paths(self._about, part)
        # what this process has added since all processes' sums were joined
        self._fresh = torch.zeros_like(sums.total) if group.world > 1 else sums.total
        self._fresh_prompts = [0, 0]
        self._saved = time.perf_counter()
        self._measured = False

    @property
    def done(self) -> int:
        """How many rows of each half this run has read, of all processes."""
        return self.sums.rows.get(self.name, 0)

    def go_on(self, where: object) -> None:
        """Before `read`: see how far the sums, which `where` names, are; LenscopeError if rows would count twice."""
        adopt_old_names(self.sums.rows, self._about)
        require_unread_rows(self.sums.rows, self.name, where)

    def read(self, rows: int, folder: Path | None, progress: Callable[[int], None] | None = None) -> None:
        """Go on until so many rows of each half are read; sums are saved into a folder once a minute and at the end.

        An interruption between rows of both halves saves the sums; within them, those that are saved stay.
        """
        self.measure()
        every, number = self.part[1] * self.group.world, self.part[0] + self.part[1] * self.group.rank
        start = self.done * self.part[1]
        tokens = (rows * self.part[1]) * self.halves[0].length
        streams = [half.batches(tokens, 1, start=start, rank=number, world=every) for half in self.halves]
        whole = True
        try:
            for batches in zip(*streams, strict=True):
                whole = False
                for half, batch in enumerate(batches):
                    if len(batch.row):
                        self._add(half, batch)
                    elif is_sharded(self.lm):
                        # all processes run the model equally often; what comes out counts nothing
                        self.rows_of(*self._any_row())
                for name in {self.name, *({self._old_name} & self.sums.rows.keys())}:
                    self.sums.rows[name] = min(rows, -(-batches[0].next_row // self.part[1]))
                whole = True
                if progress is not None:
                    progress(self.done)
                due = time.perf_counter() - self._saved > self.saved_every
                if folder is not None and self.group.from_first(due):
                    self.save(folder)
                check_interruption()
        except KeyboardInterrupt:
            # a process alone: of several, others may be within a row; and with as many rows of one half as of the other
            if whole and folder is not None and self.group.world == 1:
                self.sums.save(folder)
            raise
        self.join()
        if folder is not None:
            self.save(folder)

    def measure(self) -> None:
        """See how the model can be differentiated, on the row that comes first in the text for every process and part.

        So all of them make products in the same dtype, which then stands in the sums' settings. Without products in 16
        bits there is no choice, and the first row of this process is measured.
        """
        if self.graphs.low is None or self._measured:
            return
        self._measured = True
        for batch in self.halves[0].batches(self.halves[0].length, 1):
            sources = sources_of(batch.counted[0]).nonzero()[:, 0].tolist()
            if sources:
                with without_weight_gradients(self.lm), self.rule(self.lm):
                    self.graphs.measure(batch.ids[0].tolist()[: sources[-1] + 1], sources[0])
        self.record_products(self.graphs.low)

    def record_products(self, low: torch.dtype | None) -> None:
        """Products are made in this dtype, None: in the model's own."""
        self.sums.settings["products"] = dtype_name(low or self.lm.dtype)

    def join(self) -> None:
        """Put what all processes have added into the sums of each."""
        if self.group.world == 1:
            return
        counts = torch.tensor(self._fresh_prompts, dtype=torch.float64, device=self._fresh.device)
        self.group.sum([self._fresh, counts])
        self.sums.total += self._fresh
        for half, count in enumerate(counts.tolist()):
            self.sums.prompts[half] += round(count)
        self._fresh.zero_()
        self._fresh_prompts = [0, 0]

    def save(self, folder: Path) -> None:
        """Save the sums of all processes."""
        self.join()
        if self.group.rank == 0:
            self.sums.save(folder)
        self.group.barrier()
        self._saved = time.perf_counter()

    def rows_of(self, ids: Sequence[int], counted: Tensor, cotangents: Tensor | None = None) -> Tensor | None:
        """The Jacobian of a row of text at all layers, (L, K, D), times cotangents (K, D); None without a source.

        Args:
            ids: the tokens.
            counted: (T,) bool, which positions are sources and targets; the last one is none.
            cotangents: directions of the last state; None: all dimensions one by one, which gives the Jacobian.
        """
        places = sources_of(counted)
        if not places.any():
            return None
        sources = places.nonzero()[:, 0].tolist()
        with without_weight_gradients(self.lm), self.rule(self.lm):
            if self.targets.name == "later":
                end = sources[-1] + 1
                graph = self.graphs.of_row(ids[:end], sources[0])
                return self._mean_gradients(graph, places[graph.start : end], cotangents)
            chosen = sources[len(sources) // (2 * ALONE) :: max(1, len(sources) // ALONE)][:ALONE]
            total: Tensor | None = None
            for place in chosen:
                graph = self.graphs.of_row(ids[: place + 1], place)
                own = torch.arange(graph.tokens) == graph.tokens - 1
                rows = self._mean_gradients(graph, own, cotangents)
                total = rows if total is None else total + rows
            assert total is not None
            return total / len(chosen)

    def row_of(self, half: int, batch: TokenBatch) -> Tensor | None:
        """The Jacobian (L, D, D) of the one row of a batch of a half of the text; None without a source."""
        return self.rows_of(batch.ids[0].tolist(), batch.counted[0])

    def room_for_lens(self) -> Tensor | None:
        """Where the lens is put, (n_layers, D, D), if it may be larger than memory."""
        return None

    def _any_row(self) -> tuple[list[int], Tensor]:
        length, ids = self.halves[0].length, self.lm.runner.anatomy.ids[0].tolist()
        return (ids * length)[:length], torch.arange(length) >= self.halves[0].skip

    def _add(self, half: int, batch: TokenBatch) -> None:
        jacobian = self.row_of(half, batch)
        if jacobian is None:
            return
        # whole rows alone are in the sums, whenever this ends
        self._fresh[half] += jacobian.to(self._fresh)
        counts = self._fresh_prompts if self.group.world > 1 else self.sums.prompts
        counts[half] += 1

    def _mean_gradients(self, graph: LayerGraph, places: Tensor, cotangents: Tensor | None) -> Tensor:
        """Means over source positions of the gradients of sums over target positions, of all layers: (L, K, D)."""
        last = graph.last
        here = places.to(last.device)
        weights = here.to(torch.float32 if last.dtype != torch.float64 else last.dtype) / here.sum()
        count, size = self.lm.hidden_size if cotangents is None else len(cotangents), self.lm.hidden_size
        rows = torch.empty(len(graph.states), count, size, device=last.device, dtype=weights.dtype)
        # as many for rows of any length, so that processes that hold parts of a model make equally many passes
        alone = self.targets.name == "same" and self.graphs.cached
        together = max(1, self.graphs.together // (1 if alone else self.halves[0].length))
        for first in range(0, count, together):
            check_interruption()
            numbers = range(first, min(first + together, count))
            if cotangents is None:
                given = torch.zeros(len(numbers), size, device=last.device, dtype=last.dtype)
                given[torch.arange(len(numbers)), torch.tensor(numbers)] = 1
            else:
                given = cotangents[first : first + together].to(last)
            for layer, gradient in enumerate(graph.gradients(given, here)):
                rows[layer, first : first + len(numbers)] = torch.einsum("ktd,t->kd", gradient.to(weights), weights)
        return rows
