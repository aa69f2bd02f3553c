"""Jacobians of rows of text for a model whose weights are streamed: forward once, then block by block backwards.

Knows: how cotangents go down through one block after the other, what a fit of a streamed model needs on disk.
Does not know: how one block is differentiated (block_chain.py), where cotangents lie (row_on_disk.py), how weights come
(models.weight_stream).

A row of text takes two readings of the weights. They are little beside the products: D cotangents of T tokens make
about 4 · D · T operations with every weight that is read.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import rmtree

import torch
from torch import Tensor

from lenscope.distributed.processes import Group
from lenscope.errors import LenscopeError
from lenscope.files.mapped import mapped_tensor, require_room_on_disk
from lenscope.fitting.block_chain import BlockChain, KeptRow
from lenscope.fitting.jacobian_passes import ON_PROCESSOR, LayerGraphs, without_weight_gradients
from lenscope.fitting.jacobian_run import JacobianRun, Targets, low_products, sources_of
from lenscope.fitting.jacobian_sums import JacobianSums
from lenscope.fitting.row_on_disk import RowInMemory, RowOnDisk
from lenscope.models.interruption import check_interruption
from lenscope.models.language_model import LM
from lenscope.text.corpus import Corpus, TokenBatch

# what is on disk of the rows that are on the way, in the folder of the lens
ROWS = "rows"


class StreamedJacobianRun(JacobianRun):
    """Adds the Jacobians of rows of two halves of a text to their sums, for a model whose weights are streamed.

    Args:
        lm: the model.
        halves: the two parts of the text.
        sums: what is added to, and where reading goes on.
        part: this run reads, of every so many rows, one: (number, of how many).
    """

    # a row takes long: sums are saved whenever both halves have one more
    saved_every = 0.0

    def __init__(self, lm: LM, halves: tuple[Corpus, Corpus], sums: JacobianSums, part: tuple[int, int]) -> None:
        last, low = sums.settings["target_layer"], low_products(lm, sums)
        super().__init__(lm, halves, LayerGraphs(lm, range(last), last, low), Targets(), sums, part, Group())
        self.chain = BlockChain(lm, last, low)
        self._folder: Path | None = None
        self._report: Callable[[int], None] = lambda _: None

    def begin(self, saved: Path, report: Callable[[int], None]) -> None:
        """Before `read`: keep sums, and the rows that are on the way, on disk; LenscopeError where it has no room.

        Args:
            saved: where the sums are saved; they are, so that another run knows whose folder it is.
            report: called with how many blocks are done of the rows of both halves that are on the way.
        """
        lm, sums, text = self.lm, self.sums, self.halves[0]
        layers, tokens = len(sums.total[0]), max(1, text.length - text.skip - 1)
        self._folder, self._report = saved.parent / ROWS, report
        self._folder.mkdir(parents=True, exist_ok=True)
        folders = self._folder, saved
        here = sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())
        require_room_on_disk(
            self._folder, room_needed(lm, layers, tokens) - here, "gradients of a row, sums of Jacobians and the lens"
        )
        if not JacobianSums.exists(saved):
            sums.save(saved)
        total = mapped_tensor(self._folder / "sums", sums.total.shape, sums.total.dtype)
        sums.total = self._fresh = total.copy_(sums.total)

    def room_for_lens(self) -> Tensor | None:
        """As of every run: on disk, beside the sums."""
        if self._folder is None:
            return None
        size = self.lm.hidden_size
        return mapped_tensor(self._folder / "lens", (self.lm.n_layers, size, size), torch.float32)

    def end(self) -> None:
        """After all: nothing is on the way."""
        if self._folder is not None:
            rmtree(self._folder, ignore_errors=True)

    def save(self, folder: Path) -> None:
        """Save the sums, and let go of the rows that are in them."""
        super().save(folder)
        if self._folder is not None:
            for half in range(2):
                rmtree(self._folder / str(half), ignore_errors=True)

    def measure(self) -> None:
        """The first row that is differentiated is measured: another reading of the weights would be for nothing."""

    def rows_of(self, ids: Sequence[int], counted: Tensor, cotangents: Tensor | None = None) -> Tensor | None:
        """As of every run; the gradients of cotangents are in memory."""
        return self._rows(ids, counted, cotangents, None)

    def row_of(self, half: int, batch: TokenBatch) -> Tensor | None:
        """The Jacobian of a half's row; a killed run goes on with it."""
        return self._rows(batch.ids[0].tolist(), batch.counted[0], None, half)

    def _rows(self, ids: Sequence[int], counted: Tensor, cotangents: Tensor | None, half: int | None) -> Tensor | None:
        places = sources_of(counted)
        if not places.any():
            return None
        numbers = places.nonzero()[:, 0].tolist()
        start, end = numbers[0], numbers[-1] + 1
        lm, size, layers = self.lm, self.lm.hidden_size, self.chain.target_layer
        count = size if cotangents is None else len(cotangents)
        together = max(1, ON_PROCESSOR // (end - start))
        chunks = [min(together, count - first) for first in range(0, count, together)]
        shape, wide = (end - start, size), torch.float64 if lm.dtype == torch.float64 else torch.float32
        if half is None or self._folder is None:
            room: RowInMemory | RowOnDisk = RowInMemory(chunks, layers, size, wide)
        else:
            row = json.dumps([list(ids[:end]), numbers]).encode()
            about = {"settings": self.sums.settings, "row": hashlib.sha256(row).hexdigest(), "dtype": str(lm.dtype)}
            room = RowOnDisk(self._folder / str(half), about, chunks, layers, shape, lm.dtype, wide)
        if not room.finished:
            with without_weight_gradients(lm):
                self._differentiate(room, ids[:end], places[start:end], cotangents, half)
        return room.jacobians

    def _differentiate(
        self, room: RowInMemory | RowOnDisk, ids: Sequence[int], here: Tensor, cotangents: Tensor | None,
        half: int | None,
    ) -> None:  # fmt: skip
        """Go down the blocks from where a row is, whose last tokens are sources as `here` (T,) says."""
        start = len(ids) - len(here)
        row = self.chain.of_row(ids, start)
        self.record_products(self.chain.low)
        weights = here.to(room.jacobians.dtype) / here.sum()
        with self.chain.weights.backwards():
            for stage in range(room.done // len(room.chunks), room.layers):
                number = room.layers - 1 - stage
                graph = self.chain.graph(row, number, start)
                for chunk in range(room.done - stage * len(room.chunks), len(room.chunks)):
                    check_interruption()
                    given = room.read(stage, chunk) if stage else self._first(room, chunk, row, here, cotangents)
                    gradients = graph.gradients(given, self.chain.stacked)
                    rows = torch.einsum("ktd,t->kd", gradients.to(weights), weights)
                    room.write(stage, chunk, rows, gradients if number else None)
                if half is not None:
                    self._report(half * room.layers + stage + 1)

    def _first(
        self, room: RowInMemory | RowOnDisk, chunk: int, row: KeptRow, here: Tensor, cotangents: Tensor | None
    ) -> Tensor:
        """The cotangents (K, T, D) of the last states: those given, or dimensions one by one, at all targets."""
        last = row.states[-1]
        first, count = sum(room.chunks[:chunk]), room.chunks[chunk]
        if cotangents is None:
            z = last.new_zeros(count, last.shape[-1])
            z[torch.arange(count), torch.arange(first, first + count)] = 1
        else:
            z = cotangents[first : first + count].to(last)
        return here.to(last)[None, :, None] * z[:, None]


def require_streamed_settings(what: str, targets: str, rule: str) -> None:
    """Raise LenscopeError, which begins with `what`, for settings of a fit that a streamed model cannot have."""
    if targets != "later":
        raise LenscopeError(f"{what} targets {targets!r} runs each position by itself; give targets 'later'")
    if rule != "gradient":
        raise LenscopeError(f"{what} rule {rule!r} is made for weights in memory; give rule 'gradient'")


def room_needed(lm: LM, layers: int, tokens: int) -> int:
    """Bytes on disk of a fit: a row's cotangents, Jacobians of two rows, sums as they are used, saved, and being saved.

    Args:
        lm: the model.
        layers: how many are differentiated.
        tokens: of a row that have gradients.
    """
    size = lm.hidden_size
    chunk = max(1, ON_PROCESSOR // tokens)
    return (size + chunk) * tokens * size * lm.dtype.itemsize + (8 + 3 * 8) * layers * size**2
