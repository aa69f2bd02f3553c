"""The command that joins Jacobian lenses of different text.

Knows: options, that nothing is overwritten. Does not know: how lenses are joined (fitting/jacobian_merging.py).
"""

from pathlib import Path
from typing import Annotated

import typer

from lenscope.cli.jacobian_fit import load_for_fit, show_jacobian_lens
from lenscope.cli.options import CommonOptions, Data, Stream, common_options, data_source
from lenscope.cli.validation import make_folder, require_model, require_path
from lenscope.errors import LenscopeError


@common_options(all_write=True)
def merge_command(
    lenses: Annotated[
        list[str], typer.Argument(metavar="LENS...", help="Folders that fit --recipe jacobian wrote; at least two.")
    ],
    output: Annotated[str, typer.Option("-o", "--output", help="Folder for the merged lens.")],
    data: Data = None,
    stream: Stream = False,
    *,
    common: CommonOptions,
) -> None:
    """Join Jacobian lenses that were fitted on different text.

    The result is the lens of one run that read all of the text: each prompt weighs the same. With --data the lens is
    measured on documents that no run fitted.

    \b
    Example:
      lenscope merge lens-1 lens-2 -o lens --data texts.jsonl
    """
    require_model(common.model)
    if len(lenses) < 2:
        raise LenscopeError(f"{lenses[0]}: is one lens; give at least two to merge")
    for lens in lenses:
        require_path(lens, "lens")
    folder = Path(output)
    if (folder / "config.json").exists():
        raise LenscopeError(f"{folder}: holds a lens already; give another folder")
    make_folder(folder)
    lm = load_for_fit(common, stream)
    from lenscope.fitting.jacobian_merging import merge_jacobian_lenses

    merged = merge_jacobian_lenses(lm, lenses, data_source(data), folder=folder)
    again = common.model_again
    show_jacobian_lens(lm, merged, output, f"{len(lenses)} lenses", common.as_json, again, "merge")
