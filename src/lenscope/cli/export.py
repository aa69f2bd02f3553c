"""The command that hands a fitted lens on to other packages, in their formats.

Knows: which files it writes, and that it overwrites none. Does not know: what stands in them
(mappings/foreign_formats.py, mappings/jacobian_files.py).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lenscope.cli.options import CommonOptions, common_options, open_lens
from lenscope.cli.streams import print_json, tell
from lenscope.cli.validation import make_folder, require_lens, require_model, require_name
from lenscope.errors import LenscopeError

if TYPE_CHECKING:
    from lenscope.mappings.mapping import PairMapping

# format → its files, but for those that are named after the model
FORMATS = {"tuned-lens": ["config.json", "params.pt"], "jacobian-lens": ["config.yaml"]}


@common_options("attention", "placement")
def export_command(
    lens: Annotated[str, typer.Argument(metavar="LENS", help="A fitted lens: a folder, a file or a hub repository.")],
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Folder that the files are written to.")],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="tuned-lens: config.json and params.pt of tuned-lens 0.2; jacobian-lens: MODEL_jacobian_lens.pt and "
            "config.yaml.",
        ),
    ] = "tuned-lens",
    *,
    common: CommonOptions,
) -> None:
    """Write a fitted lens as other packages read it.

    A tuned lens goes into the format of tuned-lens 0.2. A Jacobian lens goes into the format that its field shares,
    in float16, without layer 0, which has no place there.

    \b
    Examples:
      lenscope export lens lens-for-tuned-lens
      lenscope export jlens shared --format jacobian-lens
    """
    require_name("--format", form, FORMATS)
    require_model(common.model)
    require_lens(lens)
    _require_free(folder, FORMATS[form])
    make_folder(folder)
    lm = common.load()
    opened = open_lens(lens, lm)
    files = _write(opened, folder, form)
    if common.as_json:
        print_json({"kind": "export", "folder": folder, "files": files})
    tell(f"saved {folder}")


def _require_free(folder: str, names: list[str]) -> None:
    for name in names:
        if (Path(folder) / name).exists():
            raise LenscopeError(f"{folder}: has a {name} already; give another folder")


def _write(lens: "PairMapping", folder: str, form: str) -> list[str]:
    """Write the files of a format, and name them."""
    if form == "tuned-lens":
        from lenscope.mappings.foreign_formats import export_tuned_lens

        export_tuned_lens(lens, folder)
        return FORMATS[form]
    from lenscope.mappings.jacobian_files import export_jacobian_lens, name_of_jacobian_file

    name = name_of_jacobian_file(lens)
    _require_free(folder, [name])
    export_jacobian_lens(lens, Path(folder) / name)
    return [name, *FORMATS[form]]
