"""Numbers as text: how many digits of a value are shown, and what stands for one that there is not.

Knows: per cents, digits, signs of what is not finite. Does not know: what is measured, where a number is shown.
"""

import numpy as np

# what stands for a value that there is not
ABSENT = "–"


def figure(value: float, measure: str) -> str:
    """A measure's value in at most four characters, for the cells of a heat table."""
    if not np.isfinite(value) or (measure == "rank" and value < 0):
        return ABSENT
    if measure == "rank":
        return str(int(value)) if value < 10_000 else f"{value / 1000:.0f}k"
    if measure in ("max_probability", "total_variation"):
        return f"{100 * value:.0f}%"
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def signed_figure(value: float, share: bool) -> str:
    """A value with two digits behind the point, in at most six characters; a `share` in per cent."""
    if not np.isfinite(value):
        return ABSENT
    if share:
        digits = 0 if abs(value) >= 0.1 or not value else 1
        return f"{round(100 * value, digits) + 0.0:.{digits}f}%"
    # what rounds to nothing has no sign
    return f"{round(value, 2) + 0.0:.2f}" if abs(value) < 10 else f"{value:.1f}"


def four_digits(value: float) -> str:
    """A value in four digits, three of them behind the point where it is small; an infinite one as ∞."""
    if not np.isfinite(value):
        return ABSENT if np.isnan(value) else "∞"
    size = abs(value)
    return f"{value:.3f}" if size < 9.9995 else f"{value:.2f}" if size < 99.995 else f"{value:.0f}"


def round_number(value: float) -> str:
    """A value with two digits behind the point, or with three significant ones where it is small, as texts have it."""
    if not np.isfinite(value):
        return ABSENT
    if value and abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:.2f}" if abs(value) >= 0.1 or not value else f"{value:.3f}"
