"""Write docs/commands/ from the command line itself: a page for each command, and a list of them.

    python docs/make_commands.py          # write the pages
    python docs/make_commands.py --check  # exit status 1 if they are not what `lenscope COMMAND --help` says

Everything on these pages is the help of src/lenscope/cli; that is where a sentence is changed.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from lenscope.cli.main import command_line

FOLDER = Path(__file__).with_name("commands")
# said in the same words for most commands, and of little interest to most readers
LOADING = ("--dtype", "--device", "--revision", "--attn", "--placement")
STATUS = {
    0: "The command did what it was asked to do.",
    1: "A check failed. The table says which.",
    2: "A mistake, which one line on stderr names: a wrong option, a missing or damaged file, too little memory.",
    130: "Interrupted, as by Ctrl-C. One line says what was kept.",
}
KINDS = {int: "NUMBER", float: "NUMBER"}


def pages() -> dict[str, str]:
    """Every page by its file's name."""
    every = typer.main.get_command(command_line()).commands  # type: ignore[attr-defined]
    texts = {f"{name}.md": "\n".join(page(name, command)) for name, command in every.items()}
    return {"index.md": "\n".join(overview(every)), **texts}


def overview(commands: dict[str, Any]) -> Iterator[str]:
    """The list of commands."""
    yield "# Commands\n"
    yield "This page lists what `lenscope` does on the command line. Each command has a page with all of its options;"
    yield "`lenscope COMMAND --help` prints the same. How prompts, layers and positions are written is on"
    yield "[the page about the command line](../reference/command-line.md).\n"
    yield "| command | what it does |"
    yield "|---|---|"
    for name, command in commands.items():
        yield f"| [`lenscope {name}`]({name}.md) | {summary(command)} |"
    yield "\n```{toctree}\n:hidden:\n"
    yield from commands
    yield "```\n"


def page(name: str, command: Any) -> Iterator[str]:
    """A command's page; of a group such as `detect` a section for each of its commands."""
    parts = getattr(command, "commands", None)
    yield f"# `lenscope {name}`\n"
    if parts is None:
        yield from described(f"lenscope {name}", command, "##")
    else:
        yield f"{cleaned(command.help)}\n"
        for part, inner in parts.items():
            yield f"## `lenscope {name} {part}`\n"
            yield from described(f"lenscope {name} {part}", inner, "###")
    yield from ("## Exit status\n", "| status | meaning |", "|---|---|")
    yield from (f"| {number} | {text} |" for number, text in STATUS.items() if number != 1 or name == "check")
    yield ""


def described(called: str, command: Any, heading: str) -> Iterator[str]:
    """What a command does, how it is called, its arguments and options, and its examples."""
    prose, _, examples = inspect.cleandoc(command.help).partition("\b\n")
    yield f"{cleaned(prose)}\n"
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    yield from ("```text", " ".join([called, "[OPTIONS]", *map(argument_usage, arguments)]), "```\n")
    if examples:
        lines = [line.strip() for line in examples.splitlines()[1:] if line.strip()]
        yield f"{heading} {'Examples' if len(lines) > 1 else 'Example'}\n"
        yield from ("<!-- not run: the files that they name are the reader's own -->", "```sh", *lines, "```\n")
    if arguments:
        yield from (f"{heading} Arguments\n", "| argument | what it is |", "|---|---|")
        yield from (f"| `{argument_usage(a)}` | {cell(a.help)} |" for a in arguments)
        yield ""
    loading = [p for p in options if p.opts[0] in LOADING and called != "lenscope plan"]
    yield from (f"{heading} Options\n", *table([p for p in options if p not in loading]))
    if loading:
        yield from (f"{heading} Options for how the model is loaded\n", *table(loading))


def table(options: list[Any]) -> Iterator[str]:
    """Options with what they do, whether they may be given more than once, and what holds without them."""
    repeated = any(p.multiple for p in options)
    yield f"| option | what it does |{' repeatable |' if repeated else ''} default |"
    yield f"|---|---|{'---|' if repeated else ''}---|"
    for option in options:
        names = ", ".join(f"`{name}`" for name in sorted(option.opts, key=len))
        value = "" if option.is_flag else f" {KINDS.get(option.type_descriptor.annotation, 'TEXT')}"
        text, default = without_default(option)
        more = f" {'yes' if option.multiple else ''} |" if repeated else ""
        yield f"| {names[:-1]}{value}` | {cell(text)} |{more} {cell(default)} |"
    yield ""


def without_default(option: Any) -> tuple[str, str]:
    """What an option does, and its default, which its help may say in words."""
    help_text = re.sub(r"[;,] may be repeated(?=[.;:])", "", option.help) if option.multiple else option.help
    match = re.fullmatch(r"(.*?)[;.]? [Dd]efault: (.*?)\.(?: (\d.*))?", help_text)
    if match:
        return f"{match[1]}.{f' {match[3]}' if match[3] else ''}", match[2]
    if option.required:
        return help_text, "required"
    if option.is_flag or option.default is None:
        return help_text, "–"
    return help_text, f"`{option.default}`"


def argument_usage(argument: Any) -> str:
    """An argument as a usage line has it: [PROMPT]... is optional and may be several."""
    name = argument.metavar or argument.name.upper()
    name = name if argument.required else f"[{name}]"
    return f"{name}..." if argument.nargs == -1 else name


def summary(command: Any) -> str:
    """The first sentence of what a command does."""
    return cell(cleaned(command.help).partition("\n")[0])


def cleaned(text: str) -> str:
    """A help text as Markdown: paragraphs; options, files and commands in it are code."""
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(text).strip())
    return "\n\n".join(marked(" ".join(p.split())) for p in paragraphs)


def cell(text: str) -> str:
    """A text in a cell of a table."""
    return text if text.startswith("`") else marked(text)


def marked(text: str) -> str:
    """Options and quoted strings as code; what Markdown would take for markup stands as it is."""
    text = re.sub(r"(?<![\w`\-])(--?[a-z][\w-]*)", r"`\1`", text)
    text = re.sub(r'((?:pip install )?"[^"]+")', r"`\1`", text)
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    written = pages()
    if "--check" in sys.argv:
        there = {path.name: path.read_text() for path in FOLDER.glob("*.md")}
        sys.exit(there != written)
    FOLDER.mkdir(exist_ok=True)
    for path in FOLDER.glob("*.md"):
        if path.name not in written:
            path.unlink()
    for file_name, text in written.items():
        (FOLDER / file_name).write_text(text)
