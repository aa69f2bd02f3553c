"""What the requests about a prompt's own predictions compute, and what an endpoint is.

Knows: which results and events answer which request. Does not know: HTTP, queues, how anything is computed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lenscope.lenses.lens import Lens
from lenscope.models.layers import check_layers
from lenscope.models.prompts import Prompt
from lenscope.web.requests import ComparisonIn, GenerationIn, RanksIn, StrictModel, TrajectoryIn
from lenscope.web.served import Served
from lenscope.web.worker import Emit, Work

# the event that holds a result, which is kept for exports and not sent
RESULT = "result of the library"


@dataclass(frozen=True)
class ServedEndpoint:
    """A path of the API: what is asked there, which model's thread does it, and what it does.

    `prepare` checks a request, with errors that are told at once, and gives the work that is left for the thread.
    """

    name: str
    summary: str
    request: type[StrictModel]
    prepare: Callable[[Served, Any], Work]
    streams: bool = False

    def model(self, asked: Any) -> int:
        """The number of the model whose thread does the work."""
        return getattr(asked, "model", 0)


def prepare_trajectory(served: Served, asked: TrajectoryIn) -> Work:
    """The trajectory of a prompt."""
    lens, prompt = served.lens(asked.lens), served.prompt(asked.prompt, 0)
    layers, positions = _granted_cells(served, lens, prompt, asked.layers, asked.positions)
    target = None if asked.target is None else served.lm.encoder.token_id(asked.target)
    return lambda emit: emit_whole(emit, lens.trajectory(prompt, layers, positions, target=target, top_k=asked.top_k))


def prepare_comparison(served: Served, asked: ComparisonIn) -> Work:
    """Two prompts, or two lenses, compared."""
    first, second = served.prompt(asked.first, 0), served.prompt(asked.second, 0)
    lens = served.lens(asked.lens)
    other = lens if asked.second_lens is None else served.lens(asked.second_lens)
    layers, _ = _granted_cells(served, lens, first, asked.layers, asked.positions)
    _granted_cells(served, other, second, asked.layers, asked.positions)
    how: Any = {"lens": other, "top_k": asked.top_k}
    return lambda emit: emit_whole(emit, lens.compare(first, second, layers, asked.positions, **how))


def prepare_ranks(served: Served, asked: RanksIn) -> Work:
    """The ranks of chosen tokens."""
    lens, prompt = served.lens(asked.lens), served.prompt(asked.prompt, 0)
    layers, positions = _granted_cells(served, lens, prompt, asked.layers, asked.positions)
    tokens = [served.lm.encoder.token_id(token) for token in asked.tokens]
    return lambda emit: emit_whole(emit, lens.ranks(prompt, tokens, layers, positions))


def prepare_generation(served: Served, asked: GenerationIn) -> Work:
    """What the model goes on to write, with the trajectory of each token as it comes."""
    lens, prompt = served.lens(asked.lens), served.prompt(asked.prompt, 0)
    served.limits.require_new(asked.max_new_tokens)
    served.lm.encoder.require_room(len(prompt), asked.max_new_tokens)
    _granted_cells(served, lens, prompt, None, None)
    how: Any = {name: getattr(asked, name) for name in ("top_k", "temperature", "top_p", "seed")}

    def work(emit: Emit) -> None:
        written = lens.generate(prompt, asked.max_new_tokens, **how)
        emit("start", {"payload": written.start.page_data()})
        for token in written:
            emit(
                "token",
                {
                    "id": token.id,
                    "text": token.text,
                    "log_prob": token.log_prob,
                    "payload": token.trajectory.page_data(),
                },
            )
        emit(RESULT, written.trajectory())
        emit("done", {"text": written.text, "reason": written.reason})

    return work


def emit_whole(emit: Emit, result: Any) -> None:
    """Emit a result, and its payload."""
    emit(RESULT, result)
    emit("payload", result.page_data())


def _granted_cells(
    served: Served, lens: Lens, prompt: Prompt, layers: Sequence[int] | None, positions: Sequence[int] | None
) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """The layers and positions asked for, as they are counted in the model; None: all."""
    chosen = None if layers is None else check_layers(layers, served.lm.n_layers, served.lm.name)
    places = None if positions is None else prompt.positions(positions)
    served.limits.require_cells(len(chosen or lens.layers), len(places or prompt))
    return chosen, places
