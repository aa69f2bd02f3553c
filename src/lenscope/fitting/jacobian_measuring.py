"""From sums of Jacobians to a lens that is measured: shrinkage, the halves' agreement, KL, on held-out text.

Knows: which held-out text decides and which measures, what stands in a report. Does not know: how sums come about.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lenscope.distributed.layer_owners import LayerOwners
from lenscope.fitting.closed_form import SecondMoments, with_constant
from lenscope.fitting.halves_agreement import agreement_rows, halves_agreement
from lenscope.fitting.held_out import MEASURING, HeldOut, choose_rows, describe_held_out, halves, layer_rows
from lenscope.fitting.jacobian_shrinkage import PROBES, PROMPTS, STATES, HeldOutJacobians, shrunk
from lenscope.fitting.jacobian_sums import JacobianSums
from lenscope.fitting.larger_than_memory import TensorsOnDemand
from lenscope.models.language_model import LM
from lenscope.text.corpus import Corpus, TokenBatch

# Held-out positions on which the halves are compared while text is read.
ONLINE = 96
# zᵀ J of a row's ids and counted positions for cotangents z (m, D), of all layers (L, m, D); None: without a source
RowsOf = Callable[[Sequence[int], Tensor, Tensor], Tensor | None]


@dataclass(frozen=True, eq=False)
class JacobianMeasures:
    """Held-out text of a Jacobian lens: rows that decide about shrinkage, and states that measure.

    Args:
        lm: the model.
        choosing: rows of documents that decide.
        select: their states.
        measure: the states of other documents, which measure.
        held: all of this text.
    """

    lm: LM
    choosing: Sequence[TokenBatch]
    select: HeldOut
    measure: HeldOut
    held: Corpus

    @staticmethod
    @torch.no_grad()
    def read(lm: LM, held: Corpus, owners: LayerOwners) -> "JacobianMeasures":
        """Read the states of held-out text; LenscopeError where there is too little of it."""
        choosing_part, measuring_part = halves(held)
        choosing, measuring = choose_rows(choosing_part), choose_rows(measuring_part, MEASURING)
        select, measure = (HeldOut.read(lm, rows, owners, None) for rows in (choosing, measuring))
        return JacobianMeasures(lm, choosing, select, measure, held)

    @torch.no_grad()
    def least_cosine(self, sums: JacobianSums) -> float:
        """The least of all layers' mean cosines between the readouts of the two halves, on some of the states."""
        first, second = (sums.by_layer(n, self.lm.n_layers) for n in (0, 1))
        return min(e.value for e in halves_agreement(self.measure, first, second, ONLINE)["cosine"])

    def lens(
        self, sums: JacobianSums, rows_of: RowsOf | None, seed: int, room: Tensor | None = None
    ) -> tuple[Tensor, list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
        """The lens of some sums: J (n_layers, D, D), rows by layer, rows on shrinkage, and what is said of the text.

        Args:
            sums: of both halves.
            rows_of: differentiates rows of held-out text; None: nothing is drawn towards cheaper estimates.
            seed: of what is drawn.
            room: where the lens is put, (n_layers, D, D); None: in memory.
        """
        lm, layers, size = self.lm, sums.total.shape[1], self.lm.hidden_size
        mean, drawn = sums.by_layer(None, lm.n_layers), list[dict[str, Any]]()
        matrices = sums.total.new_empty(lm.n_layers, size, size) if room is None else room
        for layer in range(lm.n_layers):
            matrices[layer] = mean[layer]
        held = None if rows_of is None else self.held_out_jacobians(rows_of, seed)
        if held is not None:
            first, second, both = (sums.by_layer(half, layers) for half in (0, 1, None))
            _, drawn = shrunk(first, second, both, self.regression(layers), held, matrices[:layers])
        with torch.no_grad():
            first, second = (sums.by_layer(n, lm.n_layers) for n in (0, 1))
            agreement = agreement_rows(halves_agreement(self.measure, first, second, seed=seed))
            own = self.owners.own
            weights = TensorsOnDemand(lambda n: torch.cat([matrices[own[n]].T, matrices.new_zeros(1, size)]), len(own))
            plain = [torch.eye(size + 1, size, device=lm.device)] * len(own)
            chosen = ["shrunk" if row["weight"] else "mean" for row in drawn]
            chosen += ["mean"] * (lm.n_layers - len(chosen))
            constants = [1.0] * lm.n_layers
            rows = layer_rows(self.measure, weights, plain, chosen, constants, seed)
        rows = [{**row, **more} for row, more in zip(rows, agreement, strict=True)]
        return matrices, rows, drawn, describe_held_out(self.held, self.select, self.measure, rows)

    @property
    def owners(self) -> LayerOwners:
        """Which process has which layers."""
        return self.measure.owners

    def held_out_jacobians(self, rows_of: RowsOf, seed: int) -> HeldOutJacobians | None:
        """Rows of the Jacobians of prompts that decide, in directions of the logits."""
        probes = self._probes(seed)
        parts: list[Tensor] = []
        for batch in self.choosing:
            for ids, counts in zip(batch.ids.tolist(), self._sources(batch), strict=True):
                rows = rows_of(ids, counts, probes) if len(parts) < PROMPTS else None
                if rows is not None:
                    parts.append(rows)
        if len(parts) < 2:
            return None
        rows = torch.stack(parts).float()
        count = self.select.block.states.shape[1]
        step = max(1, count // STATES)
        own = self.select.block.states[:, ::step].float()
        return HeldOutJacobians(probes.to(rows), rows, self.owners.everywhere(own).to(rows))

    def _sources(self, batch: TokenBatch) -> Tensor:
        """Which positions of held-out rows are sources: all but the first ones; what is measured is spread thinner."""
        counts = torch.zeros_like(batch.counted)
        counts[:, self.held.skip :] = True
        return counts

    def _probes(self, seed: int) -> Tensor:
        """Gradients (m, D) of random directions of the centred logits by the last state, at held-out states."""
        lm, last = self.lm, self.select.block.last
        draw = torch.Generator().manual_seed(seed)
        places = torch.randint(len(last), (PROBES,), generator=draw).to(last.device)
        h = last[places].float() if last.dtype != torch.float64 else last[places]
        readout = lm.runner.readout
        with torch.enable_grad(), lm.runner.exclusive.alone():
            h = h.to(lm.dtype).detach().requires_grad_()
            z = readout.columns(readout.prepare(h), 0, lm.vocab_size)
            noise = torch.randn(z.shape, generator=draw).to(z)
            (gradient,) = torch.autograd.grad(((noise - noise.mean(-1, keepdim=True)) * z).sum(), h)
        return gradient.detach() if gradient.dtype == torch.float64 else gradient.detach().float()

    def regression(self, layers: int) -> Sequence[Tensor] | None:
        """Least squares of the last states on each layer's, without the bias, from the text that decides.

        (D, D) each; None where there are fewer states than dimensions.
        """
        block, size, own = self.select.block, self.lm.hidden_size, self.owners.own
        if block.states.shape[1] < 2 * size:
            return None

        def fitted(number: int) -> Tensor:
            moments = SecondMoments(size, self.lm.device)
            x = with_constant(block.states[number], 1.0)
            moments.add([(x, block.last.float())])
            return moments.ridges(self.lm.device, (1e-2,))[0][:-1].T

        if len(own) == self.lm.n_layers:
            return TensorsOnDemand(fitted, layers)
        mine = torch.zeros(len(own), size, size, device=self.lm.device)
        for number in range(len(own)):
            mine[number] = fitted(number)
        return list(self.owners.everywhere(mine)[:layers])


def padded(jacobians: Tensor, lm: LM) -> Tensor:
    """Jacobians (L, D, D) with the identity for the layers that are not below the target layer: (n_layers, D, D)."""
    more = lm.n_layers - len(jacobians)
    one = torch.eye(lm.hidden_size, device=jacobians.device, dtype=jacobians.dtype)
    return torch.cat([jacobians, one.expand(more, -1, -1)]) if more else jacobians
