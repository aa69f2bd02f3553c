"""The command of swaps: what a model says when one token's direction takes the place of another's in its states.

Knows: options, which of them go together, what is printed and saved. Does not know: how states are edited.
"""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from lenscope.cli.options import (
    DEFAULT_MODEL,
    CommonOptions,
    Model,
    Transferred,
    TunedLens,
    common_options,
    open_lens,
    parse_indices,
    parse_positions,
    resolve_layers,
)
from lenscope.cli.streams import flush, print_json, tell
from lenscope.cli.terminal import Screen, headline, show
from lenscope.cli.validation import (
    require_effect,
    require_lens,
    require_model,
    require_name,
    require_seed,
    require_writable,
)
from lenscope.errors import LenscopeError
from lenscope.visible_text import printable

if TYPE_CHECKING:
    from lenscope.interventions.token_edit_results import EditEffects

# controls that run where no number is given, and tokens listed of each run
N_CONTROLS, TOP = 8, 3


@common_options()
def swap_command(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The prompt whose states are changed.")],
    source: Annotated[
        str, typer.Argument(metavar="FROM", help='The token whose direction is taken out, such as " France".')
    ],
    replacement: Annotated[str, typer.Argument(metavar="TO", help="The token whose direction takes its place.")],
    lens: TunedLens = None,
    transferred: Transferred = False,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Layers that are changed: 12, a list 6,12 or a range 8:21 (without its end); default: the middle two "
            "thirds."
        ),
    ] = None,
    positions: Annotated[
        str | None,
        typer.Option(
            help="Positions that are changed: 3, -1, a list 0,2,4, a range -5: or a substring of the prompt; default: "
            "all."
        ),
    ] = None,
    answer: Annotated[
        str | None,
        typer.Option(help="Token that answers the prompt; default: the model's own next token."),
    ] = None,
    swap_answer: Annotated[
        str | None, typer.Option("--swap-answer", help="Token that would answer it if FROM were TO.")
    ] = None,
    controls: Annotated[
        int, typer.Option("--controls", help="Controls that run: other changes of the same size.")
    ] = N_CONTROLS,
    control: Annotated[
        str | None,
        typer.Option(help="Kind of the controls: random directions, or those of a random-token; default: random."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of what controls draw; default: 0.")] = None,
    model: Model = DEFAULT_MODEL,
    output: Annotated[str | None, typer.Option("-o", "--output", help="Save the result to this .json file.")] = None,
    *,
    common: CommonOptions,
) -> None:
    """Swap one token's direction for another's in a model's states, and show what it says then.

    At every layer of a band the component of each state along FROM's direction is put along TO's instead. A direction
    is what raises a token's logit through a lens, such as a Jacobian lens. The table has the next tokens before and
    after, and those of controls: changes as long at every layer and position, along other directions. By default the
    middle two thirds of the layers are changed: below them lenses read little, above them a change writes the answer.

    \b
    Examples:
      lenscope swap "The capital of France is the city of" " France" " Italy" --answer " Paris" --swap-answer " Rome"
      lenscope swap "The Eiffel Tower is in the city of" " France" " Italy" --lens jlens --layers 10:21 --controls 20
    """
    chosen = parse_indices(layers, "layers")
    places = parse_positions(positions, prompts=[prompt])
    require_effect("--transferred", transferred, lens is not None, "applies to --lens")
    require_effect("--control", control, controls > 0, "there are no controls; give --controls as well")
    require_effect("--seed", seed, controls > 0, "there are no controls; give --controls as well")
    require_seed(seed or 0)
    require_name("--control", control or "random", ("random", "random-token"))
    if controls < 0:
        raise LenscopeError(f"--controls {controls}: give 0 or more")
    require_writable(output, (".json",))
    require_model(common.model)
    if lens is not None:
        require_lens(lens, transferred)
    common.require_one_process("states are changed in one process")
    lm = common.load()
    from lenscope.interventions.token_edit_effects import swap_effects
    from lenscope.lenses.lens import Lens

    chosen_lens = Lens(lm, None if lens is None else open_lens(lens, lm, transferred))
    answers: list[str | int] | None = [a for a in (answer, swap_answer) if a is not None] or None
    if answer is None and swap_answer is not None:
        own = lm.unembed(lm.read(prompt, lm.n_layers, -1)[lm.n_layers, -1]).argmax()
        answers = [int(own), swap_answer]
    effects = swap_effects(
        chosen_lens,
        prompt,
        source,
        replacement,
        answers,
        layers=None if chosen is None else resolve_layers(chosen, lm.n_layers),
        positions=places,
        controls=controls,
        control=(control or "random").replace("-", " "),
        seed=seed or 0,
        top_k=min(TOP, lm.vocab_size),
    )
    if common.as_json:
        print_json(effects.to_json())
    else:
        console = Screen()
        console.print(headline(lm, prompt, console.width, f"{effects.prompts[0].edit}, {effects.lens}"))
        show(console, effects.table())
        for line in _caption(effects):
            console.print(Text(printable(line), style="dim"))
    if output is not None:
        flush()
        effects.save(output)
        tell(f"saved {output}")


def _caption(effects: "EditEffects") -> list[str]:
    """What was changed and by how much, and what it did to the answers beside its controls, in a few lines."""
    from lenscope.models.layers import layers_in_words

    one = effects.prompts[0]
    places = len(one.places)
    lines = [
        f"{layers_in_words(effects.layers)} at {places} of {len(one.tokens)} positions; change: "
        f"{float(effects.relative_size.mean()):.1%} of a state's length in the mean; rank 0 is the top"
    ]
    for k, text in enumerate(one.answers):
        line = f"ln p({text!r}): {effects.change(k).value:+.2f} nats by the swap"
        if effects.n_controls:
            line += f", {effects.control_change(k).value:+.2f} by controls"
        if effects.n_controls > 1:
            excess = effects.excess(k)
            line += f"; {excess.value:+.2f} more than controls, 95 % over them {excess.low:+.2f} to {excess.high:+.2f}"
        lines.append(line)
    return lines
