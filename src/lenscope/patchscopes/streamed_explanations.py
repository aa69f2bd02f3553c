"""Explanations token by token as they are written, with their controls in the same batch.

Knows: which row is the patched state, the unpatched target or a random vector, what each wrote so far.
Does not know: how rows are run, how a token is chosen (both in engine/), what an explanation is worth.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lenscope.engine import sweep
from lenscope.engine.patched_rows import WrittenStep, in_one_batch
from lenscope.engine.token_choice_and_end import TokenChooser, WrittenToken
from lenscope.errors import LenscopeError
from lenscope.measures.contrasted_readout import contrast_weight
from lenscope.models.hidden_states import HiddenStates
from lenscope.models.inputs import count
from lenscope.patchscopes.controls import random_vectors
from lenscope.patchscopes.patchscope import Patchscope
from lenscope.patchscopes.sources import Layers

STATE, UNPATCHED, RANDOM = "state", "unpatched", "random"


@dataclass(frozen=True)
class ExplanationRow:
    """What a row of an explanation is.

    Attributes:
        kind: "state", "unpatched" or "random".
        target: the number of its target prompt.
        source: the number of its source; -1 for the unpatched target.
        layer: the target layer; -1 for the unpatched target.
    """

    kind: str
    target: int
    source: int
    layer: int


class StreamedExplanation(Iterator[list[WrittenToken]]):
    """What a Patchscope writes of states, step by step: iterate to get the next tokens. `stream_explanation` makes it.

    `rows` says what each row is, `ids` and `texts` what it wrote so far, `reasons` why it ended: "end", "stop" or
    "length"; "" before. What is interrupted does not go on: it is made anew.

    Args:
        scope: the Patchscope.
        rows: what each row is.
        steps: what rows write, step by step.
        chooser: chooses their tokens.
        max_new_tokens: how many tokens a row writes at most.
    """

    def __init__(
        self,
        scope: Patchscope,
        rows: Sequence[ExplanationRow],
        steps: Iterator[WrittenStep],
        chooser: TokenChooser,
        max_new_tokens: int,
    ) -> None:
        self.scope = scope
        self.rows = tuple(rows)
        self.ids: list[list[int]] = [[] for _ in rows]
        self.reasons = [""] * len(rows)
        self._steps, self._chooser, self._most = steps, chooser, max_new_tokens

    @property
    def texts(self) -> tuple[str, ...]:
        """What every row wrote so far, without an end-of-text token and up to a stop string."""
        return tuple(self._chooser.text(ids) for ids in self.ids)

    def __iter__(self) -> "StreamedExplanation":
        return self

    def __next__(self) -> list[WrittenToken]:
        """The next token of every row that goes on, in the order of rows; StopIteration after the last."""
        step = next(self._steps)
        tokens = []
        texts = self.scope.lm.encoder.tokens(step.ids.tolist())
        for n in np.argsort(step.rows).tolist():
            row, token = int(step.rows[n]), int(step.ids[n])
            self.ids[row].append(token)
            if step.ended[n] or len(self.ids[row]) == self._most:
                self.reasons[row] = self._chooser.reason(row)
            tokens.append(WrittenToken(row, token, texts[n], float(step.log_probs[n]), self.reasons[row]))
        return tokens


def stream_explanation(
    scope: Patchscope,
    states: HiddenStates | Tensor,
    layers: Layers = None,
    *,
    max_new_tokens: int = 20,
    stop: str | Sequence[str] = (),
    seed: int = 0,
    controls: bool = True,
    contrast: float = 0.0,
) -> StreamedExplanation:
    """Let a Patchscope write what states mean, token by token, with its controls in the same batch.

    What it writes is what `Patchscope.generate` has it write, greedily. The first rows are the cells of that grid, in
    order. With `controls` then comes each target without a patch, and then the cells of `random_vectors(states, seed)`:
    random directions of the states' norms, mapped as they are. Raises LenscopeError as `Patchscope.generate` does.
    With a `contrast` the states and the random vectors are contrasted with the target without a patch, which itself
    stays plain; log-probabilities are of the distribution that a row's tokens are chosen from.

    Args:
        scope: a Patchscope, also between two models.
        states: hidden states, or vectors (N, D) or (N, K, D).
        layers: target layers, or (source, target) pairs; None: the Patchscope's own.
        max_new_tokens: tokens of a text at most.
        stop: strings that end a text.
        seed: fixes the random vectors.
        controls: whether the unpatched targets and random vectors run too.
        contrast: α as of `Patchscope.generate`.
    """
    contrast = contrast_weight(contrast)
    max_new_tokens = count(max_new_tokens, "max_new_tokens")
    scope.require_room(max_new_tokens)
    plan = scope.plan(states, layers)
    cells = list(zip(plan.rows.target.tolist(), plan.source.tolist(), plan.layer.tolist(), strict=True))
    rows, parts = [ExplanationRow(STATE, *cell) for cell in cells], [plan.rows]
    if controls:
        if plan.rows.vectors.shape[-1] != scope.lm.hidden_size:
            raise LenscopeError(
                f"vectors of size {plan.rows.vectors.shape[-1]}: {scope.lm.name} has states of size "
                f"{scope.lm.hidden_size}; give vectors of this size, or with those of another model a mapping f"
            )
        plain, random = scope.without_patch(), scope.plan(random_vectors(states, seed), layers)
        parts += [plain, random.rows]
        rows += [ExplanationRow(UNPATCHED, target, -1, -1) for target in plain.target.tolist()]
        rows += [ExplanationRow(RANDOM, *cell) for cell in cells]
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    chooser = TokenChooser(scope.lm, len(rows), max_new_tokens, stops, 0.0, 1.0, 0, contrast)
    together, how = in_one_batch(parts), (chooser.choose, max_new_tokens, scope.budget)
    if contrast:
        patched = np.array([row.kind != UNPATCHED for row in rows])
        steps = scope.contrasted(together, patched).write(scope.lm, *how)
    else:
        steps = sweep.write(scope.lm, together, *how)
    return StreamedExplanation(scope, rows, steps, chooser, max_new_tokens)
