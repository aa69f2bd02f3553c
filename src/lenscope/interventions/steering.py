"""Steering: what a model writes plainly, and what with a vector in its states, side by side as they come.

Knows: which states are changed and by how much, that both rows run in one batch.
Does not know: how texts are read (engine/growing_texts.py), how a token is chosen, where a direction comes from.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from lenscope.engine.growing_texts import GrowingTexts
from lenscope.engine.token_choice_and_end import TokenChooser, WrittenToken
from lenscope.errors import LenscopeError
from lenscope.models.edits import Operation, add, as_vectors
from lenscope.models.inputs import count
from lenscope.models.interruption import check_interruption
from lenscope.models.language_model import LM, PromptLike
from lenscope.models.layers import check_layers
from lenscope.models.prompts import Positions, Prompt

PLAIN, STEERED = 0, 1


class SteeredTexts(Iterator[list[WrittenToken]]):
    """Two continuations of a prompt, plain and steered, as they are written: iterate over the steps. `steer` makes it.

    Row 0 is plain, row 1 steered. `ids` and `texts` are what each row wrote so far, `reasons` why it ended: "end",
    "stop" or "length"; "" before.

    Args:
        lm: the model that writes.
        prompt: what both rows go on from.
        layer: where states are changed.
        change: gives the changed states (S, D) of states (S, D) and their positions (S,).
        chooser: chooses the tokens of rows 0 and 1.
        max_new_tokens: how many tokens a row writes at most.
    """

    def __init__(
        self, lm: LM, prompt: Prompt, layer: int, change: "SteeringChange", chooser: TokenChooser, max_new_tokens: int
    ) -> None:
        self.lm, self.prompt = lm, prompt
        self.ids: tuple[list[int], list[int]] = ([], [])
        self.reasons = ["", ""]

        def changed(h: Tensor, start: int) -> Tensor:
            h = h.clone()
            h[STEERED] = change(h[STEERED], start)
            return h

        self._texts = GrowingTexts(lm, [prompt, prompt], [lm.n_layers], max_new_tokens - 1, {layer: changed})
        self._chooser, self._most = chooser, max_new_tokens
        # states (2, D) of the last tokens; None where they were not read yet
        self._last: Tensor | None = None

    @property
    def texts(self) -> tuple[str, str]:
        """What the rows wrote so far, without an end-of-text token and up to a stop string."""
        return self._chooser.text(self.ids[PLAIN]), self._chooser.text(self.ids[STEERED])

    def __iter__(self) -> "SteeredTexts":
        return self

    @torch.no_grad()
    def __next__(self) -> list[WrittenToken]:
        """The next token of each row that goes on; StopIteration after the last."""
        alive = np.array([row for row in (PLAIN, STEERED) if not self.reasons[row]])
        if not len(alive):
            raise StopIteration
        check_interruption()
        step = len(self.ids[alive[0]])
        # kept until tokens are chosen: an interruption between the two reads nothing twice
        h = self._last = self._last_states(alive, step) if self._last is None else self._last
        tokens, log_probs, ended = self._chooser.choose(h[torch.from_numpy(alive).to(h.device)], alive, step)
        texts = self.lm.encoder.tokens(tokens.tolist())
        written, self._last = [], None
        for n, row in enumerate(alive.tolist()):
            self.ids[row].append(int(tokens[n]))
            if ended[n] or step + 1 == self._most:
                self.reasons[row] = self._chooser.reason(row)
            written.append(WrittenToken(row, int(tokens[n]), texts[n], float(log_probs[n]), self.reasons[row]))
        return written

    def _last_states(self, alive: np.ndarray, step: int) -> Tensor:
        """The states (2, D) of both rows' last tokens; a row that has ended is fed what the other writes."""
        if not step:
            return self._texts.read_prompts()[self.lm.n_layers][:, -1]
        both = zip(self.ids, self.reasons, strict=True)
        last = [(self.ids[alive[0]] if reason else ids)[-1] for ids, reason in both]
        return self._texts.read(torch.tensor(last)[:, None])[self.lm.n_layers][:, -1]


class SteeringChange:
    """What is done to states at one layer: an operation with a vector, `strength` times, at some positions.

    Positions from `onward` on are changed too, whatever is written there.
    """

    def __init__(
        self, vector: Tensor, strength: float, op: Operation, positions: Sequence[int], onward: int | None
    ) -> None:
        self.vector, self.strength, self.op = vector, strength, op
        self.positions, self.onward = frozenset(positions), onward

    def __call__(self, h: Tensor, start: int) -> Tensor:
        """The states (S, D) of the positions from `start` on, with those changed that are named; h is left as it is."""
        every = range(start, start + len(h))
        here = [p - start for p in every if p in self.positions or (self.onward is not None and p >= self.onward)]
        if not here:
            return h
        states = h[here]
        vectors = self.vector.to(h).expand(len(here), -1)
        if self.op is add:
            changed = add(states, vectors * self.strength)
        else:
            moved = self.op(states, vectors)
            changed = moved if self.strength == 1 else states + self.strength * (moved - states)
        h = h.clone()
        h[here] = changed.to(h)
        return h


def steer(
    lm: LM,
    prompt: PromptLike,
    vector: Tensor,
    layer: int,
    *,
    strength: float = 1.0,
    positions: Positions | None = None,
    op: Operation = add,
    max_new_tokens: int = 40,
    stop: str | Sequence[str] = (),
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> SteeredTexts:
    """Write on from a prompt plainly, and with a vector written into its states, side by side: iterate over the steps.

    A state h at `layer` becomes h + strength · (op(h, vector) - h): with `add` that is h + strength · vector, such as
    the difference of two states; with `replace`, strength 1 puts the vector there. The rows are what `lm.generate` and
    runs within `lm.edit` give; both are drawn with the same numbers, so that strength 0 changes nothing. Raises
    LenscopeError for layers, positions and vectors that do not fit the model.

    Args:
        lm: the model that writes.
        prompt: what both rows go on from.
        vector: (D,).
        layer: where it is written, 0…n_layers.
        strength: how much of it.
        positions: of the prompt; None or an open slice, such as slice(3, None): also all that is written behind it.
        op: what is done with states and vector (lenscope.models.edits).
        max_new_tokens: how many tokens each row writes at most.
        stop: strings that end a text.
        temperature: 0: greedy.
        top_p: the mass of the most probable tokens that are drawn from.
        seed: fixes the draws.
    """
    one, new = lm.prompt(prompt), count(max_new_tokens, "max_new_tokens")
    lm.encoder.require_room(len(one), new)
    (number,) = check_layers((layer,), lm.n_layers, lm.name)
    vector = as_vectors(vector, "vector")
    if vector.shape != (lm.hidden_size,):
        raise LenscopeError(
            f"vector of shape {tuple(vector.shape)}: {lm.name} has states of size {lm.hidden_size}; give one vector"
        )
    if not torch.isfinite(vector).all():
        raise LenscopeError("vector: holds NaN or infinity; give finite numbers")
    if not math.isfinite(strength):
        raise LenscopeError(f"strength {strength}: give a finite number")
    named = slice(None) if positions is None else positions
    places = one.positions(named)
    onward = places[0] if isinstance(named, slice) and named.stop is None and named.step in (None, 1) else None
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    chooser = TokenChooser(lm, 2, new, stops, temperature, top_p, seed)
    if temperature:
        chooser.draws[STEERED] = chooser.draws[PLAIN]
    change = SteeringChange(vector.detach(), strength, op, places, onward)
    return SteeredTexts(lm, one, number, change, chooser, new)
