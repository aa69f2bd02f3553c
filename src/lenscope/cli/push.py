"""The command that puts a fitted lens on the Hugging Face hub.

Knows: that it takes a folder that lenscope saved, and how a repository is named. Does not know: what stands in the card
(mappings/model_card.py), how the hub is asked (files/hub.py).
"""

import re
from typing import Annotated

import typer

from lenscope.cli.options import AsJson
from lenscope.cli.streams import print_json, tell
from lenscope.cli.validation import require_mapping
from lenscope.errors import LenscopeError


def push_command(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="A lens or mapping: a folder that lenscope saved.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository, made where there is none.")],
    as_json: AsJson = False,
) -> None:
    """Put a fitted lens on the Hugging Face hub.

    The repository gets the lens and a card, README.md, which says what the lens is, of what it was made, how good it
    was measured to be, and how it is loaded. The card has the names of files that the text came from. Log in first,
    with: hf auth login.

    \b
    Example:
      lenscope push lens your-name/smollm2-135m-lens
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repository, re.ASCII):
        raise LenscopeError(f"{repository}: is no name of a repository; give OWNER/NAME, such as your-name/my-lens")
    require_mapping(folder)
    from lenscope.files.hub import reachable
    from lenscope.mappings.mapping import load_mapping

    mapping = load_mapping(folder)
    if not reachable():
        raise LenscopeError(f"{repository}: the hub cannot be reached; push it once while online")
    address = mapping.push_to_hub(repository)
    if as_json:
        print_json({"kind": "push", "repository": repository, "address": address})
    tell(f"saved {address}")
