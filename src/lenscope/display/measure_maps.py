"""Heat maps of measures: layers and tokens, with the scale that a measure asks for.

Knows: which measures are shares, which are ranks, where a few large values would hide the others.
Does not know: any result's class, how a heat map is drawn.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lenscope import visible_text as visible
from lenscope.display.panels import Heatmap, usual_high


def measure_map(
    title: str,
    axes: tuple[str, str],
    columns: Sequence[Any],
    rows: Sequence[Any],
    values: np.ndarray,
    measure: str,
    unit: str,
    texts: Sequence[Sequence[str]] | None = None,
    bold: Any = None,
    doubted: Sequence[bool] = (),
    note: str = "",
) -> Heatmap:
    """A heat map of a measure: ranks on a logarithmic scale, full colour from the 95th percentile where few exceed it.

    Args:
        title: what stands above.
        axes: what the columns are, and the rows.
        columns: their numbers or names.
        rows: theirs, the lowest first.
        values: (rows, columns).
        measure: the name of the values.
        unit: their unit.
        texts: (rows, columns) what stands in the cells.
        bold: (rows, columns) which cells are bold.
        doubted: which rows are not to be trusted.
        note: why they are not.
    """
    counted = measure == "rank"
    share = unit.startswith(("0–1", "probability"))
    return Heatmap(
        title=title,
        x=axes[0],
        y=axes[1],
        columns=columns,
        rows=rows,
        values=np.where(values < 0, np.nan, values) if counted else values,
        colour=f"{measure.replace('_', ' ')}: {unit}",
        texts=texts,
        bold=bold,
        log=counted,
        high=None if counted or share else usual_high(values),
        doubted=doubted,
        note=note,
    )


def token_names(tokens: Sequence[str]) -> list[str]:
    """Tokens as names of columns, with every character visible."""
    return [visible.printable_token(token) for token in tokens]
