"""display.numbers"""

import numpy as np


def figure(value: float, measure: str) -> str:
    """A measure's value in at most four characters."""
    if not np.isfinite(value) or (measure == "rank" and value < 0):
        return "–"
    if measure == "rank":
        return str(int(value)) if value < 10_000 else f"{value / 1000:.0f}k"
    if measure in ("max_probability", "total_variation"):
        return f"{100 * value:.0f}%"
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"
