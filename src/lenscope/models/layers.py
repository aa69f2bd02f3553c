"""Layers as a person names them, turned into numbers 0…n_layers, and numbers of layers in words.

Knows: integers, slices and lists of them, which of many layers are spread evenly. Does not know: models, states.
"""

import operator
from collections.abc import Iterable, Sequence

import numpy as np

from lenscope.errors import LenscopeError
from lenscope.models.inputs import elements, is_integer, shown, slice_in_words, sliced

# layers as a person names them
Layers = int | slice | Sequence[int]


def check_layers(layers: Layers, n_layers: int, model: str) -> tuple[int, ...]:
    """Layer numbers 0…n_layers (negative ones from the end) of an int, a slice or a list, in the order given.

    Raises LenscopeError for layers out of range, none at all, and what is no integer.
    """
    if isinstance(layers, slice):
        return layers_of_slice(layers, n_layers, model)
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


def layers_of_slice(layers: slice, n_layers: int, model: str) -> tuple[int, ...]:
    """The layers 0…n_layers that a slice takes; LenscopeError where it takes none."""
    numbers = sliced(layers, n_layers + 1, "layers")
    if not numbers:
        raise LenscopeError(
            f"layers {slice_in_words(layers)}: none of the layers 0–{n_layers} of {model}; give the first layer and "
            f"the one behind the last, such as 0:{n_layers + 1} for all"
        )
    return numbers


def layers_in_words(layers: Iterable[int]) -> str:
    """Layers as a sentence names them: layer 5, layers 6–20, layers 8–10, 13."""
    numbers = list(layers)
    return f"{'layer' if len(numbers) == 1 else 'layers'} {numbers_in_runs(numbers)}"


def numbers_in_runs(numbers: Iterable[int]) -> str:
    """Numbers as runs: 0–4, 7."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs)


def evenly_spaced(layers: Sequence[int], count: int) -> tuple[int, ...]:
    """Up to `count` of the layers, evenly apart, the first and the last among them."""
    return tuple(layers[round(n)] for n in np.linspace(0, len(layers) - 1, min(count, len(layers))))
