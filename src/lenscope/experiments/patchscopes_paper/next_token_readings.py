"""One place in each document, what a model predicts there, and what a reading of its states is worth.

Knows: which documents and places are drawn, maps fitted on the other documents, how a token that was read is compared
with the model's own prediction, also where it is of another vocabulary.
Does not know: how states are read (lenses/lens.py, patchscopes/patchscope.py), what an experiment compares.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, final

import numpy as np
import torch
from torch import Tensor

from lenscope.engine import sweep
from lenscope.engine.patched_rows import PatchedRows
from lenscope.errors import LenscopeError
from lenscope.experiments.setting import HELD_OUT, Setting
from lenscope.experiments.text_groups import rows_of
from lenscope.fitting.model_to_model import aligned, fit_mapping
from lenscope.mappings import mapping as mappings
from lenscope.mappings.mapping import Affine
from lenscope.measures.streamed import top_token
from lenscope.models.edits import replace as instead
from lenscope.models.identity import model_hash
from lenscope.models.language_model import LM
from lenscope.models.prompts import Prompt
from lenscope.patchscopes.cell_scores import comparable
from lenscope.patchscopes.controls import random_like
from lenscope.statistics.derangements import derange
from lenscope.text.corpus import Corpus, TokenBatch

# tokens of a stretch of text; of what a model writes itself, which takes longer to get; before a place at the least
LENGTH, WRITTEN, LEAST_TOKENS = 128, 64, 8
FEWEST = 8
# tokens that maps are fitted on
TOKENS = {"quick": 8192, "full": 32_768}
# the same of a model's own samples
SAMPLED = {"quick": 4096, "full": 16_384}
# places whose logits over the whole vocabulary are held together
TOGETHER = 8
PRECISION, SURPRISAL = "precision@1", "surprisal in nats"


class ReadingScores(NamedTuple):
    """What readings are worth, both of the readings' shape (N, ...).

    `precision` is 1.0 where a reading is the model's own top token, else 0.0 (precision@1); `surprisal` is -ln of its
    probability under the model's own prediction, nats (Ghandeharioun et al. 2024, §4.1).
    """

    precision: np.ndarray
    surprisal: np.ndarray


# -- text


def held_out(setting: Setting, count: int) -> list[str]:
    """The texts of up to `count` held-out documents, of each one stretch of up to 128 tokens (own samples: 64).

    Raises LenscopeError where fewer than 8 documents of more than 8 tokens are held out.
    """
    corpus = _shortened_corpus(setting, setting.held_out)
    by_document: dict[int, str] = {}
    written = count * corpus.length if corpus.documents is None else None
    for batch in corpus.batches(written, 1):
        for number, text, tokens in _stretches(corpus.lm, batch):
            if tokens > LEAST_TOKENS:
                by_document.setdefault(number, text)
        if len(by_document) >= count:
            break
    if len(by_document) < FEWEST:
        raise LenscopeError(
            f"{corpus.name}: {len(by_document)} documents of more than {LEAST_TOKENS} tokens are held out; give text "
            f"of more documents, {FEWEST} held out at the least"
        )
    return list(by_document.values())[:count]


def training(setting: Setting, tokens: int) -> list[str]:
    """About `tokens` tokens of the text that is not held out, in stretches of up to 128 tokens (own samples: 64)."""
    corpus = _shortened_corpus(setting, setting.corpus.split(HELD_OUT)[0])
    return [text for batch in rows_of(corpus, tokens) for _, text, _ in _stretches(corpus.lm, batch)]


def _shortened_corpus(setting: Setting, corpus: Corpus) -> Corpus:
    return replace(corpus, length=min(LENGTH if setting.text else WRITTEN, corpus.length))


def _stretches(lm: LM, batch: TokenBatch) -> Iterator[tuple[int, str, int]]:
    """The number, text and tokens of each document's stretch of each row, without halves of characters at its ends."""
    for row, document, counted in zip(batch.ids, batch.document, batch.counted, strict=True):
        for number in dict.fromkeys(document.tolist()):
            ids = row[(document == number) & counted].tolist()
            text = lm.encoder.decode(ids).strip("� \n") if ids else ""
            if text:
                yield number, text, len(ids)


def draw_places(source_lm: LM, target_lm: LM, texts: Iterable[str], seed: int = 0) -> tuple[list[Prompt], list[Prompt]]:
    """A random place in each text, as the prompts of both models that end there.

    Both prompts' last tokens end at the same character (`fitting.model_to_model.aligned`), after 8 tokens or more.
    Texts without such a place are left out.
    """
    random = np.random.default_rng(seed)
    ends: tuple[list[Prompt], list[Prompt]] = [], []
    for text in texts:
        both = source_lm.prompt(text), target_lm.prompt(text)
        there = [pair for pair in aligned(*both) if min(pair) >= LEAST_TOKENS]
        if there:
            chosen = there[int(random.integers(len(there)))]
            for side, prompt, place in zip(ends, both, chosen, strict=True):
                side.append(_cut(prompt, place + 1))
    return ends


def _cut(prompt: Prompt, length: int) -> Prompt:
    """The prompt's first tokens."""
    end = prompt.spans[length - 1][1]
    return Prompt(prompt.text[:end], prompt.ids[:length], prompt.tokens[:length], prompt.spans[:length])


def fit_map(
    setting: Setting,
    name: str,
    models: tuple[LM, LM],
    layers: tuple[Sequence[int], Sequence[int]],
    tokens: int,
    texts: Callable[[int], list[str]],
) -> tuple[Affine, np.ndarray]:
    """Least squares with a ridge from layers of the first model to layers of the second, and their R² (S, T).

    Fitted to states before the final norm (the reference code fits to the last layer's after it, and applies it twice).

    Args:
        setting: what the run is given.
        name: the map's name in the cache.
        models: whose states are mapped, and whose they become.
        layers: S layers of the first model, T of the second.
        tokens: how much text is fitted on.
        texts: gives about so many tokens of text.
    """

    def compute() -> Affine:
        documents = texts(tokens)
        with setting.progress(f"batches of text for a map: {name}") as advance:
            return fit_mapping(
                *models, documents, layers=layers[0], target_layers=layers[1], length=2 * LENGTH, seed=setting.seed,
                progress=advance,
            )  # fmt: skip

    hashes = [model_hash(lm.model) for lm in models]
    f = setting.cached(f"map-{name}", compute, models=hashes, layers=[list(n) for n in layers], tokens=tokens)
    r2 = [np.nan if pair["r2"] is None else pair["r2"] for pair in f.report["pairs"]]
    return f, np.array(r2, dtype=np.float64).reshape(len(layers[0]), len(layers[1]))


# -- readings


def top_tokens(lm: LM, h: Tensor) -> np.ndarray:
    """The most probable token (...) of last-layer states (..., D); of equally probable ones the lowest id."""
    ids, _, _ = top_token(lm, h.reshape(-1, h.shape[-1]).to(lm.device, lm.dtype))
    return np.asarray(ids.cpu().numpy().reshape(h.shape[:-1]))


def patched(lm: LM, prompts: Sequence[Prompt], target: np.ndarray, layer: np.ndarray, vectors: Tensor) -> np.ndarray:
    """The top token (R,) after each of R prompts with a vector as its last token's state at a layer.

    Args:
        lm: the model.
        prompts: different prompts.
        target: (R,) the number of each run's prompt.
        layer: (R,) the layer that its vector is put in at.
        vectors: (R, D).
    """
    count, zeros = np.arange(len(target)), np.zeros(len(target), dtype=np.int64)
    last = np.array([len(p) - 1 for p in prompts])[target]
    patched_rows = PatchedRows(tuple(prompts), target, vectors, count, layer, last, count, zeros, (instead,))
    top = np.full(len(target), -1)
    for numbers, h in sweep.predict(lm, patched_rows):
        top[numbers] = top_tokens(lm, h[:, 0])
    return top


def score_readings(lm: LM, final: Tensor, ids: np.ndarray) -> ReadingScores:
    """What token ids (N, ...) are worth beside the prediction of the last layer's states `final` (N, D).

    An id of -1 is a reading that no token stands for: wrong, and as improbable as the least probable token.
    """
    own = top_tokens(lm, final)
    flat = ids.reshape(len(ids), -1)
    surprisal = np.zeros(flat.shape)
    for at in range(0, len(ids), TOGETHER):
        log_p = lm.unembed(final[at : at + TOGETHER]).log_softmax(-1)
        mine = torch.from_numpy(flat[at : at + TOGETHER]).to(log_p.device)
        log_probs = torch.where(mine >= 0, log_p.gather(1, mine.clamp_min(0)), log_p.amin(-1, keepdim=True))
        surprisal[at : at + TOGETHER] = -log_probs.cpu().numpy()
    return ReadingScores((flat == own[:, None]).astype(float).reshape(ids.shape), surprisal.reshape(ids.shape))


@final
class Vocabularies:
    """Tokens of one model in the tokens of another: by their text, leading space included."""

    def __init__(self, lm: LM, other: LM) -> None:
        self.lm, self.other = lm, other
        self.same = comparable(lm, other)
        self.ids: dict[str, int] = {}
        for i, text in enumerate([] if self.same else other.encoder.tokens(range(other.encoder.vocab_size))):
            if self.ids.setdefault(text, i) != i:
                # tokens for single bytes read as letters do: the tokenizer knows which of the two it writes
                written = other.encoder.ids_behind(text)
                self.ids[text] = written[0] if len(written) == 1 else self.ids[text]
        self.longest = max(map(len, self.ids), default=0)

    def first(self, ids: np.ndarray) -> np.ndarray:
        """Ids (...) of the one model as ids of the other: the longest token that the text begins with, -1 if none.

        A text of one token in both is that token; a longer one counts by what it begins with, since one token is all
        that the other model predicts.
        """
        return self._each(ids, lambda text: next((self.ids[p] for p in self._starts(text) if p in self.ids), -1))

    def whole(self, ids: np.ndarray) -> np.ndarray:
        """Which ids (...) of the one model are one token of the other too."""
        return self._each(ids, lambda text: self.ids.get(text, -1)) >= 0

    def _starts(self, text: str) -> Iterator[str]:
        return (text[:n] for n in range(min(len(text), self.longest), 0, -1))

    def _each(self, ids: np.ndarray, find: Callable[[str], int]) -> np.ndarray:
        if self.same:
            return ids
        known, number = np.unique(ids, return_inverse=True)
        in_other = np.array([find(text) for text in self.lm.encoder.tokens(known.tolist())], dtype=np.int64)
        return in_other[number].reshape(ids.shape)


# -- controls


def with_other_answers(answers: Sequence[Hashable], seed: int = 0) -> list[int]:
    """For each of N items another one with another answer; where half of them have one answer, any other."""
    try:
        return derange(answers, seed)
    except LenscopeError:
        return derange(range(len(answers)), seed)


def random_instead(f: Callable[..., Any], seed: int = 0) -> Callable[[Tensor, int, int], Tensor]:
    """A map to random vectors as long as those that f makes: a control in the space that is patched."""

    def drawn(h: Tensor, layer: int, target_layer: int) -> Tensor:
        mapped = mappings.call_mapping(f, h, layer, target_layer)
        return random_like(mapped, (seed << 20) + (layer << 10) + target_layer)

    return drawn
