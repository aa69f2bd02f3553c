"""What each request computes: checked at once, then run as a job of the model's thread.

Knows: which results and events answer which request. Does not know: HTTP, queues, how anything is computed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lenscope.lenses.lens import Lens
from lenscope.models.layers import check_layers
from lenscope.models.prompts import Prompt
from lenscope.web.requests import ComparisonIn, StrictModel, TrajectoryIn
from lenscope.web.served import Served
from lenscope.web.worker import Event

# the event that holds a result, which is kept for exports and not sent
RESULT = "result of the library"
Work = Callable[[], Iterator[Event]]


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

    def work() -> Iterator[Event]:
        yield from _whole(lens.trajectory(prompt, layers, positions, target=target, top_k=asked.top_k))

    return work


def prepare_comparison(served: Served, asked: ComparisonIn) -> Work:
    """Two prompts, or two lenses, compared."""
    first, second = served.prompt(asked.first, 0), served.prompt(asked.second, 0)
    lens = served.lens(asked.lens)
    other = lens if asked.second_lens is None else served.lens(asked.second_lens)
    layers, _ = _granted_cells(served, lens, first, asked.layers, asked.positions)
    _granted_cells(served, other, second, asked.layers, asked.positions)

    def work() -> Iterator[Event]:
        yield from _whole(lens.compare(first, second, layers, asked.positions, lens=other, top_k=asked.top_k))

    return work


def _granted_cells(
    served: Served, lens: Lens, prompt: Prompt, layers: Sequence[int] | None, positions: Sequence[int] | None
) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """The layers and positions asked for, as they are counted in the model; None: all."""
    chosen = None if layers is None else check_layers(layers, served.lm.n_layers, served.lm.name)
    places = None if positions is None else prompt.positions(positions)
    served.limits.require_cells(len(chosen or lens.layers), len(places or prompt))
    return chosen, places


def _whole(result: Any) -> Iterator[Event]:
    """A result, and its payload."""
    yield RESULT, result
    yield "payload", result.page_data()


ENDPOINTS = {
    endpoint.name: endpoint
    for endpoint in (
        ServedEndpoint("trajectory", "The prediction trajectory of a prompt", TrajectoryIn, prepare_trajectory),
        ServedEndpoint("comparison", "Two prompts or two lenses compared", ComparisonIn, prepare_comparison),
    )
}
