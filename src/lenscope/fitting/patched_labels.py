"""How likely a frozen model says labels after a target prompt into which vectors are written, and its gradients.

Knows: which tokens are run, what of the prompt is run once for all, where labels are read, which ways are exact.
Does not know: where vectors come from, how a map is trained (verbaliser_steps.py).

Gradients are those with respect to the written vectors alone: a map's own follow by the chain rule. Of the prompt what
stands before the first placeholder does not depend on the vectors, and is read once; the head is applied where a
token of a label is predicted, and nowhere else.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from lenscope.engine.read_prefix import ReadPrefix
from lenscope.errors import LenscopeError
from lenscope.fitting.jacobian_passes import without_weight_gradients
from lenscope.models.carried_states import CarriedStates
from lenscope.models.deviations import FAILURES, deviation
from lenscope.models.edits import Edit, Operation
from lenscope.models.exactness import reads_together, tolerance
from lenscope.models.language_model import LM
from lenscope.models.readout import wide
from lenscope.models.residual_stream import forward_kwargs
from lenscope.models.runner import EnoughRead
from lenscope.patchscopes.target_prompts import Target

# bytes of logits that are made at once
LOGITS = 64 << 20

Label = tuple[int, ...]


class PatchedLabels:
    """Log-probabilities of labels behind one target prompt, and their gradients with respect to what is written.

    The prefix is read once, and rows are padded on the right, where that was measured to give the model's own numbers.
    `start` is where the prefix ends; 0: every row is run from its first token. `padded` False: rows of one length only.

    Args:
        lm: the model, in eval mode.
        target: the prompt and its placeholders, whose `below` is "target".
        layer: the layer at which vectors are written.
        op: how they are written.
    """

    def __init__(self, lm: LM, target: Target, layer: int, op: Operation) -> None:
        if lm.runner.editing or lm.runner.exclusive.training:
            raise LenscopeError(
                f"{lm.name}: is being edited or in training mode; end the edit or call model.eval() first"
            )
        if target.below != "target":
            raise LenscopeError(
                f"below {target.below!r}: a map is trained where later tokens see the prompt's own keys"
            )
        self.lm, self.layer, self.op = lm, layer, op
        self.prompt, self.slots = target.resolve(lm)
        self.fixed: tuple[Edit, ...] = target.fixed(lm)
        # with one token of the prompt at least to be run
        self.start = 0 if self.fixed else self.slots[0]
        self.padded = True
        self._read: ReadPrefix | None = None
        self._exact: dict[tuple[int, ...], bool] = {}

    def log_probs(self, vectors: Tensor, labels: Sequence[Label]) -> Tensor:
        """Of each label its tokens' log-probability in sum, in nats, behind the prompt with its vector: (N,).

        `vectors` are (N, D), written at every placeholder, or (N, K, D) for K placeholders.
        """
        out = torch.zeros(len(labels), dtype=torch.float64)
        for rows in self._together(labels):
            with torch.no_grad():
                h = self._states(vectors[rows], [labels[n] for n in rows])
                out[rows] = self._sums([labels[n] for n in rows], [z for _, z in self._tokens(h, labels, rows)])
        return out

    def gradients(self, vectors: Tensor, labels: Sequence[Label]) -> tuple[Tensor, Tensor]:
        """As `log_probs` (N,), and the gradient of their sum with respect to the vectors, of their shape."""
        out, slopes = torch.zeros(len(labels), dtype=torch.float64), torch.zeros_like(vectors)
        for rows in self._together(labels):
            with torch.enable_grad(), without_weight_gradients(self.lm):
                written = vectors[rows].detach().requires_grad_()
                h = self._states(written, [labels[n] for n in rows])
                parts, values = [], []
                # the head's own gradients piece by piece, so that logits of all tokens are never there at once
                for piece, z in self._tokens(h, labels, rows):
                    (slope,) = torch.autograd.grad(z.sum(), [piece])
                    parts.append(slope)
                    values.append(z.detach())
                (mine,) = torch.autograd.grad(h, [written], torch.cat(parts))
            slopes[rows], out[rows] = mine.to(slopes), self._sums([labels[n] for n in rows], values)
        return out, slopes

    def norm(self) -> float:
        """The median norm of the prompt's own states at the layer, not of its first token, which may be a sink."""
        norms = self.lm.read(self.prompt, self.layer).tensor[0, 0].double().norm(dim=-1)
        return float((norms[1:] if len(norms) > 1 else norms).median())

    def require_room(self, labels: Sequence[Label]) -> None:
        """Raise LenscopeError where the prompt and a label are more than the model reads."""
        self.lm.encoder.require_room(len(self.prompt), max(map(len, labels)))

    # -- rows

    def _together(self, labels: Sequence[Label]) -> Iterator[list[int]]:
        """Which rows are run together: all, or those whose labels have one length where padding is not exact."""
        lengths = sorted({len(label) for label in labels})
        short, long = (len(self.prompt) + n for n in (lengths[0], lengths[-1]))
        if len(lengths) < 2 or (self.padded and reads_together(self.lm.runner, short, long)):
            yield list(range(len(labels)))
            return
        for length in lengths:
            yield [n for n, label in enumerate(labels) if len(label) == length]

    def _tokens(self, h: Tensor, labels: Sequence[Label], rows: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """States (n, D) at which tokens of labels are predicted, and these tokens' log-probabilities (n,)."""
        readout, size = self.lm.runner.readout, self.lm.vocab_size
        ids = torch.tensor([i for n in rows for i in labels[n]], device=h.device)
        most = max(1, LOGITS // (4 * size))
        for at in range(0, len(h), most):
            piece = h[at : at + most].detach().requires_grad_(h.requires_grad)
            z = wide(readout.columns(readout.prepare(piece), 0, size))
            yield piece, z.gather(1, ids[at : at + most, None])[:, 0] - z.logsumexp(-1)

    def _sums(self, labels: Sequence[Label], values: Sequence[Tensor]) -> Tensor:
        row = torch.repeat_interleave(torch.tensor([len(label) for label in labels]))
        return torch.zeros(len(labels), dtype=torch.float64).index_add_(0, row, torch.cat(list(values)).double().cpu())

    def _states(self, vectors: Tensor, labels: Sequence[Label], start: int | None = None) -> Tensor:
        """The last layer's states at which the labels' tokens are predicted, label by label: (tokens, D).

        Rows are run from the token `start` on; None: the first from which that is exact.
        """
        lm, runner = self.lm, self.lm.runner
        longest = max(map(len, labels))
        runner.require_causal_at(len(self.prompt) + longest - 1)
        start = self._start_of(longest) if start is None else start
        rest = self.prompt.ids[start:]
        # what stands behind a label's end is seen by none of its tokens
        rows = [[*rest, *label[:-1], *[rest[-1]] * (longest - len(label))] for label in labels]
        ids = torch.tensor(rows, device=runner.input_device)
        slots = [slot - start for slot in self.slots]
        several = vectors.ndim == 3
        last: list[Tensor] = []

        def put(h: Tensor) -> Tensor:
            edited = h.clone()
            for k, slot in enumerate(slots):
                edited[:, slot] = self.op(h[:, slot], (vectors[:, k] if several else vectors).to(h)).to(h)
            return edited

        def put_fixed(h: Tensor, edit: Edit) -> Tensor:
            edited = h.clone()
            # resolved, as `Target.fixed` leaves them: numbers, and a vector for each
            places: Any = edit.position
            for place, vector in zip(places, edit.vector, strict=True):
                edited[:, place] = edit.op(h[:, place], vector.expand(len(h), -1).to(h)).to(h)
            return edited

        def take(h: Tensor) -> None:
            last.append(h)
            raise EnoughRead

        with runner.exclusive.alone(), ExitStack() as undo:
            # before there are hooks, which are not for it
            carried = self._prefix(len(labels)) if start else None
            for edit in self.fixed:
                undo.callback(runner.hook(edit.layer, lambda h, edit=edit: put_fixed(h, edit)).remove)
            undo.callback(runner.hook(self.layer, put).remove)
            undo.callback(runner.hook(lm.n_layers, take).remove)
            given: dict[str, Any] = {"use_cache": False}
            if carried is not None:
                given = undo.enter_context(carried.passed(ids))
            try:
                lm.model(input_ids=ids, **forward_kwargs(lm.model, **given))
            except EnoughRead:
                pass
        first = len(rest) - 1
        row = torch.repeat_interleave(torch.tensor([len(label) for label in labels]))
        column = torch.cat([torch.arange(first, first + len(label)) for label in labels])
        states = last[0][row.to(last[0].device), column.to(last[0].device)]
        runner.require_finite(states, lm.n_layers)
        return states

    def _prefix(self, rows: int) -> CarriedStates:
        """What the model carries after the prompt's tokens before the first placeholder, for so many rows."""
        if self._read is None:
            self._read = ReadPrefix(self.lm, self.prompt.ids[: self.start])
        return self._read.rows(rows)

    # -- what is exact

    def _start_of(self, longest: int) -> int:
        """From which token on rows are run with labels of so many tokens: the first placeholder, or the first token.

        Whether a prefix that is read once gives the model's own numbers and gradients is seen on one label, for all
        lengths between which the model's configuration makes no difference.
        """
        key = self.lm.runner.regimes.key(self.start, len(self.prompt) + longest)
        if self.start and key not in self._exact:
            self._exact[key] = self._is_exact(longest)
        return self.start if self.start and self._exact[key] else 0

    def _is_exact(self, longest: int) -> bool:
        runner = self.lm.runner
        draw = torch.Generator().manual_seed(0)
        vector = torch.randn(1, self.lm.hidden_size, generator=draw, dtype=torch.float64)
        vector *= self.norm() / vector.norm()
        vector = vector.to(self.lm.device, torch.promote_types(self.lm.dtype, torch.float32))
        label = (self.prompt.ids * -(-longest // len(self.prompt)))[:longest]
        plain = self._state_and_slope(vector, label, 0)
        try:
            short_way = self._state_and_slope(vector, label, self.start)
            apart = deviation(runner.own_logits(short_way[0]), runner.own_logits(plain[0]))
            gap = float((short_way[1] - plain[1]).norm()) / max(float(plain[1].norm()), 1e-30)
        except FAILURES as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return False
        return apart <= tolerance(runner) and gap <= min(0.1, 100 * tolerance(runner))

    def _state_and_slope(self, vector: Tensor, label: Label, start: int) -> tuple[Tensor, Tensor]:
        """The states where a label is predicted, and the gradient of a fixed sum of them."""
        with torch.enable_grad(), without_weight_gradients(self.lm):
            written = vector.detach().requires_grad_()
            h = self._states(written, [label], start)
            weights = torch.linspace(-1, 1, h.numel(), dtype=h.dtype, device=h.device).view(h.shape)
            (slope,) = torch.autograd.grad((h * weights).sum(), [written])
        return h.detach(), slope
