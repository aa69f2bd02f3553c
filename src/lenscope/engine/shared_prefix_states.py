"""States of many prompts that begin alike, such as a log's with one system prompt: what they share is read once.

Knows: which prompts go on from one prefix, when that gives what reading each alone gives, prefixes that were read
before. Does not know: what is made of states, where prompts come from.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from lenscope.engine.cache_layout import cache_layout
from lenscope.engine.read_prefix import carried_by_rows, read_behind
from lenscope.models.batches import PARTS, TOKENS_PER_RUN, Running, by_length
from lenscope.models.carried_states import CarriedStates, nothing_read
from lenscope.models.deviations import deviation
from lenscope.models.exactness import measured_deviation, tolerance
from lenscope.models.language_model import LM
from lenscope.models.prompts import Prompt
from lenscope.models.residual_stream import trial_text

# tokens that sharing a prefix must save, to be worth a run of its own
FEWEST_SAVED_TOKENS = 32
# bytes that the rows of a batch carry together
CARRIED_BYTES = 1 << 29
# prefixes that are remembered, those that were used last
REMEMBERED = 4
# lengths of a prefix, and of what is behind it, that sharing is measured with on short prompts
TRIAL_PREFIX, TRIAL_RESTS = 7, (4, 2)

# measured(h (L, n, D), following (n,)) -> (M, n): of every position alone; `following` are the ids behind them, -1 at
# the end of a prompt
MeasuredPositions = Callable[[Tensor, Tensor], np.ndarray]


@dataclass(eq=False)
class SharedPrefix:
    """A prefix that was read: its ids with the one behind it, states (L, P, D), and what was measured of them, by key.

    The token behind it is the same for all prompts that go on from it, so that what depends on a position and the next
    token can be measured once.
    """

    ids: tuple[int, ...]
    layers: tuple[int, ...]
    states: Tensor
    carried: CarriedStates | None
    measured: dict[Hashable, np.ndarray] = field(default_factory=dict)
    sums: Tensor | None = None

    def __len__(self) -> int:
        return self.states.shape[1]

    def sum_of_states(self) -> Tensor:
        """The sum (L, D) of the states at all positions but the first, in float64."""
        if self.sums is None:
            self.sums = self.states[:, 1:].double().sum(1)
        return self.sums


@dataclass(frozen=True, eq=False)
class StatesBehindPrefix:
    """States of prompts that begin with the same P tokens: `rests` (L, T - P, D) of each stand behind `prefix`.

    P may be 0. `numbers` are the prompts' places among all that were given.
    """

    numbers: tuple[int, ...]
    prompts: tuple[Prompt, ...]
    layers: tuple[int, ...]
    prefix: SharedPrefix
    rests: tuple[Tensor, ...]

    def states(self) -> list[Tensor]:
        """The states (L, T, D) of each prompt, all of its positions."""
        return [torch.cat([self.prefix.states, rest], 1) for rest in self.rests]

    def last_states(self) -> Tensor:
        """The states (B, L, D) at each prompt's last position."""
        return torch.stack([rest[:, -1] for rest in self.rests])

    def mean_states(self) -> Tensor:
        """The mean states (B, L, D) over all positions but the first, which counts only where it is the only one."""
        if len(self.prefix):
            before = self.prefix.sum_of_states()
            return torch.stack(
                [(before + h.double().sum(1)) / (len(p) - 1) for h, p in zip(self.rests, self.prompts, strict=True)]
            )
        return torch.stack([h[:, min(1, h.shape[1] - 1) :].double().mean(1) for h in self.rests])

    def of_positions(self, key: Hashable, measured: MeasuredPositions) -> list[np.ndarray]:
        """What is measured of all positions of each prompt, (M, T): of those of the prefix once for each `key`.

        `key` stands for all that `measured` depends on but its arguments. It is called with states of many prompts.
        """
        parts: list[Tensor] = []
        following: list[Tensor] = []
        length = len(self.prefix)
        remembered = self.prefix.measured.get(key)
        if length and remembered is None:
            parts.append(self.prefix.states)
            following.append(torch.tensor(self.prefix.ids[1 : length + 1]))
        for rest, prompt in zip(self.rests, self.prompts, strict=True):
            parts.append(rest)
            following.append(torch.tensor([*prompt.ids[length + 1 :], -1]))
        values = measured(torch.cat(parts, 1), torch.cat(following))
        pieces = np.split(values, np.cumsum([p.shape[1] for p in parts])[:-1], axis=-1)
        if length and remembered is None:
            remembered = self.prefix.measured[key] = pieces.pop(0)
        return [np.concatenate([remembered, piece], -1) for piece in pieces] if remembered is not None else pieces


class ReadPrefixes:
    """Prefixes that were read of one model, kept from one call to the next: a stream of prompts begins alike."""

    def __init__(self) -> None:
        self.prefixes: list[SharedPrefix] = []
        self.last: list[tuple[int, ...]] = []
        self._of: tuple[object, tuple[int, ...]] | None = None

    def belong_to(self, lm: LM, layers: tuple[int, ...]) -> None:
        """Forget what was read of another model, of one that has changed, or at other layers."""
        with lm.runner.exclusive.alone():
            # it is another one as soon as the model was verified anew
            now = (lm.runner.verified, layers)
        if self._of is None or self._of[0] is not now[0] or self._of[1] != layers:
            self.prefixes, self.last, self._of = [], [], now

    def remember(self, prefix: SharedPrefix) -> None:
        """Keep a prefix, and of all those kept the few that were used last."""
        self.prefixes = [prefix, *(p for p in self.prefixes if p is not prefix)][:REMEMBERED]

    def longest_of(self, ids: Sequence[int]) -> SharedPrefix | None:
        """The longest prefix that begins these ids."""
        fits = [p for p in self.prefixes if p.ids == tuple(ids[: len(p.ids)])]
        return max(fits, key=len, default=None)

    def alike(self, ids: Sequence[int]) -> int:
        """How many ids these have in common with the prompt that came last, or a prefix, at their beginning."""
        return max((common_length(ids, other) for other in (*self.last, *(p.ids for p in self.prefixes))), default=0)


def read_sharing_prefix(
    lm: LM, prompts: Sequence[Prompt], layers: Sequence[int], known: ReadPrefixes | None = None
) -> Iterator[StatesBehindPrefix]:
    """States of prompts at layers, as `lm.read` gives them, in batches of those that begin with the same tokens.

    What a batch begins with is read once where that was measured to give the model's own numbers at such lengths
    (`is_sharing_exact`), and not at all where it is `known` from an earlier call. Prompts that begin like no other are
    read plainly. Every prompt is in one batch; batches come in any order. A prompt's numbers are the same in any
    company, up to rounding.

    Args:
        lm: the model.
        prompts: the prompts.
        layers: which layers are read, 0…n_layers.
        known: prefixes that earlier calls read; those of this one are added.
    """
    numbers = tuple(sorted(set(layers)))
    known = ReadPrefixes() if known is None else known
    known.belong_to(lm, numbers)
    plain = list(range(len(prompts)))
    if not lm.runner.editing and lm.runner.stream is None:
        for members, prefix in _planned(lm, prompts, numbers, known):
            plain = sorted(set(plain) - set(members))
            yield from _rests_together(lm, prompts, members, numbers, prefix)
    known.last = [prompts[-1].ids] if prompts else known.last
    nothing = SharedPrefix((), numbers, torch.zeros(len(numbers), 0, lm.hidden_size, dtype=lm.dtype), None)
    for batch in by_length([prompts[i] for i in plain]):
        members = [plain[i] for i in batch]
        whole = lm.read([prompts[i] for i in members], list(numbers)).split()
        rests = tuple(s.tensor[0] for s in whole)
        yield StatesBehindPrefix(tuple(members), tuple(prompts[i] for i in members), numbers, nothing, rests)


def is_sharing_exact(lm: LM, start: int, short: int, long: int) -> bool:
    """Whether prompts of `short` to `long` tokens, padded behind a prefix of `start` that is read once, are as alone.

    States at all layers and logits are compared on short prompts, and, where the configuration names a length that any
    of these is beyond, at these lengths.
    """
    limit, regimes = tolerance(lm.runner), lm.runner.regimes
    if not _sharing_deviation(lm, (), TRIAL_PREFIX, *(TRIAL_PREFIX + n for n in sorted(TRIAL_RESTS))) <= limit:
        return False
    key = regimes.key(start, short, long, long - start)
    return not any(key) or _sharing_deviation(lm, key, start, short, long) <= limit


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two sequences have in common at their beginning."""
    ends = min(len(one), len(other))
    return next((n for n in range(ends) if one[n] != other[n]), ends)


def groups_that_share(rows: Sequence[tuple[int, ...]]) -> list[tuple[list[int], int]]:
    """Which rows of ids are read behind one prefix, and how long that is: such that the fewest tokens are read.

    The last token that they have in common is not of the prefix. Rows that begin like no other stand alone, with 0.
    """
    order = sorted(range(len(rows)), key=lambda i: rows[i])
    # from the longest common beginnings to the shortest, neighbours become one group where that saves more tokens
    gaps = [common_length(rows[a], rows[b]) - 1 for a, b in pairwise(order)]
    # of every run of neighbours so far, by its ends: (tokens saved, its groups)
    runs: dict[int, tuple[int, int, int, list[tuple[list[int], int]]]] = {
        at: (at, at, 0, [([i], 0)]) for at, i in enumerate(order)
    }
    for at in sorted(range(len(gaps)), key=lambda n: -gaps[n]):
        low, _, saved_low, groups_low = runs[at]
        _, high, saved_high, groups_high = runs[at + 1]
        whole = (high - low) * gaps[at]
        if whole >= max(saved_low + saved_high, FEWEST_SAVED_TOKENS):
            merged = (low, high, whole, [([order[n] for n in range(low, high + 1)], gaps[at])])
        else:
            merged = (low, high, saved_low + saved_high, [*groups_low, *groups_high])
        runs[low] = runs[high] = merged
    groups: list[tuple[list[int], int]] = []
    at = 0
    while at < len(order):
        _, high, _, own = runs[at]
        groups += own
        at = high + 1
    return groups


def _planned(
    lm: LM, prompts: Sequence[Prompt], layers: tuple[int, ...], known: ReadPrefixes
) -> Iterator[tuple[list[int], SharedPrefix]]:
    """The groups of prompts that are read behind a prefix, and that prefix."""
    rows = [p.ids for p in prompts]
    for members, shared in groups_that_share(rows):
        ids, lengths = rows[members[0]], [len(rows[i]) for i in members]
        if len(members) == 1:
            # with the prompt that came before, so that those that come one by one share what all of them begin with
            shared = known.alike(ids) - 1
            shared = shared if shared >= FEWEST_SAVED_TOKENS else 0
        old = known.longest_of(ids[: shared + 1 if len(members) > 1 else len(ids)])
        if old is not None and _is_as_good(old, shared, len(members)):
            prefix_length = len(old)
        else:
            prefix_length, old = shared, None
        if not prefix_length or not is_sharing_exact(lm, prefix_length, min(lengths), max(lengths)):
            continue
        prefix = _newly_read_prefix(lm, ids[: prefix_length + 1], layers) if old is None else old
        known.remember(prefix)
        yield members, prefix


def _is_as_good(old: SharedPrefix, shared: int, count: int) -> bool:
    """Whether going on from a shorter prefix reads fewer tokens than reading a longer one first.

    Of a prompt that comes alone nobody knows what is to come: what it has in common with the last one may be chance.
    """
    return shared < 2 * len(old) if count == 1 else count * (shared - len(old)) <= shared


def _newly_read_prefix(lm: LM, ids: tuple[int, ...], layers: tuple[int, ...]) -> SharedPrefix:
    """Read all but the last of some ids."""
    carried = nothing_read(lm.runner)
    states = read_behind(lm, torch.tensor([ids[:-1]]), layers, carried)
    return SharedPrefix(ids, layers, torch.stack([states[n][0] for n in layers]), carried)


def _rests_together(
    lm: LM, prompts: Sequence[Prompt], members: Sequence[int], layers: tuple[int, ...], prefix: SharedPrefix
) -> Iterator[StatesBehindPrefix]:
    """What stands behind a prefix, in batches that fit in memory."""
    assert prefix.carried is not None
    layout, start = cache_layout(lm), len(prefix)
    order = sorted(members, key=lambda i: len(prompts[i]))
    batch: list[int] = []
    for n, i in enumerate(order):
        batch.append(i)
        longest = len(prompts[order[n + 1]]) if n + 1 < len(order) else 0
        bytes_of_row = longest * layout.bytes_per_token + layout.bytes_per_row
        rows = len(batch) + 1
        full = rows * (longest - start) > TOKENS_PER_RUN // PARTS or rows * bytes_of_row > CARRIED_BYTES
        if not longest or full:
            states = _padded(lm, [prompts[j].ids[start:] for j in batch], layers, prefix.carried)
            yield StatesBehindPrefix(tuple(batch), tuple(prompts[j] for j in batch), layers, prefix, states)
            batch = []


def _padded(
    lm: LM, rests: Sequence[tuple[int, ...]], layers: tuple[int, ...], carried: CarriedStates
) -> tuple[Tensor, ...]:
    """States (L, S, D) of rows of ids behind what is carried; rows are padded on the right, where nothing sees pads."""
    longest = max(map(len, rests))
    ids = torch.tensor([[*rest, *[rest[-1]] * (longest - len(rest))] for rest in rests])
    states = read_behind(lm, ids, layers, carried_by_rows(carried, lm.n_layers, len(rests)))
    whole = torch.stack([states[n] for n in layers])
    return tuple(whole[:, row, : len(rest)] for row, rest in enumerate(rests))


def _sharing_deviation(lm: LM, key: tuple[int, ...], start: int, short: int, long: int) -> float:
    """How far sharing a prefix of `start` tokens moves states and logits of prompts of two lengths, and of one token.

    Measured once for each key, as `lenscope.models.deviations.deviation`.
    """

    def measure() -> float:
        layers = tuple(range(lm.n_layers + 1))
        first, second = (trial_text(lm.runner.anatomy, n, row) for n, row in ((long, 0), (short, 2)))
        # behind the same prefix, of which the last token is followed by different ones
        rows = [tuple(first), (*first[:start], *second[start:])]
        alone = [_states_of_row(lm, row, layers) for row in rows]
        prefix = _newly_read_prefix(lm, (*first[:start], 0), layers)
        assert prefix.carried is not None
        gaps = [deviation(prefix.states, alone[0][:, :start])]
        for rests in ([row[start:] for row in rows], [row[start : start + 1] for row in rows]):
            shared = _padded(lm, rests, layers, prefix.carried)
            for mine, own in zip(shared, alone, strict=True):
                plain = own[:, start : start + mine.shape[1]]
                gaps += [deviation(a, b) for a, b in zip(mine, plain, strict=True)]
                gaps.append(deviation(*(lm.runner.own_logits(h[-1]) for h in (mine, plain))))
        return max(gaps)

    return measured_deviation(lm.runner, ("shared prefix", *key), measure)


def _states_of_row(lm: LM, ids: Sequence[int], layers: tuple[int, ...]) -> Tensor:
    """States (L, T, D) of one row of ids, read plainly."""
    states: dict[int, Tensor] = {}
    running = Running.of_ids(torch.tensor([list(ids)], device=lm.runner.input_device))
    lm.runner.capture(running, set(layers), lambda layer, h: states.__setitem__(layer, h[0].to(lm.device, copy=True)))
    return torch.stack([states[n] for n in layers])
