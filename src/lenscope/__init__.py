"""lenscope reads what the hidden states of language models say.

Knows: where each public name lives. Names are imported when first used, so that the command line answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lenscope._version import __version__

if TYPE_CHECKING:
    from lenscope.checks import check
    from lenscope.corpus import Corpus
    from lenscope.edits import Edit
    from lenscope.effects import Effects, load_effects
    from lenscope.errors import LenscopeError
    from lenscope.evaluating import EvaluationInterrupted, evaluate, transfer
    from lenscope.evaluation import Evaluation, Transfer, load_evaluation
    from lenscope.extraction import fit_relation
    from lenscope.foreign import export_tuned_lens, load_lens
    from lenscope.grids import Grid, load_grid
    from lenscope.interventions import activation_patching, attention_knockout, back_patching, causal_tracing
    from lenscope.lens import Lens
    from lenscope.loading import load
    from lenscope.mappings import Affine, LowRank, Scale, load_mapping
    from lenscope.model import LM, Continuation
    from lenscope.patchscope import Interrupted, Patchscope, Target
    from lenscope.prompts import Prompt
    from lenscope.regression import fit_mapping
    from lenscope.results import Comparison, Trajectory, load_results, save
    from lenscope.softprompt import SoftPrompt, fit_soft_prompt, load_soft_prompt
    from lenscope.states import HiddenStates
    from lenscope.tuning import Recipe, fit

__all__ = [
    "LM",
    "Affine",
    "Comparison",
    "Continuation",
    "Corpus",
    "Edit",
    "Effects",
    "Evaluation",
    "EvaluationInterrupted",
    "Grid",
    "HiddenStates",
    "Interrupted",
    "Lens",
    "LenscopeError",
    "LowRank",
    "Patchscope",
    "Prompt",
    "Recipe",
    "Scale",
    "SoftPrompt",
    "Target",
    "Trajectory",
    "Transfer",
    "__version__",
    "activation_patching",
    "attention_knockout",
    "back_patching",
    "causal_tracing",
    "check",
    "evaluate",
    "export_tuned_lens",
    "fit",
    "fit_mapping",
    "fit_relation",
    "fit_soft_prompt",
    "load",
    "load_effects",
    "load_evaluation",
    "load_grid",
    "load_lens",
    "load_mapping",
    "load_results",
    "load_soft_prompt",
    "save",
    "transfer",
]

_HOMES = {
    "checks": ("check",),
    "corpus": ("Corpus",),
    "edits": ("Edit",),
    "effects": ("Effects", "load_effects"),
    "errors": ("LenscopeError",),
    "evaluating": ("EvaluationInterrupted", "evaluate", "transfer"),
    "evaluation": ("Evaluation", "Transfer", "load_evaluation"),
    "extraction": ("fit_relation",),
    "foreign": ("export_tuned_lens", "load_lens"),
    "grids": ("Grid", "load_grid"),
    "interventions": ("activation_patching", "attention_knockout", "back_patching", "causal_tracing"),
    "lens": ("Lens",),
    "loading": ("load",),
    "mappings": ("Affine", "LowRank", "Scale", "load_mapping"),
    "model": ("LM", "Continuation"),
    "patchscope": ("Interrupted", "Patchscope", "Target"),
    "prompts": ("Prompt",),
    "regression": ("fit_mapping",),
    "results": ("Comparison", "Trajectory", "load_results", "save"),
    "softprompt": ("SoftPrompt", "fit_soft_prompt", "load_soft_prompt"),
    "states": ("HiddenStates",),
    "tuning": ("Recipe", "fit"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"lenscope.{home}"), name)
    raise AttributeError(f"module 'lenscope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
