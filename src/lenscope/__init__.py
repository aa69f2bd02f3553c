"""lenscope reads what the hidden states of language models say.

Knows: where each public name lives. Names are imported when first used, so that the command line answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lenscope._version import __version__

if TYPE_CHECKING:
    from lenscope.checks import check
    from lenscope.edits import Edit
    from lenscope.errors import LenscopeError
    from lenscope.fit import fit_mapping
    from lenscope.grids import Grid, load_grid
    from lenscope.lens import Lens
    from lenscope.loading import load
    from lenscope.mappings import Affine, LowRank, Scale, load_mapping
    from lenscope.model import LM, Continuation
    from lenscope.patchscope import Interrupted, Patchscope, Target
    from lenscope.prompts import Prompt
    from lenscope.results import Comparison, Trajectory, load_results, save
    from lenscope.states import HiddenStates

__all__ = [
    "LM",
    "Affine",
    "Comparison",
    "Continuation",
    "Edit",
    "Grid",
    "HiddenStates",
    "Interrupted",
    "Lens",
    "LenscopeError",
    "LowRank",
    "Patchscope",
    "Prompt",
    "Scale",
    "Target",
    "Trajectory",
    "__version__",
    "check",
    "fit_mapping",
    "load",
    "load_grid",
    "load_mapping",
    "load_results",
    "save",
]

_HOMES = {
    "checks": ("check",),
    "edits": ("Edit",),
    "errors": ("LenscopeError",),
    "fit": ("fit_mapping",),
    "grids": ("Grid", "load_grid"),
    "lens": ("Lens",),
    "loading": ("load",),
    "mappings": ("Affine", "LowRank", "Scale", "load_mapping"),
    "model": ("LM", "Continuation"),
    "patchscope": ("Interrupted", "Patchscope", "Target"),
    "prompts": ("Prompt",),
    "results": ("Comparison", "Trajectory", "load_results", "save"),
    "states": ("HiddenStates",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"lenscope.{home}"), name)
    raise AttributeError(f"module 'lenscope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
