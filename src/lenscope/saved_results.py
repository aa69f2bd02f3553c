"""Files of results of every kind, read again: equal to what was saved, or one line that says why not.

Knows: which results there are. Does not know: models, what their files hold.
"""

import os
from typing import Any

from lenscope.detection.position_results import OddPositions
from lenscope.files.records import Record, load_record
from lenscope.interventions.effects import Effects
from lenscope.interventions.token_edit_results import EditEffects
from lenscope.lenses.attribution_results import LogitAttribution
from lenscope.lenses.comparison import Comparison
from lenscope.lenses.evaluation_results import Evaluation
from lenscope.lenses.side_by_side_results import SideBySide
from lenscope.lenses.trajectory import Trajectory
from lenscope.lenses.transfer_results import Transfer
from lenscope.patchscopes.grid import Grid

RESULTS: tuple[type[Record], ...] = (
    Trajectory, Comparison, SideBySide, Grid, Effects, EditEffects, Evaluation, Transfer, LogitAttribution,
    OddPositions,
)  # fmt: skip


def load_results(path: str | os.PathLike[str]) -> Any:
    """Load a saved result of any kind, equal to what was saved.

    That is a Trajectory or a SideBySide, or a list of them (as it was saved), a Comparison, Grid, Effects, EditEffects,
    Evaluation, Transfer, LogitAttribution or OddPositions. The rows of a Parquet file may be in any order. Raises
    LenscopeError for a file of something else, whose loader it names, and for one that is damaged or holds values that
    no result has.
    """
    return load_record(path, RESULTS)
