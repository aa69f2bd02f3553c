"""The command that hands a fitted lens on to the package tuned-lens.

Knows: which files it writes, and that it overwrites none. Does not know: their format (mappings/foreign_formats.py).
"""

from pathlib import Path
from typing import Annotated

import typer

from lenscope.cli.options import CommonOptions, common_options, open_lens
from lenscope.cli.streams import print_json, tell
from lenscope.cli.validation import make_folder, require_lens, require_model
from lenscope.errors import LenscopeError

FILES = ["config.json", "params.pt"]


@common_options("attention", "placement")
def export_command(
    lens: Annotated[str, typer.Argument(metavar="LENS", help="A fitted lens: a folder, a file or a hub repository.")],
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Folder that config.json and params.pt are written to.")
    ],
    common: CommonOptions,
) -> None:
    """Write a fitted lens as the package tuned-lens 0.2 reads it.

    \b
    Example:
      lenscope export lens lens-for-tuned-lens
    """
    require_model(common.model)
    require_lens(lens)
    for name in FILES:
        if (Path(folder) / name).exists():
            raise LenscopeError(f"{folder}: has a {name} already; give another folder")
    make_folder(folder)
    lm = common.load()
    from lenscope.mappings.foreign_formats import export_tuned_lens

    export_tuned_lens(open_lens(lens, lm), folder)
    if common.as_json:
        print_json({"kind": "export", "folder": folder, "files": FILES})
    tell(f"saved {folder}")
