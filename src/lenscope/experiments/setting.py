"""What an experiment is given: a model, data, a size, a lens fitted where none is at hand, a place for what is done.

Knows: which text stands in where none is named, how large quick and full runs are, what an interrupted run keeps.
Does not know: any experiment.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, final

from safetensors import SafetensorError
from torch import Tensor

from lenscope import artifacts
from lenscope._version import __version__
from lenscope.corpus import Corpus, overlap
from lenscope.errors import LenscopeError
from lenscope.mappings import PairMapping, load_mapping
from lenscope.model import LM
from lenscope.provenance import model_hash, provenance
from lenscope.tuning import fit, other_run

# tokens of text that a lens is fitted on, quick and full; of the model's own samples, which take longer to get
FITTED, SAMPLED = (16_384, 102_400), (4_096, 16_384)
HELD_OUT = 0.1
# tokens of a row of the model's own samples in a quick run: short rows are written side by side
SHORT = 128

# advance(done, in all or 0)
Advance = Callable[[int, int], None]
_Size = TypeVar("_Size")


def _silent(unit: str) -> AbstractContextManager[Advance]:
    return nullcontext(lambda done, total: None)


@final
@dataclass(frozen=True, eq=False)
class Setting:
    """A model and what an experiment needs to know of it and of this run.

    `data` is the experiment's own: text, or files of questions; none: what is built in, or the model's own samples.
    `text` is what a lens is fitted on where no `lens` is given; none: the model's own samples. `quick` runs are small,
    at most five minutes for a model of 135M parameters on two cores. What is done is kept in `folder`, so that the
    same run goes on where it was interrupted. `progress(unit)` is a `with` block whose value takes (done, in all).
    `target_lm` is the model that states are patched into, where an experiment patches into another one.
    """

    lm: LM
    data: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    lens: PairMapping | None = None
    quick: bool = False
    seed: int = 0
    folder: Path | None = None
    progress: Callable[[str], AbstractContextManager[Advance]] = field(default=_silent)
    target_lm: LM | None = None

    @property
    def explainer(self) -> LM:
        """The model that states are patched into: the other one, or the model itself."""
        return self.target_lm or self.lm

    def sized(self, quick: _Size, full: _Size) -> _Size:
        """The one or the other: what is small or short in a quick run."""
        return quick if self.quick else full

    @cached_property
    def corpus(self) -> Corpus:
        """The text, or the model's own samples, as rows of up to 512 tokens; samples of a quick run of up to 128."""
        short = min(SHORT, self.lm.context or SHORT) if self.quick and not self.text else None
        return Corpus.open(self.lm, [Path(t) for t in self.text] or None, length=short, seed=self.seed)

    @property
    def held_out(self) -> Corpus:
        """The tenth of the text that no lens of this run is fitted on."""
        return self.corpus.split(HELD_OUT)[1]

    @property
    def overlapping(self) -> bool:
        """Whether the lens that was given has seen some of the text that is held out."""
        if self.lens is None or not self.text:
            return False
        return overlap(self.lens.report.get("corpus"), self.held_out.provenance())

    @cached_property
    def translators(self) -> PairMapping:
        """The lens that was given, or one fitted on the text, all but what is held out."""
        if self.lens is not None:
            return self.lens
        how: Any = {"tokens": self.sized(*(FITTED if self.text else SAMPLED)), "held_out": HELD_OUT, "seed": self.seed}
        folder = None if self.folder is None else self.folder / "lens"
        if folder is not None and (folder / artifacts.CONFIG).exists():
            found = load_mapping(folder)
            if not other_run(found, self.lm, self.corpus, recipe="muon", **how):
                return found
        with self.progress("tokens of text for the lens") as advance:
            return fit(self.lm, self.corpus, folder=folder, progress=advance, **how)

    def kept(self, name: str, make: Callable[[], dict[str, Tensor]], **settings: Any) -> dict[str, Tensor]:
        """What `make` makes, or what an earlier run of the same settings kept under that name in the folder.

        `settings` are JSON values that `make` depends on beside the model, the data, the lens, seed and size.
        """
        if self.folder is None:
            return make()
        place = self.folder / "kept" / name
        identity = hashlib.sha256(json.dumps([self._identity, settings], sort_keys=True).encode()).hexdigest()
        try:
            config, tensors = artifacts.read(place, "kept")
            if config.get("identity") == identity:
                return tensors
        except (OSError, ValueError, KeyError, SafetensorError, LenscopeError):
            pass
        made = {key: value.contiguous() for key, value in make().items()}
        artifacts.write(place, "kept", {"identity": identity, "settings": settings}, made)
        return made

    @cached_property
    def _identity(self) -> dict[str, Any]:
        lens = None if self.lens is None else [self.lens.report.get(k) for k in ("model_hash", "ids_sha256", "seconds")]
        data = [(d, hashlib.sha256(Path(d).read_bytes()).hexdigest()) if Path(d).is_file() else d for d in self.data]
        other = {} if self.target_lm is None else {"target_model": model_hash(self.target_lm.model)}
        return {
            **other,
            "lenscope": __version__,
            "model": model_hash(self.lm.model),
            "dtype": str(self.lm.dtype),
            "data": data,
            "text": list(self.text),
            "lens": lens,
            "quick": self.quick,
            "seed": self.seed,
        }

    def settings(self, **own: Any) -> dict[str, Any]:
        """What a repetition needs, for the report."""
        said: dict[str, Any] = {"quick": self.quick, "seed": self.seed, "data": list(self.data) or "built in"}
        if self.target_lm is not None:
            said["target model"] = self.target_lm.name
        said["text"] = list(self.text) or f"samples of {self.lm.name}"
        if "translators" in self.__dict__:
            report = self.translators.report
            tokens = report.get("tokens")
            said["lens"] = "given" if self.lens is not None else f"fitted on {tokens:,} tokens of the text"
            if self.overlapping:
                said["lens"] += ", fitted on some of what is held out"
        return {**said, **own}

    def provenance(self) -> dict[str, Any]:
        """The model's provenance, and the lens's as far as one was used."""
        used = {"lens": self.translators.report} if "translators" in self.__dict__ else {}
        return {**provenance(self.lm), **used}
