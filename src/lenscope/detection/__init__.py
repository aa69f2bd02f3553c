"""What is odd of a prompt beside normal ones."""

from lenscope.detection.detector import Detector, fit_detector, load_detector

__all__ = ["Detector", "fit_detector", "load_detector"]
