"""nla_meta.yaml: what a natural language autoencoder was trained with, and whether a model and its tokenizer agree.

Knows: the file's fields in the versions that are published, which of them contradict a model.
Does not know: how a vector is put into words (autoencoder_verbaliser.py) or words into a vector (reconstructor.py).

The file lies beside the weights of each half (kitft/natural_language_autoencoders: nla_inference.py, nla/schema.py,
docs/inference.md; schema_version 1 and 2). role is av or actor for the verbaliser, ar or critic for the reconstructor.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any, final

from lenscope.errors import LenscopeError
from lenscope.files.untrusted import checked_reading, escaped
from lenscope.files.yaml_files import read_document
from lenscope.models.language_model import LM

CONTRACT_FILE = "nla_meta.yaml"
VERBALISER, RECONSTRUCTOR = "verbaliser", "reconstructor"
_ROLES = {"av": VERBALISER, "actor": VERBALISER, "ar": RECONSTRUCTOR, "critic": RECONSTRUCTOR}


@final
@dataclass(frozen=True)
class AutoencoderContract:
    """What nla_meta.yaml says of one half of an autoencoder. `read_autoencoder_contract` makes it.

    Attributes:
        where: the file.
        role: "verbaliser" or "reconstructor".
        width: the numbers of a vector, the hidden size.
        layer: the layer of the vectors, counted as everywhere here (the file's number + 1); None where it says none.
        scale: the length that a vector is brought to before it goes in; None in a reconstructor's.
        mark: the text that stands for the vector in the verbaliser's prompt.
        mark_id: its token.
        left_id: the token before it.
        right_id: the token behind it.
        verbaliser_prompt: the user's turn, with {injection_char} where the mark comes.
        reconstructor_prompt: the text that is read, with {explanation}; None where the file has none.
        suffix_ids: the tokens that the reconstructor's prompt ends with; empty where the file has none.
    """

    where: str
    role: str
    width: int
    layer: int | None
    scale: float | None
    mark: str
    mark_id: int
    left_id: int
    right_id: int
    verbaliser_prompt: str
    reconstructor_prompt: str | None
    suffix_ids: tuple[int, ...] = ()

    def require(self, role: str, lm: LM) -> None:
        """Raise LenscopeError, in one line, unless this is the contract of such a half and `lm` has its width."""
        if self.role != role:
            raise LenscopeError(f"{self.where}: is of a {self.role}, and a {role} is asked for; give the other folder")
        if lm.hidden_size != self.width:
            raise LenscopeError(
                f"{self.where}: is for states of {self.width} numbers, and {lm.name} has {lm.hidden_size}"
            )


def read_autoencoder_contract(folder: str | os.PathLike[str]) -> AutoencoderContract:
    """Read nla_meta.yaml from the folder of an autoencoder's half, or the file itself.

    Plain values alone are read. Raises LenscopeError, in one line, for a file that is missing or no YAML, of another
    kind than nla_model, of a role that is not known, or without what its role needs.
    """
    path = Path(folder)
    path = path / CONTRACT_FILE if path.is_dir() else path
    if not path.is_file():
        raise LenscopeError(
            f"{escaped(path)}: no such file; a natural language autoencoder has {CONTRACT_FILE} beside its weights"
        )
    where = escaped(path)
    document = read_document(path)
    with checked_reading(path, f"is no {CONTRACT_FILE} of an autoencoder's half"):
        if not isinstance(document, dict) or document.get("kind") != "nla_model":
            kind = document.get("kind") if isinstance(document, dict) else None
            raise LenscopeError(f"{where}: is of kind {str(kind)[:40]!r}, and the half of an autoencoder is nla_model")
        role = _ROLES.get(str(document.get("role", "av")))
        if role is None:
            raise LenscopeError(f"{where}: has role {str(document['role'])[:40]!r}; there are {', '.join(_ROLES)}")
        width = _whole_field(document, "d_model", 1)
        extraction, tokens, prompts = (_part(document, name) for name in ("extraction", "tokens", "prompt_templates"))
        scale = _injection_scale(extraction.get("injection_scale"), width)
        if role == VERBALISER and scale is None:
            raise LenscopeError(f"{where}: says no extraction.injection_scale, the length of the vectors that go in")
        asks, reads = prompts.get("av", prompts.get("actor")), prompts.get("ar", prompts.get("critic"))
        if role == RECONSTRUCTOR and not isinstance(reads, str):
            raise LenscopeError(f"{where}: has no prompt_templates.ar, the text that a reconstructor reads")
        if not isinstance(asks, str) or (reads is not None and not isinstance(reads, str)):
            raise ValueError("prompt_templates.av is no text")
        filled(asks, "injection_char", "")
        if isinstance(reads, str):
            filled(reads, "explanation", "")
        mark = tokens["injection_char"]
        if not isinstance(mark, str) or not mark.strip():
            raise ValueError(f"injection_char {mark!r}"[:60])
        suffix = tokens.get("critic_suffix_ids") or ()
        if not isinstance(suffix, list | tuple) or any(type(i) is not int for i in suffix):
            raise ValueError("critic_suffix_ids are no token ids")
        return AutoencoderContract(
            where=where,
            role=role,
            width=width,
            layer=_layer(document, extraction),
            scale=scale,
            mark=mark,
            mark_id=_whole_field(tokens, "injection_token_id"),
            left_id=_whole_field(tokens, "injection_left_neighbor_id"),
            right_id=_whole_field(tokens, "injection_right_neighbor_id"),
            verbaliser_prompt=asks,
            reconstructor_prompt=reads,
            suffix_ids=tuple(suffix),
        )


def filled(template: str, name: str, value: str) -> str:
    """A template with `value` in each place of {name}; doubled braces are single ones, as in Python's str.format.

    Raises ValueError for a template without such a place, or with any other.
    """
    text, places = "", 0
    for literal, field, form, conversion in Formatter().parse(template):
        text += literal
        if field is not None:
            if field != name or form or conversion:
                raise ValueError(f"the prompt has a place {{{field}}}, and {{{name}}} is known"[:100])
            text, places = text + value, places + 1
    if not places:
        raise ValueError(f"the prompt has no place {{{name}}}")
    return text


def _part(document: dict[Any, Any], name: str) -> dict[Any, Any]:
    part = document.get(name, {})
    if not isinstance(part, dict):
        raise ValueError(f"{name} is no mapping")
    return part


def _whole_field(of: dict[Any, Any], name: str, low: int = 0) -> int:
    value = of[name]
    if type(value) is not int or value < low:
        raise ValueError(f"{name} is {value!r}, and must be a whole number from {low} on"[:100])
    return value


def _injection_scale(value: Any, width: int) -> float | None:
    """The length that vectors are brought to: a number, "sqrt_d_model", or None, "raw" and "none" for their own."""
    if value is None or value in ("raw", "none"):
        return None
    number = math.sqrt(width) if value == "sqrt_d_model" else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < float("inf"):
        raise ValueError(f"injection_scale is {value!r}, and must be a number above 0"[:100])
    return float(number)


def _layer(document: dict[Any, Any], extraction: dict[Any, Any]) -> int | None:
    """The layer of the vectors, from whichever field of the versions has the block's number."""
    critic, ar = _part(document, "critic"), _part(document, "ar")
    fields = (
        (document, "extraction_layer_index"),
        (extraction, "layer_index"),
        (critic, "extraction_layer_index"),
        (critic, "num_hidden_layers"),
        (ar, "num_hidden_layers"),
    )
    numbers = {_whole_field(of, name) for of, name in fields if of.get(name) is not None}
    if len(numbers) > 1:
        raise ValueError(f"its layers contradict each other: {', '.join(map(str, sorted(numbers)))}")
    return next(iter(numbers)) + 1 if numbers else None
