"""What a change inside a prompt's own run does to its answer."""

from lenscope.interventions.activation_patching import activation_patching
from lenscope.interventions.attention_knockout import attention_knockout
from lenscope.interventions.block_ablation import ablate_blocks, ablated
from lenscope.interventions.block_ablation_results import BlockAblations
from lenscope.interventions.causal_tracing import causal_tracing, embedding_std
from lenscope.interventions.effects import Effects, load_effects
from lenscope.interventions.steering import SteeredTexts, steer

__all__ = [
    "BlockAblations",
    "Effects",
    "SteeredTexts",
    "ablate_blocks",
    "ablated",
    "activation_patching",
    "attention_knockout",
    "causal_tracing",
    "embedding_std",
    "load_effects",
    "steer",
]
