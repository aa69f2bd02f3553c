"""Hidden states are patched into prompts, whose continuations say what the states mean."""

from lenscope.patchscopes import methods
from lenscope.patchscopes.controls import prompts_with_text, random_vectors, shuffled_sources
from lenscope.patchscopes.grid import Grid, load_grid
from lenscope.patchscopes.label_likelihoods import likelihoods_with_controls
from lenscope.patchscopes.methods import back_patching
from lenscope.patchscopes.patchscope import Patchscope, SweepInterrupted
from lenscope.patchscopes.questions_about_states import (
    StateAnswer,
    StateAnswers,
    StateReader,
    ask_about_states,
    verbaliser_reader,
)
from lenscope.patchscopes.reconstructions import reconstruction_with_controls
from lenscope.patchscopes.soft_prompt import SoftPrompt, load_soft_prompt
from lenscope.patchscopes.streamed_explanations import ExplanationRow, StreamedExplanation, stream_explanation
from lenscope.patchscopes.target_prompts import Target
from lenscope.patchscopes.verbaliser import Verbaliser, load_verbaliser, meaning_target
from lenscope.patchscopes.with_controls import (
    ControlledScores,
    ControlledTexts,
    generate_with_controls,
    score_with_controls,
)

__all__ = [
    "ControlledScores", "ControlledTexts", "ExplanationRow", "Grid", "Patchscope", "SoftPrompt", "StateAnswer",
    "StateAnswers", "StateReader", "StreamedExplanation", "SweepInterrupted", "Target", "Verbaliser",
    "ask_about_states", "back_patching", "generate_with_controls", "likelihoods_with_controls", "load_grid",
    "load_soft_prompt", "load_verbaliser", "meaning_target", "methods", "prompts_with_text", "random_vectors",
    "reconstruction_with_controls", "score_with_controls", "shuffled_sources", "stream_explanation",
    "verbaliser_reader",
]  # fmt: skip
