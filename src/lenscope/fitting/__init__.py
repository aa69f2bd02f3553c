"""Everything that is trained or solved: one file for each thing that is fitted."""

from lenscope.fitting.fine_tuning import fine_tune
from lenscope.fitting.jacobian_lens import fit_jacobian_lens
from lenscope.fitting.jacobian_merging import merge_jacobian_lenses
from lenscope.fitting.model_to_model import fit_mapping
from lenscope.fitting.recipes import Recipe
from lenscope.fitting.relation import fit_relation
from lenscope.fitting.soft_prompt import fit_soft_prompt
from lenscope.fitting.tuned_lens import fit
from lenscope.fitting.verbaliser import VerbaliserInterrupted, fit_verbaliser
from lenscope.fitting.verbaliser_steps import VerbaliserRecipe

__all__ = [
    "Recipe",
    "VerbaliserInterrupted",
    "VerbaliserRecipe",
    "fine_tune",
    "fit",
    "fit_jacobian_lens",
    "fit_mapping",
    "fit_relation",
    "fit_soft_prompt",
    "fit_verbaliser",
    "merge_jacobian_lenses",
]
