"""How the last state becomes logits: traced, verified, else replayed, else refused.

Knows: the modules that fire after the last block, the scalings and soft caps a model may apply around its head, and
how to run a model's own forward with its blocks stubbed. All of it is checked against the model's own logits.
Does not know: architectures by name, tokens, layers other than the last, what a lens is.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lenscope.errors import LenscopeError
from lenscope.models.deviations import FAILURES, TOLERANCE, deviation
from lenscope.models.exclusive_runs import lock_of
from lenscope.models.offloaded import computes_in_place
from lenscope.models.residual_stream import Anatomy, embedding, forward_kwargs, with_output_state


class Readout(Protocol):
    """Hidden states of the last layer → logits, in two steps so that the vocabulary can be walked in pieces."""

    @property
    def description(self) -> str:
        """What is applied, in words."""
        ...

    @property
    def splits(self) -> bool:
        """Whether `columns` may be asked for a part of the vocabulary."""
        ...

    def prepare(self, h: Tensor) -> Tensor:
        """(N, D) → what `columns` takes; everything before the head."""
        ...

    def columns(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Logits (N, stop - start) of the tokens start…stop-1, in the model's dtype; the caller may overwrite them."""
        ...

    def tokens(self, x: Tensor, ids: Tensor) -> Tensor:
        """Logits (N,) of one token per row."""
        ...

    def head(self, ids: Tensor) -> "tuple[Tensor, Tensor | None] | None":
        """Weights (k, D') and bias (k,) that give the logits of some tokens before `finish`; None: no such weights."""
        ...

    def finish(self, z: Tensor) -> Tensor:
        """What is done with the head's products, possibly in place."""
        ...


def wide(z: Tensor) -> Tensor:
    """Logits in float32 or wider, whatever the model's dtype."""
    return z if z.dtype in (torch.float32, torch.float64) else z.float()


@dataclass(frozen=True, eq=False)
class Traced:
    """The modules after the last block, applied in order, then `scale`, then `softcap`.

    logits = cap · tanh(scale · head(…norm(h)) / cap), either step absent where None.
    """

    chain: tuple[tuple[str, nn.Module], ...]
    scale: float | None = None
    softcap: float | None = None

    @property
    def description(self) -> str:
        """The modules by name, with scale and cap."""
        text = "traced: " + " → ".join(name for name, _ in self.chain)
        text += f" × {self.scale:.6g}" if self.scale is not None else ""
        return text + (f", soft cap {self.softcap:g}" if self.softcap is not None else "")

    @property
    def splits(self) -> bool:
        """Whether the head is a plain Linear, whose rows are the vocabulary."""
        # Exactly a Linear, without hooks that change it: a subclass may be quantised, offloaded or sharded.
        return self._linear is not None

    @property
    def _linear(self) -> nn.Linear | None:
        head = self.chain[-1][1]
        if type(head) is not nn.Linear or not computes_in_place(head) or type(head.weight) is not nn.Parameter:
            return None
        return None if head._forward_hooks or head._forward_pre_hooks or head.weight.is_meta else head

    def prepare(self, h: Tensor) -> Tensor:
        """(N, D) → the input of the head, or logits where the head cannot be split."""
        x = h
        for _, module in self.chain[:-1] if self.splits else self.chain:
            x = module(x)
        # modules of a model on several devices leave it on their own
        return x.to(h.device)

    def columns(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Logits (N, stop - start) of the tokens start…stop-1."""
        head = self._linear
        if head is None:
            z = x[:, start:stop].clone()
        else:
            bias = None if head.bias is None else head.bias[start:stop]
            z = F.linear(x.to(head.weight.device), head.weight[start:stop], bias).to(x.device)
        return self.finish(z)

    def tokens(self, x: Tensor, ids: Tensor) -> Tensor:
        """Logits (N,) of one token per row."""
        head = self._linear
        if head is None:
            return self.finish(x.gather(1, ids[:, None])[:, 0])
        weight, bias = _head_rows(head, ids, x.device)
        z = torch.linalg.vecdot(x, weight)
        return self.finish(z if bias is None else z + bias)

    def head(self, ids: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """Weights (k, D') and bias (k,) of some tokens where the head is a plain Linear."""
        head = self._linear
        return None if head is None else _head_rows(head, ids, ids.device)

    def finish(self, z: Tensor) -> Tensor:
        """Scale and cap, in place unless gradients are wanted, which need what was there before."""
        if z.requires_grad:
            z = z if self.scale is None else z * self.scale
            return z if self.softcap is None else (z / self.softcap).tanh() * self.softcap
        if self.scale is not None:
            z = z.mul_(self.scale)
        if self.softcap is not None:
            z = z.div_(self.softcap).tanh_().mul_(self.softcap)
        return z


def _head_rows(head: nn.Linear, ids: Tensor, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The weights (k, D') and biases (k,) of some tokens, on a device."""
    at = ids.to(head.weight.device)
    return head.weight[at].to(device), None if head.bias is None else head.bias[at].to(device)


@dataclass(frozen=True, eq=False)
class Replayed:
    """The model's own forward, its blocks stubbed to return the given state: exact wherever the trunk is a chain."""

    anatomy: Anatomy

    @property
    def description(self) -> str:
        """What is applied, in words."""
        return "replayed: the model's own forward with its blocks stubbed"

    @property
    def splits(self) -> bool:
        """Never: one forward pass makes all logits."""
        return False

    def prepare(self, h: Tensor) -> Tensor:
        """(N, D) → logits (N, V)."""
        model, stream = self.anatomy.model, self.anatomy.stream
        # One token per row: a final norm and head act on each position alone, and no context window is exceeded.
        ids = self.anatomy.ids[:1, :1].expand(len(h), 1)
        with stubbed(self.anatomy, stream.unpack(h[:, None])):
            return model(input_ids=ids, **forward_kwargs(model, use_cache=False)).logits[:, -1].to(h.device)

    def columns(self, x: Tensor, start: int, stop: int) -> Tensor:
        """A copy of the logits of the tokens start…stop-1."""
        return x[:, start:stop].clone()

    def tokens(self, x: Tensor, ids: Tensor) -> Tensor:
        """Logits (N,) of one token per row."""
        return x.gather(1, ids[:, None])[:, 0]

    def head(self, ids: Tensor) -> None:
        """None: what `prepare` returns are logits."""

    def finish(self, z: Tensor) -> Tensor:
        """Nothing: these are the model's own logits."""
        return z


@contextmanager
def stubbed(anatomy: Anatomy, state: Tensor) -> Iterator[None]:
    """Within the block, every transformer block returns `state` (the model's own layout) and computes nothing."""
    with lock_of(anatomy.model):
        before = [(block, vars(block).get("forward")) for block in anatomy.blocks]
        try:
            for block, template in zip(anatomy.blocks, anatomy.outputs, strict=True):
                block.forward = _Stub(template, state)
            yield
        finally:
            for block, forward in before:
                if forward is None:
                    vars(block).pop("forward", None)
                else:
                    block.forward = forward


class _Stub:
    """A block's forward that returns a given state in the container the block would use."""

    def __init__(self, template: Any, state: Tensor) -> None:
        self.template = template
        self.state = state

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return with_output_state(self.template, self.state)


def is_stubbed(block: nn.Module) -> bool:
    """Whether the block is being replayed: nothing there is to be read or edited."""
    return isinstance(vars(block).get("forward"), _Stub)


@dataclass(frozen=True)
class VerifiedReadout:
    """A readout and how exactly it gave the model's own logits.

    `deviation` is the largest |difference| over all tokens and trial positions, divided by the standard deviation of
    the model's logits; `elsewhere` is the same against the replayed forward on states the model did not produce
    (early layers, random vectors, rows of the embedding), where a missing cap or scale shows; None where no replay
    could be had.
    """

    readout: Readout
    deviation: float
    elsewhere: float | None


def find_readout(
    anatomy: Anatomy, attempts: Sequence[Callable[[Anatomy], Readout | None]] | None = None
) -> VerifiedReadout:
    """The first of `attempts` (traced, then replayed) that gives the model's own logits.

    Raises LenscopeError, with the deviations, where none does: a wrong number is worse than no number.
    """
    refused = []
    for attempt in attempts or (trace, Replayed):
        readout = attempt(anatomy)
        if readout is None:
            continue
        verified = verify(readout, anatomy)
        worst = max(verified.deviation, verified.elsewhere or 0.0)
        if worst <= TOLERANCE.get(anatomy.logits.dtype, 1e-4):
            return verified
        refused.append(f"{readout.description} is off by {worst:.2g}")
    reasons = "; ".join(refused) or "no chain of modules leads from the last block to the logits"
    raise LenscopeError(
        f"{type(anatomy.model).__name__}: the readout cannot be verified against the model's own logits "
        f"({reasons}, in standard deviations of the logits), so its numbers would be wrong: not supported"
    )


@torch.no_grad()
def verify(readout: Readout, anatomy: Anatomy) -> VerifiedReadout:
    """Compare `readout` with the model's own logits, and with the replayed forward on foreign states."""
    vocab = anatomy.logits.shape[-1]

    def read(which: Readout, h: Tensor) -> Tensor:
        return which.columns(which.prepare(h), 0, vocab)

    last = anatomy.states[-1].flatten(0, 1)
    truth = anatomy.logits.flatten(0, 1)
    try:
        gap = deviation(read(readout, last), truth)
        replay = Replayed(anatomy)
        elsewhere = None
        # Where the replay itself is not exact it is no oracle; then only the model's own logits speak.
        if deviation(read(replay, last), truth) <= TOLERANCE.get(truth.dtype, 1e-4):
            h = _foreign_states(anatomy)
            elsewhere = deviation(read(readout, h), read(replay, h))
    except FAILURES as error:
        raise LenscopeError(f"{type(anatomy.model).__name__}: its readout does not run alone ({error})") from error
    return VerifiedReadout(readout, gap, elsewhere)


def _foreign_states(anatomy: Anatomy) -> Tensor:
    """States (N, D) the last block did not return: early layers, noise, and vectors that make single logits large."""
    last = anatomy.states[-1].flatten(0, 1)
    early = [h[0, :2].to(last.device) for h in anatomy.states[:: max(1, anatomy.n_layers // 3)]]
    noise = torch.randn(4, last.shape[1], generator=torch.Generator().manual_seed(0)).to(last)
    weight = embedding(anatomy.model)
    # what is offloaded, or split among processes, only the module itself brings in
    elsewhere = weight.is_meta or hasattr(weight, "to_local")
    rows = anatomy.model.get_input_embeddings()(anatomy.ids[0]) if elsewhere else weight[anatomy.ids[0]]
    rows = rows.to(last)
    loud = [rows * last.norm(dim=-1).mean() / rows.norm(dim=-1, keepdim=True).clamp_min(1e-6)]
    if rows.shape[1] != last.shape[1]:
        loud = []
    return torch.cat([*early, noise * last.std(), *loud])


@torch.no_grad()
def trace(anatomy: Anatomy) -> Traced | None:
    """The modules that fired after the last block as a chain, with the scale and soft cap that remain; or None."""
    if not anatomy.tail:
        return None
    y = anatomy.states[-1].flatten(0, 1)
    try:
        for _, module in anatomy.tail:
            y = module(y)
    except FAILURES:
        return None
    logits = anatomy.logits.flatten(0, 1)
    if not isinstance(y, Tensor) or y.shape != logits.shape:
        return None
    y = y.to(logits.device)
    plain = Traced(anatomy.tail)
    if deviation(y, logits) <= TOLERANCE.get(logits.dtype, 1e-4) / 50:
        return plain
    # What is left must be a multiplier or a soft cap. The best candidate wins: in 16 bits several may pass.
    numbers = _config_numbers(anatomy)
    loudest = logits.abs().amax(-1).topk(min(4, len(logits))).indices
    y, logits = y[loudest], logits[loudest]
    closest, best = None, float("inf")
    for cap in (None, *numbers):
        if cap is not None and logits.abs().max() > cap:
            continue
        candidate = Traced(anatomy.tail, _scale(y.cpu().double(), logits.cpu().double(), cap, numbers), cap)
        gap = deviation(candidate.finish(y.clone()), logits)
        if gap < best:
            closest, best = candidate, gap
    return closest if best <= TOLERANCE.get(logits.dtype, 1e-4) else None


def _scale(y: Tensor, logits: Tensor, cap: float | None, numbers: list[float]) -> float | None:
    """The multiplier that leads from `y` to the (uncapped) logits: the configured number it stands for, if any."""
    if cap is not None:
        inside = logits.abs() < 0.9 * cap  # atanh loses all digits where the cap saturates
        y, logits = y[inside], cap * torch.atanh(logits[inside] / cap)
    scale = float((logits * y).sum() / (y * y).sum())
    for exact in (1.0, *numbers, *(1 / n for n in numbers)):
        if abs(scale / exact - 1) < 1e-2:
            return None if exact == 1 else exact
    return scale


def _config_numbers(anatomy: Anatomy) -> list[float]:
    """Every positive number in the text configuration, the only place a cap or a scale can come from."""
    values = anatomy.model.config.get_text_config().to_dict().values()
    return sorted({float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool) and v > 0})
