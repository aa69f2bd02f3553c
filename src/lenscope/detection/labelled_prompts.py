"""Prompts with labels: attacks and harmless ones, with what is known of where each comes from.

Knows: the fields of a prompt, files of JSON lines and of plain lines, what in them is refused.
Does not know: models, features, detectors.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from lenscope.errors import LenscopeError, naming_place
from lenscope.files.text_files import read_json_lines, read_lines
from lenscope.files.untrusted import escaped
from lenscope.models.inputs import sound

JSON_LINES = (".jsonl", ".jsonl.gz")


@final
@dataclass(frozen=True)
class LabelledPrompt:
    """A prompt, and whether it is an attack.

    `data_set` is where it was published, and `family` the kind of attack, "" for a harmless prompt. Prompts with the
    same `host`, such as one e-mail with and without an injection, never stand on both sides of a test; "" is no host.
    `span` is the part [start, stop) of `text`, in characters, that was inserted: a harmless prompt with a span is a
    harmless insertion, one without is normal. Raises LenscopeError for an empty text, for one with half a surrogate
    pair, for a span that is no part of it and for a harmless prompt with a family.
    """

    text: str
    attack: bool
    data_set: str = ""
    family: str = ""
    host: str = ""
    span: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip():
            raise LenscopeError(f"prompt {self.text!r}: give a text that is not empty")
        sound(self.text)
        if not isinstance(self.attack, bool):
            raise LenscopeError(f"prompt {_shortened_prompt(self.text)}: attack {self.attack!r}; give True or False")
        if self.family and not self.attack:
            raise LenscopeError(
                f"prompt {_shortened_prompt(self.text)}: is harmless, but of the family {self.family!r}; only attacks "
                "have one"
            )
        if self.span is not None:
            start, stop = self.span
            if not 0 <= start < stop <= len(self.text):
                raise LenscopeError(
                    f"prompt {_shortened_prompt(self.text)}: span {start}, {stop}; give characters of its text, "
                    f"0 ≤ start < stop ≤ {len(self.text)}"
                )

    @property
    def normal(self) -> bool:
        """Whether it is harmless and nothing was inserted into it."""
        return not self.attack and self.span is None


def read_labelled_prompts(
    path: str | os.PathLike[str], *, field: str = "text", attack: bool | None = None
) -> list[LabelledPrompt]:
    """Read prompts with labels from a file of JSON lines (.jsonl, .jsonl.gz).

    A row has a text in `field` and a label: 1 for an attack, 0 for a harmless prompt. It may also have a source (the
    data set; without it the file's name), a category (the family of an attack, which counts for attacks only), a host
    and a span [start, stop]. With `attack` given, rows without a label are of that kind, and so are the lines of a
    plain text file, one prompt a line; empty lines are none. Raises LenscopeError, with file and line, for anything
    else, and for a file without prompts.
    """
    return [prompt for _, prompt in placed_labelled_prompts(path, field=field, attack=attack)]


def placed_labelled_prompts(
    path: str | os.PathLike[str], *, field: str = "text", attack: bool | None = None
) -> list[tuple[str, LabelledPrompt]]:
    """("file, line n", prompt) of each prompt that `read_labelled_prompts` reads; LenscopeError as there."""
    name = os.fspath(path)
    if name.endswith(JSON_LINES):
        prompts = [(where, _prompt_of_row(row, where, path, field, attack)) for where, row in read_json_lines(path)]
    elif attack is None:
        raise LenscopeError(f"{escaped(name)}: lines of text have no labels; give a file of JSON lines, .jsonl")
    else:
        prompts = list(_prompts_of_lines(path, attack))
    if not prompts:
        raise LenscopeError(f"{escaped(name)}: has no prompts; give at least one line")
    return prompts


def without_case_and_blanks(text: str) -> str:
    """A text in lower case, its words a blank apart: prompts that differ in nothing else count as one text."""
    return " ".join(text.casefold().split())


def different_prompts(prompts: Sequence[LabelledPrompt]) -> list[LabelledPrompt]:
    """The prompts, each text once, the first of equal ones; hosts that share a text are one host, named as the first.

    Raises LenscopeError for a text that is an attack and a harmless prompt.
    """
    by_text: dict[str, LabelledPrompt] = {}
    renamed: dict[str, str] = {}

    def name(host: str) -> str:
        while host in renamed:
            host = renamed[host]
        return host

    for prompt in prompts:
        first = by_text.setdefault(prompt.text, prompt)
        if first.attack != prompt.attack:
            text = prompt.text if len(prompt.text) <= 60 else prompt.text[:59] + "…"
            raise LenscopeError(f"prompt {text!r}: is an attack and a harmless prompt; give each text one label")
        one, other = name(first.host), name(prompt.host)
        if not one and other:
            by_text[prompt.text] = replace(first, host=other)
        elif other and one != other:
            renamed[other] = one
    return [replace(p, host=name(p.host)) if p.host in renamed else p for p in by_text.values()]


def _prompts_of_lines(path: str | os.PathLike[str], attack: bool) -> Iterator[tuple[str, LabelledPrompt]]:
    for n, line in enumerate(read_lines(path), 1):
        if line.strip():
            yield f"{os.fspath(path)}, line {n}", LabelledPrompt(line, attack, _stem(path))


def _prompt_of_row(
    row: Any, where: str, path: str | os.PathLike[str], field: str, attack: bool | None
) -> LabelledPrompt:
    if not isinstance(row, dict) or not isinstance(row.get(field), str):
        raise LenscopeError(f"{where}: is no object with a text in the field {field!r}; name it with --field")
    label = row.get("label", attack)
    # true and false are 1 and 0
    if label not in (0, 1) or not isinstance(label, int):
        missing = "has no label" if label is None else f"label {label!r}"
        raise LenscopeError(f"{where}: {missing}; give 1 for an attack, 0 for a harmless prompt")
    named = {key: row.get(key) for key in ("source", "category", "host")}
    for key, value in named.items():
        if value is not None and not isinstance(value, str | int):
            raise LenscopeError(f"{where}: {key} {str(value)[:40]!r}; give a text")
    texts = {key: "" if value is None else str(value) for key, value in named.items()}
    with naming_place(where):
        return LabelledPrompt(
            text=row[field],
            attack=bool(label),
            data_set=texts["source"] or _stem(path),
            family=texts["category"] if label else "",
            host=texts["host"],
            span=_span_of(row.get("span")),
        )


def _span_of(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or any(type(v) is not int for v in value):
        raise LenscopeError(f"span {str(value)[:40]!r}; give two whole numbers, [start, stop]")
    return value[0], value[1]


def _stem(path: str | os.PathLike[str]) -> str:
    """A file's name without its endings."""
    name = Path(path).name
    return name.removesuffix(".gz").rsplit(".", 1)[0] if "." in name.lstrip(".") else name


def _shortened_prompt(text: str) -> str:
    """The beginning of a text, as it stands in a message of one line."""
    return repr(text if len(text) <= 40 else text[:39] + "…")
