"""What is done with every spot of a sweep: explaining model, method, target, mapping, operation, control, layers.

Knows: how a spec's names become Patchscopes of loaded models, what makes two configurations the same.
Does not know: which spots there are, how rows are run.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lenscope.contents import Brief
from lenscope.errors import LenscopeError, naming_place
from lenscope.files.kinds import CONFIG
from lenscope.files.untrusted import read_json
from lenscope.mappings.lens_files import load_lens
from lenscope.mappings.mapping import PairMapping, load_mapping, mapping_hash
from lenscope.models.language_model import LM
from lenscope.models.layers import layers_in_words
from lenscope.patchscopes import methods
from lenscope.patchscopes.patchscope import Patchscope
from lenscope.patchscopes.target_prompts import Target
from lenscope.sweeps.spec import OPERATIONS, SweepMapping, SweepSpec, SweepTarget
from lenscope.sweeps.spots import named_layers
from lenscope.sweeps.swept_models import identity_of, model_label

# the layer pairs (source layer, target layer) of a configuration for one set of source layers, (n, 2), ascending
LayerPairs = np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class Configuration(Brief):
    """One way to read a spot. `explainer`, `method`, `target` (-1: none) and `mapping` are numbers of the spec's lists.

    `control` is "" or one of `spec.CONTROLS`; `digest` is of all that makes its rows what they are beside spots and
    layers. `pairs` has the layer pairs of every set of source layers, `given` how many were asked for of each source
    layer, also twice, in all `times` that the configuration itself was asked for.
    """

    explainer: int
    method: int
    target: int
    mapping: int
    operation: str
    control: str
    digest: bytes
    pairs: tuple[LayerPairs, ...]
    given: int
    times: int = 1


class Bench:
    """The models of a sweep with what a spec makes of them: targets, mappings, Patchscopes.

    `lms` are the models of `spec.models`, in order.
    """

    def __init__(self, spec: SweepSpec, lms: Sequence[LM]) -> None:
        self.spec = spec
        self.source = lms[0]
        by_model = dict(zip(spec.models, lms, strict=True))
        self.explainers = [by_model[model] for model in spec.explainers]
        twice = len({lm.name for lm in lms}) < len(lms)
        # what rows call the models: how they are loaded, too, where the name is not enough
        self.names = [model_label(one) if twice else lm.name for one, lm in by_model.items()]
        self.hashes = {id(lm): identity_of(lm) for lm in lms}
        self.targets = [[_target(lm, one, n) for n, one in enumerate(spec.targets)] for lm in self.explainers]
        self.mappings = [[self._mapping(lm, one, n) for n, one in enumerate(spec.mappings)] for lm in self.explainers]
        self._scopes: dict[tuple[int, int, int, str], Patchscope] = {}

    def scope(self, one: Configuration) -> Patchscope:
        """The Patchscope of a configuration that has a target."""
        key = one.explainer, one.target, one.mapping, one.operation
        if key not in self._scopes:
            target, _ = self.targets[one.explainer][one.target]
            f, _ = self.mappings[one.explainer][one.mapping]
            lm = self.explainers[one.explainer]
            self._scopes[key] = Patchscope(lm, target, f, op=OPERATIONS[one.operation], source_lm=self.source)
        return self._scopes[key]

    def contrast(self, one: Configuration) -> float:
        """The α of a configuration's contrast; 0 for runs without a patch, which it leaves as they are."""
        return 0.0 if one.control == "unpatched" else self.spec.methods[one.method].contrast

    def configurations(self, layer_sets: Sequence[tuple[int, ...]]) -> list[Configuration]:
        """The configurations that a spec asks for, each once; LenscopeError for layers that models or mappings lack."""
        spec = self.spec
        built: dict[bytes, Configuration] = {}
        for e in range(len(self.explainers)):
            for m, method in enumerate(spec.methods):
                for t in range(len(spec.targets)) if method.kind != "lens" else [-1]:
                    if t >= 0:
                        self._require_room(e, t, m)
                    for f in range(len(spec.mappings)):
                        for op in spec.operations if t >= 0 else ["replace"]:
                            pairs = self._pairs(e, t, f, layer_sets)
                            for control in ("", *spec.controls):
                                if control == "unpatched" and t < 0:
                                    continue
                                one = self._configuration(e, m, t, f, op, control, *pairs)
                                before = built.get(one.digest)
                                built[one.digest] = one if before is None else _united(before, one)
        return list(built.values())

    def layers_read(self, layer_sets: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """The layers that sources are read at: those asked for, the last, and all that a target's placeholders need."""
        wanted = {self.source.n_layers, *(layer for one in layer_sets for layer in one)}
        if any(target.below == "source" for target in self.spec.targets):
            wanted |= {*range(self.source.n_layers + 1)}
        return tuple(sorted(wanted))

    def _configuration(
        self, e: int, m: int, t: int, f: int, op: str, control: str, pairs: tuple[LayerPairs, ...], given: int
    ) -> Configuration:
        spec, method = self.spec, self.spec.methods[m]
        content: dict[str, Any] = {
            "model": self.hashes[id(self.source)],
            "explained_by": self.hashes[id(self.explainers[e])],
            "method": method.kind,
            "control": control,
        }
        if method.kind == "generate":
            content |= {"max_new_tokens": method.max_new_tokens, "stop": method.stop}
        else:
            content |= {"top_k": spec.top_k}
        if t >= 0:
            target, _ = self.targets[e][t]
            prompt, places = target.resolve(self.explainers[e])
            content |= {"target": list(prompt.ids), "at": list(places), "below": target.below}
        if control != "unpatched":
            content |= {"mapping": self.mappings[e][f][1], "operation": op}
        if control != "unpatched" and method.contrast:
            # only then: what is not contrasted has the ids that it had before there was a contrast
            content |= {"contrast": method.contrast}
        if control == "random":
            content |= {"seed": spec.seed}
        raw = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        return Configuration(e, m, t, f, op, control, hashlib.blake2b(raw, digest_size=16).digest(), pairs, given)

    def _pairs(
        self, e: int, t: int, f: int, layer_sets: Sequence[tuple[int, ...]]
    ) -> tuple[tuple[LayerPairs, ...], int]:
        """The layer pairs by set of source layers, and how many targets each source layer was asked to go to."""
        lm = self.explainers[e]
        key = f"targets[{t}].layers"
        given: Sequence[Any] = [lm.n_layers]
        if t >= 0:
            own = self.spec.targets[t].layers
            of_method = self.targets[e][t][1]
            key = "target_layers" if own is None else key
            asked = "target_layers" in self.spec.model_fields_set
            given = own or (self.spec.target_layers if asked or of_method is None else of_method)
        with naming_place(key):
            fixed = named_layers([one for one in given if one != "same"], lm.n_layers, lm.name)
        tables = []
        for layers in layer_sets:
            if "same" in given and layers[-1] > lm.n_layers:
                raise LenscopeError(
                    f"{key}: same takes layer {layers[-1]} to itself, and {lm.name} has layers 0–{lm.n_layers}; name "
                    "target layers, or read lower ones"
                )
            pairs = {(a, b) for a in layers for b in fixed} | ({(a, a) for a in layers} if "same" in given else set())
            tables.append(np.array(sorted(pairs), dtype=np.int32).reshape(-1, 2))
        self._require_fitted(e, f, tables)
        return tuple(tables), len(fixed) + sum(one == "same" for one in given)

    def require_answers(self, answers: Sequence[str]) -> None:
        """LenscopeError for an answer that is no token of an explaining model, or too long behind a target prompt."""
        if not answers or all(method.kind == "generate" for method in self.spec.methods):
            return
        for lm, targets in zip(self.explainers, self.targets, strict=True):
            for prompt in [target.resolve(lm)[0] for target, _ in targets] or [lm.prompt(answers[0])]:
                try:
                    ids = lm.encoder.answer_ids(prompt, answers)
                except LenscopeError as error:
                    raise LenscopeError(f"sources: {error}") from error
                longest = max(range(len(ids)), key=lambda n: len(ids[n]))
                if targets and lm.context is not None and len(prompt) + len(ids[longest]) - 1 > lm.context:
                    raise LenscopeError(
                        f"sources: answer {answers[longest][:60]!r}: its {len(ids[longest])} tokens behind a target "
                        f"prompt of {len(prompt)} are more than {lm.name} reads ({lm.context})"
                    )

    def _require_room(self, e: int, t: int, m: int) -> None:
        lm, method = self.explainers[e], self.spec.methods[m]
        prompt, _ = self.targets[e][t][0].resolve(lm)
        if method.kind == "generate":
            try:
                lm.encoder.require_room(len(prompt), method.max_new_tokens)
            except LenscopeError as error:
                raise LenscopeError(f"methods[{m}]: targets[{t}]: {error}") from error

    def _require_fitted(self, e: int, number: int, tables: Sequence[LayerPairs]) -> None:
        """LenscopeError where a mapping has no weights for a pair of layers."""
        f, _ = self.mappings[e][number]
        if not isinstance(f, PairMapping):
            return
        for to in sorted({int(b) for table in tables for b in table[:, 1]}):
            have = f.layers(to)
            lacking = sorted({int(a) for table in tables for a in table[table[:, 1] == to, 0]} - {*have})
            if lacking:
                spread = layers_in_words(have) if have else "none"
                raise LenscopeError(
                    f"mappings[{number}]: {self.spec.mappings[number].label} was not fitted from layer {lacking[0]} to "
                    f"layer {to}, which layers and target_layers ask for (to layer {to}: {spread})"
                )

    def _mapping(self, lm: LM, one: SweepMapping, number: int) -> tuple[Callable[..., Any] | None, str]:
        """A mapping from the source's states to those of a model, and what makes it the same as another."""
        if one.path is None:
            if lm.hidden_size != self.source.hidden_size:
                raise LenscopeError(
                    f"mappings[{number}]: {one.label} leaves states of {self.source.name} {self.source.hidden_size} "
                    f"wide, and those of {lm.name} are {lm.hidden_size} wide; give a mapping between the two"
                )
            factor = one.scale
            return (None, mapping_hash(None)) if factor is None else (lambda h: h * factor, f"scale {factor!r}")
        try:
            folder = Path(one.path).expanduser() / CONFIG
            saved = folder.is_file() and "kind" in read_json(folder)
            if not saved and lm is not self.source:
                raise LenscopeError(f"{one.path}: no folder with a mapping between two models that lenscope saved")
            f = load_mapping(folder.parent) if saved else load_lens(one.path, lm)
            f.check(self.source, lm)
        except LenscopeError as error:
            raise LenscopeError(f"mappings[{number}]: {str(error).removeprefix('mapping: ')}") from error
        return f, mapping_hash(f)


def _united(first: Configuration, again: Configuration) -> Configuration:
    """A configuration that was asked for twice, at the layers of both."""
    pairs = tuple(np.unique(np.concatenate(both), axis=0) for both in zip(first.pairs, again.pairs, strict=True))
    return replace(first, pairs=pairs, given=first.given + again.given, times=first.times + again.times)


def _target(lm: LM, one: SweepTarget, number: int) -> tuple[Target, list[int] | None]:
    """A target prompt, and the layers that its method has where the spec names none; None: as the spec says."""
    try:
        layers: list[int] | None = None
        if one.text is not None:
            # a list of one place is that place, whose substring `every` may repeat
            at = one.at[0] if len(one.at) == 1 else one.at
            target = Target(one.text, at=at, every=one.every, below=one.below)
        elif one.name == "selfie":
            target, layers = methods.selfie(lm).targets[0], [1]
        elif one.name == "tokens2words":
            target, layers = methods.tokens2words(lm).targets[0], [0]
        elif one.name == "future_lens":
            target = methods.future_lens(lm).targets[0]
        else:
            target = methods.named_target(str(one.name))
        target = replace(target, below=one.below)
        target.resolve(lm)
    except LenscopeError as error:
        raise LenscopeError(f"targets[{number}]: {error}") from error
    return target, layers
