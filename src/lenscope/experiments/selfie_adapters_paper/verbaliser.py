"""Trained verbalisers: what a small trained map makes a model say of vectors, beside no training and every control.

Knows: which maps are trained and chosen, on which labels, what is compared, tables and the reading.
Does not know: how maps are trained (fitting/verbaliser.py), how controls are run (patchscopes/), which labels there are
(labelled_kinds.py), what a row or a sentence has in it (verbaliser_tables.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenscope.display.figures import Figure
from lenscope.display.panels import Panel
from lenscope.errors import LenscopeError
from lenscope.experiments.definition import Experiment
from lenscope.experiments.estimates_shown import curve
from lenscope.experiments.report import Report
from lenscope.experiments.selfie_adapters_paper.labelled_kinds import DividedLabels, divide, load_kinds
from lenscope.experiments.selfie_adapters_paper.verbaliser_tables import (
    VerbalisedLabels,
    bias_share,
    kind_row,
    likelihood_rows,
    verbaliser_reading,
    weight_row,
    word_rows,
)
from lenscope.experiments.setting import Setting
from lenscope.fitting.verbaliser import fit_verbaliser
from lenscope.fitting.verbaliser_steps import VerbaliserRecipe
from lenscope.mappings.mapping import mapping_hash
from lenscope.patchscopes.control_runs import BIAS, MEAN, NONE, RANDOM, SHUFFLED, UNIT, UNTRAINED, VECTOR
from lenscope.patchscopes.label_likelihoods import likelihoods_with_controls
from lenscope.patchscopes.verbaliser import Verbaliser
from lenscope.patchscopes.with_controls import ControlledScores, ControlledTexts, generate_with_controls
from lenscope.statistics.estimates import difference, mean
from lenscope.tasks.label_recall import LabelSearch, label_search, same_words
from lenscope.text.topic_vectors import topic_vectors, usual_layer

CLAIM = (
    "SelfIE adapters (arXiv 2602.10352): a frozen model is given a vector as the embedding of a token in a question "
    "for its meaning, through a scale and a shift that are trained on labelled vectors. On an 8B model the topic is "
    "then found at rank 1 for 94 % of vectors, against 1 % without training; the shift alone is 85 % of the gain, and "
    "maps of full rank overfit. No intervals, and no scores of what another vector says."
)
# labels that maps are trained on, that choose, that are reported, and of every other kind
TRAIN = {"quick": 128, "full": 4000}
CHOOSE = {"quick": 16, "full": 200}
REPORT = {"quick": 32, "full": 500}
OF_A_KIND = {"quick": 10, "full": 100}
# other kinds, the first ones
KINDS = {"quick": 1, "full": 100}
# shapes of maps that are trained
SHAPES = {"quick": ("affine",), "full": ("affine", "low_rank", "full")}
# weights of contrast; 0 is plain decoding
WEIGHTS = {"quick": (0.0, 0.5), "full": (0.0, 0.25, 0.5, 1.0)}
# steps of training, examples of a step, labels that select the step which is kept, looks at them
STEPS, BATCH = {"quick": 40, "full": 400}, {"quick": 8, "full": 24}
SELECTING, CHECKS = {"quick": 16, "full": 64}, {"quick": 4, "full": 10}
# labels of which the training itself measures something, which the report does not use
MEASURED = 8
# new tokens of what is said
TOKENS = {"quick": 8, "full": 12}
# controls of kinds that nothing was trained on
FEW = (NONE, SHUFFLED, UNTRAINED, UNIT, BIAS)


@dataclass(frozen=True, eq=False)
class _Vectors:
    """Vectors (N, D) of labels, as a verbaliser takes them."""

    labels: tuple[str, ...]
    vectors: Tensor


def _run_verbaliser(setting: Setting) -> Report:
    """Train maps, choose one on some topics, and score what it says of others, with every control."""
    lm, seed = setting.lm, setting.seed
    parts = divide(
        load_kinds(setting.data),
        train=setting.choose(**TRAIN),
        chosen=setting.choose(**CHOOSE),
        reported=setting.choose(**REPORT),
        of_a_kind=setting.choose(**OF_A_KIND),
        seed=seed,
    )
    layer = _layer_read(setting)
    states = _states_of_labels(setting, parts, layer)
    center = _center_of_topics(setting, states, parts)

    def vectors(labels: Sequence[str]) -> _Vectors:
        return _Vectors(tuple(labels), torch.stack([states[label] - center for label in labels]))

    maps = _maps(setting, vectors(parts.train), layer, center)
    choose, report = vectors(parts.chosen), vectors(parts.reported)
    by_shape = {
        name: (_likelihoods(setting, name, one, choose, "chosen"), _likelihoods(setting, name, one, report, "reported"))
        for name, one in maps.items()
    }
    best = max(by_shape, key=lambda name: float(by_shape[name][0].scores[VECTOR].mean()))
    chosen, likelihoods = maps[best], by_shape[best][1]
    untrained = max((UNTRAINED, UNIT), key=lambda way: float(by_shape[best][0].scores[way].mean()))
    search = label_search(lm, parts.searched(()))
    at = search.chosen_layer(*_texts_and_labels(setting, best, chosen, choose, "chosen", 0.0))
    words = _verbalised(setting, best, chosen, report, "reported", 0.0, search, at)
    weights = _by_weight(setting, best, chosen, (choose, report), search, at)
    kinds = []
    for kind, labels in list(parts.kinds.items())[: setting.choose(**KINDS)]:
        mine = vectors(labels)
        scores = _likelihoods(setting, best, chosen, mine, kind, FEW)
        among = label_search(lm, parts.searched(labels), (search.layers[at],))
        kinds.append(
            kind_row(kind, scores, _verbalised(setting, best, chosen, mine, kind, 0.0, among, 0, FEW), untrained)
        )
    share = bias_share(likelihoods, untrained)
    tables: dict[str, Any] = {
        "likelihood": likelihood_rows(likelihoods),
        "words": word_rows(words),
        "shapes": [
            {
                "map": name,
                "numbers": sum(t.numel() for t in maps[name].map.tensors().values()),
                "chosen by": mean(on_others.scores[VECTOR][:, 0], seed=seed),
                "likelihood": mean(on_these.scores[VECTOR][:, 0], seed=seed),
                f"less {untrained}": difference(
                    on_these.scores[VECTOR][:, 0], on_these.scores[untrained][:, 0], seed=seed
                ),
                f"less {SHUFFLED}": difference(
                    on_these.scores[VECTOR][:, 0], on_these.scores[SHUFFLED][:, 0], seed=seed
                ),
            }
            for name, (on_others, on_these) in by_shape.items()
        ],
        "contrast": [weight_row(weight, choice, one, weights[0.0][1]) for weight, (choice, one) in weights.items()],
    }
    if kinds:
        tables["kinds never seen"] = kinds
    tables["examples"] = _words_of_labels(words, report)
    return Report(
        experiment="verbaliser",
        model=lm.name,
        claim=CLAIM,
        reading="\n".join(verbaliser_reading(likelihoods, words, untrained, share, tables)),
        tables=tables,
        figures=(_verbaliser_figure(tables),),
        settings=setting.settings(
            verbaliser="given" if setting.verbaliser is not None else f"trained on {len(parts.train)} topics",
            layer=layer,
            chosen=len(parts.chosen),
            reported=len(parts.reported),
            kinds={row["kind"]: row["labels"] for row in kinds},
            searched=f"{len(search.labels)} labels, by the mean state of layer {search.layers[at]}, chosen on other "
            "topics",
            new_tokens=setting.choose(**TOKENS),
            prompt=lm.prompt(chosen.target.prompt).text,
        ),
        provenance=setting.provenance() | {"verbaliser": chosen.report},
    )


# -- vectors


def _layer_read(setting: Setting) -> int:
    given = setting.verbaliser
    if given is None:
        return usual_layer(setting.lm)
    if len(given.layers) > 1:
        raise LenscopeError(
            f"--verbaliser: was trained on layers {', '.join(map(str, given.layers))}, and this experiment reads one; "
            "give one of a single layer"
        )
    return given.layers[0] if given.layers else usual_layer(setting.lm)


def _states_of_labels(setting: Setting, parts: DividedLabels, layer: int) -> dict[str, Tensor]:
    """The state of each label that is used: at the last token of a request to tell about it."""
    labels = [*parts.train, *parts.chosen, *parts.reported, *(one for kind in parts.kinds.values() for one in kind)]

    def compute() -> Tensor:
        with setting.progress("labels read") as advance:
            read = topic_vectors(setting.lm, labels, layer, progress=advance)
        # the mean is taken away later, that of the labels that are trained on
        return (read.vectors + read.mean)[:, 0].float().cpu()

    return dict(zip(labels, setting.cached("verbaliser-states", compute, labels=labels, layer=layer), strict=True))


def _center_of_topics(setting: Setting, states: dict[str, Tensor], parts: DividedLabels) -> Tensor:
    """What is taken from states: what the given verbaliser takes, else the mean of those that are trained on."""
    if setting.verbaliser is not None and setting.verbaliser.center is not None:
        return setting.verbaliser.center[0]
    return torch.stack([states[label] for label in parts.train]).mean(0)


def _maps(setting: Setting, train: _Vectors, layer: int, center: Tensor) -> dict[str, Verbaliser]:
    """The verbaliser that was given, or one trained for each shape."""
    if setting.verbaliser is not None:
        return {setting.verbaliser.map.shape: setting.verbaliser}
    maps = {}
    recipe = VerbaliserRecipe(batch=setting.choose(**BATCH), checks=setting.choose(**CHECKS))
    for shape in setting.choose(**SHAPES):
        with setting.progress(f"steps of training, {shape}") as advance:
            maps[shape] = fit_verbaliser(
                setting.lm, train.vectors[:, None], train.labels, shape=shape, layers=(layer,), center=center,
                steps=setting.choose(**STEPS), selecting=setting.choose(**SELECTING), measured=MEASURED,
                recipe=recipe, seed=setting.seed, progress=advance,
                folder=setting.place(f"verbaliser-{shape}", labels=list(train.labels)),
            )  # fmt: skip
    return maps


# -- scores


def _likelihoods(
    setting: Setting, name: str, one: Verbaliser, items: _Vectors, part: str, controls: Sequence[str] | None = None
) -> ControlledScores:
    def compute() -> ControlledScores:
        with setting.progress(f"labels scored, {name}, {part}") as advance:
            return likelihoods_with_controls(
                one.scope(setting.lm), items.vectors, items.labels, items.labels if controls is None else None,
                controls=controls, seed=setting.seed, progress=advance,
            )  # fmt: skip

    return setting.cached(f"verbaliser-likelihood-{name}-{part}", compute, **_identity(setting, one, items))


def _verbalised_texts(
    setting: Setting, name: str, one: Verbaliser, items: _Vectors, part: str, weight: float,
    controls: Sequence[str] | None = None,
) -> ControlledTexts:  # fmt: skip
    def compute() -> ControlledTexts:
        with setting.progress(f"vectors in words, {name}, {part}") as advance:
            return generate_with_controls(
                one.scope(setting.lm), items.vectors, items.labels if controls is None else None, controls=controls,
                max_new_tokens=setting.choose(**TOKENS), stop=one.stop, seed=setting.seed, contrast=weight,
                progress=advance,
            )  # fmt: skip

    key = f"verbaliser-words-{name}-{part}-{weight}-{len(controls) if controls is not None else 'all'}"
    return setting.cached(key, compute, weight=weight, **_identity(setting, one, items))


def _texts_and_labels(
    setting: Setting, name: str, one: Verbaliser, items: _Vectors, part: str, weight: float
) -> tuple[list[str], tuple[str, ...]]:
    """What is said of vectors, without controls, and their labels."""
    texts = _verbalised_texts(setting, name, one, items, part, weight, ())
    return [str(text) for text in texts.texts[VECTOR][:, 0]], items.labels


def _verbalised(
    setting: Setting, name: str, one: Verbaliser, items: _Vectors, part: str, weight: float, search: LabelSearch,
    at: int, controls: Sequence[str] | None = None,
) -> VerbalisedLabels:  # fmt: skip
    """What is said in every way, the rank of the own label among those searched, and whether it is the label itself."""
    texts = _verbalised_texts(setting, name, one, items, part, weight, controls)

    def ranked(column: Sequence[str]) -> np.ndarray:
        ranks: np.ndarray = search.ranks(column, items.labels)[:, at]
        return ranks

    ranks = texts.scored_together(ranked, seed=setting.seed)
    exact = texts.scored(lambda text, n: float(same_words(text, items.labels[n])), seed=setting.seed)
    return VerbalisedLabels(texts, ranks, exact, len(search.labels))


def _by_weight(
    setting: Setting, name: str, one: Verbaliser, parts: tuple[_Vectors, _Vectors], search: LabelSearch, at: int
) -> dict[float, tuple[VerbalisedLabels, VerbalisedLabels]]:
    """What is said at every weight of contrast, of the labels that choose and of those that are reported."""
    return {
        weight: (
            _verbalised(setting, name, one, parts[0], "chosen", weight, search, at, ()),
            _verbalised(setting, name, one, parts[1], "reported", weight, search, at, (SHUFFLED,)),
        )
        for weight in setting.choose(**WEIGHTS)
    }


def _identity(setting: Setting, one: Verbaliser, items: _Vectors) -> dict[str, Any]:
    """What scores of a verbaliser depend on, beside the model."""
    prompt = one.target.resolve(setting.lm)
    place = {"prompt": list(prompt[0].ids), "at": list(prompt[1]), "layer": one.target_layer}
    return {"labels": list(items.labels), "map": mapping_hash(one.map), **place}


# -- what is shown


def _words_of_labels(words: VerbalisedLabels, items: _Vectors) -> list[dict[str, Any]]:
    ways = [way for way in (VECTOR, SHUFFLED, MEAN, RANDOM, UNIT, BIAS) if way in words.texts.texts]
    return [
        {"label": label, **{way: str(words.texts.texts[way][n, 0]).strip() for way in ways}}
        for n, label in enumerate(items.labels[:12])
    ]


def _verbaliser_figure(tables: dict[str, Any]) -> Figure:
    panels = []
    for title, table, column, unit in (
        ("label", "likelihood", "ln p per token", "nats per token"),
        ("rank 10 or better", "words", "recall@10", "share of labels"),
    ):
        rows = tables[table]
        panels.append(
            Panel(title, "", unit, [curve(column, [r["way"] for r in rows], [r[column] for r in rows])], kind="bars")
        )
    return Figure("verbaliser", panels)


EXPERIMENT = Experiment(
    data="text with a label a line and, of kinds never trained on, JSONL of facts or of entities",
    lens=False,
    verbaliser=True,
    run=_run_verbaliser,
)
