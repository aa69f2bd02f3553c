"""What is odd of a prompt beside normal ones, and which prompts are attacks."""

from lenscope.detection.attack_detector import AttackDetector
from lenscope.detection.attack_fit import fit_attack_detector
from lenscope.detection.detector import Detector, fit_detector, load_detector
from lenscope.detection.detector_trials import SavedScores, try_detectors
from lenscope.detection.detector_trials_results import DetectorTrials
from lenscope.detection.insertions import insert_texts
from lenscope.detection.labelled_prompts import LabelledPrompt, read_labelled_prompts
from lenscope.detection.position_results import OddPositions
from lenscope.detection.probe_features import ProbeFeatures, measure_probe_features

__all__ = [
    "AttackDetector",
    "Detector",
    "DetectorTrials",
    "LabelledPrompt",
    "OddPositions",
    "ProbeFeatures",
    "SavedScores",
    "fit_attack_detector",
    "fit_detector",
    "insert_texts",
    "load_detector",
    "measure_probe_features",
    "read_labelled_prompts",
    "try_detectors",
]
