"""Trained verbalisers: a small map that makes a frozen model say in words what a vector means, and its files.

Knows: which vectors it takes, where the map's result is written, what ends the words, which models it belongs to.
Does not know: how the map is trained (fitting/verbaliser.py), other packages' files.

The default prompt and the map are those of SelfIE adapters (arXiv 2602.10352).
"""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from lenscope.contents import Brief
from lenscope.errors import LenscopeError
from lenscope.files.weights_folder import opened_folder, write_folder
from lenscope.mappings.vector_map import VectorMap
from lenscope.models import edits
from lenscope.models.edits import Edit, Operation
from lenscope.models.hidden_states import HiddenStates
from lenscope.models.language_model import LM
from lenscope.models.layers import check_layers
from lenscope.models.prompts import Prompt
from lenscope.models.same_model import in_words, is_same_model, sizes_of
from lenscope.patchscopes.patchscope import Patchscope
from lenscope.patchscopes.target_prompts import Target

FORMAT = 1
STEM = "verbaliser"

QUESTION, BEGINNING = 'What is the meaning of "{}"?', 'The meaning of "{}" is "'
# for models without a chat template
PLAIN = "Question: {}\nAnswer: {}"
# what ends the words: the quote that the prompt opened
QUOTE = '"'
# what stands where vectors are written, the first one that is a token of its own at both places
MARKS = ("X", "?", "_", "x", "☐", "*", "thing")

# the operations that a file names
OPERATIONS: Mapping[str, Operation] = {
    name: getattr(edits, name) for name in ("replace", "add", "add_norm_matched", "replace_norm_matched")
}


def meaning_target(lm: LM) -> Target:
    """Build the prompt that asks what a vector means: `What is the meaning of "X"?`, with the answer's beginning.

    The answer begins `The meaning of "X" is "`. Both X are placeholders, at layer 0, and what is said ends with a
    quote. It is a turn of the user and the beginning of the assistant's in the model's chat template, if it has one,
    else two lines of plain text. Raises LenscopeError for a model without a tokenizer.
    """
    options = [_with_mark(lm, mark) for mark in MARKS]
    return next((target for target, alone in options if alone), options[0][0])


def _with_mark(lm: LM, mark: str) -> tuple[Target, bool]:
    """The prompt with a mark at both places, and whether it is a token of its own there."""
    question, beginning = QUESTION.format(mark), BEGINNING.format(mark)
    if getattr(lm.tokenizer, "chat_template", None):
        prompt = lm.chat(question, beginning)
    else:
        prompt = lm.prompt(PLAIN.format(question, beginning))
    ends = [prompt.text.rindex(part) + len(part) for part in (QUESTION.partition("{}")[0] + mark,)]
    ends.append(prompt.text.rindex(BEGINNING.partition("{}")[0] + mark) + len(BEGINNING.partition("{}")[0] + mark))
    slots = [max(n for n, (a, b) in enumerate(prompt.spans) if a < end <= b) for end in ends]
    alone = all(prompt.tokens[slot].strip() == mark for slot in slots) and len(set(slots)) == len(slots)
    return Target(prompt, at=sorted(set(slots))), alone


@final
@dataclass(frozen=True, eq=False, repr=False)
class Verbaliser(Brief):
    """A trained map of vectors, and the prompt into which the result is written so that a model says what they mean.

    `fit_verbaliser` trains it and `load_verbaliser` loads it. `scope(lm)` gives the Patchscope that says the words:
    `verbaliser.scope(lm).generate(verbaliser.vectors(states), stop=verbaliser.stop)`.

    Attributes:
        map: the map, from vectors (..., D) to what is written, (..., D*).
        target: the prompt and its placeholders.
        target_layer: the layer at which vectors are written.
        op: how they are written: one of the operations of `lenscope.models.edits`, or a function of your own, which
            no file can hold.
        stop: the texts that end what is said.
        layers: the layers of the source model that vectors were read at; empty where they have none.
        center: what was taken from states to make vectors of them, (L, D) for the `layers`; None: nothing.
        source: the identity of the model that vectors come from; None where it is not known.
        model: the identity of the model that says the words.
        report: how well labels were said, of labels that were not trained on, and of controls; JSON values.
    """

    map: VectorMap
    target: Target
    target_layer: int
    model: dict[str, Any]
    op: Operation = edits.replace
    stop: tuple[str, ...] = (QUOTE,)
    layers: tuple[int, ...] = ()
    center: Tensor | None = None
    source: dict[str, Any] | None = None
    report: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for model, width, what in ((self.source, self.map.input_width, "takes"), (self.model, self.map.width, "gives")):
            if model is not None and width not in (None, model["hidden_size"]):
                raise LenscopeError(
                    f"verbaliser: its map {what} vectors of {width} numbers, and a state of {model['model']} has "
                    f"{model['hidden_size']}"
                )
        if self.center is not None and (self.center.ndim != 2 or len(self.center) != len(self.layers)):
            raise LenscopeError(
                f"verbaliser: a center of shape {tuple(self.center.shape)} for {len(self.layers)} layers; give (L, D)"
            )

    def check(self, lm: LM, source_lm: LM | None = None) -> None:
        """Raise LenscopeError unless `lm` says the words and the vectors come from `source_lm` (None: from `lm`)."""
        source = lm if source_lm is None else source_lm
        for role, known, given in (("says words", self.model, lm), ("vectors", self.source, source)):
            if known is not None and not is_same_model(known, given):
                what = "for vectors of" if role == "vectors" else "to be said by"
                raise LenscopeError(
                    f"verbaliser: trained {what} {in_words(known)}, but used with {in_words(sizes_of(given))}; train "
                    "one for this model, or load the weights that it was trained with"
                )

    def scope(self, lm: LM, source_lm: LM | None = None) -> Patchscope:
        """Give the Patchscope whose f is the map; its `generate` and `predict` take vectors as they were trained on.

        `source_lm` is the model that vectors come from, if it is not `lm`. Raises LenscopeError for other models.
        """
        self.check(lm, source_lm)
        where: Any = self.target_layer
        return Patchscope(lm, self.target, self.map, op=self.op, layers=where, source_lm=source_lm)

    def vectors(self, states: HiddenStates) -> HiddenStates:
        """Make vectors of hidden states as those that were trained on: states less the `center` of their layer.

        Only the verbaliser's own layers are kept, where it has any. Raises LenscopeError where none of them was read.
        """
        if not self.layers:
            return states
        places = [n for n, layer in enumerate(states.layers) if layer in self.layers]
        own = tuple(states.layers[n] for n in places)
        if not own:
            raise LenscopeError(
                f"states of layers {', '.join(map(str, states.layers))}: this verbaliser takes vectors of layers "
                f"{', '.join(map(str, self.layers))}; read these"
            )
        tensor = states.tensor[:, places]
        if self.center is not None:
            mine = self.center[[self.layers.index(layer) for layer in own]]
            tensor = (tensor.to(torch.promote_types(tensor.dtype, torch.float32)) - mine.to(tensor)[:, None]).to(tensor)
        last = states.last
        if last is None and states.n_layers in states.layers:
            last = states.tensor[:, states.layers.index(states.n_layers)]
        return dataclasses.replace(states, tensor=tensor, layers=own, last=last)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json and verbaliser-….safetensors into a folder, whole or not at all.

        Raises LenscopeError for an operation of your own, which a file cannot hold, and a folder that cannot be
        written to.
        """
        prompt = self.target.prompt
        if not isinstance(prompt, Prompt):
            raise LenscopeError("verbaliser: its target has no tokens yet; give Target(lm.prompt(…), at=[positions])")
        config = {
            "format": FORMAT,
            "map": self.map.settings(),
            "target": {
                "text": prompt.text,
                "ids": prompt.ids,
                "spans": prompt.spans,
                "at": self.target.at,
                "below": self.target.below,
                "edits": [
                    {"layer": e.layer, "at": e.position, "op": name_of_operation(e.op)} for e in self.target.edits
                ],
            },
            "target_layer": self.target_layer,
            "op": name_of_operation(self.op),
            "stop": self.stop,
            "layers": self.layers,
            "source": self.source,
            "model": self.model,
            "report": self.report,
        }
        tensors = {f"map.{name}": t for name, t in self.map.tensors().items()}
        tensors |= {f"edit.{n}": e.vector.detach().cpu().contiguous() for n, e in enumerate(self.target.edits)}
        if self.center is not None:
            tensors["center"] = self.center.detach().cpu().float().contiguous()
        write_folder(folder, STEM, config, tensors)


def load_verbaliser(folder: str | os.PathLike[str], lm: LM, source_lm: LM | None = None) -> Verbaliser:
    """Load what `Verbaliser.save` wrote, for the model `lm` that says the words.

    `source_lm` is the model that vectors come from, if it is not `lm`. Raises LenscopeError for what is missing,
    damaged or of another format, and for a verbaliser of another model.
    """
    with opened_folder(folder, STEM, FORMAT) as (config, tensors):
        weights: dict[str, Any] = {
            name.removeprefix("map."): t for name, t in tensors.items() if name.startswith("map.")
        }
        described = config["target"]
        fixed = [
            Edit(int(one["layer"]), [int(n) for n in one["at"]], tensors[f"edit.{n}"], OPERATIONS[one["op"]])
            for n, one in enumerate(described["edits"])
        ]
        op, layers = OPERATIONS[config["op"]], tuple(int(n) for n in config["layers"])
        model, source, report = dict(config["model"]), config["source"], dict(config["report"])
        stop, where = tuple(str(text) for text in config["stop"]), int(config["target_layer"])
        center = tensors.get("center")
        if center is not None and not torch.isfinite(center).all():
            raise LenscopeError(f"{folder}: its center holds NaN or infinity")
        trained = VectorMap(**weights, **config["map"])
        bare = Verbaliser(trained, Target(""), where, model, op, stop, layers, center, source, report)
        bare.check(lm, source_lm)
        check_layers((where,), lm.n_layers, lm.name)
        target = Target(
            _prompt_of(described, lm), [int(n) for n in described["at"]], below=str(described["below"]), edits=fixed
        )
        # whatever does not go together shows now
        target.resolve(lm), target.fixed(lm)
        return dataclasses.replace(bare, target=target)


def _prompt_of(described: Mapping[str, Any], lm: LM) -> Prompt:
    """A saved prompt in the tokens of a model, with its own text and spans."""
    known = lm.prompt([int(i) for i in described["ids"]])
    text, spans = str(described["text"]), tuple((int(a), int(b)) for a, b in described["spans"])
    if len(spans) != len(known) or any(not 0 <= a <= b <= len(text) for a, b in spans):
        raise LenscopeError("its prompt has spans that are none of its text")
    return Prompt(text, known.ids, known.tokens, spans)


def name_of_operation(op: Operation) -> str:
    """The name of an operation in files; LenscopeError for one of your own."""
    for name, known in OPERATIONS.items():
        if op is known:
            return name
    own = getattr(op, "__name__", type(op).__name__)
    raise LenscopeError(f"op {own}: a file holds only {', '.join(OPERATIONS)}; use one of these to save it")
