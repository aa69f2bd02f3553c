"""Models that were trained to answer questions about states: Activation Oracles, LatentQA decoders.

Knows: the prompts that they were trained with, at which layer and by which operation states come in, what the file
ao_config.json beside an adapter says of that.
Does not know: how adapters are switched (models/), how the models are trained.

Both are LoRA adapters of the model that reads the target prompt; sources are read without them.

Activation Oracles (arXiv 2512.15674; adamkarvonen/activation_oracles and activation_oracles_dev, nl_probes/utils/
dataset_utils.py, steering_hooks.py): the user's turn is `Layer: {l}\\n ? ? ? \\n{question}`, with one ` ?` for each
state; several layers have such lines one after the other. At the output of the module layers[1], which is layer 2 here,
h becomes h + ‖h‖ v/‖v‖ at each ` ?`, in the pass over the prompt. Their l counts the outputs of blocks from 0, so a
state of layer l here is theirs of l - 1. The chat template is asked not to think (enable_thinking false).

LatentQA (arXiv 2412.08686; aypan17/latentqa, lit/utils/dataset_utils.py and activation_utils.py): the user's turn is
`? ? ? `, one ? for each state of the text that was read, its beginning token left out; the model's turn is `Sure, I've
analyzed the assistant.`, and the user asks. States of layers[15], which is layer 16 here, replace those at the output
of layers[0], layer 1 here. The model's turns are called `reflect` in place of assistant.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.files.untrusted import checked_reading, escaped, read_json
from lenscope.models.edits import Operation, add_norm_matched, replace
from lenscope.models.inputs import count, elements, is_integer
from lenscope.models.language_model import LM
from lenscope.models.layers import check_layers
from lenscope.patchscopes.patchscope import Patchscope
from lenscope.patchscopes.target_prompts import Target
from lenscope.verbalisers.marked_prompts import chat_around, places_of_marks, token_of_mark

SETTINGS_FILE = "ao_config.json"
# how the format names the prompt's beginning; written with the two characters \n, or with a line's end
_PREFIX = "Layer: {layer}\n{special_token} * {num_positions} \n"
ANALYZED = "Sure, I've analyzed the assistant."


@final
@dataclass(frozen=True)
class OracleSettings:
    """How an Activation Oracle takes states in. The defaults are those of the published ones.

    Attributes:
        mark: what stands for a state in the prompt, one token.
        layer: the layer at which states come in.
        strength: c of h + c ‖h‖ v/‖v‖.
        trained_layers: the layers of the states that it was trained with, one tuple for each combination; empty: not
            known.
        model: the name of its model; None: not known.
    """

    mark: str = " ?"
    layer: int = 2
    strength: float = 1.0
    trained_layers: tuple[tuple[int, ...], ...] = ()
    model: str | None = None

    def operation(self) -> Operation:
        """How states are written: `add_norm_matched`, stronger or weaker where `strength` is not 1."""
        return add_norm_matched if self.strength == 1.0 else _of_strength(self.strength)


def load_oracle_settings(folder: str | os.PathLike[str]) -> OracleSettings:
    """Load what ao_config.json beside an adapter's weights says of prompt, layer and operation.

    Layers are counted as everywhere here: theirs + 1. Raises LenscopeError for a folder without such a file, and for a
    prompt of another form than that of the published oracles.
    """
    path = Path(folder) / SETTINGS_FILE
    if not path.is_file():
        raise LenscopeError(
            f"{escaped(folder)}: has no {SETTINGS_FILE}; older oracles have none and are used with OracleSettings()"
        )
    with checked_reading(path, "does not describe an Activation Oracle"):
        document = read_json(path)
        if not isinstance(document, dict):
            raise ValueError("it is no object")
        prefix = str(document.get("prefix_template", _PREFIX))
        if prefix.replace("\\n", "\n") != _PREFIX:
            raise LenscopeError(
                f"{escaped(path)}: its prompt begins with {escaped(prefix)[:80]!r}, and known is {escaped(_PREFIX)!r}"
            )
        mark, block = document.get("special_token", " ?"), document.get("hook_onto_layer", 1)
        strength, model = document.get("steering_coefficient", 1.0), document.get("model_name")
        if not isinstance(mark, str) or not mark.strip() or type(block) is not int or block < 0:
            raise ValueError(f"special_token {mark!r}, hook_onto_layer {block!r}"[:120])
        if type(strength) not in (int, float) or not 0 < strength < float("inf"):
            raise ValueError(f"steering_coefficient {strength!r}"[:80])
        blocks = [tuple(one) for one in document.get("act_layer_combinations", ())]
        if any(type(n) is not int or n < 0 for combination in blocks for n in combination):
            raise ValueError("act_layer_combinations")
        layers = tuple(tuple(n + 1 for n in combination) for combination in blocks)
        return OracleSettings(mark, block + 1, float(strength), layers, model if isinstance(model, str) else None)


def activation_oracle(
    lm: LM,
    question: str,
    layers: int | Sequence[int],
    states: int = 1,
    *,
    settings: OracleSettings | None = None,
    source_lm: LM | None = None,
    **options: Any,
) -> Patchscope:
    """Make the Patchscope that asks an Activation Oracle a question about states.

    Its sources are vectors (N, K, D), where K is `states` for each of `layers`, all of the first layer first; (N, D)
    where K is 1, else the same vector in all places. Without the oracle's adapter this is a Patchscope of an untrained
    model, which is a control. Raises LenscopeError where a mark is no token of its own, for a model without a chat
    template, and for layers that the model does not have; layer 0 is no block's output, which oracles read.

    Args:
        lm: the oracle's model.
        question: what is asked.
        layers: the layer of the states, or several, each with as many states.
        states: how many states of each layer.
        settings: what is not as of the published oracles.
        source_lm: the model of the states; None: `lm`.
        options: what else `Patchscope` takes, such as `adapter`.
    """
    settings = settings or OracleSettings()
    states = count(states, "states", 1)
    of = source_lm or lm
    given: Any = [layers] if is_integer(layers) else elements(layers, "a layer or a list of layers")
    numbers = check_layers(given, of.n_layers, of.name)
    if not numbers or len(set(numbers)) < len(numbers) or 0 in numbers:
        raise LenscopeError(f"layers {list(numbers)}: give layers 1–{of.n_layers}, the outputs of blocks, each once")
    if settings.layer > lm.n_layers:
        raise LenscopeError(f"layer {settings.layer}: the oracle takes states in there; {lm.name} has {lm.n_layers}")
    prefix, starts = "", []
    for layer in numbers:
        prefix += f"Layer: {layer - 1}\n"
        starts += [len(prefix) + k * len(settings.mark) for k in range(states)]
        prefix += settings.mark * states + " \n"
    text, begin = chat_around(lm, prefix, question, values={"enable_thinking": False})
    prompt = lm.encoder.templated(text)
    token = token_of_mark(lm, settings.mark)
    places = places_of_marks(lm, prompt, [begin + start for start in starts], settings.mark, token, states)
    target = Target(prompt, at=list(places))
    return Patchscope(lm, target, op=settings.operation(), layers=settings.layer, source_lm=source_lm, **options)


def latent_qa(
    lm: LM,
    question: str,
    states: int,
    *,
    answerer: str = "reflect",
    source_lm: LM | None = None,
    **options: Any,
) -> Patchscope:
    """Make the Patchscope that asks a LatentQA decoder a question about the states of a text.

    Its sources are vectors (N, K, D) with K `states`: those of all tokens of the text that was read, its beginning
    token left out, of layer 16 in the published decoders. They replace the states at layer 1. Raises LenscopeError
    where a mark is no token of its own, and for a model without a chat template.

    Args:
        lm: the decoder's model.
        question: what is asked.
        states: how many states there are.
        answerer: what the model's turns are called in the place of assistant, as the decoders were trained; a template
            without such a name stays as it is.
        source_lm: the model of the states; None: `lm`.
        options: what else `Patchscope` takes, such as `adapter`.
    """
    states = count(states, "states", 1)
    marks = " ".join("?" * states)
    after = [{"role": "assistant", "content": ANALYZED}, {"role": "user", "content": question}]
    text, begin = chat_around(lm, marks, " ", after)
    text, moved = _renamed_answerer(lm, text, answerer, begin)
    prompt = lm.encoder.templated(text)
    places = places_of_marks(lm, prompt, [begin + moved + 2 * k for k in range(states)], "?", None, states)
    return Patchscope(lm, Target(prompt, at=list(places)), op=replace, layers=1, source_lm=source_lm, **options)


def _renamed_answerer(lm: LM, text: str, name: str, begin: int) -> tuple[str, int]:
    """The text with another name for the model's turns, and by how much the place `begin` has moved.

    How a turn of the model begins is what the template adds where the model is to speak.
    """
    turns = [{"role": "user", "content": "x"}]
    open_text, closed = (lm.encoder.chat_text(turns, opened=opened) for opened in (True, False))
    header = open_text.removeprefix(closed)
    role = next((word for word in ("assistant", "model") if word in header), None)
    if role is None or not open_text.startswith(closed):
        return text, 0
    renamed = header.replace(role, name)
    return text.replace(header, renamed), text[:begin].count(header) * (len(renamed) - len(header))


def _of_strength(strength: float) -> Callable[[Tensor, Tensor], Tensor]:
    def add_norm_matched_times(h: Tensor, v: Tensor) -> Tensor:
        """h ← h + c ‖h‖ v/‖v‖."""
        wide = h.double()
        return (wide + strength * (add_norm_matched(wide, v.double()) - wide)).to(h.dtype)

    return add_norm_matched_times
