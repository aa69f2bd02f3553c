"""Text from anywhere as text that one can see: nothing in it moves a cursor, colours a line, turns or hides text.

Knows: which characters a terminal acts on or leaves out, and what stands for them. Does not know: where it is shown.
"""

import re

MARKS = {"\n": "↵", "\r": "␍", "\t": "⇥"}
# what is not plain ASCII may be invisible; most text is checked by this alone
_SUSPECT = re.compile(r"[^ -~]")
# letters and signs by Unicode's categories, but blank: Hangul fillers, the empty Braille pattern
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")


def printable(text: object) -> str:
    """A text with every character visible: line breaks as ↵, tabs as ⇥, and what does not print by its number.

    That is: control characters (with them all escapes of terminals), marks that turn or hide text, spaces other than
    the usual one, characters that Unicode has not assigned, and halves of surrogate pairs.
    """
    return _SUSPECT.sub(lambda match: _visible_character(match[0]), str(text))


def printable_token(text: str, width: int | None = None) -> str:
    """A token with every character visible: as `plain`, its leading spaces as ·; cut to `width` columns."""
    shown = printable(text)
    lead = len(shown) - len(shown.lstrip(" "))
    return cut_to_width("·" * lead + shown[lead:], width)


def cut_to_width(text: str, width: int | None) -> str:
    """A visible text in at most `width` columns of a terminal, its end as … where it is longer."""
    from rich.cells import cell_len, set_cell_size

    if width is None or cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 1) + "…"


def _visible_character(character: str) -> str:
    if character in MARKS:
        return MARKS[character]
    return character if character.isprintable() and character not in _BLANK else f"<{ord(character):02X}>"
