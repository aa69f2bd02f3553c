"""The command of Patchscopes: what a model says that a hidden state means.

Knows: options, which of them go together, what is printed and saved. Does not know: how states are patched.
"""

from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from lenscope.cli.options import (
    DEFAULT_MODEL,
    CommonOptions,
    Contrast,
    Model,
    PageFile,
    ResultFile,
    common_options,
    parse_indices,
    parse_positions,
    require_contrast,
    resolve_layers,
)
from lenscope.cli.terminal import Screen, Stopped, progress_bar, show_and_save
from lenscope.cli.validation import (
    did_you_mean,
    require_effect,
    require_mapping,
    require_model,
    require_name,
    require_verbaliser,
    require_writable,
)
from lenscope.errors import LenscopeError
from lenscope.visible_text import printable

if TYPE_CHECKING:
    from lenscope.models.hidden_states import HiddenStates
    from lenscope.patchscopes.patchscope import Patchscope

# tokens that are written where no number is given
WRITTEN = 12


@common_options("revision")
def patch_command(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="The source prompt, whose hidden states are explained.")
    ],
    at: Annotated[str, typer.Option(help="Token to explain: a position, or a substring of the prompt.")] = "-1",
    target: Annotated[
        str,
        typer.Option(
            "--target",
            "-t",
            help="Prompt that states are patched into: entity, identity, a relation as country_currency, or a text.",
        ),
    ] = "entity",
    placeholder: Annotated[
        str | None,
        typer.Option(
            help="With a --target of your own: its position or substring that is patched; default: the last token."
        ),
    ] = None,
    grid: Annotated[
        bool, typer.Option("--grid", help="Patch every source layer into every target layer, and show the next tokens.")
    ] = False,
    layers: Annotated[
        str | None,
        typer.Option(help="Source layers: 12, a list 0,6,12 or a range 0:31:5 (without its end); default: all."),
    ] = None,
    target_layers: Annotated[
        str | None,
        typer.Option("--target-layers", help="Target layers, written as --layers; default: the layer of the source."),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens", "-n", help=f"Tokens that the model writes; default: {WRITTEN}. 0 shows its next tokens alone."
        ),
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends what is written; may be repeated.")] = None,
    answer: Annotated[
        list[str] | None,
        typer.Option(help="Answer whose probability is shown, as the next token or tokens; may be repeated."),
    ] = None,
    below: Annotated[
        str,
        typer.Option(
            help="What later tokens see of the patched position in layers below the patch: target, none or source."
        ),
    ] = "target",
    contrast: Contrast = 0.0,
    controls: Annotated[
        bool,
        typer.Option("--controls", help="Show beneath what the model writes without the state, and of random vectors."),
    ] = False,
    measure: Annotated[
        str | None, typer.Option(help="Measure that colours the table: max_probability, kl, entropy, surprisal, …")
    ] = None,
    model: Model = DEFAULT_MODEL,
    target_model: Annotated[
        str | None,
        typer.Option("--target-model", help="Another model that states are patched into; default: the same model."),
    ] = None,
    target_adapter: Annotated[
        str | None,
        typer.Option(
            "--target-adapter",
            help="An adapter that is on in the model that states are patched into, and not where they are read.",
        ),
    ] = None,
    mapping: Annotated[str | None, typer.Option(help="Folder of a fitted mapping between the two models.")] = None,
    verbaliser: Annotated[
        str | None,
        typer.Option(
            help="A trained verbaliser, whose map and target prompt are used, at its layers: a folder, or the "
            ".safetensors file of a SelfIE adapter."
        ),
    ] = None,
    output: ResultFile = None,
    html: PageFile = None,
    *,
    common: CommonOptions,
) -> None:
    """Ask the model in words what a hidden state means (Patchscopes).

    The state of one token, at every layer in turn, is written into another prompt, and the model goes on from there.

    \b
    Examples:
      lenscope patch "Diana, Princess of Wales"
      lenscope patch "Diana, Princess of Wales" --layers 0:31:6 --controls
      lenscope patch "The capital of France is the city of" -t identity -n 0 --answer " Paris"
    """
    predicts = grid or tokens == 0 or bool(answer)
    if tokens is not None and tokens < 0:
        raise LenscopeError(f"--tokens {tokens}: give at least 0")
    written = "tells next tokens, so that nothing is written"
    # 0 says as much as they do
    require_effect("--tokens", tokens or None, not grid, f"--grid {written}")
    require_effect("--tokens", tokens or None, not answer, f"--answer {written}")
    require_effect(
        "--stop", stop, not predicts, f"{'--grid' if grid else '--answer' if answer else '--tokens 0'} {written}"
    )
    require_effect("--controls", controls, not predicts, "compares what is written; --answer has pmi, and --grid kl")
    require_effect(
        "--controls", controls, not common.as_json, "shows texts beneath the table, and with --json there is none"
    )
    if any(not text for text in (*(stop or ()), *(answer or ()))):
        raise LenscopeError("--stop and --answer: an empty text is in every text; give one that is not")
    require_contrast(contrast)
    require_effect("--measure", measure, not common.as_json, "colours the table, and with --json there is none")
    if verbaliser is not None:
        usual = (("--target", target != "entity"), ("--below", below != "target"))
        others = (("--placeholder", placeholder), ("--mapping", mapping), ("--grid", grid))
        for option, value in (*usual, *others, ("--target-layers", target_layers)):
            require_effect(option, value, False, "--verbaliser has a target prompt, a layer and a map of its own")
    source_layers, chosen_layers = parse_indices(layers, "layers"), parse_indices(target_layers, "target-layers")
    where = parse_positions(at, "at", [prompt])
    require_writable(output, (".parquet", ".json"))
    require_writable(html, (".html",))
    require_model(model)
    if target_model is not None:
        require_model(target_model)
    if mapping is not None:
        require_mapping(mapping)
    if verbaliser is not None:
        require_verbaliser(verbaliser)
    from lenscope.patchscopes.grid_cells import ANSWERS, MEASURES
    from lenscope.patchscopes.methods import TARGETS
    from lenscope.patchscopes.patchscope import Patchscope, SweepInterrupted
    from lenscope.patchscopes.target_prompts import BELOW, Target

    if below not in BELOW:
        raise LenscopeError(f"--below {below}: give one of {', '.join(BELOW)}{did_you_mean(below, BELOW)}")
    # a text that is nearly a name is a mistyped one, and would be read as a target prompt
    if target not in TARGETS and get_close_matches(target, TARGETS, 1, 0.75):
        names = f"there are {', '.join(TARGETS)}; or give a target prompt of your own"
        raise LenscopeError(f"--target {target}: {names}{did_you_mean(target, TARGETS)}")
    require_effect(
        "--placeholder",
        placeholder,
        target not in TARGETS,
        f"says what of a text of your own is patched, and {target} is a target prompt by name",
    )
    one = (
        TARGETS[target]
        if target in TARGETS
        else Target(target, at=parse_positions(placeholder or "-1", "placeholder", [target]))
    )
    if measure is not None:
        known = (
            [name for name in MEASURES if name != "mean_log_prob"] if predicts else ["mean_log_prob", "max_probability"]
        )
        require_name("measure", measure, [*known, *(f"{name}:{text}" for text in answer or () for name in ANSWERS)])

    if target_adapter is not None:
        from lenscope.models.adapter_files import read_adapter

        read_adapter(target_adapter)
    lm = common.load()
    other = replace(common, model=target_model, adapter=None).load() if target_model else lm
    if target_adapter is not None:
        from lenscope.models.adapters import with_adapter

        other = with_adapter(other, target_adapter)
    from lenscope.mappings.mapping import load_mapping
    from lenscope.models.layers import check_layers
    from lenscope.patchscopes.cell_scores import comparable

    if measure in ("surprisal", "precision") and not comparable(other, lm):
        raise LenscopeError(f"--measure {measure}: {lm.name} and {other.name} have no common vocabulary to compare in")
    if verbaliser is not None:
        from lenscope.verbalisers.selfie_prompts import open_verbaliser

        trained = open_verbaliser(verbaliser, other, lm if other is not lm else None)
        scope, stop = trained.scope(other, lm if other is not lm else None), stop or list(trained.stop)
        # those that it was trained on, where nothing is said
        read = resolve_layers(source_layers, lm.n_layers) if source_layers is not None else trained.layers or None
        states = trained.vectors(lm.read(prompt, read, where))
    else:
        scope = Patchscope(other, replace(one, below=below), load_mapping(mapping) if mapping else None, source_lm=lm)
        # all layers are read: the last one is the source model's own prediction, the lower ones may fill placeholders
        states = lm.read(prompt, positions=where)
    if verbaliser is not None:
        wanted: Any = None
    elif source_layers is not None:
        to = resolve_layers(chosen_layers, other.n_layers) if chosen_layers is not None else None
        every = check_layers(resolve_layers(source_layers, lm.n_layers), lm.n_layers, lm.name)
        targets = to if to is not None else range(other.n_layers + 1) if grid else None
        wanted = [(a, b) for a in every for b in (targets if targets is not None else [a])]
    elif chosen_layers is not None:
        wanted = resolve_layers(chosen_layers, other.n_layers)
    else:
        wanted = None if grid else "same"
    left = ""
    try:
        with progress_bar("cells") as advance:
            if predicts:
                result = scope.predict(states, wanted, answers=answer or (), contrast=contrast, progress=advance)
            else:
                how: Any = {"max_new_tokens": WRITTEN if tokens is None else tokens, "stop": tuple(stop or ())}
                how["contrast"] = contrast
                result = scope.generate(states, wanted, progress=advance, **how)
    except SweepInterrupted as partial:
        if partial.grid is None:
            raise
        result = partial.grid
        left = f"interrupted: {len(result)} cells done; they are {'kept' if output else 'shown'}"
    show_and_save(result, scope.lm, f"{prompt!r}", "patchscope", measure or "", common.as_json, output, html)
    if left:
        raise Stopped(left)
    if controls:
        _show_controls(scope, states, wanted, measure or "", how)


def _show_controls(scope: "Patchscope", states: "HiddenStates", layers: Any, measure: str, how: dict[str, Any]) -> None:
    """What the target prompt says without a state, and of random vectors that are as long as the states."""
    from lenscope.patchscopes.controls import random_vectors

    with progress_bar("cells") as advance:
        random = scope.generate(random_vectors(states), layers, progress=advance, **how)
    ((target, _),) = scope.resolved
    plain = scope.lm.generate(target, how["max_new_tokens"]).text
    for end in how["stop"]:
        plain = plain.partition(end)[0]
    console = Screen()
    console.print("")
    console.print(Text(f"without the state it says: {printable(plain)}"))
    console.print(Text("random vectors, as long as the states:"))
    table = random.table(measure, width=console.width)
    # it says what the one above says
    table.caption = None
    console.print(table)
