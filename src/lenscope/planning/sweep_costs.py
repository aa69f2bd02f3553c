"""What a sweep of patches costs: rows of a grid share what lies below their patches.

Knows: what staircase.py does, counted. Does not know: how long work takes (costs.py).
"""

from math import ceil

from lenscope.engine.chunked_runs import CHUNK_BYTES, MOST_ROWS
from lenscope.measures.streamed import piece_bytes
from lenscope.planning.costs import Work
from lenscope.planning.lens_costs import PIECES_HELD
from lenscope.planning.model_shapes import ModelShape
from lenscope.planning.placements import Fleet, exchanged, weight_traffic
from lenscope.planning.reading_costs import logit_bytes, model_work

# Of a grid's rows, the share of different histories while they write: 98 of 961 after the first token and 431 after
# fifteen on SmolLM2 (docs/log.md). Below its patch a row shares its states with those of its history.
HISTORIES = 0.3


def grid_rows(shape: ModelShape) -> int:
    """Cells of a whole grid of source layer × target layer."""
    return (shape.layers + 1) ** 2


def rows_at_once(shape: ModelShape, length: int, new: int) -> int:
    """How many rows run together, as chunked_runs.py has it: patched at the last of `length` tokens, `new` written."""
    size = shape.dtype.itemsize
    room = (1 + new) * shape.cached * size + 40 * shape.width * size
    return int(max(1, min(MOST_ROWS, grid_rows(shape), CHUNK_BYTES // room)))


def sweep_bytes(shape: ModelShape, fleet: Fleet, length: int, new: int) -> dict[str, float]:
    """Bytes on each GPU besides the model's weights, by what they are for."""
    size, rows = shape.dtype.itemsize, rows_at_once(shape, length, new)
    share = fleet.gpus if fleet.placement == "tensor" else 1
    device = "cpu" if fleet.machine.cached else "cuda"
    return {
        "keys and values": (length + rows * new) * shape.cached * size / share,
        "passing": rows * (8.0 * shape.width + 3 * shape.inner) * size + PIECES_HELD * float(piece_bytes(device)),
    }


def sweep_work(shape: ModelShape, fleet: Fleet, rows: int, length: int, new: int, room: float = 0.0) -> list[Work]:
    """The work of each GPU on `rows` rows: whole grids, each of one source and one target prompt of `length` tokens.

    Args:
        shape: the model.
        fleet: the GPUs, which share the rows.
        rows: rows of all grids.
        length: tokens of a prompt; rows patch its last one.
        new: tokens that each row writes; 0: its next token is measured.
        room: bytes besides the weights, which offloading leaves room for.
    """
    size, d, bits = shape.dtype.itemsize, shape.width, 8 * shape.dtype.itemsize
    grids, chunks = rows / grid_rows(shape), ceil(grid_rows(shape) / rows_at_once(shape, length, new))
    mine = rows / fleet.readers
    traffic = weight_traffic(shape, fleet, room)
    # the source, the target's prefix, the target without a patch; then every chunk and step
    steps = max(1, new)
    passes = ceil(grids / fleet.readers) * (3 + chunks * steps)
    tokens, alone = 3 * grids * length, 3 * ceil(grids / fleet.readers)
    prompts = model_work(shape, fleet, "prompts", tokens, length, alone, bits=bits)
    # a row patched at layer l runs the blocks above it
    first = mine / 2
    later = mine * (0.5 + 0.5 * HISTORIES) * (steps - 1)
    share = fleet.gpus if fleet.placement == "tensor" else 1
    flops = (first + later) * (2.0 * shape.active + shape.attention * (length + steps / 2)) / share
    own = mine * steps * steps / 2 * shape.cached * size / share
    in_all = ceil(grids / fleet.readers) * chunks * steps
    moved = in_all * (shape.blocks / share + length * shape.cached / share) * size + own
    logits = mine * steps * shape.vocab
    reduced = logits * logit_bytes(fleet.machine) + in_all * shape.vocab * d * size
    pieces = ceil(logits * 4 / piece_bytes("cpu" if fleet.machine.cached else "cuda"))
    return [
        Work(
            "prompts", prompts.flops, bits, prompts.moved, "reading", prompts.calls,
            sent=passes * traffic.sent + exchanged(shape, fleet, tokens + rows * steps), far=fleet.far,
            read=passes * traffic.read, fetched=passes * traffic.fetched,
        ),
        Work("patched rows", flops, bits, moved, "rows", in_all * shape.layers * 60.0),
        Work("unembedding", 2.0 * logits * d, bits, reduced, "readout", max(pieces, in_all) * 20.0),
    ]  # fmt: skip
