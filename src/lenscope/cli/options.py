"""What a command line asks for: the options that commands share, and how layers, positions and amounts are written.

Knows: the words of options, which model, lens and text they name. Does not know: any command, what is shown.
"""

import inspect
import re
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lenscope.cli.streams import first_process, several_processes, tell
from lenscope.errors import LenscopeError
from lenscope.visible_text import printable

if TYPE_CHECKING:
    from lenscope.mappings.mapping import PairMapping
    from lenscope.models.language_model import LM
    from lenscope.models.progress import Progress
    from lenscope.text.corpus import Corpus

Model = Annotated[
    str, typer.Option("--model", "-m", help="The model to read: a built-in name, a hub id, a folder or a .gguf file.")
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="Number format of the weights: float32, float64, bfloat16 or float16; default: as they are saved."
    ),
]
Device = Annotated[
    str | None, typer.Option(help="Device that the weights go to: cpu, cuda, or auto for all devices; default: cpu.")
]
Placement = Annotated[
    str,
    typer.Option(
        help="How the model is spread: whole, auto (all devices, then memory and disk); under torchrun fsdp, tensor."
    ),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the hub; default: main.")]
Attention = Annotated[
    str | None,
    typer.Option(
        "--attn", help="Attention implementation of transformers: eager, sdpa, …; default: transformers' choice."
    ),
]
Adapter = Annotated[
    str | None,
    typer.Option(help="An adapter, such as a LoRA, that is on in the model: a folder that peft saved, or a hub id."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else.")]

Prompts = Annotated[list[str] | None, typer.Argument(metavar="PROMPT", help="One prompt or several.")]
Layers = Annotated[
    str | None,
    typer.Option(help="Layers to read: 12, a list 0,6,12 or a range 0:31:5 (without its end); default: all."),
]
ResultFile = Annotated[
    str | None, typer.Option("-o", "--output", help="Save the result to this .parquet or .json file.")
]
PageFile = Annotated[
    str | None, typer.Option("--html", help="Save the result to this .html file, a page that works offline.")
]

TUNED = "A fitted lens: a folder, a file or a hub repository; default: the logit lens."
TunedLens = Annotated[str | None, typer.Option("--lens", help=TUNED)]
Lenses = Annotated[
    list[str] | None,
    typer.Option(
        "--lens",
        help=f"{TUNED[:-1]}. Repeat it to see several beside each other, also as NAME=LENS; logit is the logit lens.",
    ),
]
Transferred = Annotated[
    bool, typer.Option("--transferred", help="Use the lens although it was fitted for another model of the same size.")
]

Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data", "-d", help="Text to read: a file, a folder, a pattern or a hub data set; files may be repeated. "
        "Default: text that the model writes itself."
    ),
]  # fmt: skip
Field = Annotated[
    str | None, typer.Option(help="Name of the field or column that has the text; default: text.")
]  # fmt: skip
Length = Annotated[
    int | None, typer.Option(help="Tokens per row of text; default: 512, or the model's context if shorter.")
]
Stream = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="Read the model's blocks from disk one at a time, for a model larger than memory.",
    ),
]
Seed = Annotated[
    int, typer.Option(help="Seed of everything that is drawn: order of texts, held-out texts, samples, intervals.")
]

Contrast = Annotated[
    float,
    typer.Option(
        help="α, from 0 to 1000: choose tokens from (1 + α) · patched - α · unpatched logits, so that what the prompt "
        "says of itself counts less. 0: not at all."
    ),
]

DEFAULT_MODEL = "smollm2-135m"


@dataclass(frozen=True)
class CommonOptions:
    """The options that commands end with: which model they read, how it is loaded, and how they print results."""

    model: Model = DEFAULT_MODEL
    as_json: AsJson = False
    dtype: Dtype = None
    device: Device = None
    revision: Revision = None
    attention: Attention = None
    placement: Placement = "whole"
    adapter: Adapter = None
    # what ends with the command: models that are divided among processes
    opened: ExitStack = field(default_factory=ExitStack, compare=False)

    def load_in_blocks(self, progress: "Progress | None", *, identify: bool = False) -> "LM":
        """Load the model but for its blocks, which are read from disk as they run; LenscopeError as `load`."""
        for option, value, usual in (("device", self.device, "cpu"), ("placement", self.placement, "whole")):
            if value not in (None, usual):
                raise LenscopeError(f"--{option} {value}: --stream runs in one process, on the CPU; leave it out")
        if self.adapter is not None:
            raise LenscopeError(f"--adapter {self.adapter}: --stream takes no adapter; leave it out")
        if several_processes():
            raise LenscopeError("--stream: runs in one process; run it without torchrun")
        self._require_known()
        from lenscope.models.streamed_loading import load_streamed

        how: dict[str, Any] = {"dtype": self.dtype, "attn_implementation": self.attention, "identify": identify}
        return load_streamed(self.model, revision=self.revision, progress=progress, **how)

    def _require_known(self) -> None:
        """LenscopeError for a dtype or an attention that there is not, and a device that this machine lacks."""
        require_dtype_option(self.dtype)
        from lenscope.models.load_options import require_load_options

        try:
            require_load_options({"device_map": self.device, "attn_implementation": self.attention})
        except LenscopeError as error:
            raise LenscopeError(f"--{str(error).replace('attn_implementation', 'attn')}") from error

    @property
    def model_again(self) -> str:
        """The options that name the same model once more, as a command line has them; "" for the default."""
        model = "" if self.model == DEFAULT_MODEL else f" -m {self.model}"
        return model + ("" if self.adapter is None else f" --adapter {self.adapter}")

    def load(self) -> "LM":
        """Load the model; LenscopeError for a dtype or device that there is not, and a model that cannot be read."""
        self._require_known()
        if self.adapter is None:
            return self._load_model()
        from lenscope.models.adapter_files import read_adapter
        from lenscope.models.adapters import with_adapter

        # what is wrong with it is told before the model is loaded
        read_adapter(self.adapter)
        return with_adapter(self._load_model(), self.adapter)

    def _load_model(self) -> "LM":
        """The model without `adapter`."""
        how: dict[str, Any] = {"dtype": self.dtype, "attn_implementation": self.attention, "revision": self.revision}
        from lenscope.models.loading import load, to_unpack

        where = to_unpack(self.model) if self.revision is None else None
        if where is not None:
            tell(f"first use of {self.model}: unpacking it into {where}, once")
        if self.placement == "whole" and not several_processes():
            return load(self.model, device_map=self.device, **how)
        from lenscope.distributed.placement import placed

        try:
            return self.opened.enter_context(placed(self.model, self.placement, device=self.device, **how))
        except LenscopeError as error:
            raise LenscopeError(f"--{error}" if str(error).startswith("placement ") else str(error)) from error

    def require_one_process(self, why: str) -> None:
        """Raise LenscopeError for a model that is divided among processes, for a command that only one can do."""
        if self.placement not in ("whole", "auto"):
            raise LenscopeError(f"--placement {self.placement}: {why}; give whole or auto")


def require_dtype_option(dtype: str | None) -> None:
    """Raise LenscopeError for a number format that is none of those of weights, naming the one that was meant."""
    if dtype not in (None, "float32", "float64", "bfloat16", "float16"):
        from lenscope.models.load_options import dtype_refusal

        raise LenscopeError(f"--{dtype_refusal(dtype)}")


def common_options(*without: str, all_write: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of `CommonOptions`, which its last parameter, `common`, holds.

    Of several processes that torchrun started only the first one writes its results where they are wanted, unless the
    command sees to that itself (`all_write`).

    They stand behind the command's own ones, but where the command itself has a parameter of the same name: that one
    stands where the command has it, and is in `common` too. Those in `without` are not offered.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        *own, _ = inspect.signature(command).parameters.values()
        names = [p.name for p in own]
        shared = [p for p in inspect.signature(CommonOptions).parameters.values() if p.name not in ("opened", *without)]

        @wraps(command)
        def called(**values: Any) -> None:
            common = CommonOptions(**{p.name: values[p.name] for p in shared})
            with common.opened:
                if not all_write and several_processes() and not first_process():
                    aside = Path(common.opened.enter_context(tempfile.TemporaryDirectory()))
                    for name in {"output", "html"} & {n for n in names if values[n]}:
                        values[name] = str(aside / Path(values[name]).name)
                command(**{name: values[name] for name in names}, common=common)

        signed: Any = called
        signed.__signature__ = inspect.Signature([*own, *(p for p in shared if p.name not in names)])
        return called

    return decorate


def open_lens(where: str, lm: "LM", transferred: bool = False) -> "PairMapping":
    """Open the lens that a command line names; `transferred`: of another model, in a folder that lenscope saved."""
    from lenscope.mappings.lens_files import load_lens
    from lenscope.mappings.mapping import load_mapping

    if not transferred:
        lens = load_lens(where, lm)
        if isinstance(unfinished := lens.report.get("unfinished"), str):
            tell(f"{where}: {unfinished}")
        return lens
    if not Path(where).is_dir():
        raise LenscopeError(f"{where}: no such folder; --transferred takes one that lenscope fit wrote")
    return load_mapping(where).transferred(lm)


def places_by_name(lenses: Sequence[str]) -> dict[str, str]:
    """The places of lenses by name: NAME=LENS, or a lens that is named after the end of its place."""
    places: dict[str, str] = {}
    for text in lenses:
        own_name, where = name_and_place(text)
        name = Path(text).name if own_name is None else own_name
        if not name or not where or name in ("logit lens", *places):
            raise LenscopeError(f"--lens {text}: give each lens a name of its own, as NAME={where or 'LENS'}")
        places[name] = where
    return places


def name_and_place(lens: str) -> tuple[str | None, str]:
    """The name and the place of NAME=LENS; a lens without a name has None."""
    name, equal, where = lens.partition("=")
    return (None, lens) if not equal or "/" in name or Path(lens).exists() else (name, where)


def open_corpus(lm: "LM", data: Sequence[str] | None, field: str | None, **how: Any) -> "Corpus":
    """Open the text of --data, or the model's own samples; `how` as `Corpus.open` takes it."""
    from lenscope.text.corpus import Corpus

    return Corpus.open(lm, data_source(data), field=field or "text", **how)


def data_source(data: Sequence[str] | None) -> Any:
    """The text of --data as `Corpus.open` takes it: None, a name, or several files."""
    return None if not data else data[0] if len(data) == 1 else [Path(d) for d in data]


def available_tokens(corpus: "Corpus", wanted: int, asked: bool) -> int:
    """How many tokens are read, known before the work begins: `wanted`, or what there is unless they were asked for."""
    from lenscope.text.documents import Shelf

    if not isinstance(corpus.documents, Shelf):
        return wanted
    available = 0
    try:
        for batch in corpus.batches(wanted, 64):
            available = batch.next_row * corpus.length
    except LenscopeError:
        if asked or not available:
            raise
    return min(wanted, available)


def parse_indices(text: str | None, name: str) -> list[int | slice] | None:
    """Read 0,6,12 or 0:31:5, also mixed, as integers and slices; LenscopeError for anything else."""
    if text is None:
        return None
    indices: list[int | slice] = []
    for part in text.split(","):
        # more digits than any layer or position has are no number but a slip, and Python refuses thousands of them
        if re.fullmatch(r"\s*-?\d{1,12}\s*", part):
            indices.append(int(part))
        elif re.fullmatch(r"\s*(-?\d{1,12})?:(-?\d{1,12})?(:[1-9]\d{,11})?\s*", part):
            indices.append(slice(*(int(n) if n.strip() else None for n in part.split(":"))))
        else:
            raise LenscopeError(f"--{name} {_shortened(text)}: give numbers and ranges such as 12 or 0,6,12 or 0:31:5")
    return indices


def resolve_layers(indices: list[int | slice], n_layers: int) -> list[int]:
    """Return the layer numbers that integers and slices stand for in a model of `n_layers` blocks.

    Raises LenscopeError for a slice that none of its layers is in.
    """
    from lenscope.models.layers import layers_of_slice

    layers: list[int] = []
    for n in indices:
        layers += [n] if isinstance(n, int) else layers_of_slice(n, n_layers, "the model")
    return layers


def parse_positions(text: str | None, name: str = "positions", prompts: Sequence[str] = ()) -> Any:
    """Read positions as the library takes them: what is not a list of numbers or a range is a substring.

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
    positions = parse_indices(text, name) or []
    if len(positions) == 1 and isinstance(positions[0], slice):
        return positions[0]
    if any(isinstance(n, slice) for n in positions):
        raise LenscopeError(f"--{name} {_shortened(text)}: give a list such as 0,2,4 or one range such as -5:")
    return positions


def parse_amount(text: str, name: str) -> int:
    """Read a number of tokens: 8192, 100_000, 200k or 1.5M; LenscopeError for what is no whole number from 1 on."""
    match = re.fullmatch(r"(\d{1,15}(?:_\d{1,15}){,5}(?:\.\d{1,15})?)([kKmM]?)", text)
    value = float(match[1]) * {"": 1, "k": 10**3, "m": 10**6}[match[2].lower()] if match else 0.0
    if value < 1 or value != int(value):
        raise LenscopeError(
            f"--{name} {_shortened(text)}: give a whole number from 1 on, such as 8192, 100_000, 200k or 1M"
        )
    return int(value)


def require_contrast(contrast: float) -> None:
    """Raise LenscopeError for a --contrast that is out of range."""
    if contrast:
        from lenscope.measures.contrasted_readout import contrast_weight

        try:
            contrast_weight(contrast)
        except LenscopeError as error:
            raise LenscopeError(f"--{error}") from error


def _shortened(text: str) -> str:
    """What was given, in one line of at most 60 characters."""
    shown = printable(text)
    return shown if len(shown) <= 60 else shown[:59] + "…"
