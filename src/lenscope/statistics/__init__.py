"""Arrays of numbers go in, numbers with intervals come out."""

from lenscope.statistics.classifier_scores import auroc_difference, calibrated_error, calibration_error, swap_test
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
    "auroc_difference",
    "bootstrap",
    "calibrated_error",
    "calibration_error",
    "difference",
    "holm",
    "mean",
    "probe",
    "select",
    "sign_flips",
    "spearman",
    "swap_test",
    "variance_explained",
]
