"""Where a prompt is odd: a score for every position and the span that is oddest, with files, tables and pages.

Knows: what scores of positions mean in words, how they look in a terminal and on a page. Does not know: models, how
positions are scored (scored_positions.py).
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from rich.style import Style
from rich.table import Table
from rich.text import Text

from lenscope.display.heat_table import style_of
from lenscope.display.numbers import round_number
from lenscope.display.page import Drawn
from lenscope.display.payload import packed
from lenscope.display.tables import TableColumn, plain_table
from lenscope.errors import LenscopeError
from lenscope.files.digests import FORMAT
from lenscope.files.json_values import float_array, object_value, text_value, text_values, whole_number, whole_numbers
from lenscope.files.parquet_tables import number_column, text_column
from lenscope.files.records import Lists, Record
from lenscope.visible_text import printable

# what stands around the oddest span where there are no colours
OPENS, CLOSES = "[[", "]]"


@dataclass(frozen=True, eq=False, repr=False)
class OddPositions(Record, Drawn):
    """How odd a prompt is at each of its T positions, to a detector: `Detector.where` gives it.

    The numbers say where to look first. They were not calibrated: only `score` of the whole prompt has a threshold.

    Attributes:
        model: the model's name.
        detector: the detector in words.
        unit: what a position's score is, in words.
        text: the prompt.
        tokens: its tokens (T).
        places: the characters (start, stop) of `text` that each token stands for; (0, 0) where it stands for none.
        scores: the score of each position (T), NaN at the first, which has seen nothing.
        smoothed: their moving mean, by which the span was chosen (T).
        span: the oddest positions, from the first to the one behind the last.
        score: the score of the whole prompt.
        threshold: what `score` is compared with; NaN where there is none.
        provenance: where the numbers come from.
    """

    model: str
    detector: str
    unit: str
    text: str
    tokens: tuple[str, ...]
    places: tuple[tuple[int, int], ...]
    scores: np.ndarray
    smoothed: np.ndarray
    span: tuple[int, int]
    score: float
    threshold: float
    provenance: dict[str, Any] = field(default_factory=dict)

    file_kind = "odd positions"

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"OddPositions({len(self)} positions, oddest {self.span[0]}–{self.span[1] - 1}, {self.model})"

    @property
    def characters(self) -> tuple[int, int]:
        """The characters (start, stop) of the prompt that the oddest span stands for."""
        inside = [place for place in self.places[slice(*self.span)] if place[1] > place[0]]
        return (inside[0][0], inside[-1][1]) if inside else (0, 0)

    @property
    def oddest(self) -> str:
        """The text of the oddest span."""
        return self.text[slice(*self.characters)]

    @property
    def says(self) -> str:
        """What the scores mean, in a few plain sentences."""
        above = "" if np.isnan(self.threshold) else f", its threshold {round_number(self.threshold)}"
        return (
            f"A position's score is {self.unit}. The oddest span is where their moving mean is highest: it says where "
            f"to look first, and is there for harmless prompts too. The score of the whole prompt is "
            f"{round_number(self.score)}{above}."
        )

    def table(self, measure: str = "scores", width: int | None = None) -> Table:
        """The prompt for a terminal, each token coloured by its score, with marks around the oddest span.

        Args:
            measure: "scores", or "smoothed" for their moving mean.
            width: columns of the terminal; the text is broken to fit in any.
        """
        if measure not in ("scores", "smoothed"):
            raise LenscopeError(f"measure {measure!r}: there are scores, smoothed")
        values = np.asarray(getattr(self, measure), dtype=float)
        strip = Text()
        start, stop = self.span
        for n, (token, shade) in enumerate(zip(self.tokens, _shades(values), strict=True)):
            if n == start:
                strip.append(OPENS, style=Style(bold=True))
            strip.append(printable(token), style=style_of(float(shade)) + Style(bold=start <= n < stop))
            if n == stop - 1:
                strip.append(CLOSES, style=Style(bold=True))
        peak, median = float(np.nanmax(self.smoothed[start:stop])), float(np.nanmedian(self.smoothed))
        known = values[np.isfinite(values)]
        ends = f" {round_number(known.min())} … {round_number(known.max())}" if known.size else ""
        caption = (
            f"colour: {measure}{ends}; between {OPENS} and {CLOSES}: the oddest span, positions {start}–{stop - 1} of "
            f"{len(self)}, moving mean up to {round_number(peak)}, median {round_number(median)}\n{self.says}"
        )
        lines = [printable(line) for line in caption.split("\n")]
        return plain_table([TableColumn("", folds="all")], [[strip]], "\n".join(lines))

    def page_data(self) -> dict[str, Any]:
        """Give what a page needs: the tokens, and the arrays "scores" and "smoothed" (T,)."""
        names = ("model", "detector", "unit", "text", "says", "score", "provenance")
        head = {"kind": self.file_kind, **{name: getattr(self, name) for name in names}}
        head |= {"tokens": list(self.tokens), "span": list(self.span), "oddest": self.oddest}
        head["threshold"] = None if np.isnan(self.threshold) else self.threshold
        return packed(head, {"scores": self.scores, "smoothed": self.smoothed})

    def _document(self, lists: Lists) -> dict[str, Any]:
        return {
            "kind": self.file_kind,
            "version": FORMAT,
            "model": self.model,
            "detector": self.detector,
            "unit": self.unit,
            "text": self.text,
            "tokens": list(self.tokens),
            "places": [list(place) for place in self.places],
            "scores": lists(self.scores),
            "smoothed": lists(self.smoothed),
            "span": list(self.span),
            "oddest": self.oddest,
            "score": self.score,
            "threshold": None if np.isnan(self.threshold) else self.threshold,
            "provenance": self.provenance,
        }

    @classmethod
    def _from_document(cls, data: dict[str, Any]) -> "OddPositions":
        tokens, text = text_values(data["tokens"], "tokens"), text_value(data["text"], "text")
        places = [whole_numbers(p, "places", 0, len(text)) for p in data["places"]]
        start, stop = whole_numbers(data["span"], "span", 0, len(tokens))
        if len(places) != len(tokens) or any(len(p) != 2 or p[0] > p[1] for p in places) or start >= stop:
            raise ValueError("places, span: are not those of the tokens")
        score, threshold = data["score"], data["threshold"]
        if not all(type(v) in (int, float) and np.isfinite(v) for v in (score, threshold or 0.0)):
            raise ValueError("score, threshold: must be numbers")
        result = cls(
            model=text_value(data["model"], "model"),
            detector=text_value(data["detector"], "detector"),
            unit=text_value(data["unit"], "unit"),
            text=text,
            tokens=tokens,
            places=tuple((whole_number(a, "places"), whole_number(b, "places")) for a, b in places),
            scores=float_array(data["scores"], "scores", (len(tokens),)),
            smoothed=float_array(data["smoothed"], "smoothed", (len(tokens),)),
            span=(start, stop),
            score=float(score),
            threshold=float("nan") if threshold is None else float(threshold),
            provenance=object_value(data["provenance"], "provenance"),
        )
        if not np.isfinite(result.smoothed[start:stop]).all():
            raise ValueError("smoothed: must be known in the span")
        return result

    def _rows(self) -> pa.Table:
        """A row for each position."""
        return pa.table(
            {
                "position": pa.array(range(len(self))),
                "token": text_column(self.tokens),
                "start": pa.array([a for a, _ in self.places]),
                "stop": pa.array([b for _, b in self.places]),
                "score": number_column(self.scores),
                "smoothed": number_column(self.smoothed),
                "oddest": pa.array([self.span[0] <= n < self.span[1] for n in range(len(self))]),
            }
        )


def _shades(values: np.ndarray) -> np.ndarray:
    """0 … 1 for each value, between the lowest and the highest; NaN where there is none."""
    known = values[np.isfinite(values)]
    if not known.size or known.max() == known.min():
        return np.where(np.isfinite(values), 0.0, np.nan)
    return np.where(np.isfinite(values), (values - known.min()) / (known.max() - known.min()), np.nan)
