"""Target prompts with marks that stand for vectors: where in its tokens each mark is, checked one by one.

Knows: that a mark has to be one token of its own; how a chat template is filled in around marks.
Does not know: what a mark stands for, which prompt a verbaliser was trained with.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lenscope.errors import LenscopeError
from lenscope.models.language_model import LM
from lenscope.models.prompts import Prompt
from lenscope.patchscopes.methods import MARK


def places_of_marks(
    lm: LM, prompt: Prompt, starts: Sequence[int], mark: str, token: int | None = None, together: int = 1
) -> tuple[int, ...]:
    """The positions of a prompt's tokens that are the marks which start at characters `starts` of its text.

    Spaces around a mark may belong to its token. Raises LenscopeError unless each mark is exactly one token, which
    holds nothing else, is `token` where that is given, and stands beside the others of its group.

    Args:
        lm: the model whose tokens they are.
        prompt: the prompt.
        starts: where each mark starts, ascending.
        mark: the text of each.
        token: the id that each must have; None: any.
        together: how many marks make a group, whose tokens follow each other with none between.
    """
    places: list[int] = []
    for number, start in enumerate(starts):
        first = start + len(mark) - len(mark.lstrip())
        stop = start + len(mark.rstrip())
        inside = [i for i, (a, b) in enumerate(prompt.spans) if a < stop and b > first]
        pieces = [prompt.text[slice(*prompt.spans[i])] for i in inside]
        fault = ""
        if len(inside) != 1 or pieces[0].strip() != mark.strip():
            fault = f"is read as {' and '.join(map(repr, pieces)) or 'nothing'}"
        elif token is not None and prompt.ids[inside[0]] != token:
            fault = f"is token {prompt.ids[inside[0]]}, and alone token {token}"
        elif number % together and inside[0] != places[-1] + 1:
            fault = f"has {inside[0] - places[-1] - 1} other token between it and the one before"
        if fault:
            raise LenscopeError(
                f"{lm.name}: mark {number + 1} of {len(starts)}, {mark!r}, {fault}; each mark stands for a vector and "
                "must be one token of its own, so a verbaliser with such marks is not for this tokenizer"
            )
        places.append(inside[0])
    return tuple(places)


def token_of_mark(lm: LM, mark: str) -> int:
    """The id of a mark alone; LenscopeError where it is not one token."""
    ids = lm.encoder.ids(mark)
    if len(ids) != 1:
        pieces = ", ".join(map(repr, lm.encoder.tokens(ids))) or "none"
        raise LenscopeError(
            f"{lm.name}: the mark {mark!r} is {len(ids)} tokens ({pieces}); each mark stands for a vector and must be "
            "one token, so a verbaliser with such marks is not for this tokenizer"
        )
    return int(ids[0])


def chat_around(
    lm: LM,
    inserted: str,
    content: str,
    after: Sequence[Mapping[str, str]] = (),
    values: Mapping[str, Any] | None = None,
) -> tuple[str, int]:
    """The chat template's text, one user turn with `inserted` in front of `content`, and where that starts in it.

    Raises LenscopeError for a template that alters or repeats the turn.

    Args:
        lm: the model whose template is filled in.
        inserted: what the user's turn begins with, such as marks.
        content: what else the user says.
        after: turns that follow.
        values: what the template may ask for beside turns.
    """
    text = lm.encoder.chat_text([{"role": "user", "content": MARK + content}, *after], values=values)
    if text.count(MARK) != 1:
        raise LenscopeError(
            f"{lm.name}: its chat template changes or repeats the user's message, so marks cannot be located in it; "
            "give a Target of your own"
        )
    return text.replace(MARK, inserted), text.index(MARK)
