"""What the requests compute that write states into runs: grids, explanations, patched trajectories, steering.

Knows: how requests become Patchscopes and edits, and their results events. Does not know: HTTP, queues.
"""

from typing import Any

from lenscope.models.layers import check_layers
from lenscope.patchscopes.patchscope import Patchscope
from lenscope.web.endpoints import RESULT
from lenscope.web.requests import GridIn
from lenscope.web.served import OPERATIONS, Served
from lenscope.web.worker import Emit, Work


def prepare_grid(served: Served, asked: GridIn) -> Work:
    """One position's states at several layers, in several layers of a target prompt."""
    lm, other = served.lm, served.model(asked.model)
    prompt = served.prompt(asked.prompt, 0)
    place = prompt.position(asked.position)
    sources = check_layers(asked.source_layers or range(lm.n_layers + 1), lm.n_layers, lm.name)
    targets = check_layers(asked.target_layers or range(other.n_layers + 1), other.n_layers, other.name)
    served.limits.require_rows(len(sources) * len(targets))
    served.limits.require_new(asked.max_new_tokens)
    target, f = served.target(asked.target, asked.model), served.mapping(asked.mapping, asked.model)
    pairs: Any = [(source, layer) for source in dict.fromkeys(sources) for layer in dict.fromkeys(targets)]

    def work(emit: Emit) -> None:
        def advance(done: int, total: int) -> None:
            emit("progress", {"done": done, "total": total})

        scope = Patchscope(other, target, f, op=OPERATIONS[asked.operation], source_lm=lm)
        states = lm.read(prompt, positions=place)
        grid: Any
        if asked.kind == "predict":
            grid = scope.predict(states, pairs, answers=asked.answers, progress=advance)
        else:
            grid = scope.generate(states, pairs, max_new_tokens=asked.max_new_tokens, progress=advance)
        emit(RESULT, grid)
        emit("result", {"payload": grid.page_data()})
        emit("done", {})

    return work
