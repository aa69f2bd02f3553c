"""Hidden states become trajectories of predictions; lenses are measured on text."""

from lenscope.lenses.attribution_results import LogitAttribution, LogitPart
from lenscope.lenses.comparison import Comparison
from lenscope.lenses.evaluate import EvaluationInterrupted, evaluate, transfer
from lenscope.lenses.evaluation_results import Evaluation, load_evaluation
from lenscope.lenses.lens import Lens
from lenscope.lenses.logit_attribution import attribute_logit
from lenscope.lenses.patched_trajectory import causal_cone, patched_trajectory
from lenscope.lenses.side_by_side import read_side_by_side
from lenscope.lenses.side_by_side_results import SideBySide
from lenscope.lenses.token_ranks import TokenRanks
from lenscope.lenses.trajectory import Trajectory, save
from lenscope.lenses.transfer_results import Transfer
from lenscope.lenses.written_trajectory import ReadToken, WrittenTrajectory

__all__ = [
    "Comparison",
    "Evaluation",
    "EvaluationInterrupted",
    "Lens",
    "LogitAttribution",
    "LogitPart",
    "ReadToken",
    "SideBySide",
    "TokenRanks",
    "Trajectory",
    "Transfer",
    "WrittenTrajectory",
    "attribute_logit",
    "causal_cone",
    "evaluate",
    "load_evaluation",
    "patched_trajectory",
    "read_side_by_side",
    "save",
    "transfer",
]
