"""The command of causal bases: what matters most to a lens at each layer, what it promotes, whether the model agrees.

Knows: options, which text is read where none is given, what is printed and saved.
Does not know: how directions are found (causal.py) or ablated in the model (ablation.py).
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from lenscope.cli.fit import TUNED, Data, Field, Seed, check_text, opened
from lenscope.cli.given import known_lens, known_model, make_folder, only
from lenscope.cli.options import (
    DEFAULT_MODEL,
    AsJson,
    Attention,
    Device,
    Dtype,
    Model,
    Revision,
    Transferred,
    amount,
    headline,
    load_model,
    numbers,
    resolve,
)
from lenscope.cli.screen import Screen, counted, show
from lenscope.cli.streams import flush, print_json, tell
from lenscope.errors import LenscopeError
from lenscope.visible_text import plain

if TYPE_CHECKING:
    from lenscope.directions.basis import Basis
    from lenscope.directions.influence import Influence
    from lenscope.models.language_model import LM

# tokens that directions are found on, and as many that their influence is measured on; tokens of a row
TOKENS, LENGTH = "1024", 128
# layers that are read where none are asked for, lines of a layer's table, tokens shown of a direction
LAYERS, LINES, TOP = 5, 10, 5


def causal(
    lens: Annotated[str | None, typer.Option("--lens", help=TUNED)] = None,
    transferred: Transferred = False,
    data: Data = None,
    field: Field = None,
    layers: Annotated[
        str | None, typer.Option(help="Which layers: 12, 0,6,12 or 0:31:5 (end not included); default: five of them.")
    ] = None,
    k: Annotated[int, typer.Option("--k", "-k", help="How many directions per layer.")] = 16,
    tokens: Annotated[
        str,
        typer.Option(help="How many tokens directions are found on; their influence is measured on as many others."),
    ] = TOKENS,
    seed: Seed = 0,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="A folder for the basis and influence.json.")
    ] = None,
    model: Model = DEFAULT_MODEL,
    as_json: AsJson = False,
    dtype: Dtype = None,
    device: Device = None,
    revision: Revision = None,
    attention: Attention = None,
) -> None:
    """The directions of each layer that matter most to a lens, what they promote, and whether they matter to the model.

    The causal basis of Belrose et al. 2023, §4.1: directions whose ablation changes the lens's predictions most. Their
    influence on lens and model is measured on text that they were not found on; fidelity is its rank correlation.
    """
    wanted, chosen = amount(tokens, "tokens"), numbers(layers, "layers")
    if k < 1:
        raise LenscopeError(f"--k {k}: give at least 1")
    only("--transferred", transferred, lens is not None, "applies to --lens")
    check_text(data, field, None, seed)
    known_model(model)
    if lens is not None:
        known_lens(lens, transferred)
    if output is not None:
        make_folder(output)
    lm = load_model(model, dtype, device, revision, attention)
    from lenscope.directions.causal_basis import causal_basis, promoted
    from lenscope.directions.influence import influence
    from lenscope.files.writing import write_text
    from lenscope.lenses.lens import Lens, lens_layers
    from lenscope.text.corpus import Corpus

    f = None if lens is None else opened(lens, lm, transferred)
    every = lens_layers(Lens(lm, f), None if chosen is None else resolve(chosen, lm.n_layers))
    at = every if chosen is not None else every[:: max(1, -(-len(every) // LAYERS))]
    given = None if not data else data[0] if len(data) == 1 else [Path(d) for d in data]
    corpus = Corpus.open(lm, given, field=field or "text", seed=seed)
    corpus = replace(corpus, length=min(LENGTH, corpus.length))
    found, measured = (list(part.batches(wanted, 8)) for part in corpus.split(0.5))
    with counted("layers") as advance:
        basis = causal_basis(lm, found, f, at, k=k, seed=seed, progress=advance)
    with counted("rows ablated") as advance:
        made = influence(lm, measured, basis, f, progress=advance)
    words = _words(lm, basis, promoted(lm, basis, f, top=TOP))
    result = made.to_json() | {"promotes": words, "corpus": corpus.provenance()}
    if as_json:
        print_json(result)
    else:
        _show(lm, made, words, corpus.name)
    if output is not None:
        flush()
        basis.save(output)
        write_text(Path(output) / "influence.json", json.dumps(result, ensure_ascii=False))
        tell(f"saved {output}")


def _words(lm: "LM", basis: "Basis", ids: Any) -> list[list[list[str]]]:
    """The tokens that each direction promotes, per layer."""
    return [[lm.encoder.tokens(direction[0].tolist()) for direction in ids[i]] for i in range(len(basis.layers))]


def _show(lm: "LM", made: "Influence", words: list[list[list[str]]], text: str) -> None:
    console = Screen()
    console.print(headline(lm, f"on {text}", console.width, f"causal basis, {made.basis.lens}"))
    fidelity = made.fidelity()
    for i, layer in enumerate(made.layers):
        line = Text(f"\nlayer {layer}", style="bold")
        line.append(f"  fidelity {fidelity[i]}" if made.basis.k > 2 else "", style="not bold")
        console.print(line)
        show(console, made.table(layer, words[i], limit=LINES))
    told = f"energy and influences: KL in nats of ablating a direction, mean of {int(made.counts.sum()):,} tokens that "
    told += "directions were not found on (energy: found on); fidelity: Spearman correlation of influence on lens and "
    told += "model, 95 % over directions"
    told += f"; {LINES} of {made.basis.k} directions are shown" if made.basis.k > LINES else ""
    console.print(Text(plain(told), style="dim"))
