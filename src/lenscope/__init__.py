"""lenscope reads what the hidden states of language models say.

Knows: where each public name lives. Names are imported when first used, so that the command line answers at once. For
type checkers the same names stand in __init__.pyi, which tests/laws/test_public_names.py makes and compares.
"""

from importlib import import_module
from typing import Any

from lenscope._version import __version__ as __version__

# the rooms, each a package with public names of its own
ROOMS = (
    "statistics",
    "display",
    "models",
    "measures",
    "mappings",
    "distributed",
    "engine",
    "text",
    "patchscopes",
    "lenses",
    "fitting",
    "verbalisers",
    "interventions",
    "directions",
    "tasks",
    "planning",
    "sweeps",
    "web",
    "detection",
    "experiments",
)
# module → its names at the top level
NAMES = {
    "models.loading": ("load",),
    "models.language_model": ("LM", "Continuation"),
    "models.prompts": ("Prompt",),
    "models.hidden_states": ("HiddenStates",),
    "models.edits": ("Edit",),
    "models.check": ("check",),
    "lenses.lens": ("Lens",),
    "lenses.trajectory": ("Trajectory", "save"),
    "lenses.comparison": ("Comparison",),
    "lenses.evaluate": ("evaluate", "transfer"),
    "lenses.evaluation_results": ("Evaluation",),
    "patchscopes.patchscope": ("Patchscope",),
    "patchscopes.target_prompts": ("Target",),
    "patchscopes.grid": ("Grid", "load_grid"),
    "saved_results": ("load_results",),
    "sweeps.running": ("sweep",),
    "text.corpus": ("Corpus",),
    "fitting.tuned_lens": ("fit",),
    "fitting.recipes": ("Recipe",),
    "fitting.model_to_model": ("fit_mapping",),
    "mappings.mapping": ("Affine", "load_mapping"),
    "mappings.lens_files": ("load_lens",),
    "mappings.foreign_formats": ("export_tuned_lens",),
    "statistics.intervals": ("Estimate",),
    "experiments.report": ("Report",),
    "errors": ("LenscopeError",),
}
_HOMES = {name: module for module, names in NAMES.items() for name in names}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"lenscope.{_HOMES[name]}"), name)
    if name in ROOMS:
        return import_module(f"lenscope.{name}")
    from lenscope._names_of_0_1_0 import moved

    return moved(name)


def __dir__() -> list[str]:
    return sorted([*__all__, *ROOMS])
