"""Trajectories of what a model writes, token by token as it comes.

Knows: which position predicts which token, how the parts become one trajectory.
Does not know: how states are read, how a lens reduces them, how a token is chosen.
"""

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenscope.contents import Brief
from lenscope.engine.growing_texts import GrowingTexts
from lenscope.engine.token_choice_and_end import TokenChooser
from lenscope.errors import LenscopeError
from lenscope.lenses.trajectory import MEASURES, Trajectory
from lenscope.models.hidden_states import HiddenStates
from lenscope.models.interruption import check_interruption
from lenscope.models.language_model import LM
from lenscope.models.prompts import Positions, Prompt


@dataclass(frozen=True, eq=False, repr=False)
class ReadToken(Brief):
    """A token that the model wrote, with its trajectory.

    Attributes:
        id: the token.
        text: its text.
        log_prob: ln p in nats, at temperature 1 whatever it was drawn at.
        trajectory: of one position, the one that predicted the token: its cross-entropy and rank are about it.
    """

    id: int
    text: str
    log_prob: float
    trajectory: Trajectory


class WrittenTrajectory(Iterator[ReadToken]):
    """A continuation that a lens reads as it is written: iterate over its tokens. `Lens.generate` makes it.

    `start` is the trajectory of the prompt, `ids` and `text` are what was written so far, `reason` says why it ended:
    "end" (an end-of-text token, which is kept in `ids`), "stop" (a stop string) or "length"; "" before. `trajectory()`
    is prompt and continuation as one result, at any time.

    Args:
        lm: the model that writes.
        prompt: what it goes on from.
        layers: the layers that are read; the last one is always among them.
        positions: which positions of the prompt are read.
        reduced: makes a trajectory of states of one prompt.
        chooser: chooses the tokens of row 0.
        max_new_tokens: how many tokens are written at most.
        how: how tokens are drawn, for the provenance of `trajectory()`.
    """

    def __init__(
        self,
        lm: LM,
        prompt: Prompt,
        layers: Collection[int],
        positions: Positions | None,
        reduced: Callable[[HiddenStates], Trajectory],
        chooser: TokenChooser,
        max_new_tokens: int,
        how: Mapping[str, Any],
    ) -> None:
        self.lm = lm
        self.prompt = prompt
        self.places = prompt.positions(positions)
        self.reduced = reduced
        self.chooser = chooser
        self.max_new_tokens = max_new_tokens
        self.how = dict(how)
        self.layers = tuple(layers)
        self.texts = GrowingTexts(lm, [prompt], layers, max_new_tokens)
        self.ids: list[int] = []
        self.reason = ""
        self._start: Trajectory | None = None
        self._parts: list[Trajectory] = []
        # states (L, 1, D) of the last token of the text; None where it was not read yet
        self._last: Tensor | None = None

    @property
    @torch.no_grad()
    def start(self) -> Trajectory:
        """The trajectory of the prompt, read when it is first asked for."""
        if self._start is None:
            h = self.texts.read_prompts()
            states = torch.stack([h[layer][0] for layer in self.layers])
            self._last = states[:, -1:]
            self._start = self._trajectory(states[:, list(self.places)], self.prompt, self.places)
        return self._start

    @property
    def text(self) -> str:
        """What was written so far, without an end-of-text token and up to a stop string."""
        return self.chooser.text(self.ids)

    def __iter__(self) -> "WrittenTrajectory":
        return self

    @torch.no_grad()
    def __next__(self) -> ReadToken:
        """Write and read the next token; StopIteration after the last."""
        if self.reason:
            raise StopIteration
        check_interruption()
        states = self._last_states()
        final = states[self.layers.index(self.lm.n_layers)]
        token, log_prob, ended = self.chooser.choose(final, np.array([0]), len(self.ids))
        ids = [*self.ids, int(token[0])]
        whole = self._whole_prompt(ids)
        part = self._trajectory(states, whole, (len(whole) - 2,))
        # all at once: an interruption leaves what was whole before
        self.ids, self._last = ids, None
        self._parts.append(part)
        if ended[0] or len(ids) == self.max_new_tokens:
            self.reason = self.chooser.reason(0)
        return ReadToken(ids[-1], whole.tokens[-1], float(log_prob[0]), part)

    @torch.no_grad()
    def trajectory(self) -> Trajectory:
        """Prompt and what was written so far as one trajectory: what the lens gives for the whole text.

        It has the prompt's positions that were asked for, and all from the last one of the prompt on. Numbers are
        those of one pass over the text within the rounding that is allowed for the model. `provenance["generation"]`
        says where the prompt ends, why the continuation does, and how it was drawn.
        """
        start, whole = self.start, self._whole_prompt(self.ids)
        end = self._trajectory(self._last_states(), whole, (len(whole) - 1,))
        before = len([p for p in self.places if p < len(self.prompt) - 1])
        one = join_positions([_first_positions(start, before), *self._parts, end])
        how = {"prompt_tokens": len(self.prompt), "reason": self.reason, **self.how}
        return replace(one, provenance={**one.provenance, "generation": how})

    def written(self) -> Trajectory:
        """The trajectory of the positions that predicted what was written so far. LenscopeError before the first."""
        if not self._parts:
            raise LenscopeError("nothing was written yet: ask for a token first")
        return join_positions(self._parts)

    def _last_states(self) -> Tensor:
        """The states (L, 1, D) of the text's last token."""
        if self._last is None and self.start is not None and self.ids:
            h = self.texts.read(torch.tensor([[self.ids[-1]]]))
            self._last = torch.stack([h[layer][0] for layer in self.layers])
        if self._last is None:
            raise AssertionError("the prompt was read, so that there is a last state")
        return self._last

    def _whole_prompt(self, written: Sequence[int]) -> Prompt:
        """The prompt with what was written behind it."""
        tokens = tuple(self.lm.encoder.tokens(written))
        spans = tuple(itertools.pairwise(itertools.accumulate(map(len, tokens), initial=len(self.prompt.text))))
        text = self.prompt.text + "".join(tokens)
        return Prompt(text, (*self.prompt.ids, *written), (*self.prompt.tokens, *tokens), (*self.prompt.spans, *spans))

    def _trajectory(self, states: Tensor, prompt: Prompt, positions: tuple[int, ...]) -> Trajectory:
        lm = self.lm
        return self.reduced(
            HiddenStates(states[None], self.layers, lm.n_layers, (prompt,), (positions,), False, lm.name)
        )


def join_positions(parts: Sequence[Trajectory]) -> Trajectory:
    """Trajectories of one text at different positions, in order, as one: the last of them knows the whole text."""
    arrays: Any = {
        name: np.concatenate([getattr(p, name) for p in parts], 1) for name in (*MEASURES, "top_ids", "top_log_probs")
    }
    vocabulary = {id_: text for p in parts for id_, text in p.vocabulary.items()}
    finals = [p.final for p in parts if p.final is not None]
    return replace(
        parts[-1],
        positions=tuple(n for p in parts for n in p.positions),
        vocabulary=dict(sorted(vocabulary.items())),
        final=tuple(n for final in finals for n in final) if finals else None,
        **arrays,
    )


def _first_positions(t: Trajectory, count: int) -> Trajectory:
    """A trajectory of the first `count` positions of another."""
    arrays: Any = {name: getattr(t, name)[:, :count] for name in (*MEASURES, "top_ids", "top_log_probs")}
    final = None if t.final is None else t.final[:count]
    return replace(t, positions=t.positions[:count], final=final, **arrays)
