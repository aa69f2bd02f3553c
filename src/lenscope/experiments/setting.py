"""What an experiment is given: a model, data, a size, a lens fitted where none is at hand, a place for what is done.

Knows: which text stands in where none is named, how large quick and full runs are, what an interrupted run keeps.
Does not know: any experiment.
"""

import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, final

from lenscope.errors import LenscopeError
from lenscope.experiments.cached_values import decode, encode
from lenscope.files import weights_folder
from lenscope.files.file_names import safe_name
from lenscope.files.untrusted import checked_reading
from lenscope.fitting.held_out import halves
from lenscope.fitting.tuned_lens import fit
from lenscope.mappings.mapping import PairMapping, mapping_hash
from lenscope.models.generation import end_ids
from lenscope.models.language_model import LM
from lenscope.models.precision import fast_products
from lenscope.models.progress import Progress
from lenscope.models.prompts import Prompt
from lenscope.models.provenance import provenance
from lenscope.patchscopes.verbaliser import Verbaliser
from lenscope.text.corpus import Corpus, overlap
from lenscope.text.packing import find_marks, tokenizer_identity

# tokens of text that a lens is fitted on
FITTED = {"quick": 16_384, "full": 102_400}
# the same of the model's own samples, which take longer to get; an experiment can ask for fewer in a quick run
SAMPLED = {"quick": 4_096, "full": 16_384}
HELD_OUT = 0.1
# tokens of a row of the model's own samples in a quick run: short rows are written side by side
SAMPLED_LENGTH = 128
# packages whose numbers are kept, beside those that a model's provenance names
VERSIONS = ("numpy", "scikit-learn", "scipy", "tokenizers")

_Size = TypeVar("_Size")
_Value = TypeVar("_Value")


def _silent(unit: str) -> AbstractContextManager[Progress]:
    return nullcontext(lambda done, total: None)


@final
@dataclass(frozen=True, eq=False)
class Setting:
    """A model and what an experiment needs to know of it and of this run.

    `data` is the experiment's own: text, or files of questions; none: what is built in, or the model's own samples.
    `text` is what a lens is fitted on where no `lens` is given; none: the model's own samples. `quick` runs are small,
    at most five minutes for a model of 135M parameters on two cores. What is done is kept in `folder`, so that the
    same run goes on where it was interrupted. `progress(unit)` is a `with` block whose value takes (done, in all).
    `target_lm` is the model that states are patched into, where an experiment patches into another one. `lenses` are
    those that were given by name, where an experiment compares several, `verbaliser` is a trained one that was given.
    `sampled_quickly` is how many tokens of the model's samples a lens of a quick run is fitted on; None: 4,096.
    """

    lm: LM
    data: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    lens: PairMapping | None = None
    quick: bool = False
    seed: int = 0
    folder: Path | None = None
    progress: Callable[[str], AbstractContextManager[Progress]] = field(default=_silent)
    target_lm: LM | None = None
    lenses: Mapping[str, PairMapping] = field(default_factory=dict)
    verbaliser: Verbaliser | None = None
    sampled_quickly: int | None = None

    def choose(self, *, quick: _Size, full: _Size) -> _Size:
        """How much this run does of something: the one size in a quick run, else the other."""
        return quick if self.quick else full

    @cached_property
    def corpus(self) -> Corpus:
        """The text, or the model's own samples, as rows of up to 512 tokens; samples of a quick run of up to 128."""
        short = min(SAMPLED_LENGTH, self.lm.context or SAMPLED_LENGTH) if self.quick and not self.text else None
        return Corpus.open(self.lm, [Path(t) for t in self.text] or None, length=short, seed=self.seed)

    @property
    def held_out(self) -> Corpus:
        """The tenth of the text that no lens of this run is fitted on.

        Of the model's own samples it is the half of that tenth on which a fit measures its lens. These rows are written
        already, and each further group of rows takes as long as a row has tokens, however few rows it has.
        """
        held = self.corpus.split(HELD_OUT)[1]
        return held if self.text else halves(held)[1]

    @property
    def overlapping(self) -> bool:
        """Whether a lens that was given has seen some of the text that is held out."""
        given = [f for f in (self.lens, *self.lenses.values()) if f is not None]
        if not given or not self.text:
            return False
        held_out = self.held_out.provenance()
        return any(overlap(f.report.get("corpus"), held_out) for f in given)

    @cached_property
    def translators(self) -> PairMapping:
        """The lens that was given, or one fitted on the text, all but what is held out."""
        if self.lens is not None:
            return self.lens
        size = self.choose(**(FITTED if self.text else SAMPLED))
        if self.quick and not self.text:
            size = self.sampled_quickly or size
        how: Any = {"tokens": size, "held_out": HELD_OUT}
        with self.progress("tokens of text for the lens") as advance:
            # finished before, it is read again
            return fit(self.lm, self.corpus, seed=self.seed, folder=self.place("lens", **how), progress=advance, **how)

    def place(self, name: str, **settings: Any) -> Path | None:
        """A folder for files that this run alone goes on with, under that name; None where nothing is kept.

        `settings` are JSON values as those of `cached`.
        """
        key = self._key(name, settings)
        return None if self.folder is None or key is None else self.folder / f"{safe_name(name)}-{key[:16]}"

    def cached(self, name: str, compute: Callable[[], _Value], **settings: Any) -> _Value:
        """What `compute` gives, or what an earlier run of the same settings cached under that name in the folder.

        `settings` are JSON values that `compute` depends on beside models, data, text, lens, seed and size, which are
        known by their content. The name may be any text. Values are those of `cached_values`, and are cached as they
        are. What comes of a model that cannot be known again, because its weights are offloaded, is not cached.
        """
        key = self._key(name, settings)
        place = self.cache_place(name)
        if place is None or key is None:
            return compute()
        with suppress(LenscopeError), checked_reading(place):
            config, tensors = weights_folder.read_folder(place, "cached")
            if config.get("identity") == key:
                value: _Value = decode(config["value"], tensors)
                return value
        tensors, value = {}, compute()
        config = {"identity": key, "settings": settings, "value": encode(value, tensors)}
        weights_folder.write_folder(place, "cached", config, tensors)
        return value

    def cache_place(self, name: str) -> Path | None:
        """The folder that a cached value lies in; None where nothing is kept."""
        return None if self.folder is None else self.folder / "cached" / safe_name(name)

    def _key(self, name: str, settings: dict[str, Any]) -> str | None:
        """The SHA-256 of everything that what is made under a name depends on; None where a model has no hash."""
        models = [None if lm is None else _model(lm) for lm in (self.lm, self.target_lm)]
        if any(model is not None and model["model_hash"] is None for model in models):
            return None
        whole = [name, settings, models, self._given]
        return hashlib.sha256(json.dumps(whole, sort_keys=True, ensure_ascii=True).encode()).hexdigest()

    @cached_property
    def _given(self) -> dict[str, Any]:
        """What was given beside models, by its content."""
        return {
            "data": [(d, content(d)) for d in self.data],
            "text": [(t, content(t)) for t in self.text],
            "lens": None if self.lens is None else mapping_hash(self.lens),
            "lenses": {name: mapping_hash(f) for name, f in self.lenses.items()},
            # left out where there is none, so that folders of earlier versions go on
            **({} if self.verbaliser is None else {"verbaliser": _all_of_verbaliser(self.verbaliser)}),
            **({} if self.sampled_quickly is None else {"sampled_quickly": self.sampled_quickly}),
            "quick": self.quick,
            "seed": self.seed,
            "versions": {name: version(name) for name in VERSIONS} | {"python": platform.python_version()},
        }

    def settings(self, **own: Any) -> dict[str, Any]:
        """What a repetition needs, for the report."""
        given: dict[str, Any] = {"quick": self.quick, "seed": self.seed, "data": list(self.data) or "built in"}
        if self.target_lm is not None:
            given["target model"] = self.target_lm.name
        given["text"] = list(self.text) or f"samples of {self.lm.name}"
        if "translators" in self.__dict__:
            report = self.translators.report
            tokens = report.get("tokens")
            given["lens"] = "given" if self.lens is not None else f"fitted on {tokens:,} tokens of the text"
            if self.overlapping:
                given["lens"] += ", fitted on some of what is held out"
        elif self.lenses:
            given["lens"] = f"given: {', '.join(self.lenses)}"
            given["lens"] += ", one of them fitted on some of what is held out" if self.overlapping else ""
        return {**given, **own}

    def provenance(self) -> dict[str, Any]:
        """The model's provenance, and the lens's as far as one was used."""
        used = {"lens": self.translators.report} if "translators" in self.__dict__ else {}
        if self.lenses:
            used = {**used, "lenses": {name: f.report for name, f in self.lenses.items()}}
        return {**provenance(self.lm), **used}


def content(path: str | os.PathLike[str]) -> Any:
    """What a file or a folder holds: the SHA-256 of a file, of a folder those of all its files by name; else None.

    Raises LenscopeError for what cannot be read.
    """
    path = Path(path).expanduser()
    try:
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file())
            return {p.relative_to(path).as_posix(): content(p) for p in files}
        if not path.exists():
            return None
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise LenscopeError(f"{path}: cannot be read ({error.strerror or error})") from error


def _model(lm: LM) -> dict[str, Any]:
    """All of a model that numbers depend on: its provenance, how it reads text, how a fit of it multiplies."""
    # two of them differ between two runs of the same
    known = {name: value for name, value in provenance(lm).items() if name not in ("created", "readout_deviation")}
    marks = find_marks(lm)
    return {
        **known,
        "context": lm.context,
        "tokenizer": tokenizer_identity(lm.encoder),
        "chat_template": str(getattr(lm.tokenizer, "chat_template", None)),
        "ends": sorted(end_ids(lm.runner)),
        "marks": [list(marks.row), list(marks.document), list(marks.end)],
        "products": str(fast_products(lm)),
    }


def _all_of_verbaliser(one: Verbaliser) -> dict[str, Any]:
    """All of a verbaliser that numbers depend on: its map, prompt, place and what is taken from states."""
    target = one.target
    prompt = target.prompt.ids if isinstance(target.prompt, Prompt) else target.prompt
    return {
        "map": mapping_hash(one.map),
        "prompt": [str(prompt), str(target.at), target.every, target.below],
        "edits": [
            [e.layer, str(e.position), e.vector.tolist(), getattr(e.op, "__name__", str(e.op))] for e in target.edits
        ],
        "written": [one.target_layer, getattr(one.op, "__name__", str(one.op)), list(one.stop)],
        "read": [list(one.layers), None if one.center is None else one.center.tolist()],
    }
