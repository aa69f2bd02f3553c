"""lenscope reads what the hidden states of language models say.

Knows: where each public name lives. Names are imported when first used, so that the command line answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lenscope._version import __version__

if TYPE_CHECKING:
    from lenscope.detection.detector import Detector, fit_detector, load_detector
    from lenscope.directions.alignment import Alignment, alignment
    from lenscope.directions.basis import Basis, load_basis
    from lenscope.directions.causal_basis import causal_basis, principal_basis, random_basis
    from lenscope.directions.covariances import Covariances, covariances
    from lenscope.directions.influence import Influence, influence
    from lenscope.errors import LenscopeError
    from lenscope.experiments.report import Report
    from lenscope.fitting.fine_tuning import fine_tune
    from lenscope.fitting.model_to_model import fit_mapping
    from lenscope.fitting.recipes import Recipe
    from lenscope.fitting.relation import fit_relation
    from lenscope.fitting.soft_prompt import fit_soft_prompt
    from lenscope.fitting.tuned_lens import fit
    from lenscope.interventions.activation_patching import activation_patching
    from lenscope.interventions.attention_knockout import attention_knockout
    from lenscope.interventions.block_ablation import ablate_blocks, ablated
    from lenscope.interventions.block_ablation_results import Ablations
    from lenscope.interventions.causal_tracing import causal_tracing
    from lenscope.interventions.effects import Effects, load_effects
    from lenscope.lenses.comparison import Comparison
    from lenscope.lenses.evaluate import EvaluationInterrupted, evaluate, transfer
    from lenscope.lenses.evaluation_results import Evaluation, Transfer, load_evaluation
    from lenscope.lenses.lens import Lens
    from lenscope.lenses.trajectory import Trajectory, save
    from lenscope.mappings.foreign_formats import export_tuned_lens
    from lenscope.mappings.lens_files import load_lens
    from lenscope.mappings.mapping import Affine, LowRank, Scale, load_mapping
    from lenscope.models.check import check
    from lenscope.models.edits import Edit
    from lenscope.models.hidden_states import HiddenStates
    from lenscope.models.language_model import LM, Continuation
    from lenscope.models.loading import load
    from lenscope.models.prompts import Prompt
    from lenscope.patchscopes.controls import random_vectors, shuffled_sources, told
    from lenscope.patchscopes.grid import Grid, load_grid
    from lenscope.patchscopes.methods import back_patching
    from lenscope.patchscopes.patchscope import Interrupted, Patchscope, Target
    from lenscope.patchscopes.soft_prompt import SoftPrompt, load_soft_prompt
    from lenscope.patchscopes.with_controls import Worth, worth
    from lenscope.saved_results import load_results
    from lenscope.statistics.intervals import Estimate
    from lenscope.statistics.probes import Probed, probe
    from lenscope.statistics.selection import Selection, select
    from lenscope.tasks.answer_likelihoods import answer_log_likelihoods
    from lenscope.tasks.known_facts import known, known_chains
    from lenscope.tasks.questions import Question, few_shot, load_questions
    from lenscope.tasks.relation_files import load_chains, load_entities, load_relations
    from lenscope.tasks.relations import (
        Chain,
        Entity,
        Fact,
        Relation,
        builtin_chains,
        builtin_entities,
        builtin_relations,
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
    "interventions.block_ablation": ("ablate_blocks", "ablated"),
    "directions.influence": ("Influence", "influence"),
    "interventions.block_ablation_results": ("Ablations",),
    "directions.causal_basis": ("causal_basis", "principal_basis", "random_basis"),
    "models.check": ("check",),
    "patchscopes.controls": ("random_vectors", "shuffled_sources", "told"),
    "text.corpus": ("Corpus",),
    "directions.covariances": ("Covariances", "covariances"),
    "detection.detector": ("Detector", "fit_detector", "load_detector"),
    "directions.basis": ("Basis", "load_basis"),
    "models.edits": ("Edit",),
    "interventions.effects": ("Effects", "load_effects"),
    "errors": ("LenscopeError",),
    "lenses.evaluate": ("EvaluationInterrupted", "evaluate", "transfer"),
    "lenses.evaluation_results": ("Evaluation", "Transfer", "load_evaluation"),
    "fitting.relation": ("fit_relation",),
    "fitting.fine_tuning": ("fine_tune",),
    "mappings.lens_files": ("load_lens",),
    "patchscopes.grid": ("Grid", "load_grid"),
    "lenses.lens": ("Lens",),
    "models.loading": ("load",),
    "mappings.mapping": ("Affine", "LowRank", "Scale", "load_mapping"),
    "tasks.text_match": ("mentions", "rouge"),
    "models.language_model": ("LM", "Continuation"),
    "patchscopes.patchscope": ("Interrupted", "Patchscope", "Target"),
    "statistics.probes": ("Probed", "probe"),
    "models.prompts": ("Prompt",),
    "tasks.questions": ("Question", "few_shot", "load_questions"),
    "fitting.model_to_model": ("fit_mapping",),
    "tasks.relations": (
        "Chain",
        "Entity",
        "Fact",
        "Relation",
        "builtin_chains",
        "builtin_entities",
        "builtin_relations",
    ),
    "experiments.report": ("Report",),
    "lenses.trajectory": ("Trajectory", "save"),
    "saved_results": ("load_results",),
    "statistics.selection": ("Selection", "select"),
    "fitting.soft_prompt": ("fit_soft_prompt",),
    "models.hidden_states": ("HiddenStates",),
    "fitting.tuned_lens": ("fit",),
    "patchscopes.with_controls": ("Worth", "worth"),
    "statistics.intervals": ("Estimate",),
    "mappings.foreign_formats": ("export_tuned_lens",),
    "patchscopes.soft_prompt": ("SoftPrompt", "load_soft_prompt"),
    "patchscopes.methods": ("back_patching",),
    "lenses.comparison": ("Comparison",),
    "fitting.recipes": ("Recipe",),
    "interventions.causal_tracing": ("causal_tracing",),
    "interventions.activation_patching": ("activation_patching",),
    "interventions.attention_knockout": ("attention_knockout",),
    "directions.alignment": ("Alignment", "alignment"),
    "tasks.answer_likelihoods": ("answer_log_likelihoods",),
    "tasks.relation_files": ("load_chains", "load_entities", "load_relations"),
    "tasks.known_facts": ("known", "known_chains"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"lenscope.{home}"), name)
    raise AttributeError(f"module 'lenscope' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
