"""Many patches of one spec: resumable, each row once, in Parquet, in one process or by Ray."""

from lenscope.sweeps.estimate import SweepEstimate, estimate_sweep
from lenscope.sweeps.running import PreparedSweep, prepare_sweep, sweep
from lenscope.sweeps.spec import SweepSpec, read_spec
from lenscope.sweeps.sweep_folder import Sweep, SweepStatus, open_sweep

__all__ = [
    "PreparedSweep",
    "Sweep",
    "SweepEstimate",
    "SweepSpec",
    "SweepStatus",
    "estimate_sweep",
    "open_sweep",
    "prepare_sweep",
    "read_spec",
    "sweep",
]
