"""What rows say, and what of it is written down: top tokens and distances, answers, texts.

Knows: which columns every part has, answers that differ from row to row, of one token or several, contrasts.
Does not know: where rows come from, which part they are of.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from lenscope.engine import sweep as engine
from lenscope.engine.contrasted_rows import ContrastedRows
from lenscope.engine.patched_rows import PatchedRows
from lenscope.engine.token_choice_and_end import TokenChooser
from lenscope.measures.contrasted_readout import contrasted
from lenscope.measures.streamed import reduce, top_token
from lenscope.models.language_model import LM
from lenscope.models.prompts import Prompt
from lenscope.models.readout import wide
from lenscope.patchscopes.cell_scores import answer_ids, comparable
from lenscope.tasks.text_match import mentions

# columns of numbers, in float32
NUMBERS = (
    "max_probability",
    "entropy",
    "kl",
    "surprisal",
    "precision",
    "mean_log_prob",
    "answer_log_prob",
    "answer_pmi",
)


class RowScores:
    """The columns of N rows: numbers that are not known are NaN, ranks -1, whether a row is correct -1."""

    def __init__(self, n: int) -> None:
        self.numbers = {name: np.full(n, np.nan, dtype=np.float32) for name in NUMBERS}
        self.answer_rank = np.full(n, -1, dtype=np.int64)
        self.correct = np.full(n, -1, dtype=np.int8)
        self.ids: list[list[int]] = [[] for _ in range(n)]
        self.log_probs: list[list[float]] = [[] for _ in range(n)]
        self.texts = [""] * n
        self.ended: list[str | None] = [None] * n

    def repeated(self, n: int) -> "RowScores":
        """The first row's columns, n times."""
        same = RowScores(n)
        same.numbers = {name: np.repeat(values[:1], n) for name, values in self.numbers.items()}
        same.answer_rank, same.correct = np.repeat(self.answer_rank[:1], n), np.repeat(self.correct[:1], n)
        same.ids, same.log_probs = self.ids[:1] * n, self.log_probs[:1] * n
        same.texts, same.ended = self.texts[:1] * n, self.ended[:1] * n
        return same

    def mark_mentions(self, answers: Sequence[str | None]) -> None:
        """A text is correct where it mentions its row's answer."""
        for n, answer in enumerate(answers):
            if answer is not None:
                self.correct[n] = mentions(self.texts[n], answer)


@torch.no_grad()
def score_states(
    scores: RowScores, lm: LM, mine: np.ndarray, h: Tensor, base: Tensor | None, first: np.ndarray, top_k: int,
    contrast: float = 0.0,
) -> None:  # fmt: skip
    """Take in the last states h (n, D) of the rows `mine` (n,): what they predict, and the rank of a token of each.

    Args:
        scores: what is filled.
        lm: the model that reads the states.
        mine: numbers of the rows.
        h: their states.
        base: what they are compared with: a state (1, D) for all, or one for each (n, D); None: nothing.
        first: the token whose rank each row is asked for, -1: none, (n,).
        top_k: how many tokens are listed.
        contrast: α, with which rows are contrasted with `base`, which is there then; 0: not at all.
    """
    readout = contrasted(lm.runner.readout, contrast)
    beside = h if base is None else base.to(h)
    if contrast:
        # each beside the run without its patch, and that one beside itself, which leaves it as it is
        h, beside = torch.cat([h, beside.expand(len(h), -1)], -1), torch.cat([beside, beside], -1)
    tokens = np.unique(first)
    # one comparison for all rows is read once; else each row stands beside its own
    together = len(beside) == 1 and len(tokens) == 1
    states, final = (h[:, None], beside) if together else (h[None], beside.expand(len(h), -1))
    wanted = tokens if together else first
    targets = torch.from_numpy(wanted).to(h.device).clamp_min(0) if (tokens >= 0).any() else None
    r = reduce(readout, lm.vocab_size, states, final, targets, top_k, False)
    ids = r.top_ids.reshape(len(mine), -1).tolist()
    log_probs = r.top_log_probs.reshape(len(mine), -1).tolist()
    known = sorted({row[0] for row in ids})
    text = dict(zip(known, lm.encoder.tokens(known), strict=True))
    for n, row, values in zip(mine.tolist(), ids, log_probs, strict=True):
        scores.ids[n], scores.log_probs[n], scores.texts[n] = row, values, text[row[0]]
    for name in ("max_probability", "entropy", *(["kl"] if base is not None else [])):
        scores.numbers[name][mine] = getattr(r, name).reshape(-1).cpu().numpy()
    asked = first >= 0
    if targets is not None:
        scores.answer_rank[mine[asked]] = r.rank.reshape(-1).cpu().numpy()[asked]
        scores.numbers["answer_log_prob"][mine[asked]] = -r.cross_entropy.reshape(-1).cpu().numpy()[asked]
        scores.correct[mine[asked]] = scores.answer_rank[mine[asked]] == 0


@torch.no_grad()
def compare_with_source(scores: RowScores, lm: LM, source: LM, last: Tensor, spot: np.ndarray) -> None:
    """Surprisal and precision@1 of all rows against the source's own prediction: last states (S, D), rows' spots (N,).

    Nothing is known where the two models have no vocabulary in common.
    """
    if not comparable(lm, source):
        return
    last = last.to(source.device, source.dtype)
    top, _, total = top_token(source, last)
    chosen = np.array([row[0] for row in scores.ids])
    at = torch.from_numpy(spot)
    ready = source.runner.readout.prepare(last[at])
    z = wide(source.runner.readout.tokens(ready, torch.from_numpy(chosen).to(source.device)))
    scores.numbers["surprisal"][:] = (total[at] - z).cpu().numpy()
    scores.numbers["precision"][:] = top.cpu().numpy()[spot] == chosen


@torch.no_grad()
def score_answers(
    scores: RowScores, lm: LM, rows: PatchedRows, unpatched: PatchedRows, ids: Sequence[tuple[int, ...]], budget: int,
    contrast: float = 0.0,
) -> None:  # fmt: skip
    """ln p of each row's answer, and by how much the patch made it likelier; ids (N,) of tokens, () where none is.

    Answers of one token are there already, from `score_states`; the others are read behind the target prompt, in one
    run for each length.

    Args:
        scores: what is filled.
        lm: the model that reads.
        rows: N rows of one target prompt.
        unpatched: that prompt without a patch, one row.
        ids: the tokens of each row's answer.
        budget: bytes that one chunk of rows may take.
        contrast: α, with which rows are contrasted with the prompt without a patch; 0: not at all.
    """
    prompt = rows.prompts[0]
    for length in sorted({len(one) for one in ids} - {0}):
        mine = np.array([n for n, one in enumerate(ids) if len(one) == length])
        distinct = sorted({ids[n] for n in mine.tolist()})
        number = {one: n for n, one in enumerate(distinct)}
        texts = tuple(lm.prompt([*prompt.ids, *one[:-1]]) for one in distinct)
        target = np.array([number[ids[n]] for n in mine.tolist()])
        once = dataclasses.replace(
            repeated_row(unpatched, len(distinct)), prompts=texts, target=np.arange(len(distinct))
        )
        if length > 1:
            longer = dataclasses.replace(rows.only(mine), prompts=texts, target=target)
            beside = _ends_of_rows(lm, once, length, budget) if contrast else None
            scores.numbers["answer_log_prob"][mine] = _log_probs(lm, longer, distinct, budget, beside, contrast)
        plain = _log_probs(lm, once, distinct, budget)
        scores.numbers["answer_pmi"][mine] = scores.numbers["answer_log_prob"][mine] - plain[target]


def repeated_row(row: PatchedRows, n: int) -> PatchedRows:
    """One row n times over."""
    m = len(row.row)
    return dataclasses.replace(
        row,
        target=np.zeros(n, dtype=np.int64),
        row=np.repeat(np.arange(n), m),
        layer=np.tile(row.layer, n),
        position=np.tile(row.position, n),
        vector=np.tile(row.vector, n),
        op=np.tile(row.op, n),
    )


def _ends_of_rows(lm: LM, rows: PatchedRows, length: int, budget: int) -> Tensor:
    """(N, length, D) the last layer's states at the last positions of rows, in their order."""
    numbers, states = zip(*engine.predict(lm, rows, length, budget), strict=True)
    return torch.cat(states)[torch.from_numpy(np.argsort(np.concatenate(numbers)))]


def _log_probs(
    lm: LM, rows: PatchedRows, distinct: Sequence[tuple[int, ...]], budget: int, beside: Tensor | None = None,
    contrast: float = 0.0,
) -> np.ndarray:  # fmt: skip
    """(N,) ln p of the answer of each row's target, read from the states that its last tokens follow.

    Where there is a `contrast` α they are contrasted with states `beside` (targets, length, D).
    """
    length, readout = len(distinct[0]), contrasted(lm.runner.readout, contrast)
    out = np.zeros(len(rows), dtype=np.float32)
    tokens = torch.tensor(distinct)
    for mine, h in engine.predict(lm, rows, length, budget):
        target = torch.from_numpy(rows.target[mine])
        flat = (h if beside is None else torch.cat([h, beside[target.to(beside.device)].to(h)], -1)).flatten(0, 1)
        _, _, total = top_token(lm, flat, readout)
        wanted = tokens[target].flatten().to(flat.device)
        z = wide(readout.tokens(readout.prepare(flat), wanted))
        out[mine] = (z - total).double().view(h.shape[:2]).sum(1).cpu().numpy()
    return out


def write_texts(
    scores: RowScores, lm: LM, rows: PatchedRows | ContrastedRows, most: int, stop: Sequence[str], budget: int,
    contrast: float = 0.0,
) -> None:  # fmt: skip
    """What every row goes on to say, greedily.

    Args:
        scores: what is filled.
        lm: the model that writes.
        rows: N rows; with a `contrast` those beside which others read along.
        most: tokens of a text at most.
        stop: strings that end a text.
        budget: bytes that one chunk of rows may take.
        contrast: α of the contrast; 0: none.
    """
    writer = TokenChooser(lm, len(scores.texts), most, tuple(stop), 0.0, 1.0, 0, contrast)
    how = writer.choose, most, budget
    chunks = rows.generate(lm, *how) if isinstance(rows, ContrastedRows) else engine.generate(lm, rows, *how)
    for mine, written in chunks:
        for n, one in zip(mine.tolist(), written, strict=True):
            scores.ids[n], scores.log_probs[n] = list(one.ids), list(one.log_probs)
            scores.texts[n], scores.ended[n] = writer.text(one.ids), writer.reason(n)
            scores.numbers["mean_log_prob"][n] = np.mean(one.log_probs)
            scores.numbers["max_probability"][n] = np.exp(one.log_probs[0])


def answers_behind(lm: LM, prompt: Prompt, answers: Iterable[str | None]) -> list[tuple[int, ...]]:
    """The ids that each answer has behind a prompt, () for none."""
    known: dict[str | None, tuple[int, ...]] = {None: ()}
    ids = []
    for answer in answers:
        if answer not in known:
            known[answer] = answer_ids(lm, prompt, answer)
        ids.append(known[answer])
    return ids
