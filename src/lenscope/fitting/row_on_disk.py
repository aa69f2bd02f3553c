"""What is on disk of one row of text while its Jacobians go down a model, block by block; a killed run goes on from it.

Knows: which chunk of cotangents lies where, which are done, that all is as it was written.
Does not know: how gradients are had, which row it is (streamed_jacobian.py).

Cotangents of a block are written in chunks, each where a chunk of the block above was read that is not needed any more:
there is one chunk more of room than there are chunks. What is done is one number, which is written after what it
counts, so that whenever a process ends, all that it counts is there.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from torch import Tensor

from lenscope.files.mapped import mapped_tensor, require_room_on_disk
from lenscope.files.untrusted import read_json
from lenscope.files.writing import write_text
from lenscope.models.identity import digest_of

ABOUT = "row.json"
# bytes of a SHA-256
DIGEST = 32


class RowOnDisk:
    """Cotangents of one row in a folder, and its Jacobians (L, K, D) as far as they are known.

    Stages are blocks from the last one down. At each stage, for chunk after chunk, `read` gives what the stage before
    wrote, and `write` takes the rows of the layer's Jacobian and the chunk of the next stage.

    Args:
        folder: where; of another row, or damaged, it is begun anew.
        about: JSON values that say which row of which run it is.
        chunks: how many cotangents each chunk has.
        layers: how many stages there are.
        shape: (T, D) of a cotangent.
        dtype: of the cotangents.
        wide: the dtype of the Jacobians.

    Raises LenscopeError where the disk has no room for it.
    """

    def __init__(
        self, folder: Path, about: dict[str, Any], chunks: Sequence[int], layers: int, shape: tuple[int, int],
        dtype: torch.dtype, wide: torch.dtype,
    ) -> None:  # fmt: skip
        self.folder, self.chunks, self.layers = folder, tuple(chunks), layers
        about = json.loads(json.dumps({**about, "chunks": self.chunks, "layers": layers, "shape": shape}))
        # the first file of a row to be whole
        if not (folder / ABOUT).is_file() or read_json(folder / ABOUT) != about:
            self._begin(shape, dtype, wide)
            write_text(folder / ABOUT, json.dumps(about))
        self._map(shape, dtype, wide)
        if self.done and not self._is_as_written():
            self._begin(shape, dtype, wide)
            write_text(folder / ABOUT, json.dumps(about))
            self._map(shape, dtype, wide)

    @property
    def done(self) -> int:
        """How many chunks are done, over all stages."""
        return int(self._done)

    @property
    def finished(self) -> bool:
        """Whether the Jacobians of all layers are known."""
        return self.done == self.layers * len(self.chunks)

    def read(self, stage: int, chunk: int) -> Tensor:
        """The cotangents (K, T, D) of a chunk that the stage before wrote."""
        return self._cotangents[self._slot(stage - 1, chunk), : self.chunks[chunk]]

    def write(self, stage: int, chunk: int, rows: Tensor, gradients: Tensor | None) -> None:
        """Take the rows (K, D) of a layer's Jacobian, and the chunk (K, T, D) of the next stage, if there is one."""
        first = sum(self.chunks[:chunk])
        layer = self.layers - 1 - stage
        self.jacobians[layer, first : first + len(rows)] = rows
        self._row_digests[stage, chunk] = _digest_as_tensor(self.jacobians[layer, first : first + len(rows)])
        if gradients is not None:
            slot = self._slot(stage, chunk)
            self._cotangents[slot, : len(gradients)] = gradients
            self._digests[slot] = _digest_as_tensor(self._cotangents[slot, : len(gradients)])
        self._done.fill_(stage * len(self.chunks) + chunk + 1)

    def remove(self) -> None:
        """Take the folder away."""
        rmtree(self.folder, ignore_errors=True)

    def _slot(self, stage: int, chunk: int) -> int:
        return (chunk - stage) % (len(self.chunks) + 1)

    def _begin(self, shape: tuple[int, int], dtype: torch.dtype, wide: torch.dtype) -> None:
        self.remove()
        self.folder.mkdir(parents=True)
        count, slots = sum(self.chunks), len(self.chunks) + 1
        size = slots * max(self.chunks) * shape[0] * shape[1] * dtype.itemsize
        size += self.layers * count * shape[1] * wide.itemsize
        require_room_on_disk(self.folder, size, "the gradients of a row and its Jacobians")

    def _map(self, shape: tuple[int, int], dtype: torch.dtype, wide: torch.dtype) -> None:
        folder, slots = self.folder, len(self.chunks) + 1
        self._cotangents = mapped_tensor(folder / "cotangents", (slots, max(self.chunks), *shape), dtype)
        self.jacobians = mapped_tensor(folder / "jacobians", (self.layers, sum(self.chunks), shape[1]), wide)
        self._digests = mapped_tensor(folder / "cotangents.sha256", (slots, DIGEST), torch.uint8)
        self._row_digests = mapped_tensor(
            folder / "jacobians.sha256", (self.layers, len(self.chunks), DIGEST), torch.uint8
        )
        self._done = mapped_tensor(folder / "done", (1,), torch.int64)

    def _is_as_written(self) -> bool:
        """Whether all that is counted as done has the digests that it was written with."""
        count = len(self.chunks)
        if not 0 <= self.done <= self.layers * count:
            return False
        for number in range(self.done):
            stage, chunk = divmod(number, count)
            first, layer = sum(self.chunks[:chunk]), self.layers - 1 - stage
            rows = self.jacobians[layer, first : first + self.chunks[chunk]]
            if not torch.equal(_digest_as_tensor(rows), self._row_digests[stage, chunk]):
                return False
            # of the last stage there are no cotangents, and older ones were written over
            if number >= self.done - count and layer:
                slot = self._slot(stage, chunk)
                written = self._cotangents[slot, : self.chunks[chunk]]
                if not torch.equal(_digest_as_tensor(written), self._digests[slot]):
                    return False
        return True


class RowInMemory:
    """As `RowOnDisk`, of few cotangents and in memory: it ends with its process.

    Args:
        chunks: how many cotangents each chunk has.
        layers: how many stages there are.
        size: D.
        wide: the dtype of the Jacobians.
    """

    done, finished = 0, False

    def __init__(self, chunks: Sequence[int], layers: int, size: int, wide: torch.dtype) -> None:
        self.chunks, self.layers = tuple(chunks), layers
        self.jacobians = torch.zeros(layers, sum(chunks), size, dtype=wide)
        self._cotangents: dict[int, Tensor] = {}

    def read(self, stage: int, chunk: int) -> Tensor:
        """As of a row on disk."""
        return self._cotangents[chunk]

    def write(self, stage: int, chunk: int, rows: Tensor, gradients: Tensor | None) -> None:
        """As of a row on disk."""
        first = sum(self.chunks[:chunk])
        self.jacobians[self.layers - 1 - stage, first : first + len(rows)] = rows
        if gradients is not None:
            self._cotangents[chunk] = gradients
        self.done = stage * len(self.chunks) + chunk + 1


def _digest_as_tensor(t: Tensor) -> Tensor:
    """The SHA-256 of a tensor's bytes, as bytes (32,)."""
    return torch.frombuffer(bytearray(digest_of(t, None)), dtype=torch.uint8)
