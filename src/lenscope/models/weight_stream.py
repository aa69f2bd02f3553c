"""The weights of a model's blocks, read from files when a block is about to run, and gone when another one is.

Knows: where each weight lies, that the next block is read while one runs, what is looked at while weights pass by: that
they are finite, and their digests. Does not know: how a model is loaded (streamed_loading.py), who runs next
(runs_by_block.py).
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lenscope.errors import LenscopeError
from lenscope.files.untrusted import checked_reading
from lenscope.models.identity import ROUNDED, coarser_dtypes, digest_of, weights_elsewhere
from lenscope.models.progress import Progress
from lenscope.models.readout import is_stubbed
from lenscope.models.residual_stream import is_finite

OWN = "own"
# What a block that is about to run calls with its number instead of `need`, in the threads of runs that take turns.
waiting: ContextVar[Callable[[int], None] | None] = ContextVar("lenscope_waiting", default=None)


@dataclass(frozen=True)
class StoredWeight:
    """Where a weight lies: in an open safetensors file, under a name; and the dtype that the model has it in."""

    file: Any
    name: str
    dtype: torch.dtype

    def read(self) -> Tensor:
        """The weight in memory of its own: a file that is mapped might change or end under it."""
        with checked_reading(self.name, "cannot be read from the checkpoint"):
            tensor: Tensor = self.file.get_tensor(self.name)
            return tensor.to(self.dtype, copy=True)


class WeightStream:
    """Weights of `blocks`, of which one has its own in memory and the one behind it is being read.

    `stored` says, block by block, where each parameter lies, by the parameter's name in the model. `passes` counts how
    often all weights were read. `progress`, if set, is told which block of how many is reached. `kinds` are the dtypes
    (of identity.ROUNDED, or "own") that weights are hashed in as they are read.
    """

    def __init__(self, model: nn.Module, name: str, path: str, stored: Sequence[dict[str, StoredWeight]]) -> None:
        self.name = name
        self.blocks = tuple(model.get_submodule(path).children())
        self.stored = stored
        self.progress: Progress | None = None
        self.kinds = {OWN}
        self.reads = 0
        self._slots = [streamed_slots(block, f"{path}.{n}") for n, block in enumerate(self.blocks)]
        self._resident: int | None = None
        self._absent: list[tuple[nn.Module, str, nn.Parameter | None]] = []
        self._ahead: tuple[int, Future[dict[str, Tensor]]] | None = None
        self._finite: set[int] = set()
        self._digests: dict[tuple[str, str], bytes] = {}
        self._reader = ThreadPoolExecutor(1, "lenscope-weights")
        self._lock = threading.RLock()
        # which block is read while one runs: the one behind it, or, backwards, the one before
        self._step = 1
        _streams[model] = self
        weights_elsewhere(model, self)
        for n, block in enumerate(self.blocks):
            block.register_forward_pre_hook(lambda module, _, n=n: self._before(module, n))

    @property
    def passes(self) -> float:
        """How often the weights of all blocks were read so far."""
        return self.reads / len(self.blocks)

    # -- blocks

    def _before(self, block: nn.Module, number: int) -> None:
        if not is_stubbed(block):
            (waiting.get() or self.need)(number)

    def need(self, number: int) -> None:
        """Put the weights of a block in their places, whose block before gives its own up, and begin to read the next.

        Raises LenscopeError for weights that cannot be read, or are not finite.
        """
        with self._lock:
            if self._resident == number:
                if self._ahead is None:
                    self._begin(number + self._step)
                return
            self.drop()
            weights = self._take(number)
            for name, slots in self._slots[number].items():
                for module, attribute in slots:
                    self._absent.append((module, attribute, module._parameters[attribute]))
                    module._parameters[attribute] = weights[name]
            self._resident = number
            if self.progress is not None:
                self.progress(number + 1, len(self.blocks))
            self._begin(number + self._step)

    @contextmanager
    def backwards(self) -> Iterator[None]:
        """Within the block, blocks are expected from the last to the first: while one runs, the one before is read."""
        self._step = -1
        try:
            yield
        finally:
            self._step = 1

    def drop(self) -> None:
        """Let go of the weights that are in memory."""
        with self._lock:
            for module, attribute, absent in self._absent:
                module._parameters[attribute] = absent
            self._absent, self._resident = [], None

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Within the block no weights of blocks are in memory."""
        with self._lock:
            self.drop()
            yield

    def digests(self, names: Iterable[str], dtype: torch.dtype | None) -> dict[str, bytes]:
        """The SHA-256 of the bytes of weights by name, in their own dtype or rounded; read for it where not yet known.

        Names that are no weights of blocks are left out.
        """
        places = {name: stored for block in self.stored for name, stored in block.items()}
        rounded = next((name for name, known in ROUNDED.items() if known == dtype), OWN)
        # rounding to its own dtype changes nothing
        wanted = {n: OWN if places[n].dtype == dtype else rounded for n in names if n in places}
        if any(key not in self._digests for key in wanted.items()):
            # whoever asks for one dtype asks for the others, too
            self.kinds.update([rounded, *coarser_dtypes(torch.bfloat16)])
            for number in range(len(self.blocks)):
                self.need(number)
            self.drop()
        return {name: self._digests[name, kind] for name, kind in wanted.items()}

    # -- files

    def _begin(self, number: int) -> None:
        if 0 <= number < len(self.blocks):
            self._ahead = number, self._reader.submit(self._read, number)

    def _take(self, number: int) -> dict[str, nn.Parameter]:
        if self._ahead is None or self._ahead[0] != number:
            if self._ahead is not None:
                self._ahead[1].cancel()
            self._begin(number)
        assert self._ahead is not None
        (_, future), self._ahead = self._ahead, None
        weights = future.result()
        self.reads += 1
        return {key: nn.Parameter(t, requires_grad=False) for key, t in weights.items()}

    def _read(self, number: int) -> dict[str, Tensor]:
        weights = {}
        for name, stored in self.stored[number].items():
            weights[name] = t = stored.read()
            if number not in self._finite and not is_finite(t):
                raise LenscopeError(
                    f"{self.name}: weights contain NaN or infinity, first in {name}; the file is broken"
                )
            for kind in self.kinds:
                if (name, kind) not in self._digests and ROUNDED.get(kind) != t.dtype:
                    self._digests[name, kind] = digest_of(t, ROUNDED.get(kind))
        self._finite.add(number)
        return weights


def streamed_slots(block: nn.Module, path: str) -> dict[str, list[tuple[nn.Module, str]]]:
    """The places in a block of each parameter that is not in memory, by its first name in the model."""
    names: dict[int, str] = {}
    slots: dict[str, list[tuple[nn.Module, str]]] = {}
    for name, p in block.named_parameters(prefix=path, remove_duplicate=False):
        if p.is_meta:
            inside, _, attribute = name.removeprefix(f"{path}.").rpartition(".")
            slots.setdefault(names.setdefault(id(p), name), []).append((block.get_submodule(inside), attribute))
    return slots


_streams: "WeakKeyDictionary[nn.Module, WeightStream]" = WeakKeyDictionary()


def stream_of(model: nn.Module) -> WeightStream | None:
    """The stream that a model's blocks get their weights from; None for a model that is in memory."""
    return _streams.get(model)
