"""The spec of a sweep: what is patched into what, how it is read, and beside which controls, checked key by key.

Knows: which keys there are and what they may hold without a model, how a mistake is one line that names its key.
Does not know: models, tokens, rows.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_serializer, model_validator

from lenscope.errors import LenscopeError
from lenscope.files.untrusted import escaped
from lenscope.files.yaml_files import read_document
from lenscope.measures.contrasted_readout import CONTRAST_RANGE, contrast_weight
from lenscope.models import edits
from lenscope.models.inputs import sound

Controls = Literal["unpatched", "random", "other-source"]
Operations = Literal["replace", "add", "add_norm_matched", "replace_norm_matched"]
OPERATIONS: dict[str, edits.Operation] = {
    "replace": edits.replace,
    "add": edits.add,
    "add_norm_matched": edits.add_norm_matched,
    "replace_norm_matched": edits.replace_norm_matched,
}
# names of targets that are made for a model, beside those of patchscopes.methods.TARGETS
MADE_FOR_A_MODEL = ("selfie", "tokens2words", "future_lens")


def _listed(value: Any) -> Any:
    """One value stands for a list of it."""
    return value if isinstance(value, list) else list(value) if isinstance(value, tuple | range) else [value]


def _checked_place(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise ValueError(
            f"is {_shown(value)}; give a whole number or a text (in quotes where YAML reads another value)"
        )
    return value if isinstance(value, int) else _checked_text(value)


def _checked_text(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError(f"is {_shown(value)}, no text; put it in quotes")
    if not value:
        raise ValueError("is empty; give a text")
    try:
        return sound(value)
    except LenscopeError as error:
        raise ValueError(str(error)) from error


def _checked_contrast(value: Any) -> float:
    try:
        return contrast_weight(value)
    except LenscopeError as error:
        raise ValueError(f"is {_shown(value)}; {CONTRAST_RANGE}") from error


def _shown(value: Any) -> str:
    return repr(value)[:60] if isinstance(value, str) else json.dumps(value, default=str)[:60]


Text = Annotated[str, BeforeValidator(_checked_text)]
Texts = Annotated[list[Text], BeforeValidator(_listed)]
# whole numbers or texts: positions (or substrings, "all"), layers (or ranges "0:31:5", "all", "same")
Places = Annotated[list[Annotated[Any, BeforeValidator(_checked_place)]], BeforeValidator(_listed), Field(min_length=1)]


class Strict(BaseModel):
    """A part of a spec: keys that are not known are mistakes, and nothing is read as what it is not."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SweepModel(Strict):
    """A model by its name (built in, hub id, folder, .gguf file) and how it is loaded."""

    name: Text
    revision: Text | None = None
    dtype: Literal["float32", "float64", "bfloat16", "float16"] | None = None
    device: Text | None = None
    attn: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class SweepPrompt(Strict):
    """A prompt, and what is of its own: positions, layers, the answer that is asked for."""

    text: Text
    positions: Places | None = None
    layers: Places | None = None
    answer: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return value if isinstance(value, dict | SweepPrompt) else {"text": value}


class SweepColumns(Strict):
    """Which columns or fields of a file hold what; by default those of these names."""

    text: Text = "text"
    positions: Text = "positions"
    layers: Text = "layers"
    answer: Text = "answer"


class SweepSources(Strict):
    """Which states are read: prompts (listed, or of a file), their positions and layers."""

    prompts: Annotated[list[SweepPrompt], BeforeValidator(_listed), Field(min_length=1)] | None = None
    file: Text | None = None
    columns: SweepColumns = SweepColumns()
    positions: Places = [-1]
    layers: Places = ["all"]

    @model_validator(mode="after")
    def _one_of_two(self) -> "SweepSources":
        if (self.prompts is None) == (self.file is None):
            raise ValueError("give prompts, a list of texts, or file, a .txt, .jsonl, .csv, .tsv or .parquet file")
        return self


class SweepTarget(Strict):
    """A target prompt: one of the known ones by its name, or a text with its placeholder; and its layers."""

    name: Text | None = None
    text: Text | None = None
    at: Places = [-1]
    every: bool = False
    below: Literal["target", "none", "source"] = "target"
    layers: Places | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _named_or_written(self) -> "SweepTarget":
        from lenscope.patchscopes.methods import TARGETS

        if self.text is None and self.name is None:
            raise ValueError("give the name of a target prompt, or a text")
        known = [*TARGETS, *MADE_FOR_A_MODEL]
        if self.text is None and self.name not in known:
            raise ValueError(
                f"name {self.name!r}: there are {', '.join(known)}, or give a target of your own as text: …, at: …"
                f"{_nearest(str(self.name), known)}"
            )
        if self.text is None and {"at", "every"} & self.model_fields_set:
            raise ValueError(f"at and every: {self.name} has its own placeholders; leave them out")
        return self

    @property
    def label(self) -> str:
        """What rows call it."""
        return str(self.name or self.text)


class SweepMapping(Strict):
    """What states are mapped by: the identity, a folder or hub repository with a fitted mapping or lens, a factor."""

    path: Text | None = None
    scale: float | None = None
    name: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {} if value == "identity" else {"path": value}
        if isinstance(value, dict) and type(value.get("scale")) is int:
            # a number that no float reaches is told as infinity is
            return {**value, "scale": float(value["scale"]) if abs(value["scale"]) < 1 << 1023 else float("inf")}
        return value

    @model_validator(mode="after")
    def _one(self) -> "SweepMapping":
        if self.path is not None and self.scale is not None:
            raise ValueError("path and scale: give one of them")
        if self.scale is not None and not abs(self.scale) < float("inf"):
            raise ValueError(f"scale {self.scale}: give a number")
        return self

    @property
    def label(self) -> str:
        """What rows call it."""
        return self.name or self.path or ("identity" if self.scale is None else f"scale {self.scale:g}")


class SweepMethod(Strict):
    """How a patched run is read: "predict" (next token), "generate" (words), or the vector itself is, by "lens".

    Patched runs may be contrasted with the target prompt without a patch, as `Patchscope.generate` does.
    """

    kind: Literal["predict", "generate", "lens"]
    max_new_tokens: Annotated[int, Field(ge=1)] = 12
    stop: Texts = []
    contrast: Annotated[float, BeforeValidator(_checked_contrast)] = 0.0

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"kind": value}
        if isinstance(value, dict) and [*value] == ["generate"]:
            how = value["generate"]
            return {"kind": "generate", **(how if isinstance(how, dict) else {"max_new_tokens": how})}
        if isinstance(value, dict) and [*value] in (["predict"], ["lens"]):
            ((kind, how),) = value.items()
            return {"kind": kind, **how} if isinstance(how, dict) else value
        return value

    @model_validator(mode="after")
    def _written(self) -> "SweepMethod":
        if self.kind != "generate" and {"max_new_tokens", "stop"} & self.model_fields_set:
            raise ValueError(f"max_new_tokens and stop: nothing is written by {self.kind}; leave them out")
        if self.kind == "lens" and "contrast" in self.model_fields_set:
            raise ValueError("contrast: lens runs no target prompt that a state could be contrasted with; leave it out")
        return self

    @model_serializer(mode="wrap")
    def _without_no_contrast(self, written: Callable[[Any], Any]) -> dict[str, Any]:
        """No contrast is written down as it was before there was one: the sweeps of then go on."""
        content: dict[str, Any] = written(self)
        return content if self.contrast else {name: value for name, value in content.items() if name != "contrast"}


class SweepSpec(Strict):
    """A sweep: sources × layers × positions × targets × mappings × models × methods, with controls as further rows.

    `model` is read; `explained_by` are the models that its states are patched into, by default itself. Everything else
    is described in docs/reference/sweep-specs.md. One value stands for a list of one, a name for what has this name.
    """

    model: SweepModel
    sources: SweepSources
    explained_by: Annotated[list[SweepModel], BeforeValidator(_listed)] = []
    targets: Annotated[list[SweepTarget], BeforeValidator(_listed)] = []
    target_layers: Places = ["same"]
    mappings: Annotated[list[SweepMapping], BeforeValidator(_listed), Field(min_length=1)] = [SweepMapping()]
    operations: Annotated[list[Operations], BeforeValidator(_listed), Field(min_length=1)] = ["replace"]
    methods: Annotated[list[SweepMethod], BeforeValidator(_listed), Field(min_length=1)] = [SweepMethod(kind="predict")]
    controls: Annotated[list[Controls], BeforeValidator(_listed)] = []
    top_k: Annotated[int, Field(ge=1, le=1000)] = 5
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    rows_per_part: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    _where: str = "spec"

    def model_post_init(self, context: Any) -> None:
        """Keep the name of the file that the spec came from, which is no key of it."""
        self._where = (context or {}).get("where", "spec")

    @property
    def where(self) -> str:
        """What errors about it begin with: the name of its file, or "spec" where it came from none."""
        return self._where

    @model_validator(mode="after")
    def _complete(self) -> "SweepSpec":
        patched = [method.kind for method in self.methods if method.kind != "lens"]
        if patched and not self.targets:
            raise ValueError(f"targets: {patched[0]} needs a target prompt, such as identity or entity")
        if not patched and self.targets:
            raise ValueError(
                "targets: the method lens has no target prompt; leave them out, or add predict or generate"
            )
        # the layers of a target are a column of their own
        _require_other_labels("targets", [(one.label, one.model_dump(exclude={"layers"})) for one in self.targets])
        _require_other_labels("mappings", [(one.label, one.model_dump(exclude={"name"})) for one in self.mappings])
        return self

    @property
    def contrasts(self) -> bool:
        """Whether any method has a contrast, for which rows have a column then."""
        return any(method.contrast for method in self.methods)

    @property
    def models(self) -> list[SweepModel]:
        """The model that is read, and behind it those that explain: each once."""
        return list(dict.fromkeys([self.model, *self.explained_by]))

    @property
    def explainers(self) -> list[SweepModel]:
        """The models that states are patched into, each once."""
        return list(dict.fromkeys(self.explained_by or [self.model]))

    def document(self) -> dict[str, Any]:
        """The spec as JSON values, everything that was left out filled in."""
        return self.model_dump(mode="json")


def _require_other_labels(key: str, labelled: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """ValueError where two that differ have one label, so that their rows could not be told apart."""
    first: dict[str, int] = {}
    for n, (label, content) in enumerate(labelled):
        before = first.setdefault(label, n)
        if content != labelled[before][1]:
            raise ValueError(
                f"{key}[{n}]: rows would call it {label[:40]!r}, as they do {key}[{before}], which differs; give it a "
                "name of its own" + (" beside its text" if key == "targets" else "")
            )


def spec_digest(spec: SweepSpec) -> str:
    """The SHA-256 of a spec: equal for two that ask for the same in other words."""
    return hashlib.sha256(json.dumps(spec.document(), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_spec(spec: "SweepSpec | Mapping[str, Any] | str | os.PathLike[str]") -> SweepSpec:
    """Read a spec from a .yaml or .json file, or from a dictionary with the same keys.

    Raises LenscopeError, in one line that names the file, the key and the nearest key or value that there is, for
    anything else.
    """
    if isinstance(spec, SweepSpec):
        return spec
    if isinstance(spec, Mapping):
        name, value = "spec", dict(spec)
    elif isinstance(spec, str | os.PathLike):
        name, value = escaped(Path(spec).name), read_document(spec)
    else:
        raise LenscopeError(f"spec of type {type(spec).__name__}: give a .yaml or .json file, or a dictionary")
    if not isinstance(value, dict):
        raise LenscopeError(f"{name}: is no mapping of keys to values; it begins with model:, sources: and targets:")
    try:
        return SweepSpec.model_validate(value, context={"where": name})
    except ValidationError as error:
        raise LenscopeError(f"{name}: {_first_mistake(error, value)}") from error


def _first_mistake(error: ValidationError, value: Any) -> str:
    """What is wrong first, unknown keys before all else, since a misspelt key is also a key that is lacking."""
    mistakes = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    one = mistakes[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in one["loc"]).lstrip(".")
    start = f"{escaped(where)}: " if where else ""
    if one["type"] == "extra_forbidden":
        known = _keys_at(SweepSpec, one["loc"][:-1])
        return f"{start}unknown key{_nearest(str(one['loc'][-1]), known) or '; there are ' + ', '.join(known)}"
    if one["type"] == "missing":
        return f"{start}is missing; give {_meant(str(one['loc'][-1]))}"
    if one["type"] == "literal_error":
        known = [part.strip(" '") for part in str(one["ctx"]["expected"]).replace(" or ", ", ").split(",")]
        return f"{start}is {_shown(one['input'])}; there are {', '.join(known)}{_nearest(str(one['input']), known)}"
    if one["type"] == "value_error":
        return f"{start}{one['ctx']['error']}"
    if one["type"] in ("model_type", "model_attributes_type"):
        return f"{start}is {_shown(one['input'])}; give keys and values"
    message = str(one["msg"])
    return f"{start}is {_shown(one['input'])}; {message[:1].lower()}{message[1:]}"


def _meant(key: str) -> str:
    known = {
        "model": "the name of the model that is read, such as smollm2-135m",
        "sources": "what is read, such as {prompts: [a text, another one]}",
        "kind": "predict, lens, or generate with a number of tokens, as {generate: 12}",
    }
    return known.get(key, "it")


def _nearest(name: str, known: list[str]) -> str:
    close = get_close_matches(name.lower(), known, 1, 0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _keys_at(model: type[BaseModel], place: tuple[int | str, ...]) -> list[str]:
    """The keys that a spec has at a place."""
    for part in place:
        if isinstance(part, str) and part in model.model_fields:
            inner = _model_within(model.model_fields[part].annotation)
            model = inner or model
    return [*model.model_fields]


def _model_within(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for inner in get_args(annotation) if (m := _model_within(inner)) is not None), None)
