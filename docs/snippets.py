"""Run the snippets of pages on the real model, and compare what they print with what the pages say.

    python docs/snippets.py docs/start.md README.md  # run and compare; exit status 1 where something differs
    python docs/snippets.py docs/start.md --write    # write down what was printed where it differs, or where a ? is

A page runs from top to bottom as one session in an empty folder. Three kinds of blocks count:

- ```python: the blocks of a page share their names. What a block prints, and the value of its last expression, is
  compared with the ```text block that follows it, if one does.
- ```console: lines that begin with "$ " are commands, what follows a command is its output. `lenscope` runs in this
  process, with the model loaded once; whatever else there is runs in bash. A command without output is not compared.
- Any block behind the line <!-- not run: reason --> is left out.

In expected output a line of only … stands for any lines, and … within a line for any text. Numbers may be off by 2 %
or by 2 in their last digit, or by what <!-- within 20 % --> before the block says; times, sizes and speeds (12 s,
3.4 GB, 80 rows/s) are not compared, nor are widths of blanks.
"""

import argparse
import ast
import contextlib
import gc
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WIDTH = 100
_FENCE = re.compile(r"^(\s*)(`{3,})\s*([\w-]*)")
_REMARK = re.compile(r"^\s*<!--\s*(not run: .+|within [\d.]+ ?%)\s*-->\s*$")
_NUMBER = re.compile(
    r"(?<![\w.])[-−+]?(?:\d+(?:,\d{3})+|\d+)?(?:(?<=\d)\.\d+|\.\d+|(?<=\d))(?:e[-+]?\d+)?(?![\w.]*[A-Za-z_])", re.ASCII
)
_UNMEASURED = re.compile(
    r"[ ]?(?:ms|s|min|h|[KMG]i?B|bytes|(?:rows|tokens|it|prompts)/s)(?![\w])|(?:ms|s|min|h|[KMG]i?B)\b"
)
_RULE = re.compile(r"[─━═-]{3,}")


@dataclass
class Block:
    """What runs at once: its `code`, the output that is expected (None: not compared), and which lines that takes."""

    kind: str
    code: str
    line: int
    expected: list[str] | None = None
    lines: tuple[int, int] = (0, 0)
    indent: str = ""
    within: float = 0.02


@dataclass
class Difference:
    """An output that is not what the page says, or a block that failed."""

    page: Path
    block: Block
    printed: str
    reason: str = ""

    def __str__(self) -> str:
        head = f"{self.page}:{self.block.line}: {self.reason or 'prints something else'}\n"
        expected = textwrap.indent("\n".join(self.block.expected or []), "    - ", lambda _: True)
        return f"{head}{textwrap.indent(self.block.code.rstrip(), '    ')}\n{expected}\n" + textwrap.indent(
            self.printed.rstrip("\n") or "(nothing)", "    + ", lambda _: True
        )


def blocks(text: str) -> list[Block]:
    """The blocks of a page that run, in order; raises ValueError for one that never ends."""
    lines = text.split("\n")
    result: list[Block] = []
    remark, n, last_python = "", 0, None
    while n < len(lines):
        noted = _REMARK.match(lines[n])
        fence = _FENCE.match(lines[n])
        if noted:
            remark = noted[1]
        elif fence:
            indent, ticks, kind = fence.groups()
            end = next((m for m in range(n + 1, len(lines)) if lines[m].strip() == ticks), None)
            if end is None:
                raise ValueError(f"line {n + 1}: a block that never ends")
            inside = [line.removeprefix(indent) for line in lines[n + 1 : end]]
            within = float(remark.split()[1].rstrip("%")) / 100 if remark.startswith("within") else 0.02
            skipped = remark.startswith("not run")
            if kind == "python" and not skipped:
                last_python = Block("python", "\n".join(inside), n + 1, within=within)
                result.append(last_python)
            elif kind == "console" and not skipped:
                result += _commands(inside, n + 1, indent, within)
                last_python = None
            elif kind == "text" and last_python is not None and not skipped:
                last_python.expected, last_python.lines, last_python.indent = inside, (n + 1, end), indent
                last_python.within = within if remark else last_python.within
                last_python = None
            elif kind in ("sh", "bash", "shell") and not skipped:
                raise ValueError(f"line {n + 1}: commands of a ```{kind} block do not run; use ```console, or say why")
            else:
                last_python = None
            remark, n = "", end
        elif lines[n].strip():
            remark, last_python = "", None
        n += 1
    return result


def _commands(lines: list[str], first: int, indent: str, within: float) -> Iterator[Block]:
    """The commands of a console block; `first` is the line of the page before its first one."""
    n = 0
    while n < len(lines):
        if not lines[n].startswith("$ "):
            raise ValueError(f"line {first + n + 1}: a console block begins with a command, as '$ lenscope lens …'")
        start, code = n, lines[n][2:]
        here = re.search(r"<<-?\s*['\"]?(\w+)", code)
        while code.endswith("\\"):
            n += 1
            code = code[:-1].rstrip() + " " + lines[n].strip().removeprefix("> ")
        if here:
            while True:
                n += 1
                code += "\n" + lines[n].removeprefix("> ")
                if lines[n].removeprefix("> ").strip() == here[1]:
                    break
        n += 1
        begin = n
        while n < len(lines) and not lines[n].startswith("$ "):
            n += 1
        expected = lines[begin:n]
        shown = expected if any(line.strip() for line in expected) else None
        yield Block("console", code, first + start + 1, shown, (first + begin, first + n), indent, within)


def agrees(expected: list[str], printed: str, within: float = 0.02) -> bool:
    """Whether an output is what a page says, up to numbers' tolerance, blanks, and what … stands for."""
    wanted = [line.rstrip() for line in expected]
    while wanted and not wanted[-1]:
        wanted.pop()
    lines = [line.rstrip() for line in printed.rstrip().split("\n")] if printed.strip() else []
    reached = {0}  # how many of the printed lines the expected ones so far may stand for
    for line in wanted:
        if line.strip() in ("…", "..."):
            reached = set(range(min(reached), len(lines) + 1)) if reached else set()
        else:
            reached = {n + 1 for n in reached if n < len(lines) and _same_line(line, lines[n], within)}
    return len(lines) in reached


def _same_line(expected: str, printed: str, within: float) -> bool:
    pattern, numbers = [], []
    place = 0
    for number in _NUMBER.finditer(expected):
        pattern.append(_literal(expected[place : number.start()]))
        unit = _UNMEASURED.match(expected, number.end())
        pattern.append(r"([-−+]?[\d,]*\.?\d*(?:e[-+]?\d+)?)")
        share = "%" if expected[number.end() : number.end() + 1] == "%" else ""
        numbers.append(None if unit else number[0] + share)
        place = number.end()
    pattern.append(_literal(expected[place:]))
    match = re.fullmatch("".join(pattern), _short_rules(printed))
    if match is None:
        return False
    return all(
        wanted is None or _near(wanted, given, within) for wanted, given in zip(numbers, match.groups(), strict=True)
    )


def _literal(text: str) -> str:
    parts = re.split(r"(…|\s+)", _short_rules(text))
    return "".join(".*?" if p == "…" else r"\s+" if p.isspace() else re.escape(p) for p in parts if p)


def _short_rules(text: str) -> str:
    return _RULE.sub("───", text)


def _near(wanted: str, given: str, within: float) -> bool:
    try:
        a, b = (float(text.rstrip("%").replace(",", "").replace("−", "-")) for text in (wanted, given))
    except ValueError:
        return False
    share = wanted.endswith("%")
    mantissa = wanted.rstrip("%").lower().partition("e")[0]
    exponent = int(wanted.rstrip("%").lower().partition("e")[2] or 0)
    last = 10.0 ** (exponent - len(mantissa.partition(".")[2]))
    whole = "." not in mantissa and abs(a) < 100 and within <= 0.02 and not share
    # small whole numbers count layers, tokens and rows: these are the same everywhere
    return a == b if whole else abs(a - b) <= max(within * abs(a), 2.001 * last)


@dataclass
class Session:
    """One page's run: its names, in an empty folder, with models that are loaded once for all pages."""

    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})

    def run(self, block: Block) -> tuple[str, str]:
        """What a block prints, and in what way it failed, if it did."""
        if block.kind == "python":
            return self._python(block)
        plain = block.code.startswith("lenscope ") and not re.search(r"[|<>&;*`$~]", _unquoted(block.code))
        return _in_process(shlex.split(block.code)[1:]) if plain else _in_bash(block.code)

    def _python(self, block: Block) -> tuple[str, str]:
        out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
        reason = ""
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                tree = ast.parse(block.code)
                value = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
                exec(compile(tree, f"line {block.line}", "exec"), self.names)
                if value is not None:
                    _show(eval(compile(ast.Expression(value.value), f"line {block.line}", "eval"), self.names))
            except BaseException as error:
                reason = f"raises {type(error).__name__}"
                # a page may show an error: its last line
                print(traceback.format_exception_only(error)[-1].strip())
        printed = _seen(out)
        wanted = "\n".join(block.expected or [])
        return printed, "" if reason and reason.split()[1] in wanted else reason


def _show(value: Any) -> None:
    """A value as a notebook shows it in text: nothing for None, tables laid out, else its repr."""
    if value is None:
        return
    if hasattr(value, "__rich_console__") or hasattr(value, "__rich__"):
        from rich.console import Console

        Console(width=WIDTH, color_system=None, file=sys.stdout, legacy_windows=False).print(value)
    else:
        print(repr(value))


def _seen(out: io.TextIOWrapper) -> str:
    out.flush()
    text = out.buffer.getvalue().decode("utf-8", "replace")  # type: ignore[attr-defined]
    lines = (line.rpartition("\r")[2].rstrip() for line in text.split("\n"))
    return without_escapes("\n".join(lines))


def without_escapes(text: str) -> str:
    """A text without what colours it, or moves the cursor, in a terminal."""
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text)


def _unquoted(code: str) -> str:
    return re.sub(r"'[^']*'|\"[^\"$`]*\"", "", code)


def _in_process(arguments: list[str]) -> tuple[str, str]:
    from lenscope.cli.main import main

    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    status: Any = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            main(arguments)
        except SystemExit as left:
            status = left.code
    printed = _seen(out)
    return printed, f"ends with status {status}" if status and not printed.strip() else ""


def _in_bash(code: str) -> tuple[str, str]:
    home = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{home}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=environment,
        check=False,
    )
    printed = without_escapes(done.stdout.decode("utf-8", "replace"))
    return printed, f"ends with status {done.returncode}" if done.returncode and not printed.strip() else ""


@contextlib.contextmanager
def models_loaded_once() -> Iterator[None]:
    """Within the block a built-in model is loaded once, whoever asks; anew where a page changed its weights."""
    from lenscope.models import loading

    plain = loading.load

    def load(source: Any = loading.DEFAULT_MODEL, *arguments: Any, **options: Any) -> Any:
        options = {name: value for name, value in options.items() if value not in (None, "cpu")}
        if arguments or options or not isinstance(source, str) or source not in loading.BUILT_IN:
            return plain(source, *arguments, **options)
        kept = _models.get(source)
        if kept is None or _fingerprint(kept[0]) != kept[1]:
            lm = plain(source)
            kept = _models[source] = (lm, _fingerprint(lm))
        return kept[0]

    loading.load = load
    try:
        yield
    finally:
        loading.load = plain


_models: dict[str, tuple[Any, Any]] = {}


def _fingerprint(lm: Any) -> tuple[float, ...]:
    """What moves when a page trains or edits a model for good."""
    return (float(lm.model.training), *(float(p.detach().sum()) for p in lm.model.parameters()))


def run_page(page: Path) -> tuple[list[Difference], list[tuple[Block, str]]]:
    """Run all blocks of a page: what differs from it, and what each printed. The first block that fails is the last."""
    page = page.resolve()
    differences: list[Difference] = []
    printed: list[tuple[Block, str]] = []
    session = Session()
    before = Path.cwd()
    columns = {name: os.environ.get(name) for name in ("COLUMNS", "NO_COLOR", "TERM")}
    os.environ |= {"COLUMNS": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb"}
    folder = tempfile.mkdtemp(prefix="page-")
    os.chdir(folder)
    try:
        with models_loaded_once():
            for block in blocks(page.read_text(encoding="utf-8")):
                text, reason = session.run(block)
                printed.append((block, text))
                wanted = block.expected
                if reason:
                    differences.append(Difference(page, block, text, reason))
                    break
                if wanted is not None and not agrees(wanted, text, block.within):
                    differences.append(Difference(page, block, text))
    finally:
        # what a page made of models is gone before the next page begins
        session.names.clear()
        gc.collect()
        os.chdir(before)
        shutil.rmtree(folder, ignore_errors=True)
        for name, value in columns.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    return differences, printed


def write_outputs(page: Path, differences: list[Difference]) -> None:
    """Write into a page what was printed where it says something else, from the last such place to the first."""
    lines = page.read_text(encoding="utf-8").split("\n")
    for difference in reversed(differences):
        block = difference.block
        if block.expected is None or difference.reason:
            continue
        start, end = block.lines
        shown = difference.printed.rstrip().split("\n") if difference.printed.strip() else []
        lines[start:end] = [(block.indent + line).rstrip() for line in shown]
    page.write_text("\n".join(lines), encoding="utf-8")


def main() -> None:
    """The command line of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--write", action="store_true", help="write down what was printed where it differs")
    given = parser.parse_args()
    failed = False
    for page in given.pages:
        differences, _ = run_page(page)
        for difference in differences:
            print(difference)
        if given.write:
            write_outputs(page, differences)
        failed = failed or any(d.reason or not given.write for d in differences)
    sys.exit(failed)


if __name__ == "__main__":
    main()
