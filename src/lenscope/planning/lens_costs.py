"""What reading prediction trajectories costs: one forward pass, and an unembedding of every layer.

Knows: what lens.py and measures/streamed.py do, counted. Does not know: how long work takes (costs.py).
"""

from math import ceil

from lenscope.measures.streamed import STATES_BYTES, piece_bytes
from lenscope.models.batches import PARTS, TOKENS_PER_RUN
from lenscope.planning.costs import Work
from lenscope.planning.model_shapes import ModelShape
from lenscope.planning.placements import Fleet, exchanged, weight_traffic
from lenscope.planning.reading_costs import activation_bytes, logit_bytes, model_work

# pieces of logits that the passes over one hold at once: logits, exponentials, comparisons, of states and final ones
PIECES_HELD = 5


def lens_bytes(shape: ModelShape, fleet: Fleet, length: int, tuned: bool) -> dict[str, float]:
    """Bytes on each GPU besides the model's weights, by what they are for.

    Texts are read together up to 1,024 tokens; longer ones alone.
    """
    size, d, layers = shape.dtype.itemsize, shape.width, shape.layers + 1
    together = _tokens_together(length)
    states = layers * together * d * size
    device = "cpu" if fleet.machine.cached else "cuda"
    return {
        "translators": 4.0 * shape.layers * d * (d + 1) * tuned,
        # what was read, and each text's own as the measures take it
        "states": states + layers * length * d * size * (1.0 + tuned),
        # states prepared for the head, and pieces of logits
        "passing": max(
            activation_bytes(shape, together),
            min(STATES_BYTES, layers * length * d * 4.0) + PIECES_HELD * float(piece_bytes(device)),
        ),
    }


def lens_work(shape: ModelShape, fleet: Fleet, tokens: int, length: int, tuned: bool, room: float = 0.0) -> list[Work]:
    """The work of each GPU on trajectories of `tokens` tokens in texts of `length`, at all layers.

    Args:
        shape: the model.
        fleet: the GPUs, which share the texts.
        tokens: tokens of all texts.
        length: tokens of a text.
        tuned: whether each layer's states go through a translator.
        room: bytes besides the weights, which offloading leaves room for.
    """
    size, d, layers = shape.dtype.itemsize, shape.width, shape.layers + 1
    together = _tokens_together(length)
    traffic = weight_traffic(shape, fleet, room)
    passes = 1 if fleet.placement == "stream" else ceil(tokens / together / fleet.readers)
    reading = model_work(shape, fleet, "reading", tokens, length, passes, bits=8 * size)
    mine = tokens / fleet.readers
    logits = mine * layers * shape.vocab
    # the head is read once for as many states as are prepared together
    walks = ceil(mine * layers * d * 4 / STATES_BYTES)
    moved = logits * logit_bytes(fleet.machine) + walks * shape.vocab * d * size + mine * layers * d * size * 6.0
    pieces = ceil(logits * 4 / piece_bytes("cpu" if fleet.machine.cached else "cuda"))
    # what a stream reads of all texts waits on disk, written once and read once
    waiting = (fleet.placement == "stream") * 2.0 * mine * layers * d * size
    works = [
        Work(
            "reading", reading.flops, reading.bits, reading.moved, "reading", reading.calls,
            sent=passes * traffic.sent + exchanged(shape, fleet, tokens), far=fleet.far,
            read=passes * traffic.read + waiting, fetched=passes * traffic.fetched,
        ),
        Work("unembedding", 2.0 * logits * d, 8 * size, moved, "readout", pieces * 20.0),
    ]  # fmt: skip
    if tuned:
        works.append(Work("translating", mine * shape.layers * 2.0 * d * d, 32, 0.0, "readout"))
    return works


def _tokens_together(length: int) -> int:
    """Tokens of the texts that are read together: as many whole ones as a pass reads, at least one."""
    return max(length, TOKENS_PER_RUN // PARTS // length * length)
