"""Whether a text names its label: exactly, or by being nearer to it than to the other labels of a list.

Knows: the model's own states as embeddings of short texts, ranks of labels, which embedding is chosen on other items.
Does not know: where texts come from, what is patched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from lenscope.contents import Brief
from lenscope.errors import LenscopeError
from lenscope.models.language_model import LM
from lenscope.models.layers import check_layers
from lenscope.tasks.text_match import compared_words
from lenscope.text.packing import find_marks

# texts whose states are read together
TOGETHER = 64


def same_words(text: str, label: str) -> bool:
    """Whether a text is the label and nothing else, word by word; case, accents and punctuation do not count."""
    words = compared_words(text)
    return bool(words) and words == compared_words(label)


@final
@dataclass(frozen=True, eq=False, repr=False)
class LabelSearch(Brief):
    """A list of labels to find the nearest of, by a model's own states of texts. `label_search` makes it.

    A text's embedding is the mean of its tokens' states at a layer, less the mean of the labels' embeddings, at length
    1. The frozen model that writes the texts can embed them too, so that nothing else has to be had; how well it does
    is part of the score, which is low for a label in other words that the model does not take for alike.

    Attributes:
        lm: the model.
        labels: the labels, all different, (M,).
        layers: the layers that embeddings are made of, (L,).
        center: the labels' mean embedding of each layer, (L, D).
        vectors: the labels' embeddings, (M, L, D).
    """

    lm: LM
    labels: tuple[str, ...]
    layers: tuple[int, ...]
    center: np.ndarray
    vectors: np.ndarray

    def ranks(self, texts: Sequence[str], own: Sequence[str]) -> np.ndarray:
        """How many labels are as near to each of N texts as its own label, or nearer, by layer: (N, L); 0 is the first.

        A text without a word is as far from all labels. Raises LenscopeError for an own label that is not in the list.
        """
        if len(texts) != len(own):
            raise LenscopeError(f"{len(texts)} texts, {len(own)} labels: give one label for each text")
        number = {label: n for n, label in enumerate(self.labels)}
        missing = next((label for label in own if label not in number), None)
        if missing is not None:
            raise LenscopeError(f"label {missing!r}: is none of the {len(self.labels)} that are searched")
        distinct = list(dict.fromkeys(texts))
        place = {text: n for n, text in enumerate(distinct)}
        embedded = _unit(text_states(self.lm, distinct, self.layers) - self.center, [bool(t.strip()) for t in distinct])
        mine = np.array([number[label] for label in own])
        ranks = np.zeros((len(texts), len(self.layers)), dtype=np.int64)
        for at in range(len(self.layers)):
            near = embedded[:, at] @ self.vectors[:, at].T
            each = near[[place[text] for text in texts]]
            # the label itself is not counted; one as near is, so that a text that is near to none names none
            ranks[:, at] = (each >= each[np.arange(len(each)), mine][:, None]).sum(1) - 1
        return ranks

    def chosen_layer(self, texts: Sequence[str], own: Sequence[str]) -> int:
        """The number (0 to L - 1) of the layer by which these texts find their labels best: mean of 1 / (rank + 1).

        Choose with texts of other items than those whose recall is reported.
        """
        return int((1 / (self.ranks(texts, own) + 1)).mean(0).argmax())


def label_search(lm: LM, labels: Sequence[str], layers: Sequence[int] | None = None) -> LabelSearch:
    """Embed labels, so that the nearest one of a text can be found: by default at a middle layer and the last one.

    Raises LenscopeError for fewer than 2 labels, for the same label twice, and for one without a word.
    """
    listed = tuple(labels)
    if len(listed) < 2 or len(set(listed)) < len(listed):
        raise LenscopeError(f"labels: {len(listed)}, {len(set(listed))} of them different; give 2 or more, each once")
    empty = next((label for label in listed if not label.strip()), None)
    if empty is not None:
        raise LenscopeError(f"label {empty!r}: has no word")
    numbers = tuple(check_layers([lm.n_layers // 2, lm.n_layers] if layers is None else layers, lm.n_layers, lm.name))
    states = text_states(lm, listed, numbers)
    center = states.mean(0)
    return LabelSearch(lm, listed, numbers, center, _unit(states - center, [True] * len(listed)))


def text_states(lm: LM, texts: Sequence[str], layers: Sequence[int]) -> np.ndarray:
    """The mean of the states of each text's tokens at layers, (N, L, D) in float64; zeros for a text without a word.

    A text is read behind what begins a document, whose states say nothing of what follows and do not count, and stands
    behind a space, as words within a text do.
    """
    means = np.zeros((len(texts), len(layers), lm.hidden_size))
    mark = find_marks(lm).document
    written = [(n, [*mark, *lm.encoder.ids_behind(" " + text.strip())]) for n, text in enumerate(texts) if text.strip()]
    written.sort(key=lambda pair: len(pair[1]))
    for at in range(0, len(written), TOGETHER):
        part = written[at : at + TOGETHER]
        states = lm.read([ids for _, ids in part], list(layers))
        for row, (n, ids) in enumerate(part):
            means[n] = states.tensor[row, :, len(mark) : len(ids)].double().mean(1).cpu().numpy()
    return means


def _unit(vectors: np.ndarray, known: Sequence[bool]) -> np.ndarray:
    """Vectors (N, L, D) at length 1; zeros for those that are not known."""
    size = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.where(size > 0, size, 1) * np.asarray(known)[:, None, None])
