"""A question about hidden states, answered in words from the states, and beside that without them.

Knows: how a question becomes a target prompt for a model that nothing was trained for this in, which controls stand
beside each answer. Does not know: how patches run, how a verbaliser is trained, what an answer is worth.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, final

import numpy as np
import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lenscope.contents import Brief
from lenscope.display.tables import TableColumn, dim, fit_to_width, plain_table
from lenscope.errors import LenscopeError
from lenscope.measures.contrasted_readout import contrast_weight
from lenscope.models.hidden_states import HiddenStates
from lenscope.models.inputs import count
from lenscope.models.language_model import LM, PromptLike
from lenscope.models.layers import check_layers
from lenscope.models.prompts import Positions, Prompt
from lenscope.models.provenance import provenance
from lenscope.patchscopes.controls import random_like
from lenscope.patchscopes.patchscope import Patchscope
from lenscope.patchscopes.target_prompts import Target
from lenscope.patchscopes.verbaliser import Verbaliser
from lenscope.patchscopes.with_controls import continue_texts
from lenscope.visible_text import printable_token

STATE, OTHER, RANDOM, NO_STATE, TEXT = WAYS = "state", "other position", "random vector", "no state", "text alone"
NOTHING_TRAINED = (
    "nothing was trained for this: the model never learned to read states, and its answers often come from the prompt; "
    "what the controls say too says nothing of the state"
)
ASKED_OTHERWISE = (
    "the map was trained behind its own question, and may say less behind another one; what the controls say too says "
    "nothing of the state"
)
# stand for the places of the states, and for the question, while a prompt is put together
SLOTS = "LENSCOPE-STATES"
# the message of a chat, and what a model without a chat template continues
MESSAGE = 'This is about the text "{text}". {question} Answer in a few words.'
CONTINUED = 'Text: "{text}"\nQuestion: {question}\nAnswer:'


@dataclass(frozen=True)
class StateReader:
    """A way to ask about states. `UNTRAINED` patches them into a question; trained ones may be given in its place.

    Attributes:
        scope_of: called with the model, the question, the layer of the states and how many there are; gives the
            Patchscope, with its target layers, that answers.
        trained: what was trained for this, in words; "": nothing.
        layers: the layers whose states are asked about where none are named; (): a quarter, half and three quarters up.
        vectors: what is patched for states that were read, such as the states less a mean; None: the states.
        note: what a reader has to know of such answers; "" where there is nothing.
    """

    scope_of: Callable[[LM, str, int, int], Patchscope]
    trained: str = ""
    layers: tuple[int, ...] = ()
    vectors: Callable[[HiddenStates], HiddenStates] | None = None
    note: str = ""


@dataclass(frozen=True)
class StateAnswer:
    """An answer: in which of `WAYS` it was given, of which layer (-1: of none), and its text."""

    way: str
    layer: int
    text: str


@final
@dataclass(frozen=True, eq=False, repr=False)
class StateAnswers(Brief):
    """What was answered to a question about states, beside its controls. `ask_about_states` makes it.

    Attributes:
        question: the question.
        prompt: the prompt that the states are of.
        tokens: the tokens whose states these are.
        positions: their positions.
        other: the position whose states stand in for them as a control; -1: the prompt has none.
        answers: of each layer those of the state, of another position and of a random vector; then of no state, and of
            the text alone.
        trained: what was trained to read states; "": nothing.
        note: what a reader has to know of such answers; "" where there is nothing.
        provenance: the model, the contrast, the versions.
    """

    question: str
    prompt: str
    tokens: tuple[str, ...]
    positions: tuple[int, ...]
    other: int
    answers: tuple[StateAnswer, ...]
    trained: str
    note: str
    provenance: dict[str, Any] = field(default_factory=dict)

    def of(self, way: str) -> tuple[str, ...]:
        """The answers that were given in one of `WAYS`, by layer; LenscopeError if there is none of that name."""
        if way not in WAYS:
            raise LenscopeError(f"way {way!r}: there are {', '.join(WAYS)}")
        return tuple(answer.text for answer in self.answers if answer.way == way)

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values; the layer of an answer that is of no layer is null."""
        answers = [{**asdict(a), "layer": a.layer if a.layer >= 0 else None} for a in self.answers]
        values = {name: getattr(self, name) for name in ("question", "prompt", "trained", "note", "provenance")}
        other = self.other if self.other >= 0 else None
        return {
            "kind": "answers", **values, "tokens": list(self.tokens), "positions": list(self.positions),
            "other_position": other, "answers": answers,
        }  # fmt: skip

    def table(self, *, width: int | None = None) -> Table:
        """Show the answers in a terminal: what the states give, and beneath each layer what its controls give."""
        return fit_to_width(self._drawn, width)

    def _drawn(self, width: int | None) -> Table:
        rows: list[list[str | Text]] = []
        for answer in self.answers:
            own = answer.way == STATE
            layer = str(answer.layer) if answer.layer >= 0 else "–"
            text = printable_token(answer.text.strip()).lstrip("·") or "(nothing)"
            rows.append([Text(cell, "bold") if own else dim(cell) for cell in (layer, answer.way, text)])
        room = max(len("answer"), (width or 10**4) - 6 - max(map(len, WAYS)) - 2)
        columns = [TableColumn("layer", "right"), TableColumn("of"), TableColumn("answer", most=room, folds="all")]
        caption = "what the state adds is what its answer says and none of the others"
        return plain_table(columns, rows, caption)


def untrained_scope(lm: LM, question: str, layer: int, states: int) -> Patchscope:
    """Make the Patchscope that asks a question about states in a model that nothing was trained for this in.

    The states stand where a text would stand that the question is about, one place each, at their own layer: in the
    chat template of a model that has one, else in a plain prompt that the model continues.
    """
    prompt = _question_prompt(lm, question, SLOTS)
    if prompt.text.count(SLOTS) != 1:
        raise LenscopeError(
            f"{lm.name}: its chat template changes or repeats the user's message, so the states have no place in it"
        )
    opening, closing = prompt.text.split(SLOTS)
    # the special tokens that a prompt begins with, which a chat template has as text of its own
    start = prompt.ids[: next((n for n, (a, b) in enumerate(prompt.spans) if b > a), 0)]
    slot = lm.encoder.ids(" ?")[-1]
    before = [*start, *lm.encoder.ids(opening)]
    ids = [*before, *[slot] * states, *lm.encoder.ids_behind(closing)]
    return Patchscope(lm, Target(ids, at=list(range(len(before), len(before) + states))), layers=layer)


UNTRAINED = StateReader(untrained_scope, note=NOTHING_TRAINED)


def verbaliser_reader(verbaliser: Verbaliser) -> StateReader:
    """Make the way to ask about states through a trained verbaliser: its map writes them into the question.

    The question is that of `UNTRAINED`; the map, its layer and its operation are the verbaliser's, and states are taken
    at its layers, less its center. A map that has weights for each of several layers needs one state at a time.
    """

    def scope_of(lm: LM, question: str, layer: int, states: int) -> Patchscope:
        verbaliser.check(lm)
        if states > 1 and verbaliser.map.layers is not None:
            raise LenscopeError(
                f"{states} positions: this verbaliser has weights for each layer, and takes one state; give one"
            )
        (target,) = untrained_scope(lm, question, layer, states).targets
        return Patchscope(lm, target, verbaliser.map, op=verbaliser.op, layers=verbaliser.target_layer)

    return StateReader(
        scope_of, "a verbaliser's map of states to embeddings", verbaliser.layers, verbaliser.vectors, ASKED_OTHERWISE
    )


@torch.no_grad()
def ask_about_states(
    lm: LM,
    prompt: PromptLike,
    at: Positions,
    question: str,
    layers: int | slice | Sequence[int] | None = None,
    *,
    reader: StateReader = UNTRAINED,
    max_new_tokens: int = 20,
    stop: str | Sequence[str] = (),
    contrast: float = 0.0,
    seed: int = 0,
) -> StateAnswers:
    """Ask a question about the states of a prompt at some positions, all of them together, layer by layer.

    Beside each answer stand its controls: states of another position of the prompt, which `seed` draws, and random
    vectors of the states' norms; and once the question without any state, and the question about the text of the
    prompt, which the model answers as it is, without what was trained to read states. What the states add is what only
    their answer says. Answers are greedy.

    Args:
        lm: the model that the states are of, and that answers.
        prompt: the prompt.
        at: the positions whose states are asked about: an index, a substring or a list of them.
        question: the question.
        layers: the layers of the states; None: the reader's own, or at 25, 50 and 75 % of the depth.
        reader: how the states are asked about.
        max_new_tokens: tokens of an answer at most.
        stop: strings that end an answer.
        contrast: α as of `Patchscope.generate`, for what is patched; the other controls are plain.
        seed: draws the other position, and the random vectors.

    Raises LenscopeError for an empty question, and as `LM.read` and `Patchscope.generate` do.
    """
    if not question.strip():
        raise LenscopeError("the question is empty: give one, such as 'What is this about?'")
    contrast, max_new_tokens = contrast_weight(contrast), count(max_new_tokens, "max_new_tokens")
    seed = count(seed, "seed", 0)
    source = lm.prompt(prompt)
    places = source.positions(at)
    depths = sorted({max(1, round(lm.n_layers * share)) for share in (0.25, 0.5, 0.75)})
    usual = reader.layers or depths
    numbers = check_layers(usual if layers is None else layers, lm.n_layers, lm.name)
    other = _other_position(source, places, seed)
    how: Any = {"max_new_tokens": max_new_tokens, "stop": stop, "contrast": contrast}
    answers: list[StateAnswer] = []
    asked: list[Patchscope] = []
    for layer in numbers:
        scope = reader.scope_of(lm, question, layer, len(places))
        asked.append(scope)
        states = lm.read(source, layer, [*places, *([] if other < 0 else [other])])
        if reader.vectors is not None:
            states = reader.vectors(states)
        ways = (STATE, *([] if other < 0 else [OTHER]), RANDOM)
        for way, text in zip(ways, _texts_of(scope, states, len(places), seed, how), strict=True):
            answers.append(StateAnswer(way, layer, text))
    # its placeholders are the target's own tokens then
    plain = (NO_STATE, asked[0].lm, asked[0].resolved[0][0]), (TEXT, lm, _question_prompt(lm, question, source.text))
    for way, model, asking in plain:
        answers.append(StateAnswer(way, -1, continue_texts(model, [asking], max_new_tokens, stop)[0]))
    about = {**provenance(lm), "contrast": contrast, "seed": seed, "target": asked[0].resolved[0][0].text}
    tokens = tuple(source.tokens[place] for place in places)
    return StateAnswers(
        question, source.text, tokens, tuple(places), other, tuple(answers), reader.trained, reader.note, about
    )


def _texts_of(scope: Patchscope, states: HiddenStates, own: int, seed: int, how: dict[str, Any]) -> list[str]:
    """What a scope writes of the states of one layer: of the first `own` positions, of one behind them, of noise."""
    h: Tensor = states.tensor[0, 0]
    groups = [h[:own], *(one.expand(own, -1) for one in h[own:, None]), random_like(h[:own], seed)]
    if own > 1:
        return list(scope.generate(torch.stack(groups), **how).texts)
    # one state has an address, which mappings by layer ask for
    texts = list(scope.generate(states, **how).texts)
    drawn = HiddenStates(
        groups[-1][None, None],
        states.layers,
        states.n_layers,
        states.prompts,
        (states.positions[0][:1],),
        True,
        states.model,
    )
    return [*texts, *scope.generate(drawn, **how).texts]


def _question_prompt(lm: LM, question: str, text: str) -> Prompt:
    """The question about a text: a chat where the model has a template, else what a model continues."""
    question = question.strip()
    if getattr(lm.tokenizer, "chat_template", None):
        message = MESSAGE.format(text=text, question=question)
        # an answer, and no thoughts before it, where a template has a switch for them
        return lm.encoder.templated(lm.encoder.chat_text(message, values={"enable_thinking": False}))
    return lm.prompt(CONTINUED.format(text=text, question=question))


def _other_position(prompt: Prompt, places: Sequence[int], seed: int) -> int:
    """A position of a prompt, of other tokens than those in question, but not the first; -1 where there is none."""
    asked = {prompt.tokens[place].strip().casefold() for place in places}
    others = [n for n, t in enumerate(prompt.tokens) if n and n not in places and t.strip().casefold() not in asked]
    return int(np.random.default_rng(seed).choice(others)) if others else -1
