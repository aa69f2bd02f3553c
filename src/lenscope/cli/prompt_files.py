"""Files of prompts: lines of text, or JSON lines with a field that has the prompt; each prompt with its place.

Knows: how a line becomes a prompt, and how its place is called in a message. Does not know: what is done with prompts.
"""

from collections.abc import Iterator
from typing import Annotated

import typer

from lenscope.cli.validation import require_effect
from lenscope.errors import LenscopeError
from lenscope.files.arriving import standard_input
from lenscope.files.text_files import lines_or_mistakes, parse_json_line, read_lines

PromptField = Annotated[
    str | None, typer.Option(help="Name of the field that has the prompt, in files of JSON lines; default: text.")
]  # fmt: skip


def given_prompts(prompts: list[str], file: str | None, field: str | None) -> list[tuple[str, str]]:
    """(place, prompt) of a command: its arguments, whose place is "", and the prompts of its file.

    Raises LenscopeError where there are none, and for a field of a file that has no fields.
    """
    require_effect("--field", field, file is not None, "names the field of --file FILE.jsonl")
    every = [("", prompt) for prompt in prompts]
    if file is not None:
        check_field(field, file)
        every += placed_prompts_of_file(file, field or "text")
    if not every:
        raise LenscopeError("no prompt: give one as an argument, or several with --file FILE (- for stdin)")
    return every


def check_field(field: str | None, *files: str) -> None:
    """Raise LenscopeError for a field of files of which no lines have one."""
    require_effect(
        "--field",
        field,
        any(file.endswith((".jsonl", ".jsonl.gz")) for file in files),
        "names a field of .jsonl files, and other lines have none",
    )


def placed_prompts_of_file(file: str, field: str) -> Iterator[tuple[str, str]]:
    """("file, line n", prompt) of a file's prompts, each as soon as its line is there; empty lines are none."""
    name, source = ("standard input", standard_input()) if file == "-" else (file, file)
    for n, line in enumerate(read_lines(source), 1):
        if line.strip():
            where = f"{name}, line {n}"
            yield where, _prompt_of_line(line, where, field) if file.endswith((".jsonl", ".jsonl.gz")) else line


def prompts_of_standard_input() -> Iterator[tuple[str, str | LenscopeError]]:
    """("standard input, line n", prompt) of its lines of text, each as soon as it is there; empty lines are none.

    For a line that is no text comes a LenscopeError, which names its place, and then the next line.
    """
    for n, line in enumerate(lines_or_mistakes(standard_input()), 1):
        if isinstance(line, LenscopeError) or line.strip():
            yield f"standard input, line {n}", line


def _prompt_of_line(line: str, where: str, field: str) -> str:
    row = parse_json_line(line, where)
    try:
        text = row[field]
    except (LookupError, TypeError) as error:
        raise LenscopeError(f"{where}: is no JSON object with a field {field!r}; name it with --field") from error
    if not isinstance(text, str) or not text:
        raise LenscopeError(f"{where}: {field!r} is {text!r}; it must be a text")
    return text
