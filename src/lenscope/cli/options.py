"""What the commands share: options and their values, and what is printed where.

Knows: how layers, positions and amounts are written on a command line, progress on stderr, JSON on stdout.
Does not know: any command.
"""

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from lenscope.errors import LenscopeError
from lenscope.files.text_files import lines
from lenscope.visible_text import plain

if TYPE_CHECKING:
    from lenscope.lenses.trajectory import Trajectory
    from lenscope.models.language_model import LM

Model = Annotated[str, typer.Option("--model", "-m", help="Built-in alias, hub id, folder or .gguf file.")]
Dtype = Annotated[str | None, typer.Option(help="float32, float64, bfloat16, float16; default: the checkpoint's own.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, auto …: where the model goes (transformers' device_map).")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")]
Attention = Annotated[str | None, typer.Option("--attn", help="Attention backend: eager, sdpa, flash_attention_2 …")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable result on stdout, nothing else.")]
Transferred = Annotated[
    bool, typer.Option("--transferred", help="The lens was fitted for another model of the same size: use it anyway.")
]

DEFAULT_MODEL = "smollm2-135m"


class Stopped(Exception):
    """A command was interrupted and has kept what it says: exit status 130."""


def load_model(model: str, dtype: str | None, device: str | None, revision: str | None, attention: str | None) -> "LM":
    """Load a model as the options say."""
    if dtype not in (None, "float32", "float64", "bfloat16", "float16"):
        raise LenscopeError(f"--dtype {dtype}: give float32, float64, bfloat16 or float16")
    from lenscope.models.loading import load

    return load(model, dtype=dtype, device_map=device, revision=revision, attn_implementation=attention)


def texts(prompts: list[str], file: str | None) -> list[str]:
    """The prompts of a command: its arguments, and the lines of a file."""
    texts = list(prompts)
    if file is not None:
        texts += [line for line in lines(file) if line.strip()]
    if not texts:
        raise LenscopeError("no prompt: give one as an argument, or several with --file FILE (- for stdin)")
    return texts


def numbers(text: str | None, name: str) -> list[int | slice] | None:
    """0,6,12 or 0:31:5, also mixed: integers and slices."""
    if text is None:
        return None
    found: list[int | slice] = []
    for part in text.split(","):
        # more digits than any layer or position has are no number but a slip, and Python refuses thousands of them
        if re.fullmatch(r"\s*-?\d{1,12}\s*", part):
            found.append(int(part))
        elif re.fullmatch(r"\s*(-?\d{1,12})?:(-?\d{1,12})?(:[1-9]\d{,11})?\s*", part):
            found.append(slice(*(int(n) if n.strip() else None for n in part.split(":"))))
        else:
            raise LenscopeError(f"--{name} {_short(text)}: give numbers and ranges such as 12 or 0,6,12 or 0:31:5")
    return found


def resolve(numbers: list[int | slice], n_layers: int) -> list[int]:
    """Layer numbers of ranges."""
    found: list[int] = []
    for n in numbers:
        found += [n] if isinstance(n, int) else range(n_layers + 1)[n]
    return found


def places(text: str | None, name: str = "positions", prompts: Sequence[str] = ()) -> Any:
    """Positions as the library takes them: what is not a list of numbers or a range is a substring.

    A list without blanks that one of the prompts has in it, such as 2,000, is that substring (with a blank behind the
    comma it is a list), and so is whatever stands in quotes of its own.
    """
    if text is None:
        return None
    shared = any(text in prompt for prompt in prompts)
    quoted = re.fullmatch(r"""(["'])(.+)\1""", text, re.DOTALL)
    if quoted and not shared:
        return [quoted[2]]
    if (
        not re.fullmatch(r"[-\d:,\s]+", text)
        or re.search(r",0\d", text)
        or (shared and re.fullmatch(r"\d+(,\d+)+", text))
    ):
        return [text]
    found = numbers(text, name) or []
    if len(found) == 1 and isinstance(found[0], slice):
        return found[0]
    if any(isinstance(n, slice) for n in found):
        raise LenscopeError(f"--{name} {_short(text)}: give a list such as 0,2,4 or one range such as -5:")
    return found


def amount(text: str, name: str) -> int:
    """A number of tokens: 8192, 100_000, 200k or 1.5M."""
    found = re.fullmatch(r"(\d{1,15}(?:_\d{1,15}){,5}(?:\.\d{1,15})?)([kKmM]?)", text)
    value = float(found[1]) * {"": 1, "k": 10**3, "m": 10**6}[found[2].lower()] if found else 0.0
    if value < 1 or value != int(value):
        raise LenscopeError(
            f"--{name} {_short(text)}: give a whole number from 1 on, such as 8192, 100_000, 200k or 1M"
        )
    return int(value)


def headline(lm: "LM", what: str, width: int, method: str = "logit lens") -> Text:
    """What is shown, of which model, in one line."""
    kind = f"{lm.n_layers} layers, {str(lm.dtype).removeprefix('torch.')}"
    line = Text.assemble((plain(method), "bold"), (f"  {plain(lm.name)}, {kind}  ", "dim"), plain(what))
    line.truncate(width, overflow="ellipsis")
    return line


def rising(t: "Trajectory") -> Text:
    """The target's way up at the last position: rank and probability at the layers where its rank changes most."""
    token = t.vocabulary[t.target] if t.target is not None else ""
    ranks = t.rank[:, -1]
    steps = [0, *(i for i in range(1, len(ranks)) if ranks[i] < ranks[:i].min())]
    line = Text(f"\n{token.strip()!r} at the last position, rank (0 is the top) by layer: ")
    for i in steps:
        probability = float(math.exp(-t.cross_entropy[i, -1]))
        line.append(f"  {t.layers[i]}: ", style="dim")
        line.append(f"{ranks[i]}" + (f" ({probability:.0%})" if probability >= 0.005 else ""))
    return line


def _short(text: str) -> str:
    """What was given, in one line of at most 60 characters."""
    shown = plain(text)
    return shown if len(shown) <= 60 else shown[:59] + "…"
