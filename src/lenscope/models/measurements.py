"""What was measured of a model, once for each range of lengths; forgotten when the model is verified anew.

Knows: that a measurement is made once, by one thread. Does not know: what is measured, models.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from lenscope.models.interruption import held

# by what a measurement is found again: its name, then the ranges of lengths that it holds for
Key = tuple[Any, ...]
Value = TypeVar("Value")


class Measurements:
    """The one place that keeps what was measured of a model: deviations, rounding, whether it looks ahead."""

    def __init__(self, lock: Any) -> None:
        self.lock = lock
        self.values: dict[Key, Any] = {}
        # of a model that several processes run together: what one of them measured, of which all go on
        self.agreed: Callable[[Any], Any] | None = None

    def once(self, key: Key, measure: Callable[[], Value]) -> Value:
        """What `measure` gave under this key; it is called the first time, and again if it raised an error."""
        with held(self.lock):
            if key not in self.values:
                measured = measure()
                # decisions are made of numbers; tensors are compared to make them
                if self.agreed is not None and not isinstance(measured, Tensor):
                    measured = self.agreed(measured)
                self.values[key] = measured
            value: Value = self.values[key]
            return value

    def holds(self, key: Key) -> bool:
        """Whether there is something under this key."""
        return key in self.values

    def forget(self) -> None:
        """Forget everything: the model is another one now."""
        self.values = {}
