"""The command that asks a question about hidden states, beside what is answered without them.

Knows: options, what is printed. Does not know: how a question reaches a model, which controls there are.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lenscope.cli.options import (
    DEFAULT_MODEL,
    CommonOptions,
    Contrast,
    Model,
    Seed,
    common_options,
    parse_indices,
    parse_positions,
    require_contrast,
    resolve_layers,
)
from lenscope.cli.streams import print_json, tell
from lenscope.cli.terminal import Screen, headline, show
from lenscope.cli.validation import require_model, require_verbaliser
from lenscope.errors import LenscopeError

if TYPE_CHECKING:
    from lenscope.models.language_model import LM
    from lenscope.patchscopes.patchscope import Patchscope
    from lenscope.patchscopes.questions_about_states import StateReader


@common_options("revision")
def ask_command(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="The prompt whose hidden states the question is about.")
    ],
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="The question, in plain words.")],
    at: Annotated[
        list[str] | None,
        typer.Option(
            help="Token whose state is asked about: a position, or a substring of the prompt. Given several times, all "
            "of them are asked about together; default: the last token."
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Layers of the states, each asked about by itself: 12, a list 0,6,12 or a range 0:31:5 (without its "
            "end); default: at 25, 50 and 75 % of the depth, or a verbaliser's own."
        ),
    ] = None,
    oracle: Annotated[
        str | None,
        typer.Option(
            help="An Activation Oracle: a folder with an adapter of this model that was trained to answer questions "
            "about states. It is on while the question is asked, not while states are read."
        ),
    ] = None,
    verbaliser: Annotated[
        str | None,
        typer.Option(
            help="A trained verbaliser whose map writes the states into the question, at its layers: a folder, or the "
            ".safetensors file of a SelfIE adapter."
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", help="Tokens of an answer at most.")] = 20,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends an answer; may be repeated.")] = None,
    contrast: Contrast = 0.0,
    seed: Seed = 0,
    model: Model = DEFAULT_MODEL,
    *,
    common: CommonOptions,
) -> None:
    """Ask a question about hidden states, beside what is answered without them.

    The states of one layer stand in a question where a text would stand that it is about, and the model answers.
    Beneath stand its answers of another token's states, of random vectors, of no state, and of the text itself: what
    the states add is what only their answer says.

    \b
    Examples:
      lenscope ask "Bill Gates" "Who is this?"
      lenscope ask "The Eiffel Tower is in Paris" "Which city is this about?" --at Tower --at Paris --layers 8
      lenscope ask "Bill Gates" "Who is this?" --contrast 0.5 --json
      lenscope ask "Bill Gates" "Who is this?" --verbaliser says
    """
    if max_tokens < 1:
        raise LenscopeError(f"--max-tokens {max_tokens}: give at least 1")
    if not question.strip():
        raise LenscopeError("the question is empty: give one, such as 'What is this about?'")
    if any(not text for text in stop or ()):
        raise LenscopeError("--stop: an empty text is in every text; give one that is not")
    if seed < 0:
        raise LenscopeError(f"--seed {seed}: give at least 0")
    require_contrast(contrast)
    source_layers = parse_indices(layers, "layers")
    places = [parse_positions(text, "at", [prompt]) for text in at or ["-1"]]
    if oracle is not None and verbaliser is not None:
        raise LenscopeError("--oracle and --verbaliser are two ways to ask: give one of them")
    if verbaliser is not None:
        require_verbaliser(verbaliser)
    require_model(model)
    from lenscope.patchscopes.questions_about_states import UNTRAINED, ask_about_states, verbaliser_reader

    lm = common.load()
    reader = UNTRAINED
    if oracle is not None:
        reader = _oracle(lm, oracle)
    elif verbaliser is not None:
        from lenscope.verbalisers.selfie_prompts import open_verbaliser

        reader = verbaliser_reader(open_verbaliser(verbaliser, lm))
    source = lm.prompt(prompt)
    positions = list(dict.fromkeys(n for place in places for n in source.positions(place)))
    result = ask_about_states(
        lm,
        source,
        positions,
        question,
        None if source_layers is None else resolve_layers(source_layers, lm.n_layers),
        reader=reader,
        max_new_tokens=max_tokens,
        stop=tuple(stop or ()),
        contrast=contrast,
        seed=seed,
    )
    if common.as_json:
        print_json(result.to_json())
    else:
        console = Screen()
        asked = ", ".join(repr(token.strip()) for token in result.tokens)
        console.print(headline(lm, f"{question} – of {asked} in {result.prompt!r}", console.width, "question"))
        show(console, result.table(width=console.width))
    if result.note:
        tell(result.note)


def _oracle(lm: "LM", folder: str) -> "StateReader":
    """The way to ask an Activation Oracle, as the file beside its adapter says or else as the published ones."""
    from lenscope.models.adapters import with_adapter
    from lenscope.patchscopes.questions_about_states import StateReader
    from lenscope.verbalisers.oracles import SETTINGS_FILE, activation_oracle, load_oracle_settings

    settings = load_oracle_settings(folder) if (Path(folder) / SETTINGS_FILE).is_file() else None
    adapted = with_adapter(lm, folder)

    def scope_of(lm: "LM", question: str, layer: int, states: int) -> "Patchscope":
        return activation_oracle(lm, question, layer, states, settings=settings, adapter=adapted)

    return StateReader(scope_of, f"the adapter {folder}, asked as an Activation Oracle")
