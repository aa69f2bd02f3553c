"""What is odd of a prompt beside normal ones, and which prompts are attacks."""

from lenscope.detection.attack_detector import AttackDetector
from lenscope.detection.attack_fit import fit_attack_detector
from lenscope.detection.detector import Detector, fit_detector, load_detector
from lenscope.detection.labelled_prompts import LabelledPrompt, read_labelled_prompts
from lenscope.detection.position_results import OddPositions

__all__ = [
    "AttackDetector",
    "Detector",
    "LabelledPrompt",
    "OddPositions",
    "fit_attack_detector",
    "fit_detector",
    "load_detector",
    "read_labelled_prompts",
]
