"""Mappings f from hidden states of a source model to hidden states of a target model.

Knows: how a mapping is called, which models and layers it was made for, its files and its place on the hub.
Does not know: how they are fitted, how models are run, other packages' files (foreign_formats.py).

A mapping is any callable: f(h), f(h, layer) or f(h, layer, target_layer), with h (..., D) of the source's layer and a
result (..., D*) as if it were of the target's layer. The classes here map each (layer, target layer) by weights of its
own: affine between models as in Ghandeharioun et al. 2024, §4.4, or from each layer of a model to its last, which is
the tuned lens (Belrose et al. 2023, Eq. 8).
"""

import hashlib
import inspect
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lenscope.errors import LenscopeError
from lenscope.files import hub
from lenscope.files.weights_folder import (
    WeightsFile,
    join_weights_files,
    opened_folder,
    write_folder,
    write_weights_file,
)
from lenscope.files.writing import write_text
from lenscope.mappings.model_card import model_card
from lenscope.mappings.vector_map import VectorMap
from lenscope.models.same_model import in_words, is_same_model, model_identity, sizes_of

if TYPE_CHECKING:
    from lenscope.models.language_model import LM

FORMAT = 1
STEM = "mapping"

# f(h), f(h, layer) or f(h, layer, target_layer): states (..., D) of a layer → states (..., D*) of a target layer
StateMap = Callable[..., Tensor]
# a (layer, target layer); None stands for all that have no weights of their own
Pair = tuple[int, int] | None


def argument_count(f: Callable[..., Any]) -> int:
    """Count the arguments (h, layer, target_layer) that f is called with: its parameters without defaults; 3 for *args.

    Raises LenscopeError unless that is 1, 2 or 3. What has no signature (some built-in functions) is called as f(h).
    """
    try:
        parameters = inspect.signature(f.forward if isinstance(f, nn.Module) else f).parameters.values()
    except (TypeError, ValueError):
        if callable(f):
            return 1
        wanted = "f(h), f(h, layer), f(h, layer, target_layer), or what load_lens reads"
        raise LenscopeError(f"f {f!r}: it is no function; give {wanted}") from None
    if isinstance(f, VectorMap):
        return 1 if f.layers is None else 2
    needed = [p for p in parameters if p.default is p.empty]
    count = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in needed)
    named = [p.name for p in needed if p.kind is p.KEYWORD_ONLY]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters) and count <= 3 and not named:
        return 3
    if not 1 <= count <= 3 or named:
        name = getattr(f, "__name__", type(f).__name__)
        mistake = f"needs {named[0]}= by name" if named else f"takes {count} arguments"
        raise LenscopeError(f"f {name}: {mistake}; give f(h), f(h, layer) or f(h, layer, target_layer)")
    return count


def call_mapping(f: Callable[..., Any], h: Tensor, layer: int, target_layer: int) -> Tensor:
    """f of states h (..., D) of `layer`, for `target_layer`, called with as many arguments as it takes: (..., D*)."""
    return f(*(h, layer, target_layer)[: argument_count(f)])


def arguments_used(f: Callable[..., Any]) -> int:
    """How many of (h, layer, target_layer) matter to f: as `argument_count`; 1 for one map for all pairs."""
    return 1 if isinstance(f, PairMapping) and set(f.weights) == {None} else argument_count(f)


def identity(h: Tensor) -> Tensor:
    """f(h) = h."""
    return h


# what stands for the contents of functions, which have none that can be read
_functions: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def mapping_hash(f: Callable[..., Any] | None) -> str:
    """Give the identity of a mapping: "sha256:" and the SHA-256 of its kind, its pairs and every byte of its weights.

    Two mappings with the same hash return the same for the same input; names of models and reports do not count. The
    logit lens, f None or `identity`, has one hash. What a function computes cannot be read: it has a hash of its own
    that no other object has, in this process or another, so what is saved under it is never looked up for another f.
    """
    total = hashlib.sha256()
    if f is None or f is identity:
        total.update(b"identity")
    elif isinstance(f, PairMapping | VectorMap):
        head, tensors = f.contents()
        total.update(json.dumps(head).encode())
        for name, weight in sorted(tensors.items()):
            total.update(f"{name} {tuple(weight.shape)} {weight.dtype} ".encode())
            total.update(weight.reshape(-1).view(torch.uint8).numpy().data)
    else:
        try:
            own = _functions.setdefault(f, secrets.token_hex(16))
        except TypeError:  # neither hashed nor referred to weakly: another one every time
            own = secrets.token_hex(16)
        total.update(f"function {own}".encode())
    return f"sha256:{total.hexdigest()}"


@dataclass(frozen=True, eq=False)
class PairMapping:
    """A mapping with weights per (layer, target layer), called f(h, layer, target_layer): (..., D) → (..., D*).

    `weights` maps pairs, or None for all other pairs, to the tensors that the class names, kept in float32; the last
    one is the bias b (D*), zero where left out. `source` and `target` are what `model_identity` says of the two models,
    and `report`, JSON values, is how good the mapping was measured to be; its "lens", a text, names lenses made of it.
    Computed in float32, in float64 where h is. A mapping from a model to itself maps a layer to that very layer by
    the identity, unless it has weights for this pair or for all others.
    Raises LenscopeError for weights of a wrong shape or not finite, and for layers that the models do not have.
    """

    weights: Mapping[Pair, tuple[Tensor, ...]]
    source: dict[str, Any]
    target: dict[str, Any]
    report: dict[str, Any] = field(default_factory=dict)

    kind: ClassVar[str]
    names: ClassVar[tuple[str, ...]]
    square: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for role, model in (("source", self.source), ("target", self.target)):
            sizes = [model.get("hidden_size"), model.get("n_layers")]
            if not isinstance(model.get("model"), str) or any(type(s) is not int or s < 1 for s in sizes):
                raise LenscopeError(f"mapping: its {role} {model!r} must name model, hidden_size and n_layers")
        try:
            json.dumps([self.source, self.target, self.report], allow_nan=False)
        except (TypeError, ValueError) as error:
            raise LenscopeError(f"mapping: its description holds more than JSON values ({error})") from error
        if not self.weights:
            raise LenscopeError("mapping: has no weights; give those of at least one pair of layers")
        object.__setattr__(self, "weights", {pair: self._checked(pair, w) for pair, w in self.weights.items()})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({_model_name(self.source)} → {_model_name(self.target)}: {self._pairs()})"

    def __call__(self, h: Tensor, layer: int, target_layer: int) -> Tensor:
        """States h (..., D) of `layer` as states (..., D*) of `target_layer`, in float32 or float64."""
        weights = self.weights.get((layer, target_layer)) or self.weights.get(None)
        if weights is None and layer not in self.layers(target_layer):
            raise LenscopeError(
                f"pair ({layer}, {target_layer}): this mapping was fitted for the pairs {self._pairs()}; fit it with "
                f"layers=[{layer}], target_layers=[{target_layer}]"
            )
        if h.shape[-1] != self.source["hidden_size"]:
            raise LenscopeError(
                f"states of size {h.shape[-1]}: this mapping was fitted for {_model_name(self.source)}, "
                f"{self.source['hidden_size']} wide; give it states of that model"
            )
        wide = h.double() if h.dtype == torch.float64 else h.float()
        return wide if weights is None else self._map(wide, *(w.to(wide) for w in weights))

    def layers(self, target_layer: int) -> tuple[int, ...]:
        """The layers that it maps to `target_layer`."""
        if None in self.weights:
            return tuple(range(self.source["n_layers"] + 1))
        own = {target_layer} if self.source == self.target else set()
        return tuple(sorted(own | {pair[0] for pair in self.weights if pair is not None and pair[1] == target_layer}))

    def check(self, source_lm: "LM | None", target_lm: "LM") -> None:
        """Raise LenscopeError unless fitted for these two models; `source_lm` None is a source that is not known.

        The same weights in another dtype are the same model: those of the finer dtype, rounded, equal the coarser's.
        """
        sides = [(self.source, source_lm), (self.target, target_lm)]
        if not all(lm is None or is_same_model(fitted, lm) for fitted, lm in sides):
            given = [None if lm is None else sizes_of(lm) for _, lm in sides]
            raise LenscopeError(
                f"mapping: fitted from {in_words(self.source)} to {in_words(self.target)}, but used from "
                f"{in_words(given[0])} to {in_words(given[1])}; fit one for this pair, load the weights it was "
                "fitted with, or move it to a model of the same size with transferred(lm) (--transferred)"
            )

    def transferred(self, lm: "LM") -> Self:
        """A copy for another model of the same size, such as a fine-tuned one; `report` keeps where it comes from.

        How well a lens reads a model it was not fitted for has to be measured (Belrose et al. 2023, Fig. 13). Raises
        LenscopeError where hidden size or number of layers differ, and for a mapping between two models.
        """
        if self.source != self.target:
            raise LenscopeError(
                f"mapping: from {_model_name(self.source)} to {_model_name(self.target)}; only one from a model to "
                "itself can be transferred"
            )
        here = model_identity(lm)
        if any(here[size] != self.source[size] for size in ("hidden_size", "n_layers")):
            raise LenscopeError(
                f"mapping: fitted for {in_words(self.source)}; {in_words(here)} is of another size, so fit one for it"
            )
        origins = [*self.report.get("transferred_from", []), self.source]
        return replace(self, source=here, target=here, report={**self.report, "transferred_from": origins})

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json and mapping-….safetensors into a folder, which is made where it does not exist.

        Whenever writing ends, the folder holds the old mapping or the new one, whole.
        """
        write_folder(folder, STEM, self._config(list(self.weights)), self._tensors())

    def save_part(self, folder: str | os.PathLike[str], pairs: Sequence[Pair]) -> WeightsFile:
        """Write the weights as a part of those of a mapping of `pairs`, which has this one's models and report.

        `join_mapping` makes that mapping of all its parts.
        """
        return write_weights_file(folder, STEM, self._config(pairs), self._tensors())

    def join_mapping(self, folder: str | os.PathLike[str], pairs: Sequence[Pair], parts: Sequence[WeightsFile]) -> None:
        """Make a mapping of `pairs` of the parts that were saved in a folder, this mapping's among them."""
        join_weights_files(folder, STEM, self._config(pairs), parts)

    def _config(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "kind": self.kind,
            "pairs": list(pairs),
            "source": self.source,
            "target": self.target,
            "report": self.report,
        }

    def push_to_hub(self, repo_id: str) -> str:
        """Save to a model repository on the Hugging Face hub, in one commit, with a card; returns its address.

        The card, README.md, is made of the report. `load_lens(repo_id, lm)` reads the mapping again. Raises
        LenscopeError where the hub cannot be reached or says no.
        """

        def save(folder: str) -> None:
            self.save(folder)
            write_text(Path(folder) / "README.md", model_card(self._config(list(self.weights)), repo_id))

        return hub.push_folder(repo_id, save, f"lenscope: {self!r}", f"{STEM}-*.safetensors")

    def push(self, repo_id: str) -> str:
        """Do what `push_to_hub` does; this was its name first."""
        return self.push_to_hub(repo_id)

    def contents(self) -> tuple[list[Any], dict[str, Tensor]]:
        """What tells it apart from other mappings, for `mapping_hash`: JSON values, and its tensors by name."""
        sizes = [[model["hidden_size"], model["n_layers"]] for model in (self.source, self.target)]
        return [self.kind, sizes, self.source == self.target], self._tensors()

    def _tensors(self) -> dict[str, Tensor]:
        tensors, seen = {}, set()
        for pair, weights in self.weights.items():
            for name, w in zip(self.names, weights, strict=True):
                t = w.detach().cpu()
                memory = t.untyped_storage()
                # cloned, because safetensors refuses tensors that share memory; others may be larger than memory
                if not t.is_contiguous() or memory.nbytes() != t.nbytes or memory.data_ptr() in seen:
                    t = t.clone(memory_format=torch.contiguous_format)
                seen.add(t.untyped_storage().data_ptr())
                tensors[f"{_pair_key(pair)}.{name}"] = t
        return tensors

    def _checked(self, pair: Pair, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        sizes = (self.source["hidden_size"], self.target["hidden_size"])
        if pair is not None:
            for n, model in zip(pair, (self.source, self.target), strict=True):
                if type(n) is not int or not 0 <= n <= model["n_layers"]:
                    raise LenscopeError(f"pair {pair}: {model['model']} has layers 0–{model['n_layers']}")
        if len(given) == len(self.names) - 1:
            given = (*given, torch.zeros(sizes[1]))
        # in rows, as files hold them: products round alike before and after a file
        tensors = tuple(torch.as_tensor(w, dtype=torch.float32).detach().contiguous() for w in given)
        if self.square and sizes[0] != sizes[1]:
            raise LenscopeError(
                f"sizes {sizes[0]} and {sizes[1]}: a mapping of kind {self.kind} needs equal ones; make it affine"
            )
        wanted = self._shapes(*sizes, tensors)
        shapes = [tuple(w.shape) for w in tensors]
        if shapes != wanted:
            raise LenscopeError(
                f"pair {pair}: weights of shapes {shapes}; a mapping of kind {self.kind} from size {sizes[0]} to "
                f"{sizes[1]} has {', '.join(self.names)} of {wanted}"
            )
        if not all(torch.isfinite(w).all() for w in tensors):
            raise LenscopeError(f"pair {pair}: the weights hold NaN or infinity; fit the mapping anew")
        return tensors

    def _pairs(self) -> str:
        named = ["all" if p is None else f"({p[0]}, {p[1]})" for p in self.weights]
        return ", ".join(named if len(named) <= 8 else [*named[:6], "…", named[-1]])

    @staticmethod
    def _shapes(d: int, d_target: int, tensors: tuple[Tensor, ...]) -> list[tuple[int, ...]]:
        raise NotImplementedError

    @staticmethod
    def _map(h: Tensor, *weights: Tensor) -> Tensor:
        raise NotImplementedError


class Affine(PairMapping):
    """An affine map between hidden states: f(h) = A h + b, with weights (A (D*, D), b (D*)) for each pair of layers.

    A tuned lens is one, from every layer to the last. Call it as f(h, layer, target_layer).
    """

    kind = "affine"
    names = ("A", "b")

    @staticmethod
    def _shapes(d: int, d_target: int, tensors: tuple[Tensor, ...]) -> list[tuple[int, ...]]:
        return [(d_target, d), (d_target,)]

    @staticmethod
    def _map(h: Tensor, *weights: Tensor) -> Tensor:
        a, b = weights
        return h @ a.T + b


class Scale(PairMapping):
    """A map that scales and shifts a state: f(h) = α h + b, with weights (α (), b (D)) for each pair of layers."""

    kind = "scale"
    names = ("alpha", "b")
    square = True

    @staticmethod
    def _shapes(d: int, d_target: int, tensors: tuple[Tensor, ...]) -> list[tuple[int, ...]]:
        return [(), (d,)]

    @staticmethod
    def _map(h: Tensor, *weights: Tensor) -> Tensor:
        alpha, b = weights
        return alpha * h + b


class LowRank(PairMapping):
    """A map that adds a low-rank part to a state: f(h) = h + U Vᵀ h + b, with weights (U (D, r), V (D, r), b (D))."""

    kind = "low_rank"
    names = ("U", "V", "b")
    square = True

    @staticmethod
    def _shapes(d: int, d_target: int, tensors: tuple[Tensor, ...]) -> list[tuple[int, ...]]:
        rank = tensors[0].shape[-1] if tensors and tensors[0].ndim == 2 else 1
        return [(d, rank), (d_target, rank), (d,)]

    @staticmethod
    def _map(h: Tensor, *weights: Tensor) -> Tensor:
        u, v, b = weights
        return h + h @ v @ u.T + b


KINDS: dict[str, type[PairMapping]] = {c.kind: c for c in (Affine, Scale, LowRank)}


def load_mapping(folder: str | os.PathLike[str]) -> PairMapping:
    """Load what `save` of a mapping wrote. Raises LenscopeError for what is missing, damaged or of another format."""
    with opened_folder(folder, STEM, FORMAT) as (config, tensors):
        kind = KINDS[config["kind"]]
        pairs: list[Pair] = [None if p is None else tuple(p) for p in config["pairs"]]
        weights = {pair: tuple(tensors.pop(f"{_pair_key(pair)}.{name}") for name in kind.names) for pair in pairs}
        if tensors or any(w.dtype != torch.float32 for tensors_of_pair in weights.values() for w in tensors_of_pair):
            raise LenscopeError(f"{folder}: the weights have tensors that the config does not name, or not in float32")
        if not isinstance(config["report"], dict):
            raise LenscopeError(f"{folder}: the report in the config is {config['report']!r}; it must be an object")
        return kind(weights, config["source"], config["target"], config["report"])


def _pair_key(pair: Pair) -> str:
    return "all" if pair is None else f"{pair[0]}.{pair[1]}"


def _model_name(model: dict[str, Any]) -> str:
    return str(model["model"])
