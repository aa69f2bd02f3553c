"""Layers as a person names them, turned into numbers 0…n_layers.

Knows: integers, slices and lists of them, which of many layers are spread evenly. Does not know: models, states.
"""

import operator
from collections.abc import Sequence

import numpy as np

from lenscope.errors import LenscopeError
from lenscope.models.inputs import elements, is_integer, shown, sliced

# layers as a person names them
Layers = int | slice | Sequence[int]


def check_layers(layers: Layers, n_layers: int, model: str) -> tuple[int, ...]:
    """Layer numbers 0…n_layers (negative ones from the end) of an int, a slice or a list, in the order given.

    Raises LenscopeError for layers out of range, none at all, and what is no integer.
    """
    if isinstance(layers, slice):
        numbers = list(sliced(layers, n_layers + 1, "layers"))
        if not numbers:
            raise LenscopeError(f"layers {layers.start}:{layers.stop}: {model} has layers 0–{n_layers}; none of them")
        return tuple(numbers)
    valid = f"{model} has layers 0–{n_layers} (0 is the input of the first block, {n_layers} the last block's output)"
    numbers = []
    for layer in [layers] if is_integer(layers) else elements(layers, "a layer, a slice or a list of layers"):
        number = operator.index(layer) if is_integer(layer) else None
        if number is None or not -n_layers - 1 <= number <= n_layers:
            raise LenscopeError(f"layer {shown(layer) if number is None else number}: {valid}")
        numbers.append(number % (n_layers + 1))
    if not numbers:
        raise LenscopeError("layers: the list is empty; name at least one")
    return tuple(numbers)


def evenly_spaced(layers: Sequence[int], count: int) -> tuple[int, ...]:
    """Up to `count` of the layers, evenly apart, the first and the last among them."""
    return tuple(layers[round(n)] for n in np.linspace(0, len(layers) - 1, min(count, len(layers))))
