"""What the requests compute that write states into runs: grids, explanations, patched trajectories, steering.

Knows: how requests become Patchscopes and edits, and their results events. Does not know: HTTP, queues.
"""

from typing import Any

from lenscope.engine.token_choice_and_end import WrittenToken
from lenscope.models.layers import check_layers
from lenscope.patchscopes.patchscope import Patchscope
from lenscope.patchscopes.streamed_explanations import stream_explanation
from lenscope.web.endpoints import RESULT
from lenscope.web.requests import ExplanationIn, GridIn
from lenscope.web.served import OPERATIONS, Served
from lenscope.web.worker import Emit, Work


def prepare_explanation(served: Served, asked: ExplanationIn) -> Work:
    """What a model says that one state means, at several target layers, beside its controls."""
    lm, other = served.lm, served.model(asked.model)
    prompt = served.prompt(asked.prompt, 0)
    place = prompt.position(asked.position)
    (layer,) = check_layers((asked.layer,), lm.n_layers, lm.name)
    wanted = range(other.n_layers + 1) if asked.layers is None else asked.layers
    layers = list(dict.fromkeys(check_layers(wanted, other.n_layers, other.name)))
    # each layer has a row of its own and one of a random vector, and there is one without a patch
    served.limits.require_rows(2 * len(layers) + 1)
    served.limits.require_new(asked.max_new_tokens)
    scope = _scope(served, asked)
    scope.require_room(asked.max_new_tokens)

    def work(emit: Emit) -> None:
        states = lm.read(prompt, layer, place)
        streamed = stream_explanation(scope, states, layers, max_new_tokens=asked.max_new_tokens, seed=asked.seed)
        rows = [
            {"row": n, "kind": row.kind, "layer": None if row.layer < 0 else row.layer}
            for n, row in enumerate(streamed.rows)
        ]
        emit("start", {"rows": rows})
        for tokens in streamed:
            emit("tokens", {"tokens": [written_token(token) for token in tokens]})
            for token in tokens:
                if token.reason:
                    emit("end", {"row": token.row, "text": streamed.texts[token.row], "reason": token.reason})
        emit("done", {})

    return work


def written_token(token: WrittenToken) -> dict[str, Any]:
    """A token of a row as it is sent."""
    return {"row": token.row, "id": token.id, "text": token.text, "log_prob": token.log_prob}


def _scope(served: Served, asked: ExplanationIn | GridIn) -> Patchscope:
    target, f = served.target(asked.target, asked.model), served.mapping(asked.mapping, asked.model)
    other = served.model(asked.model)
    return Patchscope(other, target, f, op=OPERATIONS[asked.operation], source_lm=served.lm)


def prepare_grid(served: Served, asked: GridIn) -> Work:
    """One position's states at several layers, in several layers of a target prompt."""
    lm, other = served.lm, served.model(asked.model)
    prompt = served.prompt(asked.prompt, 0)
    place = prompt.position(asked.position)
    sources = check_layers(asked.source_layers or range(lm.n_layers + 1), lm.n_layers, lm.name)
    targets = check_layers(asked.target_layers or range(other.n_layers + 1), other.n_layers, other.name)
    served.limits.require_rows(len(sources) * len(targets))
    served.limits.require_new(asked.max_new_tokens)
    scope = _scope(served, asked)
    scope.require_room(asked.max_new_tokens if asked.kind == "generate" else 0)
    pairs: Any = [(source, layer) for source in dict.fromkeys(sources) for layer in dict.fromkeys(targets)]

    def work(emit: Emit) -> None:
        def advance(done: int, total: int) -> None:
            emit("progress", {"done": done, "total": total})

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
