"""What the requests compute that write states into runs: grids, explanations, patched trajectories, steering.

Knows: how requests become Patchscopes and edits, and their results events. Does not know: HTTP, queues.
"""

from typing import Any

from torch import Tensor

from lenscope.interventions.steering import SteeredTexts, steer
from lenscope.lenses.patched_trajectory import patched_trajectory
from lenscope.models.language_model import LM
from lenscope.models.layers import check_layers
from lenscope.models.prompts import Prompt
from lenscope.patchscopes.patchscope import Patchscope
from lenscope.patchscopes.streamed_explanations import StreamedExplanation, stream_explanation
from lenscope.web.endpoints import RESULT, emit_whole
from lenscope.web.requests import ExplanationIn, GridIn, PatchedTrajectoryIn, StateIn, SteeringIn
from lenscope.web.served import OPERATIONS, Served
from lenscope.web.worker import Emit, Work


def prepare_explanation(served: Served, asked: ExplanationIn) -> Work:
    """What a model says that one state means, at several target layers, beside its controls."""
    lm, other = served.lm, served.model(asked.model)
    prompt, layer, place = _place_of_state(served, asked)
    wanted = range(other.n_layers + 1) if asked.layers is None else asked.layers
    layers = list(dict.fromkeys(check_layers(wanted, other.n_layers, other.name)))
    # each layer has a row of its own and one of a random vector, and there is one without a patch
    served.limits.require_rows(2 * len(layers) + 1)
    served.limits.require_new(asked.max_new_tokens)
    scope = _asked_scope(served, asked)
    scope.require_room(asked.max_new_tokens)
    how: Any = {name: getattr(asked, name) for name in ("max_new_tokens", "seed", "contrast")}

    def work(emit: Emit) -> None:
        states = lm.read(prompt, layer, place)
        streamed = stream_explanation(scope, states, layers, **how)
        rows = [
            {"row": n, "kind": row.kind, "layer": None if row.layer < 0 else row.layer}
            for n, row in enumerate(streamed.rows)
        ]
        emit("start", {"rows": rows})
        _emit_written(emit, streamed)

    return work


def prepare_patched_trajectory(served: Served, asked: PatchedTrajectoryIn) -> Work:
    """The trajectory of a run with a state of another run written into it."""
    lm, lens = served.lm, served.lens(asked.lens)
    prompt, f = served.prompt(asked.prompt, 0), served.mapping(asked.mapping, 0)
    source, layer, position = _place_of_state(served, asked.source)
    place = prompt.position(asked.into.position)
    (into,) = check_layers((asked.into.layer,), lm.n_layers, lm.name)
    how: Any = {"op": OPERATIONS[asked.operation], "f": f, "top_k": asked.top_k}

    def work(emit: Emit) -> None:
        state = lm.read(source, layer, position)
        emit_whole(emit, patched_trajectory(lens, prompt, state, into, place, **how))

    return work


def prepare_steering(served: Served, asked: SteeringIn) -> Work:
    """A prompt written on plainly and with a vector in its states, side by side."""
    lm, prompt = served.lm, served.prompt(asked.prompt, 0)
    (layer,) = check_layers((asked.layer,), lm.n_layers, lm.name)
    positions = None if asked.positions is None else prompt.positions(asked.positions)
    served.limits.require_new(asked.max_new_tokens)
    lm.encoder.require_room(len(prompt), asked.max_new_tokens)
    plus = _place_of_state(served, asked.vector.plus)
    minus = None if asked.vector.minus is None else _place_of_state(served, asked.vector.minus)
    how: Any = {name: getattr(asked, name) for name in ("strength", "max_new_tokens", "temperature", "seed")}

    def work(emit: Emit) -> None:
        vector = _vector(lm, plus) if minus is None else _vector(lm, plus) - _vector(lm, minus)
        changed = lm.read(prompt, layer, positions).tensor.float().norm(dim=-1)
        # the first token's state is a hundred times as long as others: a mean would be about it alone
        emit("start", {"vector_norm": float(vector.float().norm()), "state_norm": float(changed.median())})
        texts = steer(lm, prompt, vector, layer, positions=positions, op=OPERATIONS[asked.operation], **how)
        _emit_written(emit, texts)

    return work


def _emit_written(emit: Emit, written: StreamedExplanation | SteeredTexts) -> None:
    for tokens in written:
        emit(
            "tokens",
            {"tokens": [{"row": t.row, "id": t.id, "text": t.text, "log_prob": t.log_prob} for t in tokens]},
        )
        for token in tokens:
            if token.reason:
                emit("end", {"row": token.row, "text": written.texts[token.row], "reason": token.reason})
    emit("done", {})


def _place_of_state(served: Served, asked: StateIn | ExplanationIn) -> tuple[Prompt, int, int]:
    """The prompt, the layer and the position of a state of the model that is read."""
    prompt = served.prompt(asked.prompt, 0)
    (layer,) = check_layers((asked.layer,), served.lm.n_layers, served.lm.name)
    return prompt, layer, prompt.position(asked.position)


def _vector(lm: LM, place: tuple[Prompt, int, int]) -> Tensor:
    prompt, layer, position = place
    return lm.read(prompt, layer, position)[layer, position]


def _asked_scope(served: Served, asked: ExplanationIn | GridIn) -> Patchscope:
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
    scope = _asked_scope(served, asked)
    scope.require_room(asked.max_new_tokens if asked.kind == "generate" else 0)
    pairs: Any = [(source, layer) for source in dict.fromkeys(sources) for layer in dict.fromkeys(targets)]

    def work(emit: Emit) -> None:
        def advance(done: int, total: int) -> None:
            emit("progress", {"done": done, "total": total})

        states = lm.read(prompt, positions=place)
        grid: Any
        how: Any = {"contrast": asked.contrast, "progress": advance}
        if asked.kind == "predict":
            grid = scope.predict(states, pairs, answers=asked.answers, **how)
        else:
            grid = scope.generate(states, pairs, max_new_tokens=asked.max_new_tokens, **how)
        emit(RESULT, grid)
        emit("result", {"payload": grid.page_data()})
        emit("done", {})

    return work
