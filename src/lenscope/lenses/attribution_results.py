"""Attributions of a logit: what each part of a model adds to it, in files, tables and figures.

Knows: which parts there are, that they sum to the logit. Does not know: models, how parts are computed.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from rich.table import Table

from lenscope import visible_text as visible
from lenscope.display.figures import Figure
from lenscope.display.heat_table import heat_table
from lenscope.display.panels import Heatmap, Panel, Series
from lenscope.display.tables import TableColumn, fit_to_width, plain_table
from lenscope.errors import LenscopeError
from lenscope.files.digests import FORMAT
from lenscope.files.json_values import (
    float_array,
    object_value,
    text_value,
    vocabulary_value,
    whole_number,
    whole_numbers,
)
from lenscope.files.parquet_tables import repeated_text
from lenscope.files.records import Lists, Record

UNIT = "logits, before any soft cap"
# the share of the parts' sizes that rounding may take, in a file
SLACK = 0.1


@dataclass(frozen=True)
class LogitPart:
    """One part and what it adds: "embedding", "attention", "mlp", "head", "head bias" or "bias"; layer 1…n_layers."""

    kind: str
    layer: int | None
    head: int | None
    logit: float

    @property
    def name(self) -> str:
        """The part in words, such as "MLP 12" or "head 12.3": block by the layer that it makes, heads from 0."""
        kind = {"mlp": "MLP"}.get(self.kind, self.kind)
        number = "" if self.layer is None else f" {self.layer}" + ("" if self.head is None else f".{self.head}")
        return kind + number


@dataclass(frozen=True, eq=False, repr=False)
class LogitAttribution(Record):
    """What each part of a model adds to a token's logit at one position. `attribute_logit` makes it.

    Blocks are named by the layer that each makes, 1…n_layers. All numbers are in logits, before any soft cap; with
    `against` they are of the difference of two tokens' logits, token - against.

    Attributes:
        position: the position that predicts the token.
        token: the token's id.
        against: the id of the token whose logit is taken off; None where there is none.
        logit: the logit, of the model's own final norm.
        embedding: what the state at layer 0 adds.
        attention: what each block's attention adds, (n_layers,).
        mlp: what each block's MLP adds, (n_layers,).
        bias: what the biases of final norm and head add.
        heads: what each head adds, (n_layers, H), which with `head_bias` is `attention`; None where not asked for.
        head_bias: what the bias of each attention's projection adds, (n_layers,); None as `heads`.
        soft_cap: the cap that the model puts on logits; None where it has none.
        capped: the model's own logit, or difference of logits, behind the cap.
        vocabulary: the text of every id.
    """

    text: str
    ids: tuple[int, ...]
    model: str
    position: int
    token: int
    against: int | None
    logit: float
    embedding: float
    attention: np.ndarray
    mlp: np.ndarray
    bias: float
    heads: np.ndarray | None
    head_bias: np.ndarray | None
    soft_cap: float | None
    capped: float
    vocabulary: dict[int, str]
    provenance: dict[str, Any] = field(default_factory=dict)

    file_kind = "attribution"

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 40 else self.text[:37] + "…"
        return f"LogitAttribution({text!r} at {self.position}: {self._what()} {self.logit:.2f}, {self.n_layers} blocks)"

    @property
    def n_layers(self) -> int:
        """The number of blocks."""
        return len(self.attention)

    @property
    def rounding(self) -> float:
        """The logit less the sum of its parts: what the model rounds where it adds to its stream, and no more."""
        return float(self.logit - self.embedding - self.attention.sum() - self.mlp.sum() - self.bias)

    @property
    def so_far(self) -> np.ndarray:
        """(n_layers + 1,) what all parts up to each layer add, biases left out: embedding, then block after block."""
        return np.cumsum([self.embedding, *(self.attention + self.mlp)])

    def parts(self, *, heads: bool | None = None) -> tuple[LogitPart, ...]:
        """Every part, in the order of the model; they sum to the logit but for `rounding`.

        Args:
            heads: whether heads and their biases stand in place of attentions; by default where they were asked for.
        """
        split = self.heads is not None if heads is None else heads
        if split and (self.heads is None or self.head_bias is None):
            raise LenscopeError("heads: were not split; ask attribute_logit for them with heads=True")
        parts = [LogitPart("embedding", None, None, self.embedding)]
        for n in range(self.n_layers):
            if split and self.heads is not None and self.head_bias is not None:
                parts += [LogitPart("head", n + 1, h, float(v)) for h, v in enumerate(self.heads[n])]
                if self.head_bias.any():
                    parts.append(LogitPart("head bias", n + 1, None, float(self.head_bias[n])))
            else:
                parts.append(LogitPart("attention", n + 1, None, float(self.attention[n])))
            parts.append(LogitPart("mlp", n + 1, None, float(self.mlp[n])))
        return (*parts, LogitPart("bias", None, None, self.bias))

    def table(self, top_k: int | None = None, *, width: int | None = None) -> Table:
        """Show what each block's attention and MLP add, the last on top; or the `top_k` parts that add or take most."""
        if top_k is not None and top_k < 1:
            raise LenscopeError(f"top_k {top_k}: give at least 1")
        return fit_to_width(lambda _: self._largest(top_k) if top_k else self._by_layer(), width)

    def _largest(self, top_k: int) -> Table:
        parts = sorted(self.parts(), key=lambda part: -abs(part.logit))
        rows = [[part.name, _signed_logit(part.logit)] for part in parts[:top_k]]
        rest = sum(part.logit for part in parts[top_k:])
        rows += [[f"{len(parts) - top_k} others", _signed_logit(rest)]] if len(parts) > top_k else []
        return plain_table([TableColumn("part"), TableColumn("adds", "right")], rows, self._caption(), gap=2)

    def _by_layer(self) -> Table:
        """Embedding, blocks and biases from below, with what all parts up to there add."""
        numbers = np.stack([self.attention, self.mlp], axis=1)
        low, high = float(numbers.min()), float(numbers.max())
        shades = np.full((self.n_layers + 2, 3 + (self.heads is not None)), np.nan)
        shades[1:-1, :2] = (numbers - low) / max(high - low, 1e-12)
        between = [""] * (self.heads is not None)
        cells = [["", "", *between, _signed_logit(self.embedding)]]
        for n, total in enumerate(self.so_far[1:]):
            cells.append([*map(_signed_logit, numbers[n]), *self._largest_head(n), _signed_logit(total)])
        cells.append(["", "", *between, _signed_logit(self.so_far[-1] + self.bias)])
        labels = ["embedding", *map(str, range(1, self.n_layers + 1)), "biases"]
        names = ["attention", "MLP", *["largest head"] * (self.heads is not None), "so far"]
        columns = [TableColumn(name, "right", max(9, len(name))) for name in names]
        texts = [[cell.rjust(c.width or 0) for cell, c in zip(row, columns, strict=True)] for row in cells]
        caption = f"{self._caption()}; colour: what a part adds, {_signed_logit(low)} … {_signed_logit(high)}"
        return heat_table(columns, labels, texts, shades, caption)

    def _largest_head(self, n: int) -> list[str]:
        if self.heads is None:
            return []
        head = int(np.abs(self.heads[n]).argmax())
        return [f"{head}: {_signed_logit(float(self.heads[n, head]))}"]

    def figure(self) -> Figure:
        """Draw what each attention and MLP adds, and the sum so far; also a heat map of heads where they were split."""
        layers = list(range(1, self.n_layers + 1))
        each = [Series("attention", layers, self.attention.tolist()), Series("MLP", layers, self.mlp.tolist())]
        so_far = [Series("", [0, *layers], self.so_far.tolist())]
        title = f"{self._what()} {self.logit:.2f}, {self.model}"
        panels: list[Panel | Heatmap] = [
            Panel(title, "layer", "what the block adds, logits", each, level=0.0),
            Panel("sum of the parts up to each layer", "layer", "logits, without biases", so_far, level=0.0),
        ]
        if self.heads is not None:
            names = list(range(self.heads.shape[1]))
            panels.append(Heatmap("heads", "head", "layer", names, layers, self.heads, "what the head adds, logits"))
        return Figure("logit attribution", panels)

    def _what(self) -> str:
        token = f"logit of {self.vocabulary[self.token]!r}"
        return token if self.against is None else f"{token} less that of {self.vocabulary[self.against]!r}"

    def _caption(self) -> str:
        cap = f"; behind the soft cap {self.soft_cap:g}: {self.capped:.3f}" if self.soft_cap is not None else ""
        size = abs(self.rounding)
        text = f"{self._what()} at position {self.position}: {self.logit:.3f}{cap}; the parts sum to it, "
        return visible.printable(text + f"rounding {size:.1e}; final norm's denominator held")

    def _document(self, lists: Lists) -> dict[str, Any]:
        return {
            "kind": "attribution",
            "version": FORMAT,
            "prompt": {"text": self.text, "ids": list(self.ids), "tokens": [self.vocabulary[i] for i in self.ids]},
            "model": self.model,
            "position": self.position,
            "token": {"id": self.token, "token": self.vocabulary[self.token]},
            "against": None if self.against is None else {"id": self.against, "token": self.vocabulary[self.against]},
            "unit": UNIT,
            "logit": self.logit,
            "embedding": self.embedding,
            "attention": lists(self.attention),
            "mlp": lists(self.mlp),
            "bias": self.bias,
            "heads": None if self.heads is None else lists(self.heads),
            "head_bias": None if self.head_bias is None else lists(self.head_bias),
            "rounding": self.rounding,
            "soft_cap": self.soft_cap,
            "capped": self.capped,
            "vocabulary": {str(i): t for i, t in self.vocabulary.items()},
            "provenance": self.provenance,
        }

    @classmethod
    def _from_document(cls, data: dict[str, Any]) -> "LogitAttribution":
        ids = whole_numbers(data["prompt"]["ids"], "ids")
        numbers = {n: None if data[n] is None else float_array(data[n], n, dtype=np.float64) for n in _ARRAYS}
        single = {n: float(float_array([data[n]], n, (1,), np.float64)[0]) for n in _SINGLE}
        against, cap = data["against"], data["soft_cap"]
        attribution = LogitAttribution(
            text=text_value(data["prompt"]["text"], "text"),
            ids=ids,
            model=text_value(data["model"], "model"),
            position=whole_number(data["position"], "position", 0, len(ids) - 1),
            token=whole_number(data["token"]["id"], "token"),
            against=None if against is None else whole_number(against["id"], "against"),
            soft_cap=None if cap is None else float(float_array([cap], "soft cap", (1,), np.float64)[0]),
            vocabulary=vocabulary_value(data["vocabulary"]),
            provenance=object_value(data["provenance"], "provenance"),
            **numbers,  # type: ignore[arg-type]
            **single,  # type: ignore[arg-type]
        )
        attribution._check()
        return attribution

    def _check(self) -> None:
        """ValueError for values that `attribute_logit` never gives."""
        lacking = {*self.ids, self.token, *([] if self.against is None else [self.against])} - self.vocabulary.keys()
        if lacking:
            raise ValueError(f"vocabulary: has no text of token {min(lacking)}")
        n = len(self.attention)
        if self.attention.shape != (n,) or self.mlp.shape != (n,) or not n:
            raise ValueError("attention: has not one number for each block, as mlp has")
        if (self.heads is None) is not (self.head_bias is None):
            raise ValueError("heads: are there without their biases, or these without heads")
        terms = np.concatenate([[self.embedding, self.bias], self.attention, self.mlp])
        if not abs(self.rounding) <= SLACK * np.abs(terms).sum() + 1e-6:
            raise ValueError("logit: is not the sum of its parts")
        if self.heads is not None and self.head_bias is not None:
            if self.heads.ndim != 2 or len(self.heads) != n or self.head_bias.shape != (n,):
                raise ValueError("heads: are not those of every block")
            gap = np.abs(self.heads.sum(1) + self.head_bias - self.attention)
            if not (gap <= SLACK * (np.abs(self.heads).sum(1) + np.abs(self.head_bias)) + 1e-6).all():
                raise ValueError("heads: do not sum to what attention adds")

    def _rows(self) -> pa.Table:
        parts = [*self.parts(heads=False), *(p for p in self._head_parts() if p.kind.startswith("head"))]
        return pa.table(
            {
                "prompt": repeated_text(self.text, len(parts)),
                "model": repeated_text(self.model, len(parts)),
                "position": pa.array([self.position] * len(parts)),
                "token": repeated_text(self.vocabulary[self.token], len(parts)),
                "against": repeated_text("" if self.against is None else self.vocabulary[self.against], len(parts)),
                "part": pa.array([p.kind for p in parts], type=pa.string()),
                "layer": pa.array([p.layer for p in parts], type=pa.int64()),
                "head": pa.array([p.head for p in parts], type=pa.int64()),
                "logit": pa.array([p.logit for p in parts], type=pa.float64()),
            }
        )

    def _head_parts(self) -> tuple[LogitPart, ...]:
        return () if self.heads is None else self.parts(heads=True)


_ARRAYS = ("attention", "mlp", "heads", "head_bias")
_SINGLE = ("logit", "embedding", "bias", "capped")


def _signed_logit(value: float) -> str:
    """A number of logits with its sign, and three digits behind the point."""
    return f"{round(float(value), 3) + 0.0:+.3f}"
