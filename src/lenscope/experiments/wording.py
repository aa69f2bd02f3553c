"""Texts that experiments read and keep, and estimates that several of them make.

Knows: what comes before a text whose states are read, how texts become tensors that a setting keeps, how items are
balanced, two groups and many pairs compared. Does not know: what was said.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lenscope.display.figures import Series
from lenscope.experiments.setting import Setting
from lenscope.statistics.intervals import Estimate


def cached_json(setting: Setting, name: str, make: Callable[[], Any], **settings: Any) -> Any:
    """JSON values that `make` makes, or an earlier run of the same settings made: as `Setting.kept`."""

    def tensors() -> dict[str, Tensor]:
        made = bytearray(json.dumps(make(), ensure_ascii=False).encode())
        return {"json": torch.frombuffer(made, dtype=torch.uint8)}

    return json.loads(setting.kept(name, tensors, **settings)["json"].numpy().tobytes())


def curve(label: str, x: Sequence[Any], estimates: Sequence[Estimate], dashed: bool = False) -> Series:
    """Estimates over x with their intervals, to be drawn."""
    y, low, high = ([e[i] for e in estimates] for i in range(3))
    return Series(label, x, y, low, high, dashed)


def interval(e: Estimate) -> str:
    """An estimate as it stands in a sentence."""
    return f"{e.value:.2f} [{e.low:.2f}, {e.high:.2f}]"
