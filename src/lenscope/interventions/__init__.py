"""What a change inside a prompt's own run does to its answer."""

from lenscope.interventions.activation_patching import activation_patching
from lenscope.interventions.attention_knockout import attention_knockout
from lenscope.interventions.block_ablation import ablate_blocks, ablated
from lenscope.interventions.block_ablation_results import BlockAblations
from lenscope.interventions.causal_tracing import causal_tracing, embedding_std
from lenscope.interventions.effects import Effects, load_effects
from lenscope.interventions.steering import SteeredTexts, steer
from lenscope.interventions.token_controls import control_edit
from lenscope.interventions.token_edit_effects import edit_effects, swap_effects
from lenscope.interventions.token_edit_results import EditEffects, load_edit_effects
from lenscope.interventions.token_edits import TokenEdit, ablate_tokens, middle_band, steer_token, swap_tokens

__all__ = [
    "BlockAblations",
    "EditEffects",
    "Effects",
    "SteeredTexts",
    "TokenEdit",
    "ablate_blocks",
    "ablate_tokens",
    "ablated",
    "activation_patching",
    "attention_knockout",
    "causal_tracing",
    "control_edit",
    "edit_effects",
    "embedding_std",
    "load_edit_effects",
    "load_effects",
    "middle_band",
    "steer",
    "steer_token",
    "swap_effects",
    "swap_tokens",
]
