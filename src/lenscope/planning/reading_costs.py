"""What running a model and reading distributions of its states cost.

Knows: forward passes over texts, logits that are reduced piece by piece.
Does not know: what is read for, how long it takes.
"""

from math import ceil

from lenscope.planning.costs import Work
from lenscope.planning.machines import Machine
from lenscope.planning.model_shapes import ModelShape
from lenscope.planning.placements import Fleet

# kernels of a block's forward pass in eager torch, counted for a Llama: norms, products, RoPE, attention, gates
CALLS_OF_BLOCK = 40
# bytes that the passes over a logit move where they go to memory: made, widened, searched for the top, ranked, shifted,
# cut below, exponentiated, summed, and multiplied with two others; counted in measures/streamed.py
BYTES_OF_LOGIT = 64


def logit_bytes(machine: Machine) -> float:
    """Bytes of memory traffic of each logit that is reduced: next to none where pieces lie in the cache."""
    return 0.0 if machine.cached else BYTES_OF_LOGIT


def activation_bytes(shape: ModelShape, tokens: int) -> float:
    """What a pass of so many tokens holds besides states: rows of a block, and what its widest products make."""
    return tokens * (8.0 * shape.width + 3 * shape.inner) * shape.dtype.itemsize


def model_work(
    shape: ModelShape, fleet: Fleet, name: str, tokens: float, length: int, passes: float, *, bits: int
) -> Work:
    """Running texts of `length` tokens, `tokens` in all, in `passes` passes over the weights: each GPU's part.

    Args:
        shape: the model.
        fleet: the GPUs.
        name: what the work is called.
        tokens: tokens of all texts.
        length: tokens of a text, on which attention depends.
        passes: how often each GPU reads all its weights.
        bits: of the products.
    """
    size, n = shape.dtype.itemsize, fleet.at_work
    flops = tokens * (2.0 * shape.active + shape.attention * (length + 1) / 2)
    weights = ceil(passes) * shape.blocks * size / (n if fleet.placement == "tensor" else 1)
    inside = tokens / n * shape.layers * (20.0 * shape.width + 6 * shape.inner) * size
    calls = ceil(passes) * shape.layers * CALLS_OF_BLOCK
    return Work(name, flops / n, bits, weights + inside, "reading", calls)
