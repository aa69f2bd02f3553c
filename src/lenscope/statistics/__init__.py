"""Arrays of numbers go in, numbers with intervals come out."""

from lenscope.statistics.estimates import auroc, difference, mean, spearman, variance_explained
from lenscope.statistics.intervals import Estimate, bootstrap
from lenscope.statistics.probes import Probed, probe
from lenscope.statistics.selection import Selection, select
from lenscope.statistics.significance import holm, sign_flips

__all__ = [
    "Estimate",
    "Probed",
    "Selection",
    "auroc",
    "bootstrap",
    "difference",
    "holm",
    "mean",
    "probe",
    "select",
    "sign_flips",
    "spearman",
    "variance_explained",
]
