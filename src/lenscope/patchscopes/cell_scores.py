"""What the predictions of a sweep are worth: top tokens, divergence from the unpatched run, answers, the source's view.

Knows: which distributions each cell's is compared with, and how answers of several tokens are scored.
Does not know: how cells are run (patchscope.py has them run, and hands over what came out), what their vectors are.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenscope.engine.patched_rows import PatchedRows
from lenscope.errors import LenscopeError
from lenscope.measures.contrasted_readout import contrasted
from lenscope.measures.streamed import reduce, top_token
from lenscope.models.inputs import elements, is_integer
from lenscope.models.language_model import LM
from lenscope.models.prompts import Prompt
from lenscope.models.readout import Readout, wide
from lenscope.patchscopes.sources import Sources

# of each answer, by its name, and each target, the tokens that the answer has after that target
AnswerIds = dict[str, list[tuple[int, ...]]]


@dataclass(frozen=True, eq=False)
class LongAnswer:
    """An answer of several tokens `ids`, and the `rows` (n,) whose targets it has these tokens after."""

    name: str
    ids: tuple[int, ...]
    rows: np.ndarray


class CellScores:
    """The columns of a grid of predictions, filled with the last states of rows, some rows at a time."""

    def __init__(
        self, lm: LM, source_lm: LM, rows: PatchedRows, sources: Sources, source: np.ndarray, base: Tensor,
        answers: AnswerIds, top_k: int, contrast: float = 0.0,
    ) -> None:  # fmt: skip
        """Scores of rows of which none is there yet.

        Args:
            lm: the model that the rows are runs of.
            source_lm: the model that the sources are states of.
            rows: the rows; only their targets are looked at.
            sources: the sources of the rows.
            source: the number (n,) of each row's source.
            base: the last states (targets, D) of the targets' runs without a patch.
            answers: the tokens of what is scored, as `name_answers` gives them.
            top_k: how many tokens of each row are listed.
            contrast: α, with which the rows are contrasted with the runs without a patch; 0: not at all.
        """
        n = len(rows)
        self.contrast, self.readout = contrast, contrasted(lm.runner.readout, contrast)
        self.lm, self.source_lm, self.rows = lm, source_lm, rows
        self.answers, self.base = answers, base
        self.ids = np.full((n, top_k), -1)
        self.log_probs = np.full((n, top_k), np.nan, dtype=np.float32)
        self.measures = {name: np.full(n, np.nan, dtype=np.float32) for name in ("max_probability", "entropy", "kl")}
        self.finals = sources.final[source]
        if comparable(lm, source_lm) and (self.finals >= 0).any():
            known = np.unique(self.finals[self.finals >= 0])
            self.states = sources.last[torch.from_numpy(known)]
            top, _, total = top_token(source_lm, self.states.to(source_lm.device, source_lm.dtype))
            self.own_top, self.own_total = top.cpu().numpy(), total
            self.finals = np.where(self.finals >= 0, np.searchsorted(known, self.finals), -1)
            self.measures["surprisal"] = np.full(n, np.nan, dtype=np.float32)
            self.measures["precision"] = np.full(n, np.nan, dtype=np.float32)
        for name in self.answers:
            self.measures[f"log_prob:{name}"] = np.full(n, np.nan, dtype=np.float32)
            self.measures[f"pmi:{name}"] = np.full(n, np.nan, dtype=np.float32)

    def take(self, mine: np.ndarray, h: Tensor) -> None:
        """Take in the last states h (n, D) of the rows `mine` (n,)."""
        target = self.rows.target[mine]
        together = (target == target[0]).all()
        # one unpatched run for all, or each row beside that of its own target
        base = self.base[target[:1]] if together else self.base[target]
        if self.contrast:
            # each beside the run without its patch, and that one beside itself, which leaves it as it is
            h, base = torch.cat([h, self.base[target].to(h)], -1), torch.cat([base, base], -1)
        states = h[:, None] if together else h[None]
        r = reduce(self.readout, self.lm.vocab_size, states, base, None, self.ids.shape[1], False)
        self.ids[mine] = r.top_ids.reshape(len(mine), -1).cpu().numpy()
        self.log_probs[mine] = r.top_log_probs.reshape(len(mine), -1).cpu().numpy()
        for name in ("max_probability", "entropy", "kl"):
            self.measures[name][mine] = getattr(r, name).reshape(-1).cpu().numpy()
        if "surprisal" in self.measures:
            self._compare(mine)
        single = {n: [i[0] if len(i) == 1 else -1 for i in ids] for n, ids in self.answers.items()}
        if any(max(ids) >= 0 for ids in single.values()):
            _, _, totals = top_token(self.lm, self.base)
            x, z = self.readout.prepare(h), self.lm.runner.readout.prepare(self.base)
            top = wide(self.readout.tokens(x, r.top_ids.reshape(len(mine), -1)[:, 0]))
            total = top - r.top_log_probs.reshape(len(mine), -1)[:, 0]
            for name, ids in single.items():
                # each target's own token; where the answer has several there, what is computed is not used
                token = torch.tensor(ids, device=x.device)
                here = torch.from_numpy(np.flatnonzero(np.array(ids)[target] >= 0))
                patched = wide(self.readout.tokens(x, token[torch.from_numpy(target)].clamp_min(0))) - total
                plain = wide(self.lm.runner.readout.tokens(z, token.clamp_min(0))) - totals
                self._answer(name, mine[here.numpy()], patched[here], plain[torch.from_numpy(target)][here])

    def _compare(self, rows: np.ndarray) -> None:
        """Surprisal and precision@1 against the source model's own prediction at the source's position."""
        mine = rows[self.finals[rows] >= 0]
        if not len(mine):
            return
        final = self.finals[mine]
        chosen = self.ids[mine, 0]
        lm = self.source_lm
        states = self.states[torch.from_numpy(final)].to(lm.device, lm.dtype)
        z = wide(lm.runner.readout.tokens(lm.runner.readout.prepare(states), torch.from_numpy(chosen).to(lm.device)))
        self.measures["surprisal"][mine] = (self.own_total[torch.from_numpy(final)] - z).cpu().numpy()
        self.measures["precision"][mine] = self.own_top[final] == chosen

    @property
    def long_answers(self) -> list[LongAnswer]:
        """Answers of several tokens, which need a pass over the target prompt and the answer each."""
        longer = []
        for name, each in self.answers.items():
            for ids in dict.fromkeys(i for i in each if len(i) > 1):
                targets = np.array([i == ids for i in each])
                mine = np.flatnonzero(targets[self.rows.target])
                if len(mine):
                    longer.append(LongAnswer(name, ids, mine))
        return longer

    @property
    def passes(self) -> int:
        """How many rows run in all: once each, and again for every answer of several tokens."""
        return len(self.rows) + sum(len(answer.rows) for answer in self.long_answers)

    def take_answer(self, answer: LongAnswer, mine: np.ndarray, h: Tensor, unpatched: Tensor) -> None:
        """Take in an answer of several tokens: the states that these are read from, one by one.

        They are h (n, len(answer.ids), D) of the rows `mine` (n,), and `unpatched` (targets, len(answer.ids), D).
        """
        target = torch.from_numpy(self.rows.target[mine])
        pairs = torch.cat([h, unpatched[target].to(h)], -1) if self.contrast else h
        plain = log_prob(self.lm, unpatched, answer.ids)
        self._answer(answer.name, mine, log_prob(self.lm, pairs, answer.ids, self.readout), plain[target])

    def _answer(self, name: str, mine: np.ndarray, patched: Tensor, plain: Tensor) -> None:
        self.measures[f"log_prob:{name}"][mine] = patched.cpu().numpy()
        self.measures[f"pmi:{name}"][mine] = (patched - plain).cpu().numpy()

    def columns(self, rows: np.ndarray) -> dict[str, Any]:
        """The columns of some of the rows (n,)."""
        known = [int(i) for i in np.unique(self.ids[rows, 0])] if len(rows) else []
        text = dict(zip(known, self.lm.encoder.tokens(known), strict=True))
        return {
            "kind": "predict",
            "ids": self.ids[rows],
            "log_probs": self.log_probs[rows],
            "texts": tuple(text[int(i)] for i in self.ids[rows, 0]),
            "measures": {name: values[rows] for name, values in self.measures.items()},
        }


@torch.no_grad()
def log_prob(lm: LM, h: Tensor, ids: Sequence[int], readout: Readout | None = None) -> Tensor:
    """(N,) ln p of the tokens `ids`, summed in float64, read one by one from last-layer states h (N, len(ids), D).

    With a `readout` they are read by that one, not by the model's own.
    """
    readout, flat = readout or lm.runner.readout, h.flatten(0, 1)
    _, _, total = top_token(lm, flat, readout)
    wanted = torch.tensor(ids, device=flat.device).repeat(len(h))
    z = wide(readout.tokens(readout.prepare(flat), wanted))
    return (z - total).double().view(h.shape[:2]).sum(1)


def answer_ids(lm: LM, prompt: Prompt, answer: Any) -> tuple[int, ...]:
    """The token ids of an answer after a prompt: one token's id, or a text of one or several tokens."""
    if is_integer(answer):
        return (lm.encoder.token_id(answer),)
    return lm.encoder.answer_ids(prompt, [answer])[0]


def name_answers(lm: LM, prompts: Sequence[Prompt], answers: str | int | Sequence[str | int]) -> AnswerIds:
    """The ids of each answer after every target prompt, by the answer's text, or its id as text.

    Raises LenscopeError where an answer is given as a text and as an id.
    """
    several = [answers] if isinstance(answers, str) or is_integer(answers) else elements(answers, "a list of answers")
    named: AnswerIds = {}
    for answer in several:
        name = str(operator.index(answer)) if is_integer(answer) else str(answer)
        ids = [answer_ids(lm, prompt, answer) for prompt in prompts]
        if named.setdefault(name, ids) != ids:
            raise LenscopeError(f"answers: {name!r} is given as a text and as an id; ask for one of them")
    return named


def comparable(lm: LM, other: LM) -> bool:
    """Whether token ids mean the same to both models."""
    if lm is other:
        return True
    if lm.tokenizer is None or other.tokenizer is None or lm.vocab_size != other.vocab_size:
        return False
    same: bool = lm.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    return same
