"""Names that version 0.1.0 had at the top level: each still works, and a warning says where it is now.

Knows: old name → room and new name. Does not know: anything else.
"""

import warnings
from importlib import import_module
from typing import Any

# old name → room, and its name there where it is another
MOVED = {
    "Ablations": "interventions.BlockAblations",
    "Alignment": "directions",
    "Basis": "directions",
    "Chain": "tasks",
    "Covariances": "directions",
    "Detector": "detection",
    "Effects": "interventions",
    "Entity": "tasks",
    "EvaluationInterrupted": "lenses",
    "Fact": "tasks",
    "Influence": "directions",
    "Interrupted": "patchscopes.SweepInterrupted",
    "LowRank": "mappings",
    "Probed": "statistics",
    "Question": "tasks",
    "Relation": "tasks",
    "Scale": "mappings",
    "Selection": "statistics",
    "SoftPrompt": "patchscopes",
    "Transfer": "lenses",
    "Worth": "patchscopes.ControlledScores",
    "ablate_blocks": "interventions",
    "ablated": "interventions",
    "activation_patching": "interventions",
    "alignment": "directions",
    "answer_log_likelihoods": "tasks",
    "attention_knockout": "interventions",
    "back_patching": "patchscopes",
    "builtin_chains": "tasks",
    "builtin_entities": "tasks",
    "builtin_relations": "tasks",
    "causal_basis": "directions",
    "causal_tracing": "interventions",
    "covariances": "directions",
    "few_shot": "tasks.few_shot_prompts",
    "fine_tune": "fitting",
    "fit_detector": "detection",
    "fit_relation": "fitting",
    "fit_soft_prompt": "fitting",
    "influence": "directions",
    "known": "tasks.known_facts",
    "known_chains": "tasks",
    "load_basis": "directions",
    "load_chains": "tasks",
    "load_detector": "detection",
    "load_effects": "interventions",
    "load_entities": "tasks",
    "load_evaluation": "lenses",
    "load_questions": "tasks",
    "load_relations": "tasks",
    "load_soft_prompt": "patchscopes",
    "mentions": "tasks",
    "principal_basis": "directions",
    "probe": "statistics",
    "random_basis": "directions",
    "random_vectors": "patchscopes",
    "rouge": "tasks",
    "select": "statistics",
    "shuffled_sources": "patchscopes",
    "told": "patchscopes.prompts_with_text",
    "worth": "patchscopes.score_with_controls",
}


def moved(name: str) -> Any:
    """What a name of version 0.1.0 stood for; AttributeError for any other."""
    if name not in MOVED:
        raise AttributeError(f"module 'lenscope' has no attribute {name!r}")
    room, _, new = MOVED[name].partition(".")
    new = new or name
    warnings.warn(f"lenscope.{name} is now lenscope.{room}.{new}", DeprecationWarning, stacklevel=3)
    return getattr(import_module(f"lenscope.{room}"), new)
