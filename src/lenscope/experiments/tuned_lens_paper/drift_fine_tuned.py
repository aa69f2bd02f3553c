"""A lens on a fine-tuned copy of the model it was fitted for (Belrose et al. 2023, Fig. 13).

Knows: which text the copy learns, what is measured on it, what is kept while that runs.
Does not know: the rest of the experiment (drift.py), how a fine-tune steps (fitting/fine_tuning.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from pydoc_data.topics import topics
from shutil import rmtree
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from lenscope.display.figures import Figure
from lenscope.display.panels import Panel
from lenscope.experiments.estimates_shown import curve
from lenscope.experiments.setting import FITTED, HELD_OUT, SAMPLED, Setting
from lenscope.experiments.text_groups import by_document, predicted, rows_of, thinned
from lenscope.fitting.fine_tuning import fine_tune, weights_of, with_weights
from lenscope.fitting.tuned_lens import fit
from lenscope.lenses.evaluate import evaluate
from lenscope.mappings.mapping import Affine
from lenscope.models.language_model import LM
from lenscope.statistics.intervals import Estimate, draws, estimate_of_draws, interval
from lenscope.text.corpus import Corpus, TokenBatch

# steps of the fine-tune, a row each
STEPS = {"quick": 4, "full": 32}
# their rate
RATE = 1e-4
# tokens of text that measures
TEXT = {"quick": 1024, "full": 8192}
# one in so many of its positions counts
EVERY = {"quick": 4, "full": 8}
# layers measured
LAYERS = {"quick": 4, "full": 10}
GROUPS, RESAMPLES = 10, 1000
LEARNED = "Python documentation"
# under which the weights of an interrupted fine-tune are cached
FINE_TUNED = "fine-tuned model"
LOGIT, OLD, NEW = "logit lens", "transferred", "fitted anew"
# models: before and after
BEFORE, AFTER = "before", "after"


class GroupSums(NamedTuple):
    """Nats summed over the predictions of a group of documents: (lenses, layers) each, and the model's own loss ()."""

    cross_entropy: np.ndarray
    kl: np.ndarray
    own: np.ndarray


@dataclass(frozen=True, eq=False)
class Measured:
    """One model's lenses on one text, by groups of documents: nats summed (G, lenses, layers), its own loss (G,)."""

    lenses: tuple[str, ...]
    cross_entropy: np.ndarray
    kl: np.ndarray
    own: np.ndarray
    sizes: np.ndarray

    def bits(self, sums: np.ndarray, taken: np.ndarray) -> np.ndarray:
        """Sums (G, …) as bits per byte (or token, whichever `sizes` are) of each draw of groups (draws, …)."""
        shape = (-1, *(1,) * (sums.ndim - 1))
        return np.tensordot(taken, sums, 1) / ((taken @ self.sizes).reshape(shape) * log(2))


@dataclass(frozen=True, eq=False)
class Transplant:
    """What a fine-tune changed: per (text, model) what was measured, at `layers`; `unit` is that of all numbers."""

    layers: tuple[int, ...]
    unit: str
    texts: tuple[str, str]
    measured: dict[tuple[str, str], Measured]
    seed: int

    def losses(self) -> list[dict[str, Any]]:
        """The model's own loss on both texts, before and after."""
        rows: list[dict[str, Any]] = []
        for text in self.texts:
            taken = self._draws(text)
            old, new = (self.measured[text, model] for model in (BEFORE, AFTER))
            a, b = old.bits(old.own, taken), new.bits(new.own, taken)
            row = {
                name: estimate_of_draws(v, taken.shape[1])
                for name, v in ((BEFORE, a), (AFTER, b), ("difference", b - a))
            }
            rows.append({"text": text, **row})
        return rows

    def lenses(self, measure: str) -> list[dict[str, Any]]:
        """`measure` of every lens and layer on the fine-tuned model, what transfer costs, and the lens before."""
        rows: list[dict[str, Any]] = []
        for text in self.texts:
            taken = self._draws(text)
            count = taken.shape[1]
            before, after = (self.measured[text, model] for model in (BEFORE, AFTER))
            new = after.bits(getattr(after, measure), taken)
            old = before.bits(getattr(before, measure), taken)
            for n, layer in enumerate(self.layers):
                row: dict[str, Any] = {"text": text, "layer": layer}
                row |= {name: estimate_of_draws(new[:, i, n], count) for i, name in enumerate(after.lenses)}
                at, anew = after.lenses.index(OLD), after.lenses.index(NEW)
                row["transferred - fitted anew"] = estimate_of_draws(new[:, at, n] - new[:, anew, n], count)
                row["on the model before"] = estimate_of_draws(old[:, before.lenses.index(OLD), n], count)
                rows.append(row)
        return rows

    def figure(self) -> Figure:
        """KL of the lenses on the fine-tuned model, a panel per text."""
        panels = []
        rows = self.lenses("kl")
        for text in self.texts:
            mine = [row for row in rows if row["text"] == text]
            curves = [
                curve(name, self.layers, [row[name] for row in mine], name == "on the model before")
                for name in (LOGIT, OLD, NEW, "on the model before")
            ]
            panels.append(Panel(f"KL after the fine-tune: {text}", "layer", self.unit, curves, log=True))
        return Figure("fine-tuned", panels)

    def reading(self) -> str:
        """What the numbers say, in a sentence or two."""
        losses = {row["text"]: row for row in self.losses()}
        rows = self.lenses("kl")
        sentences = [
            f"The fine-tune moves the model's own loss on {text} from {row[BEFORE].value:.3f} to "
            f"{row[AFTER].value:.3f} {self.unit}." for text, row in losses.items()
        ]  # fmt: skip
        for text in self.texts:
            mine = [row for row in rows if row["text"] == text]
            worst = max(mine, key=lambda row: row["transferred - fitted anew"].value)
            cost: Estimate = worst["transferred - fitted anew"]
            under = sum(row[OLD].value < row[LOGIT].value for row in mine)
            sentences.append(
                f"On {text} the transferred lens has at most {interval(cost, 3)} {self.unit} of KL more than one that "
                f"was fitted to the fine-tuned model (layer {worst['layer']}), and is better than the logit lens at "
                f"{under} of {len(mine)} layers."
            )
        first = [row["transferred - fitted anew"].value for row in rows if row["text"] == self.texts[0]]
        limit = "at most .3 bits per byte on the base text"
        if self.unit != "bits per byte":
            limit += ", a stricter limit in bits per token"
        verdict = "replicates" if max(first) <= 0.3 else "does not replicate"
        return "\n".join([f"That a lens can be used on a fine-tuned model {verdict} ({limit}).", *sentences])

    def _draws(self, text: str) -> np.ndarray:
        return draws(len(self.measured[text, AFTER].sizes), RESAMPLES, self.seed)


def transplant(setting: Setting) -> Transplant:
    """Fine-tune a copy of the model, fit a lens on it, and measure the old and the new lens on both texts."""
    lm = setting.lm
    tuned = setting.translators
    step = max(1, -(-lm.n_layers // setting.choose(**LAYERS)))
    layers = tuple(range(0, lm.n_layers, step))
    learned = Corpus.open(lm, [str(t) for t in topics.values()], length=setting.corpus.length, seed=setting.seed)
    train, test = learned.split(0.3)
    base = f"samples of {lm.name}" if not setting.text else "base text"
    texts = {base: setting.held_out, LEARNED: test}
    parts = {
        name: by_document(thinned(rows_of(corpus, setting.choose(**TEXT)), setting.choose(**EVERY)), GROUPS)
        for name, corpus in texts.items()
    }
    tokens = setting.choose(**(FITTED if setting.text else SAMPLED))
    steps = setting.choose(**STEPS)
    folder = setting.place("fine-tuned lens", steps=steps, rate=RATE, tokens=tokens, learned=train.provenance())

    def compute() -> dict[tuple[str, str], list[GroupSums]]:
        after = _fine_tuned(setting, train)
        with setting.progress("tokens of text for the fine-tuned model's lens") as advance:
            anew: Affine = fit(
                after, setting.corpus, tokens=tokens, held_out=HELD_OUT, seed=setting.seed, folder=folder,
                progress=advance,
            )  # fmt: skip
        sums: dict[tuple[str, str], list[GroupSums]] = {}
        models: dict[str, tuple[LM, Mapping[str, Any]]] = {
            BEFORE: (lm, {LOGIT: None, OLD: tuned}),
            AFTER: (after, {LOGIT: None, OLD: tuned.transferred(after), NEW: anew}),
        }
        jobs = [(name, model, group) for name, groups in parts.items() for model in models for group in groups]
        with setting.progress("groups of documents that measure the lenses") as advance:
            for done, (name, model, group) in enumerate(jobs, 1):
                sums.setdefault((name, model), []).append(_group_sums(*models[model], group, layers))
                advance(done, len(jobs))
        return sums

    sums = setting.cached(
        "fine-tuning", compute, steps=steps, rate=RATE, tokens=tokens, layers=layers, text=setting.choose(**TEXT),
        every=setting.choose(**EVERY), learned=learned.provenance(),
    )  # fmt: skip
    # the weights are large, and needed no more
    for place in (setting.cache_place(FINE_TUNED), folder):
        if place is not None and folder is not None:
            rmtree(place, ignore_errors=True)
    sizes = {name: [predicted(group) for group in groups] for name, groups in parts.items()}
    known = all(size is not None for groups in sizes.values() for _, size in groups)
    measured = {}
    for name, groups in sizes.items():
        size = np.array([float((b if known else t) or 0) for t, b in groups])
        for model, lenses in ((BEFORE, (LOGIT, OLD)), (AFTER, (LOGIT, OLD, NEW))):
            cross_entropy, kl, own = (np.stack(arrays) for arrays in zip(*sums[name, model], strict=True))
            measured[name, model] = Measured(lenses, cross_entropy, kl, own, size)
    return Transplant(layers, "bits per byte" if known else "bits per token", (base, LEARNED), measured, setting.seed)


def _fine_tuned(setting: Setting, train: Corpus) -> LM:
    """The copy, or the one that an interrupted run kept."""
    steps = setting.choose(**STEPS)
    tuned: list[LM] = []

    def compute() -> dict[str, Tensor]:
        with setting.progress("steps of the fine-tune") as advance:
            tuned.append(fine_tune(setting.lm, train.batches(steps * train.length, 1), lr=RATE, progress=advance))
        return weights_of(tuned[0])

    weights = setting.cached(FINE_TUNED, compute, steps=steps, rate=RATE, text=train.provenance())
    return tuned[0] if tuned else with_weights(setting.lm, weights)


def _group_sums(lm: LM, lenses: Mapping[str, Any], rows: Sequence[TokenBatch], layers: Sequence[int]) -> GroupSums:
    e = evaluate(lm, rows, lenses, layers)
    own = np.array(e.own["cross_entropy"][0] * e.tokens, dtype=np.float64)
    return GroupSums(e.measure("cross_entropy") * e.tokens, e.measure("kl") * e.tokens, own)
