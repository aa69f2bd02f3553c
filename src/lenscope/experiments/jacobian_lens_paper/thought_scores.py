"""How well lenses read words that are thought and not said: each prompt's words, random words, other prompts' words.

Knows: what is read of each prompt, ranks, hits and graded scores by layer; sums over words, draws and other prompts.
Does not know: which words count (prompt_sets.py), how controls are drawn (control_words.py), tables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.experiments.jacobian_lens_paper.prompt_sets import ThoughtPrompt, position_read
from lenscope.lenses.lens import Lens
from lenscope.models.language_model import LM
from lenscope.models.progress import Progress
from lenscope.text.packing import after_document_mark

# pass@k: a word counts as read where fewer than k tokens are more probable
KS = (1, 5, 10)


@dataclass(frozen=True, eq=False)
class ScoredWords:
    """A prompt's words as tokens, and each word's random words; `draws` are as many for each."""

    prompt: ThoughtPrompt
    words: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    controls: tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(frozen=True, eq=False)
class ThoughtScores:
    """What F lenses read of N prompts with up to W words at L layers.

    Shares are means over a prompt's words, and over draws or other prompts. `hits` are at one layer, `best` at any of
    them, for the K values of k in KS.

    Attributes:
        rank: how many tokens are more probable than the best form of each word (F, N, L, W); -1 where there is none.
        random_hits: the share of random words that are among the k most probable tokens (F, N, L, K).
        random_best: the share that are at any layer (F, N, K).
        graded: the share of random words that are less probable than the word, ties counting half (F, N, L).
        other_hits: the share of the prompt's words that are, on other prompts of the set (F, N, L, K); NaN where there
            is no other prompt without one of its words.
        other_best: the same at any layer (F, N, K).
        specific: the share of other prompts on which the word is less probable than on its own (F, N, L).
    """

    rank: np.ndarray
    random_hits: np.ndarray
    random_best: np.ndarray
    graded: np.ndarray
    other_hits: np.ndarray
    other_best: np.ndarray
    specific: np.ndarray

    def hits(self) -> np.ndarray:
        """The share of a prompt's words that are among the k most probable tokens at each layer (F, N, L, K)."""
        return _share_within(self.rank)

    def best(self) -> np.ndarray:
        """The published score, pass@k: the share whose best rank over layers is within k (F, N, K)."""
        lowest = np.where(self.rank < 0, np.iinfo(self.rank.dtype).max, self.rank).min(2, keepdims=True)
        return _share_within(np.where(self.rank[:, :, :1] < 0, -1, lowest))[:, :, 0]


def _share_within(rank: np.ndarray) -> np.ndarray:
    """Of ranks (..., W), -1 where there is none: the share below each k of KS (..., K)."""
    there = rank >= 0
    within = np.stack([(there & (rank < k)).sum(-1) for k in KS], -1)
    return np.asarray(within / there.sum(-1)[..., None])


def states_read(lm: LM, prompts: Sequence[ThoughtPrompt], layers: Sequence[int]) -> Tensor:
    """The states (N, L, D) that the prompts are read from, each behind what begins a document."""
    texts = after_document_mark(lm, [p.prompt for p in prompts])
    at = [position_read(text, p.at_line_end) for text, p in zip(texts, prompts, strict=True)]
    states = torch.empty(len(texts), len(layers), lm.hidden_size, dtype=lm.dtype)
    ends = [n for n, text in enumerate(texts) if at[n] == len(text) - 1]
    if ends:
        states[ends] = lm.read([texts[n] for n in ends], list(layers), -1).tensor[:, :, 0].cpu()
    for n in sorted({*range(len(texts))} - {*ends}):
        states[n] = lm.read(texts[n], list(layers), at[n]).tensor[0, :, 0].cpu()
    return states


def score_words(
    lenses: Mapping[str, Lens],
    items: Sequence[ScoredWords],
    states: Tensor,
    layers: Sequence[int],
    progress: Progress | None = None,
) -> ThoughtScores:
    """Score the words of the prompts of a set by every lens, from the states (N, L, D) of the layers."""
    vocabulary = {ids: n for n, ids in enumerate(dict.fromkeys(ids for item in items for ids in item.ids))}
    per_lens = []
    for number, lens in enumerate(lenses.values()):
        prompts = []
        for n, (item, h) in enumerate(zip(items, states, strict=True)):
            mapped = torch.stack([lens.map(x, layer) for x, layer in zip(h.to(lens.lm.device), layers, strict=True)])
            prompts.append(_read_prompt(lens.lm.unembed(mapped).cpu(), item, list(vocabulary), lens.name))
            if progress is not None:
                progress(number * len(items) + n + 1, len(lenses) * len(items))
        per_lens.append(_lens_scores(items, prompts, vocabulary))
    return ThoughtScores(*(np.stack(parts) for parts in zip(*per_lens, strict=True)))


@dataclass(frozen=True, eq=False)
class _PromptReading:
    """What one lens reads of one prompt: its words, their random words, and all words of the set, at every layer."""

    rank: np.ndarray
    random_hits: np.ndarray
    random_best: np.ndarray
    graded: np.ndarray
    set_hits: np.ndarray
    set_log: np.ndarray


def _read_prompt(z: Tensor, item: ScoredWords, every: Sequence[tuple[int, ...]], lens: str) -> _PromptReading:
    """Score logits z (L, V) of a prompt."""
    log_sum = z.logsumexp(-1)
    if not torch.isfinite(log_sum).all():
        raise LenscopeError(
            f"lens {lens}: gives logits that are not finite on {item.prompt.id!r}; mend it, or load in float32"
        )
    most = min(max(KS), z.shape[-1])
    top = z.topk(most, -1).values.numpy()
    bounds = np.stack([top[:, min(k, most) - 1] for k in KS], -1)
    own = _largest(z, item.ids)
    rank = np.stack([(z > torch.from_numpy(own[:, w : w + 1])).sum(-1).numpy() for w in range(own.shape[1])], -1)
    drawn = [_largest(z, controls) for controls in item.controls]
    random = np.stack(drawn, 1)
    hits = random[..., None] >= bounds[:, None, None]
    above = (own[..., None] > random) + 0.5 * (own[..., None] == random)
    words = _largest(z, every)
    return _PromptReading(
        rank=rank.astype(np.int32),
        random_hits=hits.mean((1, 2)),
        random_best=hits.any(0).mean((0, 1)),
        graded=above.mean((1, 2)),
        set_hits=words[..., None] >= bounds[:, None],
        set_log=words - log_sum.numpy()[:, None],
    )


def _largest(z: Tensor, several: Sequence[tuple[int, ...]]) -> np.ndarray:
    """The largest of the logits z (L, V) of each tuple of ids (L, n)."""
    starts = np.cumsum([0, *map(len, several)])[:-1]
    flat = torch.tensor([i for ids in several for i in ids])
    return np.asarray(np.maximum.reduceat(z[:, flat].numpy(), starts, axis=1))


def _lens_scores(
    items: Sequence[ScoredWords], prompts: Sequence[_PromptReading], vocabulary: Mapping[tuple[int, ...], int]
) -> tuple[np.ndarray, ...]:
    """The scores of one lens, in the order of the fields of ThoughtScores."""
    most = max(len(item.ids) for item in items)
    layers = len(prompts[0].rank)
    rank = np.full((len(items), layers, most), -1, dtype=np.int32)
    set_hits = np.stack([p.set_hits for p in prompts])
    set_log = np.stack([p.set_log for p in prompts])
    words = [{w.lower() for w in item.words} for item in items]
    other_hits = np.full((len(items), layers, len(KS)), np.nan)
    other_best = np.full((len(items), len(KS)), np.nan)
    specific = np.full((len(items), layers), np.nan)
    for n, item in enumerate(items):
        rank[n, :, : len(item.ids)] = prompts[n].rank
        others = [m for m in range(len(items)) if not words[m] & words[n]]
        if not others:
            continue
        mine = [vocabulary[ids] for ids in item.ids]
        on_others = set_hits[others][:, :, mine]
        other_hits[n] = on_others.mean((0, 2))
        other_best[n] = on_others.any(1).mean((0, 1))
        own, theirs = set_log[n][:, mine], set_log[others][:, :, mine]
        specific[n] = ((own > theirs) + 0.5 * (own == theirs)).mean((0, 2))
    random_hits, random_best, graded = (
        np.stack([getattr(p, name) for p in prompts]) for name in ("random_hits", "random_best", "graded")
    )
    return rank, random_hits, random_best, graded, other_hits, other_best, specific
