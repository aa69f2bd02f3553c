"""The command of causal bases: what matters most to a lens at each layer, what it promotes, whether the model agrees.

Knows: options, which text is read where none is given, what is printed and saved.
Does not know: how directions are found (directions/causal_basis.py) or ablated in the model (directions/influence.py).
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from lenscope.cli.options import (
    CommonOptions,
    Data,
    Field,
    Seed,
    Transferred,
    TunedLens,
    common_options,
    open_corpus,
    open_lens,
    parse_amount,
    parse_indices,
    resolve_layers,
)
from lenscope.cli.streams import flush, print_json, tell
from lenscope.cli.terminal import Screen, headline, progress_bar, show
from lenscope.cli.validation import make_folder, require_corpus, require_effect, require_lens, require_model
from lenscope.errors import LenscopeError
from lenscope.visible_text import printable

if TYPE_CHECKING:
    from lenscope.directions.basis import Basis
    from lenscope.directions.influence import Influence
    from lenscope.models.language_model import LM

# tokens that directions are found on, and as many that their influence is measured on; tokens of a row
TOKENS, LENGTH = "1024", 128
# layers that are read where none are asked for, lines of a layer's table, tokens shown of a direction
LAYERS, LINES, TOP = 5, 10, 5


@common_options()
def causal_command(
    lens: TunedLens = None,
    transferred: Transferred = False,
    data: Data = None,
    field: Field = None,
    layers: Annotated[
        str | None,
        typer.Option(help="Layers to read: 12, a list 0,6,12 or a range 0:31:5 (without its end); default: five."),
    ] = None,
    k: Annotated[int, typer.Option("--k", "-k", help="Directions per layer.")] = 16,
    tokens: Annotated[
        str,
        typer.Option(help="Tokens to find the directions on; their influence is measured on as many others."),
    ] = TOKENS,
    seed: Seed = 0,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="Folder that the directions and influence.json are written to.")
    ] = None,
    *,
    common: CommonOptions,
) -> None:
    """Find the directions of each layer that matter most to a lens.

    This is the causal basis of Belrose et al. 2023, §4.1: directions whose ablation changes the lens's predictions
    most. Their influence on the lens and on the model is measured on other text; fidelity is the rank correlation of
    the two. The table also shows which tokens a direction promotes.

    \b
    Example:
      lenscope causal --lens lens --data texts.jsonl
    """
    wanted, chosen = parse_amount(tokens, "tokens"), parse_indices(layers, "layers")
    if k < 1:
        raise LenscopeError(f"--k {k}: give at least 1")
    require_effect("--transferred", transferred, lens is not None, "applies to --lens")
    require_corpus(data, field, None, seed)
    require_model(common.model)
    if lens is not None:
        require_lens(lens, transferred)
    if output is not None:
        make_folder(output)
    lm = common.load()
    from lenscope.directions.causal_basis import causal_basis, promoted
    from lenscope.directions.influence import influence
    from lenscope.files.writing import write_text
    from lenscope.lenses.lens import Lens, lens_layers

    f = None if lens is None else open_lens(lens, lm, transferred)
    every = lens_layers(Lens(lm, f), None if chosen is None else resolve_layers(chosen, lm.n_layers))
    at = every if chosen is not None else every[:: max(1, -(-len(every) // LAYERS))]
    corpus = open_corpus(lm, data, field, seed=seed)
    corpus = replace(corpus, length=min(LENGTH, corpus.length))
    basis_rows, influence_rows = (list(part.batches(wanted, 8)) for part in corpus.split(0.5))
    with progress_bar("layers") as advance:
        basis = causal_basis(lm, basis_rows, f, at, k=k, seed=seed, progress=advance)
    with progress_bar("rows ablated") as advance:
        influences = influence(lm, influence_rows, basis, f, progress=advance)
    words = _promoted_tokens(lm, basis, promoted(lm, basis, f, top=TOP))
    result = influences.to_json() | {"promotes": words, "corpus": corpus.provenance()}
    if common.as_json:
        print_json(result)
    else:
        _show_influences(lm, influences, words, corpus.name)
    if output is not None:
        flush()
        basis.save(output)
        write_text(Path(output) / "influence.json", json.dumps(result, ensure_ascii=False))
        tell(f"saved {output}")


def _promoted_tokens(lm: "LM", basis: "Basis", ids: Any) -> list[list[list[str]]]:
    """The tokens that each direction promotes, per layer."""
    return [[lm.encoder.tokens(direction[0].tolist()) for direction in ids[i]] for i in range(len(basis.layers))]


def _show_influences(lm: "LM", influences: "Influence", words: list[list[list[str]]], text: str) -> None:
    console = Screen()
    console.print(headline(lm, f"on {text}", console.width, f"causal basis, {influences.basis.lens}"))
    fidelity = influences.fidelity()
    for i, layer in enumerate(influences.layers):
        line = Text(f"\nlayer {layer}", style="bold")
        line.append(f"  fidelity {fidelity[i]}" if influences.basis.k > 2 else "", style="not bold")
        console.print(line)
        show(console, influences.table(layer, words[i], limit=LINES))
    caption = (
        f"energy and influences: KL in nats of ablating a direction, mean of {int(influences.counts.sum()):,} tokens "
        "that directions were not found on (energy: found on); fidelity: Spearman correlation of influence on lens and "
        "model, 95 % over directions"
    )
    caption += f"; {LINES} of {influences.basis.k} directions are shown" if influences.basis.k > LINES else ""
    console.print(Text(printable(caption), style="dim"))
