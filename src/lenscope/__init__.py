"""lenscope reads what the hidden states of language models say.

Knows: where each public name lives. Names are imported when first used, so that the command line answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lenscope._version import __version__

if TYPE_CHECKING:
    from lenscope.detection.detector import Detector, fit_detector, load_detector
    from lenscope.directions.basis import Alignment, Basis, Influence, load_basis
    from lenscope.directions.causal_basis import causal_basis, principal_basis, random_basis
    from lenscope.directions.covariances import Covariances, covariances
    from lenscope.directions.influence import alignment, influence
    from lenscope.errors import LenscopeError
    from lenscope.experiments.report import Report
    from lenscope.fitting.fine_tuning import fine_tune
    from lenscope.fitting.model_to_model import fit_mapping
    from lenscope.fitting.relation import fit_relation
    from lenscope.fitting.soft_prompt import SoftPrompt, fit_soft_prompt, load_soft_prompt
    from lenscope.fitting.tuned_lens import Recipe, fit
    from lenscope.interventions.block_ablation import ablate_blocks, ablated
    from lenscope.interventions.block_ablation_results import Ablations
    from lenscope.interventions.effects import Effects, load_effects
    from lenscope.interventions.prompt_cells import (
        activation_patching,
        attention_knockout,
        back_patching,
        causal_tracing,
    )
    from lenscope.lenses.evaluate import EvaluationInterrupted, evaluate, transfer
    from lenscope.lenses.evaluation_results import Evaluation, Transfer, load_evaluation
    from lenscope.lenses.lens import Lens
    from lenscope.lenses.trajectory import Comparison, Trajectory, save
    from lenscope.mappings.lens_files import export_tuned_lens, load_lens
    from lenscope.mappings.mapping import Affine, LowRank, Scale, load_mapping
    from lenscope.models.check import check
    from lenscope.models.edits import Edit
    from lenscope.models.hidden_states import HiddenStates
    from lenscope.models.language_model import LM, Continuation
    from lenscope.models.loading import load
    from lenscope.models.prompts import Prompt
    from lenscope.patchscopes.controls import random_vectors, shuffled_sources, told
    from lenscope.patchscopes.grid import Grid, load_grid
    from lenscope.patchscopes.patchscope import Interrupted, Patchscope, Target
    from lenscope.patchscopes.with_controls import Worth, worth
    from lenscope.saved_results import load_results
    from lenscope.statistics.estimates import Estimate
    from lenscope.statistics.probes import Probed, probe
    from lenscope.statistics.selection import Selection, select
    from lenscope.tasks.questions import Question, answer_log_likelihoods, few_shot, load_questions
    from lenscope.tasks.relations import (
        Chain,
        Entity,
        Fact,
        Relation,
        builtin_chains,
        builtin_entities,
        builtin_relations,
        known,
        known_chains,
        load_chains,
        load_entities,
        load_relations,
    )
    from lenscope.tasks.text_match import mentions, rouge
    from lenscope.text.corpus import Corpus

__all__ = [
    "LM",
    "Ablations",
    "Affine",
    "Alignment",
    "Basis",
    "Chain",
    "Comparison",
    "Continuation",
    "Corpus",
    "Covariances",
    "Detector",
    "Edit",
    "Effects",
    "Entity",
    "Estimate",
    "Evaluation",
    "EvaluationInterrupted",
    "Fact",
    "Grid",
    "HiddenStates",
    "Influence",
    "Interrupted",
    "Lens",
    "LenscopeError",
    "LowRank",
    "Patchscope",
    "Probed",
    "Prompt",
    "Question",
    "Recipe",
    "Relation",
    "Report",
    "Scale",
    "Selection",
    "SoftPrompt",
    "Target",
    "Trajectory",
    "Transfer",
    "Worth",
    "__version__",
    "ablate_blocks",
    "ablated",
    "activation_patching",
    "alignment",
    "answer_log_likelihoods",
    "attention_knockout",
    "back_patching",
    "builtin_chains",
    "builtin_entities",
    "builtin_relations",
    "causal_basis",
    "causal_tracing",
    "check",
    "covariances",
    "evaluate",
    "export_tuned_lens",
    "few_shot",
    "fine_tune",
    "fit",
    "fit_detector",
    "fit_mapping",
    "fit_relation",
    "fit_soft_prompt",
    "influence",
    "known",
    "known_chains",
    "load",
    "load_basis",
    "load_chains",
    "load_detector",
    "load_effects",
    "load_entities",
    "load_evaluation",
    "load_grid",
    "load_lens",
    "load_mapping",
    "load_questions",
    "load_relations",
    "load_results",
    "load_soft_prompt",
    "mentions",
    "principal_basis",
    "probe",
    "random_basis",
    "random_vectors",
    "rouge",
    "save",
    "select",
    "shuffled_sources",
    "told",
    "transfer",
    "worth",
]

_HOMES = {
    "interventions.block_ablation": (
        "ablate_blocks",
        "ablated",
    ),
    "directions.influence": (
        "alignment",
        "influence",
    ),
    "interventions.block_ablation_results": ("Ablations",),
    "directions.causal_basis": (
        "causal_basis",
        "principal_basis",
        "random_basis",
    ),
    "models.check": ("check",),
    "patchscopes.controls": (
        "random_vectors",
        "shuffled_sources",
        "told",
    ),
    "text.corpus": ("Corpus",),
    "directions.covariances": (
        "Covariances",
        "covariances",
    ),
    "detection.detector": (
        "Detector",
        "fit_detector",
        "load_detector",
    ),
    "directions.basis": (
        "Alignment",
        "Basis",
        "Influence",
        "load_basis",
    ),
    "models.edits": ("Edit",),
    "interventions.effects": (
        "Effects",
        "load_effects",
    ),
    "errors": ("LenscopeError",),
    "lenses.evaluate": (
        "EvaluationInterrupted",
        "evaluate",
        "transfer",
    ),
    "lenses.evaluation_results": (
        "Evaluation",
        "Transfer",
        "load_evaluation",
    ),
    "fitting.relation": ("fit_relation",),
    "fitting.fine_tuning": ("fine_tune",),
    "mappings.lens_files": (
        "export_tuned_lens",
        "load_lens",
    ),
    "patchscopes.grid": (
        "Grid",
        "load_grid",
    ),
    "interventions.prompt_cells": (
        "activation_patching",
        "attention_knockout",
        "back_patching",
        "causal_tracing",
    ),
    "lenses.lens": ("Lens",),
    "models.loading": ("load",),
    "mappings.mapping": (
        "Affine",
        "LowRank",
        "Scale",
        "load_mapping",
    ),
    "tasks.text_match": (
        "mentions",
        "rouge",
    ),
    "models.language_model": (
        "LM",
        "Continuation",
    ),
    "patchscopes.patchscope": (
        "Interrupted",
        "Patchscope",
        "Target",
    ),
    "statistics.probes": (
        "Probed",
        "probe",
    ),
    "models.prompts": ("Prompt",),
    "tasks.questions": (
        "Question",
        "answer_log_likelihoods",
        "few_shot",
        "load_questions",
    ),
    "fitting.model_to_model": ("fit_mapping",),
    "tasks.relations": (
        "Chain",
        "Entity",
        "Fact",
        "Relation",
        "builtin_chains",
        "builtin_entities",
        "builtin_relations",
        "known",
        "known_chains",
        "load_chains",
        "load_entities",
        "load_relations",
    ),
    "experiments.report": ("Report",),
    "lenses.trajectory": (
        "Comparison",
        "Trajectory",
        "save",
    ),
    "saved_results": ("load_results",),
    "statistics.selection": (
        "Selection",
        "select",
    ),
    "fitting.soft_prompt": (
        "SoftPrompt",
        "fit_soft_prompt",
        "load_soft_prompt",
    ),
    "models.hidden_states": ("HiddenStates",),
    "statistics.estimates": ("Estimate",),
    "fitting.tuned_lens": (
        "Recipe",
        "fit",
    ),
    "patchscopes.with_controls": (
        "Worth",
        "worth",
    ),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"lenscope.{home}"), name)
    raise AttributeError(f"module 'lenscope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
