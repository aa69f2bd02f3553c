"""Logits reduced to measures as they are made: nothing of shape (layers × positions × vocabulary) ever exists.

Knows: how to walk layers, rows and pieces of the vocabulary within a fixed memory, and to merge running sums exactly
(the online softmax). definitions.py has the definitions; the two are tested to be equal.
Does not know: prompts, tokens as text, what a lens is.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lenscope.contents import Brief
from lenscope.errors import LenscopeError
from lenscope.models.interruption import check_interruption
from lenscope.models.language_model import LM
from lenscope.models.readout import Readout, wide

# Bytes of one piece of logits: small enough that the passes over it find it in the processor's cache, and that malloc
# hands the same pages out again. Measured: 2 MB costs what the product alone costs, 16 MB 1.4 times that.
PIECE_BYTES = 2 << 20
# The same on an accelerator, which has no cache of that kind: a product of 2 MB takes less time there than its kernels
# take to start.
PIECE_BYTES_ACCELERATOR = 256 << 20
# Bytes of logits where a readout makes whole rows of them: too few rows at once would waste the product.
WHOLE_ROWS_BYTES = 32 << 20
# Bytes of prepared states that one walk over the vocabulary serves: every piece of the head is read once per walk.
STATES_BYTES = 64 << 20
STATES_BYTES_ACCELERATOR = 512 << 20
# States that share one product of a piece.
PRODUCT_ROWS, PRODUCT_ROWS_ACCELERATOR = 512, 2048
# Bytes of exponentials kept until their normalisers are known, where distributions are averaged: enough rows for a
# product to run at full speed.
EXPONENTIALS_BYTES = 256 << 20
# A sum of exponentials is accurate where it is at least SAFE times the smallest normal float. Of the probability that
# the model predicts, at most the share LOST may lie on tokens whose sums are smaller; else sums are made in float64.
SAFE, LOST = 1e8, 1e-9
# Rows with equal logits whose order is made anew together.
TIED_ROWS = 1 << 12
LOWEST = -1e30  # stands for -inf: 0 · -inf is not a number, 0 · LOWEST is 0


@dataclass(frozen=True, eq=False, repr=False)
class Reduced(Brief):
    """Measures of L layers at P positions; (L, P) each, `top_*` (L, P, k). Nats; no target: NaN, rank -1."""

    entropy: Tensor
    kl: Tensor
    max_probability: Tensor
    cross_entropy: Tensor
    rank: Tensor
    top_ids: Tensor
    top_log_probs: Tensor


def top(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest numbers of z (..., C), descending, and their indices (..., k); of equals the lowest first.

    `Tensor.topk` leaves open which of equals it takes, and in which order: 16-bit logits have many.
    """
    more = min(k + 1, z.shape[-1])
    values, ids = z.topk(more, -1)
    tied = (values[..., 1:] == values[..., :-1]).any(-1)
    values, ids = values[..., :k], ids[..., :k]
    if not tied.any():
        return values, ids
    values, ids = values.clone(), ids.clone()
    for part in tied.flatten().nonzero()[:, 0].split(TIED_ROWS):
        rows = z.flatten(0, -2)[part]
        # whatever is at least as large as the last one that is wanted, in the order of indices
        at, index = (rows >= values.flatten(0, -2)[part][:, -1:]).nonzero(as_tuple=True)
        logits = rows[at, index]
        order = logits.sort(descending=True, stable=True).indices
        order = order[at[order].sort(stable=True).indices]
        first = torch.searchsorted(at[order].contiguous(), torch.arange(len(part), device=z.device))
        best = order[first[:, None] + torch.arange(k, device=z.device)]
        values.view(-1, k)[part], ids.view(-1, k)[part] = logits[best], index[best]
    return values, ids


class VocabularySums:
    """Running sums over the vocabulary for states x (G, P, D): what every measure is made of.

    With m the largest logit so far, all sums are of exp(z - m), rescaled when m grows.
    """

    def __init__(self, x: Tensor, targets: Tensor | None, target_logits: Tensor | None, k: int) -> None:
        self.x = x
        self.targets = targets
        self.target_logits = target_logits
        self.k = k
        self.rank: Tensor | None = None
        self.top: tuple[Tensor, Tensor] | None = None
        self.m = self.s = self.sz = self.cross = torch.empty(0)

    def add(self, z: Tensor, start: int, final: "VocabularySums | None", final_e: Tensor | None) -> Tensor:
        """Take in the logits z (G, P, C) of the tokens from `start`; overwrites z, returns exp(z - m).

        `final` are the sums of the model's final distribution, already advanced by this piece, `final_e` their
        exp(z - m) of it: (P, C). None: these are they.
        """
        if self.targets is not None and self.target_logits is not None:
            self._count(z, start)
        values, ids = top(z, min(self.k, z.shape[-1]))
        m = values[..., 0]
        first = self.top is None
        if self.top is not None:
            m = torch.maximum(m, self.m)
            both = torch.cat([self.top[0], values], -1)
            # the pieces so far may hold fewer tokens than are wanted in the end; of equals those of earlier pieces
            # stand first
            values, best = top(both, min(self.k, both.shape[-1]))
            ids = torch.cat([self.top[1], ids + start], -1).gather(-1, best)
        else:
            ids = ids + start
        self.top = values, ids
        z.sub_(m[..., None]).clamp_(min=LOWEST)
        e = z.exp()
        s, sz = e.sum(-1), torch.linalg.vecdot(e, z)
        if first:
            self.grown = torch.zeros_like(m)
            self.m, self.s, self.sz = m, s, sz
            self.cross = sz.clone() if final is None or final_e is None else torch.linalg.vecdot(final_e, z)
            return e
        step = self.m - m
        self.grown = step.exp()
        before, self.s_before = self.s, self.s
        self.sz = self.grown * (self.sz + step * before) + sz
        self.s = self.grown * before + s
        self.m = m
        if final is None or final_e is None:
            self.cross = self.sz
        else:
            # Σ final_e · (z - m): both shifts may have moved
            self.cross = final.grown * (self.cross + step * final.s_before) + torch.linalg.vecdot(final_e, z)
        return e

    def _count(self, z: Tensor, start: int) -> None:
        assert self.targets is not None
        assert self.target_logits is not None
        # The same logit from another product differs in its last bits: the target must not outrank itself. Nothing here
        # asks what the numbers are, for which an accelerator would have to wait.
        at = self.targets - start
        inside = (at >= 0) & (at < z.shape[-1])
        column = at.clamp(0, z.shape[-1] - 1).expand(z.shape[:-1])[..., None]
        z.scatter_(-1, column, torch.where(inside[:, None], self.target_logits[..., None], z.gather(-1, column)))
        above = (z > self.target_logits[..., None]).sum(-1, dtype=torch.int32)
        self.rank = above if self.rank is None else self.rank + above

    def reduced(self, final: "VocabularySums") -> Reduced:
        """The measures of the states, against those of the last layer."""
        assert self.top is not None
        if not (torch.isfinite(self.m).all() and torch.isfinite(self.s).all()):
            raise LenscopeError(
                f"logits hold NaN or infinity, in {int((~torch.isfinite(self.m)).sum())} of {self.m.numel()} "
                "distributions: a lens gives states that are not finite, or 16 bits do not hold them; mend the lens or "
                "load the model in float32"
            )
        log_s = self.s.log()
        log_z = self.m + log_s
        missing = torch.full_like(log_s, torch.nan)
        return Reduced(
            entropy=(log_s - self.sz / self.s).clamp_min(0),
            # Σ p ln p - Σ p ln q; both in sums relative to the largest logit, so that no digits are lost
            kl=((final.sz / final.s - final.s.log()) - (self.cross / final.s - log_s)).clamp_min(0),
            max_probability=(-log_s).exp(),
            cross_entropy=missing if self.target_logits is None else log_z - self.target_logits,
            rank=torch.full_like(log_s, -1, dtype=torch.int32) if self.rank is None else self.rank,
            top_ids=self.top[1],
            top_log_probs=self.top[0] - log_z[..., None],
        )


@torch.no_grad()
def reduce(
    readout: Readout, vocab: int, h: Tensor, final: Tensor, targets: Tensor | None, k: int, final_is_last: bool
) -> Reduced:
    """Measures of the distributions read from h (L, P, D) against the one read from `final` (P, D).

    `targets` (P,) are token ids for cross-entropy and rank, or None. `final_is_last` says that h[-1] is `final`, so
    that it need not be read twice.
    """
    k = min(k, vocab)
    done = []
    for rows in row_pieces(readout, vocab, h):
        wanted = None if targets is None else targets[rows]
        done.append(_walk(readout, vocab, h[:, rows], final[rows], wanted, k, final_is_last))
    return Reduced(*(torch.cat([getattr(d, name) for d in done], 1) for name in Reduced.__dataclass_fields__))


@torch.no_grad()
def average(
    readout: Readout, vocab: int, final: Tensor, states: Iterable[Tensor], targets: Tensor
) -> Iterator[tuple[Reduced, Tensor]]:
    """Measures and summed distributions: of `final` (P, D), then of each of `states` (P, D) against it.

    Measures are (1, P), of the top 1; Σ over positions of the probabilities is (V,) in float64. Unlike `reduce` this
    keeps two sets of (P, V) exponentials, as the normalisers are known only after the last piece: P is at most
    `averaged_at_once`.
    """
    pieces = vocabulary_pieces(readout, vocab, final[None])
    last, exponentials = _sums_of(readout, final[None], targets, 1), Exponentials(final, vocab)
    for start, stop in pieces:
        exponentials.add(last.add(logits_of_piece(readout, last.x, start, stop), start, None, None)[0], last.m[0])
    final_e = exponentials.rescaled(last.m[0])
    mean = exponentials.summed(last)
    yield last.reduced(last), mean
    masses = torch.stack([e.sum(-1) for e in final_e])
    before = masses.cumsum(0) - masses
    # from here on the final's exponentials are all of exp(z - m) with the last m
    last.grown = torch.ones_like(last.m)
    exponentials = Exponentials(final, vocab)
    for h in states:
        sums = _sums_of(readout, h[None], targets, 1)
        exponentials.clear()
        for (start, stop), e, mass in zip(pieces, final_e, before, strict=True):
            last.s_before = mass[None]
            exponentials.add(sums.add(logits_of_piece(readout, sums.x, start, stop), start, last, e)[0], sums.m[0])
        summed = exponentials.summed(sums)
        # Where float32 has lost tokens that the model does predict, ln of the sum would be wrong or infinite.
        if float(mean[summed < SAFE * torch.finfo(exponentials.buffer.dtype).tiny].sum()) > LOST * len(h):
            summed = _summed_in_double(readout, sums, pieces)
        yield sums.reduced(last), summed


def averaged_at_once(readout: Readout, vocab: int) -> int:
    """How many positions `average` takes at most."""
    return max(1, min(512, (EXPONENTIALS_BYTES if readout.splits else WHOLE_ROWS_BYTES) // (2 * vocab * 4)))


class Exponentials:
    """The exponentials exp(z - m) of all pieces so far, (P, C) each, and the m (P,) that each piece had.

    One buffer, used again: fresh memory for every piece would cost more than filling it.
    """

    def __init__(self, like: Tensor, vocab: int) -> None:
        self.buffer = like.new_empty(len(like) * vocab, dtype=wide(like[:0]).dtype)
        self.clear()

    def clear(self) -> None:
        """Forget all pieces; the buffer stays."""
        self.pieces: list[Tensor] = []
        self.shifts: list[Tensor] = []
        self.used = 0

    def add(self, e: Tensor, m: Tensor) -> None:
        """Take in the exponentials e (P, C) of a piece, and the m (P,) that they are relative to."""
        self.pieces.append(self.buffer[self.used : self.used + e.numel()].view_as(e).copy_(e))
        self.shifts.append(m)
        self.used += e.numel()

    def rescaled(self, m: Tensor) -> list[Tensor]:
        """The pieces with the same m for all, in place."""
        for e, shift in zip(self.pieces, self.shifts, strict=True):
            e.mul_((shift - m).exp()[:, None])
        self.shifts = [m] * len(self.pieces)
        return self.pieces

    def summed(self, sums: VocabularySums) -> Tensor:
        """Σ over rows of the probabilities, (V,)."""
        both = zip(self.pieces, self.shifts, strict=True)
        return torch.cat([((shift - sums.m[0]).exp() / sums.s[0]) @ e for e, shift in both]).cpu().double()


def _summed_in_double(readout: Readout, sums: VocabularySums, pieces: list[tuple[int, int]]) -> Tensor:
    """As `Exponentials.summed`, from logits made again: float64 holds probabilities down to exp(-744)."""
    log_z = (sums.m + sums.s.log())[0].cpu().double()[:, None]
    logits = (logits_of_piece(readout, sums.x, *piece)[0].cpu().double() for piece in pieces)
    return torch.cat([z.sub_(log_z).exp_().sum(0) for z in logits])


def _walk(
    readout: Readout, vocab: int, h: Tensor, final: Tensor, targets: Tensor | None, k: int, final_is_last: bool
) -> Reduced:
    """One walk over the vocabulary for all layers of a few positions."""
    layers = len(h) - final_is_last
    last = _sums_of(readout, final[None], targets, k)
    groups = [_sums_of(readout, g, targets, k) for g in h[:layers].split(layers_at_once(readout, vocab, h)) if len(g)]
    for start, stop in vocabulary_pieces(readout, vocab, h):
        e = last.add(logits_of_piece(readout, last.x, start, stop), start, None, None)[0]
        for group in groups:
            group.add(logits_of_piece(readout, group.x, start, stop), start, last, e)
    done = [g.reduced(last) for g in [*groups, *([last] if final_is_last else [])]]
    return Reduced(*(torch.cat([getattr(d, name) for d in done]) for name in Reduced.__dataclass_fields__))


def _sums_of(readout: Readout, h: Tensor, targets: Tensor | None, k: int) -> VocabularySums:
    """A readout that splits prepares its states once; one that does not would make all logits: it waits."""
    rows = h.flatten(0, 1)
    x = readout.prepare(rows) if readout.splits else rows
    logits = None
    if targets is not None:
        ready = x if readout.splits else readout.prepare(rows)
        logits = wide(readout.tokens(ready, targets.repeat(len(h)))).view(h.shape[:2])
    return VocabularySums(x.view(*h.shape[:2], -1), targets, logits, k)


def logits_of_piece(readout: Readout, x: Tensor, start: int, stop: int) -> Tensor:
    """Logits (G, P, stop - start) of the tokens start…stop-1, from prepared states x (G, P, D)."""
    check_interruption()
    rows = x.flatten(0, 1)
    ready = rows if readout.splits else readout.prepare(rows)
    return wide(readout.columns(ready, start, stop)).view(*x.shape[:2], -1)


def row_pieces(readout: Readout, vocab: int, h: Tensor) -> Iterator[slice]:
    """Positions of the states h (L, P, D) that one walk over the vocabulary serves, piece after piece."""
    layers, positions, width = h.shape
    bytes_at_once = STATES_BYTES if h.device.type == "cpu" else STATES_BYTES_ACCELERATOR
    most = bytes_at_once // (layers * width * 4) if readout.splits else WHOLE_ROWS_BYTES // (vocab * 4)
    most = max(1, most)
    return (slice(at, at + most) for at in range(0, positions, most))


def piece_bytes(device: str) -> int:
    """Bytes of one piece of logits on a device of this type ("cpu", "cuda" …)."""
    return PIECE_BYTES if device == "cpu" else PIECE_BYTES_ACCELERATOR


def layers_at_once(readout: Readout, vocab: int, h: Tensor) -> int:
    """How many layers share one product: many when there are few positions."""
    rows = PRODUCT_ROWS if h.device.type == "cpu" else PRODUCT_ROWS_ACCELERATOR
    if not readout.splits:
        rows = max(1, WHOLE_ROWS_BYTES // (vocab * 4))
    return max(1, rows // max(1, h.shape[1]))


def vocabulary_pieces(readout: Readout, vocab: int, h: Tensor) -> list[tuple[int, int]]:
    """The pieces (start, stop) that the vocabulary is walked in for states h (L, P, D)."""
    if not readout.splits:
        return [(0, vocab)]
    rows = h.shape[1] * min(len(h), layers_at_once(readout, vocab, h))
    size = max(256, piece_bytes(h.device.type) // (rows * 4))
    return [(at, min(at + size, vocab)) for at in range(0, vocab, size)]


@torch.no_grad()
def token_logits(readout: Readout, vocab: int, h: Tensor, ids: Tensor) -> Tensor:
    """The logits, of their shape, that states h (..., D) give the tokens `ids` (..., k), k of each state."""
    most = 1024 if readout.splits else max(1, WHOLE_ROWS_BYTES // (4 * vocab))
    parts = []
    for rows, tokens in zip(h.flatten(0, -2).split(most), ids.flatten(0, -2).split(most), strict=True):
        x = readout.prepare(rows)
        parts.append(torch.stack([wide(readout.tokens(x, one)) for one in tokens.unbind(-1)], -1))
    return torch.cat(parts).view(ids.shape)


def top_token(lm: LM, h: Tensor, readout: Readout | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The most probable token of states h (N, D): ids, their logits and ln Σ exp(logits), (N,) each.

    Of equal logits the lowest id wins. With a `readout` they are read by that one, not by the model's own.
    """
    readout, vocab = readout or lm.runner.readout, lm.vocab_size
    parts = []
    for part in h.split(1024 if readout.splits else max(1, WHOLE_ROWS_BYTES // (4 * vocab))):
        x = readout.prepare(part)
        size = max(256, piece_bytes(h.device.type) // (4 * len(part))) if readout.splits else vocab
        best = ids = total = torch.empty(0)
        for start in range(0, vocab, size):
            check_interruption()
            z = wide(readout.columns(x, start, min(start + size, vocab)))
            top, at = z.max(-1)
            if not start:
                best, ids, total = top, at, z.sub_(top[:, None]).exp_().sum(-1)
                continue
            ids = torch.where(top > best, at + start, ids)
            new = torch.maximum(best, top)
            total = total * (best - new).exp() + z.sub_(new[:, None]).exp_().sum(-1)
            best = new
        parts.append((ids, best, best + total.log()))
    a, b, c = zip(*parts, strict=True)
    return torch.cat(a), torch.cat(b), torch.cat(c)
