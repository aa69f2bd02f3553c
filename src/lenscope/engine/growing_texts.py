"""Texts that are read from their start and then token by token: the states of what is new, at any layers.

Knows: when a cache gives the model's own numbers at all layers, and else to read the text anew; changes of states.
Does not know: how a token is chosen, what is read from states, why they are changed.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.models.batches import Batch, Running
from lenscope.models.carried_states import CarriedStates, nothing_read
from lenscope.models.deviations import deviation
from lenscope.models.exactness import measured_deviation, tolerance
from lenscope.models.language_model import LM
from lenscope.models.prompts import Prompt
from lenscope.models.residual_stream import forward_kwargs, trial_text
from lenscope.models.runner import EnoughRead

# changed(h (B, S, D), start) -> (B, S, D): states of the positions start…start + S - 1 as they shall be
ChangeOfStates = Callable[[Tensor, int], Tensor]

# tokens of the text that a cache is measured on, and how many are read after it; across a length more of them
TRIAL_LENGTH, TRIAL_TOKENS, CROSSING_TOKENS = 7, 4, 6


class GrowingTexts:
    """B texts of one model that grow together, each token of theirs read once where the model's cache allows it.

    Edits of `lm.edit` that are open where `read` is called are made at the prompts' positions, as in `lm.read`;
    `changes` at every position.

    Args:
        lm: the model.
        prompts: what the texts begin with, all of one length.
        layers: the layers whose states are wanted.
        new: how many tokens are read after the prompts at most.
        changes: by layer, how states are changed, in rows of the batch and from a position on.
    """

    def __init__(
        self,
        lm: LM,
        prompts: Sequence[Prompt],
        layers: Collection[int],
        new: int,
        changes: Mapping[int, ChangeOfStates] | None = None,
    ) -> None:
        self.lm = lm
        self.prompts = prompts
        self.layers = sorted({*layers, lm.n_layers})
        self.changes = changes or {}
        self.longest = len(prompts[0]) + new
        self.without_edits = False
        self.ids = torch.empty(len(prompts), 0, dtype=torch.long, device=lm.runner.input_device)
        self.cache: CarriedStates | None = None
        # up to which length the cache in use gives the model's own numbers
        self.reach = 0
        self.running: Running | None = None

    def read_prompts(self) -> dict[int, Tensor]:
        """The states (B, T, D) of the prompts, by layer."""
        return self.read(torch.tensor([p.ids for p in self.prompts]))

    def read(self, ids: Tensor) -> dict[int, Tensor]:
        """The states (B, S, D) of each text's next tokens `ids` (B, S), by layer. LenscopeError if not finite."""
        before, known = self.ids.shape[1], self.ids
        self.ids = torch.cat([self.ids, ids.to(self.ids.device)], 1)
        try:
            return self._read_next(before)
        except BaseException:
            # blocks below have these tokens in their cache, and those above do not
            self.ids, self.cache = known, None
            raise

    def _read_next(self, before: int) -> dict[int, Tensor]:
        """The states of the tokens behind the first `before`."""
        length = self.ids.shape[1]
        if self.cache is not None and length <= self.reach:
            # one by one, as it was measured
            steps = [self._run(self.ids[:, n : n + 1], n) for n in range(before, length)]
            return {layer: torch.cat([step[layer] for step in steps], 1) for layer in self.layers}
        self.reach = 0 if length >= self.longest else self._reach(length)
        self.cache = nothing_read(self.lm.runner) if self.reach > length else None
        # the prompts themselves, without what was written: edits name their positions
        lengths = (length,) * len(self.ids)
        batch = Batch(self.ids, torch.ones_like(self.ids), (0,) * len(self.ids), lengths)
        self.running = Running(self.prompts, [0] * len(self.ids), 1, batch, self.without_edits)
        states = self._run(self.ids, 0)
        return {layer: h[:, before:] for layer, h in states.items()} if before else states

    def _reach(self, length: int) -> int:
        return cache_reach(self.lm, length, self.longest)

    def _run(self, ids: Tensor, start: int) -> dict[int, Tensor]:
        runner, states = self.lm.runner, dict[int, Tensor]()
        assert self.running is not None
        if not self.without_edits:
            runner.require_causal_at(start + ids.shape[1])

        def arrive(layer: int, h: Tensor) -> Tensor | None:
            change = self.changes.get(layer)
            if change is not None:
                h = change(h, start)
            runner.require_finite(h, layer)
            if layer in self.layers:
                states[layer] = h.to(self.lm.device, copy=True)
            if layer == self.lm.n_layers:
                raise EnoughRead
            return h if change is not None else None

        with runner.running(self.running), ExitStack() as undo:
            for layer in sorted({*self.layers, *self.changes}):
                undo.callback(runner.hook(layer, lambda h, layer=layer: arrive(layer, h)).remove)
            if self.cache is None:
                given = forward_kwargs(self.lm.model, use_cache=False)
            else:
                given = undo.enter_context(self.cache.passed(ids))
            try:
                self.lm.model(input_ids=ids, **given)
            except EnoughRead:
                pass
        if len(states) != len(self.layers):
            missing = min({*self.layers} - set(states))
            raise LenscopeError(
                f"layer {missing}: did not run; {self.lm.name} was changed after loading, load it again"
            )
        return states


class _TrialTexts(GrowingTexts):
    """Texts that are read from a cache, or anew for every token, whatever is exact; no edits apply to them."""

    def __init__(self, lm: LM, prompts: Sequence[Prompt], new: int, cached: bool) -> None:
        super().__init__(lm, prompts, range(lm.n_layers + 1), new)
        self.without_edits, self.cached = True, cached

    def _reach(self, length: int) -> int:
        return self.longest if self.cached else 0


def cache_reach(lm: LM, start: int, end: int) -> int:
    """Up to which length, at most `end`, texts of `start` tokens may grow from their cache; 0: not at all.

    The cache is measured against reading anew, at all layers: on short texts, and where the model's configuration
    names a length that `start` or `end` is beyond, at that length and across each one on the way.
    """
    limit, regimes = tolerance(lm.runner), lm.runner.regimes
    if not _cache_deviation(lm, (), TRIAL_LENGTH, TRIAL_TOKENS) <= limit:
        return 0
    if not any(regimes.key(start, end)):
        return end
    if not _cache_deviation(lm, (regimes.of(start),), start, TRIAL_TOKENS) <= limit:
        return 0
    for cut in regimes.crossed(start, end):
        before = max(start, cut - 1)
        if not _cache_deviation(lm, ("across", cut, cut - before), before, CROSSING_TOKENS) <= limit:
            return cut
    return end


def _cache_deviation(lm: LM, key: tuple[str | int, ...], length: int, new: int) -> float:
    """How far a cache moves states and logits of `new` tokens after `length`; measured once for a key."""

    def measure() -> float:
        room = new if lm.context is None else min(new, lm.context - length)
        if room <= 0:
            return 0.0
        rows = [lm.prompt(trial_text(lm.runner.anatomy, length + room, row)) for row in (0, 2)]
        cached, anew = (_trial_states(lm, rows, length, one) for one in (True, False))
        gaps = [deviation(a, b) for a, b in zip(cached, anew, strict=True)]
        logits = (lm.runner.own_logits(h[-1].flatten(0, 1)) for h in (cached, anew))
        return max(*gaps, deviation(*logits))

    return measured_deviation(lm.runner, ("growing texts", *key), measure)


def _trial_states(lm: LM, rows: Sequence[Prompt], length: int, cached: bool) -> Tensor:
    """States (L + 1, B, S, D) of the tokens after the first `length`, read one by one."""
    ids = torch.tensor([p.ids for p in rows])
    texts = _TrialTexts(lm, [lm.prompt(list(p.ids[:length])) for p in rows], ids.shape[1] - length, cached)
    texts.read_prompts()
    steps = [texts.read(ids[:, n : n + 1]) for n in range(length, ids.shape[1])]
    return torch.stack([torch.cat([step[n] for step in steps], 1) for n in range(lm.n_layers + 1)])
