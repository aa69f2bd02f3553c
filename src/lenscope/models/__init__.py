"""One language model: how it is loaded, read, edited and run, and which shortcuts are exact for it."""

from lenscope.models import edits
from lenscope.models.adapters import with_adapter
from lenscope.models.check import check
from lenscope.models.edits import Edit
from lenscope.models.hidden_states import HiddenStates
from lenscope.models.language_model import LM, Continuation
from lenscope.models.loading import load
from lenscope.models.prompts import Prompt
from lenscope.models.relevance_rules import relp_rules
from lenscope.models.streamed_loading import load_streamed

__all__ = [
    "Continuation",
    "Edit",
    "HiddenStates",
    "LM",
    "Prompt",
    "check",
    "edits",
    "load",
    "load_streamed",
    "relp_rules",
    "with_adapter",
]
