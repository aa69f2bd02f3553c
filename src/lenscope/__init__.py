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
    from lenscope.lens import Lens
    from lenscope.loading import load
    from lenscope.model import LM, Continuation
    from lenscope.prompts import Prompt
    from lenscope.results import Comparison, Trajectory, load_results, save
    from lenscope.states import HiddenStates

__all__ = [
    "LM",
    "Comparison",
    "Continuation",
    "Edit",
    "HiddenStates",
    "Lens",
    "LenscopeError",
    "Prompt",
    "Trajectory",
    "__version__",
    "check",
    "load",
    "load_results",
    "save",
]

_HOMES = {
    "checks": ("check",),
    "edits": ("Edit",),
    "errors": ("LenscopeError",),
    "lens": ("Lens",),
    "loading": ("load",),
    "model": ("LM", "Continuation"),
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
