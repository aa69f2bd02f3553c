"""What the predictions of a sweep are worth: top tokens, divergence from the unpatched run, answers, the source's view.

Knows: which distributions each cell's is compared with, and how answers of several tokens are scored.
Does not know: how cells are run (rows.py), what their vectors are.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenscope import rows
from lenscope.decoding import top_one
from lenscope.edits import Edit
from lenscope.errors import LenscopeError
from lenscope.model import LM
from lenscope.patched_rows import Rows
from lenscope.readout import wide
from lenscope.reduction import reduce
from lenscope.sources import Sources


class Scores:
    """The columns of a grid of predictions, filled chunk by chunk."""

    def __init__(
        self, lm: LM, source_lm: LM, made: Rows, sources: Sources, source: np.ndarray, top_k: int,
        answers: Sequence[str | int], budget: int, edits: Sequence[Edit] = (),
    ) -> None:  # fmt: skip
        n = len(made)
        self.lm, self.source_lm, self.rows, self.budget = lm, source_lm, made, budget
        # edits that targets have whether patched or not, `row` naming the target
        self.edits = edits
        self.answers = {str(a): answer_ids(lm, a) for a in answers}
        with lm.edit(*edits):
            self.base = lm.read([p.ids for p in made.prompts], layers=lm.n_layers, positions=-1)[lm.n_layers, -1]
        self.ids = np.full((n, top_k), -1)
        self.log_probs = np.full((n, top_k), np.nan, dtype=np.float32)
        self.measures = {name: np.full(n, np.nan, dtype=np.float32) for name in ("max_probability", "entropy", "kl")}
        self.finals = sources.final[source]
        if comparable(lm, source_lm) and (self.finals >= 0).any():
            known = np.unique(self.finals[self.finals >= 0])
            self.states = sources.last[torch.from_numpy(known)]
            top, _, total = top_one(source_lm, self.states.to(source_lm.device, source_lm.dtype))
            self.own_top, self.own_total = top.cpu().numpy(), total
            self.finals = np.where(self.finals >= 0, np.searchsorted(known, self.finals), -1)
            self.measures["surprisal"] = np.full(n, np.nan, dtype=np.float32)
            self.measures["precision"] = np.full(n, np.nan, dtype=np.float32)
        for name in self.answers:
            self.measures[f"log_prob:{name}"] = np.full(n, np.nan, dtype=np.float32)
            self.measures[f"pmi:{name}"] = np.full(n, np.nan, dtype=np.float32)

    def take(self, some: np.ndarray, h: Tensor) -> None:
        """Take in the last states h (n, D) of the rows `some` (n,)."""
        target = self.rows.target[some]
        together = (target == target[0]).all()
        # one unpatched run for all, or each row beside that of its own target
        states, base = (h[:, None], self.base[target[:1]]) if together else (h[None], self.base[target])
        r = reduce(self.lm.readout, self.lm.vocab_size, states, base, None, self.ids.shape[1], False)
        self.ids[some] = r.top_ids.reshape(len(some), -1).cpu().numpy()
        self.log_probs[some] = r.top_log_probs.reshape(len(some), -1).cpu().numpy()
        for name in ("max_probability", "entropy", "kl"):
            self.measures[name][some] = getattr(r, name).reshape(-1).cpu().numpy()
        if "surprisal" in self.measures:
            self._compare(some)
        single = {name: ids[0] for name, ids in self.answers.items() if len(ids) == 1}
        if single:
            _, _, totals = top_one(self.lm, self.base)
            x, z = self.lm.readout.prepare(h), self.lm.readout.prepare(self.base)
            top = wide(self.lm.readout.tokens(x, r.top_ids.reshape(len(some), -1)[:, 0]))
            total = top - r.top_log_probs.reshape(len(some), -1)[:, 0]
            for name, answer in single.items():
                patched = wide(self.lm.readout.tokens(x, torch.full((len(x),), answer, device=x.device))) - total
                plain = wide(self.lm.readout.tokens(z, torch.full((len(z),), answer, device=z.device))) - totals
                self._answer(name, some, patched, plain[torch.from_numpy(target)])

    def _compare(self, some: np.ndarray) -> None:
        """Surprisal and precision@1 against the source model's own prediction at the source's position."""
        mine = some[self.finals[some] >= 0]
        if not len(mine):
            return
        final = self.finals[mine]
        chosen = self.ids[mine, 0]
        lm = self.source_lm
        states = self.states[torch.from_numpy(final)].to(lm.device, lm.dtype)
        z = wide(lm.readout.tokens(lm.readout.prepare(states), torch.from_numpy(chosen).to(lm.device)))
        self.measures["surprisal"][mine] = (self.own_total[torch.from_numpy(final)] - z).cpu().numpy()
        self.measures["precision"][mine] = self.own_top[final] == chosen

    def finish(self, advance: Callable[[int], None]) -> None:
        """Score the answers of several tokens: a pass each, over the target prompt and the answer."""
        for name, ids in self.answers.items():
            if len(ids) == 1:
                continue
            longer = replace(self.rows, prompts=tuple(self.lm.prompt([*p.ids, *ids[:-1]]) for p in self.rows.prompts))
            with self.lm.edit(*self.edits):
                last = self.lm.read([p.ids for p in longer.prompts], self.lm.n_layers, slice(-len(ids), None))
            plain = log_prob(self.lm, last[self.lm.n_layers, :], ids)
            for some, h in rows.predict(self.lm, longer, len(ids), self.budget):
                self._answer(name, some, log_prob(self.lm, h, ids), plain[torch.from_numpy(self.rows.target[some])])
                advance(len(some))

    def _answer(self, name: str, some: np.ndarray, patched: Tensor, plain: Tensor) -> None:
        self.measures[f"log_prob:{name}"][some] = patched.cpu().numpy()
        self.measures[f"pmi:{name}"][some] = (patched - plain).cpu().numpy()

    def columns(self, kept: np.ndarray) -> dict[str, Any]:
        """The columns of the rows `kept`."""
        known = [int(i) for i in np.unique(self.ids[kept, 0])] if len(kept) else []
        text = dict(zip(known, self.lm.encoder.tokens(known), strict=True))
        return {
            "kind": "predict",
            "ids": self.ids[kept],
            "log_probs": self.log_probs[kept],
            "texts": tuple(text[int(i)] for i in self.ids[kept, 0]),
            "measures": {name: values[kept] for name, values in self.measures.items()},
        }


@torch.no_grad()
def log_prob(lm: LM, h: Tensor, ids: Sequence[int]) -> Tensor:
    """(N,) ln p of the tokens `ids`, summed in float64, read one by one from last-layer states h (N, len(ids), D)."""
    flat = h.flatten(0, 1)
    _, _, total = top_one(lm, flat)
    wanted = torch.tensor(ids, device=flat.device).repeat(len(h))
    z = wide(lm.readout.tokens(lm.readout.prepare(flat), wanted))
    return (z - total).double().view(h.shape[:2]).sum(1)


def answer_ids(lm: LM, answer: str | int) -> list[int]:
    """The token ids of an answer: one token's text or id, or a text of several tokens."""
    if isinstance(answer, int):
        return [lm.encoder.token_id(answer)]
    ids = lm.encoder.ids(answer)
    if not ids:
        raise LenscopeError(f"answer {answer!r}: is no token of {lm.name}")
    return ids


def comparable(lm: LM, other: LM) -> bool:
    """Whether token ids mean the same to both models."""
    if lm is other:
        return True
    if lm.tokenizer is None or other.tokenizer is None or lm.vocab_size != other.vocab_size:
        return False
    same: bool = lm.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    return same
