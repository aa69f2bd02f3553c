from lenscope import detection as detection
from lenscope import directions as directions
from lenscope import display as display
from lenscope import distributed as distributed
from lenscope import engine as engine
from lenscope import experiments as experiments
from lenscope import fitting as fitting
from lenscope import interventions as interventions
from lenscope import lenses as lenses
from lenscope import mappings as mappings
from lenscope import measures as measures
from lenscope import models as models
from lenscope import patchscopes as patchscopes
from lenscope import planning as planning
from lenscope import statistics as statistics
from lenscope import sweeps as sweeps
from lenscope import tasks as tasks
from lenscope import text as text
from lenscope import verbalisers as verbalisers
from lenscope import web as web
from lenscope._version import __version__ as __version__
from lenscope.errors import LenscopeError as LenscopeError
from lenscope.experiments.report import Report as Report
from lenscope.fitting.model_to_model import fit_mapping as fit_mapping
from lenscope.fitting.recipes import Recipe as Recipe
from lenscope.fitting.tuned_lens import fit as fit
from lenscope.lenses.comparison import Comparison as Comparison
from lenscope.lenses.evaluate import evaluate as evaluate
from lenscope.lenses.evaluate import transfer as transfer
from lenscope.lenses.evaluation_results import Evaluation as Evaluation
from lenscope.lenses.lens import Lens as Lens
from lenscope.lenses.trajectory import Trajectory as Trajectory
from lenscope.lenses.trajectory import save as save
from lenscope.mappings.foreign_formats import export_tuned_lens as export_tuned_lens
from lenscope.mappings.lens_files import load_lens as load_lens
from lenscope.mappings.mapping import Affine as Affine
from lenscope.mappings.mapping import load_mapping as load_mapping
from lenscope.models.check import check as check
from lenscope.models.edits import Edit as Edit
from lenscope.models.hidden_states import HiddenStates as HiddenStates
from lenscope.models.language_model import Continuation as Continuation
from lenscope.models.language_model import LM as LM
from lenscope.models.loading import load as load
from lenscope.models.prompts import Prompt as Prompt
from lenscope.patchscopes.grid import Grid as Grid
from lenscope.patchscopes.grid import load_grid as load_grid
from lenscope.patchscopes.patchscope import Patchscope as Patchscope
from lenscope.patchscopes.target_prompts import Target as Target
from lenscope.saved_results import load_results as load_results
from lenscope.statistics.intervals import Estimate as Estimate
from lenscope.sweeps.running import sweep as sweep
from lenscope.text.corpus import Corpus as Corpus

__all__ = [
    "Affine",
    "Comparison",
    "Continuation",
    "Corpus",
    "Edit",
    "Estimate",
    "Evaluation",
    "Grid",
    "HiddenStates",
    "LM",
    "Lens",
    "LenscopeError",
    "Patchscope",
    "Prompt",
    "Recipe",
    "Report",
    "Target",
    "Trajectory",
    "__version__",
    "check",
    "evaluate",
    "export_tuned_lens",
    "fit",
    "fit_mapping",
    "load",
    "load_grid",
    "load_lens",
    "load_mapping",
    "load_results",
    "save",
    "sweep",
    "transfer",
]
