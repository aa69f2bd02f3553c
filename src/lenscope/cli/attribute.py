"""The command of logit attribution: which parts of a model add to one token's logit, and which take from it.

Knows: options, what is printed and saved. Does not know: how logits are attributed (lenses/logit_attribution.py).
"""

from typing import Annotated

import typer

from lenscope.cli.options import DEFAULT_MODEL, CommonOptions, Model, common_options, parse_positions
from lenscope.cli.streams import flush, print_json, tell
from lenscope.cli.terminal import Screen, headline, show
from lenscope.cli.validation import require_effect, require_model, require_writable
from lenscope.errors import LenscopeError


@common_options()
def attribute_command(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The prompt, as text.")],
    token: Annotated[str, typer.Option("--token", "-t", help='The token whose logit is split, such as " Paris".')],
    model: Model = DEFAULT_MODEL,
    against: Annotated[
        str | None, typer.Option(help='A token whose logit is taken off, such as " London": parts of the difference.')
    ] = None,
    at: Annotated[
        str, typer.Option(help="Where the token is predicted: a position, or a substring of the prompt.")
    ] = "-1",
    heads: Annotated[bool, typer.Option("--heads", help="Split each attention into its heads, too.")] = False,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", help="Show the parts that add or take most, so many of them; default: every layer."),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    output: Annotated[str | None, typer.Option("-o", "--output", help="Save the result to this .json file.")] = None,
    *,
    common: CommonOptions,
) -> None:
    """Show which parts of a model say a token.

    A token's logit is split into what the embedding, each block's attention and MLP, and biases add to it: direct logit
    attribution. The parts sum to the logit, before a soft cap. A part that only tells later parts what to add shows as
    theirs.

    \b
    Examples:
      lenscope attribute "The capital of France is" --token " Paris" --against " London"
      lenscope attribute "The capital of France is" --token " Paris" --heads --top-k 10
    """
    require_effect("--top-k", top_k, not common.as_json, "shortens the table, and with --json there is none")
    if top_k is not None and top_k < 1:
        raise LenscopeError(f"top_k {top_k}: give at least 1")
    where = parse_positions(at, "at", [prompt])
    if isinstance(where, slice) or len(where) != 1:
        raise LenscopeError(f"--at {at}: give one position, or a substring of the prompt")
    require_writable(output, (".json",))
    require_model(model)
    lm = common.load()
    from lenscope.lenses.logit_attribution import attribute_logit

    one = lm.chat(prompt) if chat else lm.prompt(prompt)
    result = attribute_logit(lm, one, token, where[0], against=against, heads=heads)
    if common.as_json:
        print_json(result.to_json())
    else:
        console = Screen()
        console.print(headline(lm, repr(result.text), console.width, "logit attribution"))
        show(console, result.table(top_k, width=console.width))
    if output:
        flush()
        result.save(output)
        tell(f"saved {output}")
