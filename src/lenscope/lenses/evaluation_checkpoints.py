"""Where a measurement on text that was killed goes on: a checkpoint of its sums, written now and then, and read again.

Knows: when a checkpoint is worth its time, which settings must be the same, that a finished one holds the result.
Does not know: what is summed (text_sums.py), how text is read, how files are written (files/weights_folder.py).
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from lenscope.distributed.sharding import described
from lenscope.errors import LenscopeError
from lenscope.files.records import Record, document_of
from lenscope.files.untrusted import checked_reading
from lenscope.files.weights_folder import CONFIG, read_folder, write_folder
from lenscope.files.writing import folder_lock
from lenscope.lenses.lens import Lens
from lenscope.mappings import mapping as mappings
from lenscope.models.language_model import LM
from lenscope.text.predictions import TextShare

STEM, FORMAT = "sums", 1
# the part of the time that is spent on writing, at most; and bytes a second of the first writing, before any was timed
SHARE, SPEED = 0.02, 100e6
# seconds between two checkpoints, at least
PAUSE = 1.0


class ResumableSums(Protocol):
    """Sums over the rows of a text so far."""

    @property
    def rows(self) -> int:
        """How many rows they are over."""
        ...

    @property
    def tokens(self) -> int:
        """How many predictions they are over."""
        ...

    @property
    def sha256(self) -> str:
        """The digest of the rows' ids."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name, which share memory with them."""
        ...

    def over_all(self, share: TextShare, device: torch.device) -> Self:
        """The sums over the whole text, of which each process has those of its batches."""
        ...


def evaluation_settings(
    kind: str, lm: LM, lenses: Mapping[str, Lens], layers: tuple[int, ...], seed: int = 0
) -> dict[str, Any]:
    """The settings that two runs must share, as JSON values: model, lenses, layers and seed.

    Raises LenscopeError for a lens that is a function, since another process cannot tell whether it is the same.
    """
    for name, lens in lenses.items():
        if not (lens.f is None or lens.f is mappings.identity or isinstance(lens.f, mappings.PairMapping)):
            raise LenscopeError(
                f"lens {name}: is a function, which a checkpoint cannot tell from another one; give a mapping, such as "
                "load_lens reads, or no folder"
            )
    hashes = {name: mappings.mapping_hash(lens.f) for name, lens in lenses.items()}
    # a list, since the order of lenses counts
    return {
        "kind": kind,
        "model": described(lm)[0]["model_hash"],
        "lenses": list(hashes.items()),
        "layers": list(layers),
        "seed": seed,
    }


class EvaluationCheckpoint:
    """The checkpoint of one run in a folder, or in none, where nothing is kept."""

    def __init__(self, folder: Path | None, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings
        # seconds that a checkpoint takes, None before any was timed, when it ended, and rows that the last one holds
        self.cost: float | None = None
        self.last = time.monotonic()
        self.rows = 0

    def read(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """What an earlier run left, if any: where it was, or its "result"; and its sums.

        Raises LenscopeError for other settings, and for a damaged checkpoint.
        """
        # a run that was killed while it wrote its first one leaves a folder without
        if self.folder is None or not (self.folder / CONFIG).exists():
            return None
        with readable_checkpoint(self.folder):
            config, tensors = read_folder(self.folder, STEM)
            if config["format"] != FORMAT:
                raise LenscopeError(f"it has format {config['format']!r}; this lenscope reads {FORMAT}")
            was, now = config["settings"], json.loads(json.dumps(self.settings))
            differ = next((name for name in now if was.get(name) != now[name]), None)
            self.rows = config["rows"]
        if differ is not None:
            raise LenscopeError(f"{self.folder}: is of another run, with other {differ}; remove it to begin anew")
        return config, tensors

    def save_if_due(self, sums: ResumableSums) -> None:
        """Save the sums, where enough time has passed for the writing to be a small part of it."""
        cost = self.cost
        if self.folder is not None and cost is None:
            cost = sum(t.nbytes for t in sums.tensors().values()) / SPEED
        if cost is not None and time.monotonic() - self.last >= max(PAUSE, cost / SHARE):
            self.save(sums)

    def save(self, sums: ResumableSums) -> None:
        """Save the sums, unless they are saved already."""
        if sums.rows == self.rows:
            return
        began = time.monotonic()
        self._write({}, sums, sums.tensors())
        self.last = time.monotonic()
        self.cost = self.last - began

    def finish(self, sums: ResumableSums, result: Record) -> None:
        """Save the result in place of the sums."""
        self._write({"result": document_of(result)}, sums, {})

    def _write(self, more: dict[str, Any], sums: ResumableSums, tensors: dict[str, Tensor]) -> None:
        if self.folder is not None:
            place = {"rows": sums.rows, "tokens": sums.tokens, "text": sums.sha256}
            write_folder(self.folder, STEM, {"format": FORMAT, "settings": self.settings, **place, **more}, tensors)
            self.rows = sums.rows


@contextmanager
def readable_checkpoint(folder: Path | None) -> Iterator[None]:
    """Whatever reading and checking a checkpoint raises becomes one line that names the folder and the remedy."""
    try:
        with checked_reading(folder):
            yield
    except LenscopeError as error:
        reason = str(error).removeprefix(f"{folder}: ")
        raise LenscopeError(f"{folder}: is no checkpoint that can be read ({reason}); remove it") from error


@contextmanager
def kept_in(folder: str | Path | None, settings: Callable[[], dict[str, Any]]) -> Iterator[EvaluationCheckpoint]:
    """The checkpoint in a folder, to which only this run writes within the block; in none, one that keeps nothing."""
    if folder is None:
        yield EvaluationCheckpoint(None, {})
        return
    wanted, there = settings(), Path(folder).exists()
    try:
        with folder_lock(folder):
            yield EvaluationCheckpoint(Path(folder) / "checkpoint", wanted)
    finally:
        # a run that failed before its first checkpoint leaves nothing
        if not there:
            with suppress(OSError):
                Path(folder).rmdir()


def remove_checkpoint(folder: str | Path) -> None:
    """Remove what a measurement left in its folder, and the folder where nothing else is in it."""
    rmtree(Path(folder) / "checkpoint", ignore_errors=True)
    with suppress(OSError):
        Path(folder).rmdir()
