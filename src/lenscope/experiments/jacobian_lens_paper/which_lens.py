"""Which lens shows what a model thinks and has not said: lenses side by side on the published prompt sets.

Knows: which lenses, sizes, what is measured beside the words, the reading and the figure.
Does not know: how words are scored (thought_scores.py), tables of them (thought_tables.py), swaps (bridge_swaps.py).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lenscope.display.figures import Figure
from lenscope.display.panels import Panel, Series
from lenscope.errors import LenscopeError
from lenscope.experiments.definition import Experiment
from lenscope.experiments.estimates_shown import curve
from lenscope.experiments.jacobian_lens_paper.bridge_swaps import (
    SWAPS,
    ablation_rows,
    bridge_band,
    bridge_tokens,
    left_out_in_words,
    run_bridge_swaps,
    swap_reading,
    swap_rows,
)
from lenscope.experiments.jacobian_lens_paper.builtin_thoughts import builtin_bridge_swaps, builtin_thoughts
from lenscope.experiments.jacobian_lens_paper.control_words import ControlWords, mean_prediction
from lenscope.experiments.jacobian_lens_paper.prompt_sets import (
    ARITHMETIC,
    BridgeSwap,
    ThoughtPrompt,
    load_prompt_sets,
    single_token_forms,
    spellings,
)
from lenscope.experiments.jacobian_lens_paper.thought_scores import (
    KS,
    ScoredWords,
    ThoughtScores,
    score_words,
    states_read,
)
from lenscope.experiments.jacobian_lens_paper.thought_tables import (
    ALL,
    at_one_layer,
    graded_at_one_layer,
    known_mean,
    pooled_thoughts,
    thought_layer_rows,
    thought_tables,
)
from lenscope.experiments.report import Report
from lenscope.experiments.setting import HELD_OUT, Setting
from lenscope.experiments.text_groups import rows_of, thinned
from lenscope.fitting.jacobian_lens import SKIP, fit_jacobian_lens
from lenscope.lenses.evaluate import evaluate
from lenscope.lenses.evaluation_results import Evaluation
from lenscope.lenses.lens import Lens
from lenscope.mappings.mapping import PairMapping
from lenscope.models.layers import numbers_in_runs
from lenscope.statistics.estimates import difference
from lenscope.statistics.intervals import Estimate, interval
from lenscope.text.corpus import Corpus

CLAIM = (
    "Gurnee et al. 2026: the Jacobian lens shows words that a model thinks of and has not said. The published score is "
    "pass@k: the share of such words among the k most probable tokens at any layer. On DeepSeek-V4-Flash pass@1 of the "
    "Jacobian, logit and tuned lens is .069, .010, .000 (association), .125, .052, .010 (typo), .294, .358, .233 "
    "(multihop), .105, .213, .157 (multilingual), .145, .291, .191 (order-ops), .031, .031, .000 (poetry); of the "
    "bridges of Gemma-3-12B they read .60, .46, .24. No published table has intervals or controls."
)
LOGIT, TUNED, JACOBIAN = "logit lens", "tuned lens", "Jacobian lens"
# tokens of text, in prompts of so many, that a Jacobian lens is fitted on in a full run where no lens is given: 5 to 18
# minutes of two cores for a model of 135M parameters, which a quick run has not
JACOBIAN_TOKENS, JACOBIAN_LENGTH = 640, 64
# tokens of its own samples that the tuned lens of a quick run is fitted on: half of what other experiments take, since
# swaps and ablations need the rest of the five minutes
SAMPLED_QUICKLY = 2_048
# prompts of a set, and how few of them make a set that is scored
PROMPTS, LEAST = {"quick": 12, "full": 100_000}, 4
# random words for each word
DRAWS = {"quick": 20, "full": 50}
# tokens of text that say how frequent words are
FREQUENCY = {"quick": 512, "full": 8192}
# tokens of held-out text, of which one in so many positions is measured
TEXT, EVERY = {"quick": 512, "full": 2048}, 4
# the k of which the reading speaks
READ_AT = KS.index(10)


def _run_which_lens(setting: Setting) -> Report:
    """Score every lens on the same prompts, states and words; then measure it on held-out text."""
    if setting.quick:
        setting = replace(setting, sampled_quickly=SAMPLED_QUICKLY)
    lm, seed = setting.lm, setting.seed
    prompts, swaps = load_prompt_sets(setting.data) if setting.data else (builtin_thoughts(), builtin_bridge_swaps())
    lenses = _lenses_compared(setting)
    layers = _layers_of_all(lenses)
    items, words = _prompts_with_words(setting, prompts)
    scores = {name: _scored(setting, name, several, lenses, layers) for name, several in items.items()}
    scores[ALL] = pooled_thoughts(list(scores.values()))
    measured = _measured_on_text(setting, lenses, layers)
    kl = [[Estimate(*measured.values["kl"][f, n].tolist()) for n in range(len(layers))] for f in range(len(lenses))]
    names = list(lenses)
    swapped, said_of_swaps = _swaps(setting, lenses, layers, swaps)
    by_layer = thought_layer_rows(scores[ALL], names, layers, kl, seed)
    return Report(
        experiment="which-lens",
        model=lm.name,
        claim=CLAIM,
        reading="\n".join(
            [*_which_lens_reading(scores[ALL], names, layers, kl, seed), *said_of_swaps, *_missing(setting)]
        ),
        tables={"words": words, **thought_tables(scores, names, layers, seed), "by layer": by_layer, **swapped},
        figures=(_sets_figure(scores, names, seed), _layers_figure(by_layer, names)),
        settings=setting.settings(
            lenses=names,
            layers=numbers_in_runs(layers),
            prompts={name: len(several) for name, several in items.items()},
            swaps=len(swaps),
            random_words=setting.choose(**DRAWS),
            measured_on=f"{measured.tokens:,} predictions in {measured.units} documents or rows",
        ),
        provenance=setting.provenance(),
    )


def _lenses_compared(setting: Setting) -> dict[str, Lens]:
    """The logit lens and those that were given; where none was, lenses that are fitted on the text."""
    lm = setting.lm
    given: dict[str, PairMapping] = dict(setting.lenses)
    if not given:
        given[TUNED] = setting.translators
        if not setting.quick:
            given[JACOBIAN] = _fitted_jacobian_lens(setting)
    return {LOGIT: Lens(lm, name=LOGIT), **{name: Lens(lm, f, name=name) for name, f in given.items()}}


def _fitted_jacobian_lens(setting: Setting) -> PairMapping:
    """A Jacobian lens of the text, all but what is held out, of few prompts."""
    text = [Path(t) for t in setting.text] or None
    length = min(JACOBIAN_LENGTH, setting.lm.context or JACOBIAN_LENGTH)
    corpus = Corpus.open(setting.lm, text, length=length, skip=min(SKIP, length // 4), seed=setting.seed)
    with setting.progress("tokens of text for the Jacobian lens") as advance:
        return fit_jacobian_lens(
            setting.lm, corpus, tokens=JACOBIAN_TOKENS, held_out=HELD_OUT, seed=setting.seed, progress=advance,
            folder=setting.place("jacobian", tokens=JACOBIAN_TOKENS, length=length),
        )  # fmt: skip


def _layers_of_all(lenses: dict[str, Lens]) -> tuple[int, ...]:
    """The layers that all lenses read, without the first (no block has read anything) and the last (all are alike)."""
    first = next(iter(lenses.values()))
    shared = [n for n in range(1, first.lm.n_layers) if all(n in lens.layers for lens in lenses.values())]
    if not shared:
        raise LenscopeError(
            f"lenses {', '.join(lenses)}: have no layer in common between 1 and {first.lm.n_layers - 1}; give lenses "
            "of the same layers"
        )
    return tuple(shared)


def _prompts_with_words(
    setting: Setting, prompts: Sequence[ThoughtPrompt]
) -> tuple[dict[str, list[ScoredWords]], list[dict[str, Any]]]:
    """The prompts of each set that have a word of one token, with controls; and a row for each set on what is used."""
    lm, draws = setting.lm, setting.choose(**DRAWS)
    tokens = setting.choose(**FREQUENCY)

    def compute() -> np.ndarray:
        with setting.progress("rows of text for frequencies"):
            return mean_prediction(lm, rows_of(setting.corpus.split(HELD_OUT)[0], tokens))

    pool = ControlWords.of(lm, setting.cached("frequency", compute, tokens=tokens))
    items: dict[str, list[ScoredWords]] = {}
    rows = []
    for number, name in enumerate(dict.fromkeys(p.set for p in prompts)):
        given = [p for p in prompts if p.set == name]
        random = np.random.default_rng([setting.seed, number])
        chosen = [given[n] for n in sorted(random.permutation(len(given))[: setting.choose(**PROMPTS)].tolist())]
        with_words = [_with_controls(setting, pool, p, draws, random) for p in chosen]
        scored = [item for item in with_words if item is not None]
        ratios = [
            pool.ratio(ids, control)
            for item in scored
            for ids, controls in zip(item.ids, item.controls, strict=True)
            for control in controls
        ]
        rows.append({
            "set": name, "prompts": len(given), "tried": len(chosen), "scored": len(scored),
            "words": sum(len(p.words) for p in chosen), "words of one token": sum(len(item.ids) for item in scored),
            "random words' frequency over words'": 10 ** float(np.mean(ratios)) if ratios else float("nan"),
            "middle 90 %": _middle_share(ratios),
        })  # fmt: skip
        if len(scored) >= LEAST:
            items[name] = scored
    if not items:
        raise LenscopeError(
            f"prompts: of no set {LEAST} have a word that is one token of {lm.name}; give others with --data"
        )
    return items, rows


def _middle_share(ratios: Sequence[float]) -> str:
    if not ratios:
        return "–"
    low, high = 10 ** np.percentile(ratios, (5, 95))
    return f"{low:.2g}–{high:.2g}"


def _with_controls(
    setting: Setting, pool: ControlWords, prompt: ThoughtPrompt, draws: int, random: np.random.Generator
) -> ScoredWords | None:
    """A prompt with those of its words that are one token in some form; None where there is none."""
    lm = setting.lm
    named = [spellings(word, prompt.set == ARITHMETIC) for word in prompt.words]
    forms = dict(zip(dict.fromkeys(n for names in named for n in names),
                     single_token_forms(lm, list(dict.fromkeys(n for names in named for n in names))),
                     strict=True))  # fmt: skip
    own = {i for ids in forms.values() for i in ids}
    words, ids, controls = [], [], []
    for word, names in zip(prompt.words, named, strict=True):
        known = [(name, forms[name]) for name in names if forms[name]]
        if not known:
            continue
        drawn = [pool.draw(name, tokens, own, draws, random) for name, tokens in known]
        words.append(word)
        ids.append(tuple(sorted({i for _, tokens in known for i in tokens})))
        controls.append(tuple(tuple(sorted({*sum(several, ())})) for several in zip(*drawn, strict=True)))
    return ScoredWords(prompt, tuple(words), tuple(ids), tuple(controls)) if words else None


def _scored(
    setting: Setting, name: str, items: Sequence[ScoredWords], lenses: dict[str, Lens], layers: tuple[int, ...]
) -> ThoughtScores:
    def compute() -> ThoughtScores:
        states = states_read(setting.lm, [item.prompt for item in items], layers)
        with setting.progress(f"prompts, {name}") as advance:
            return score_words(lenses, items, states, layers, advance)

    what = [[item.prompt.id, item.prompt.prompt, list(item.words), [list(ids) for ids in item.ids]] for item in items]
    return setting.cached(f"scores-{name}", compute, layers=list(layers), lenses=list(lenses), items=what)


def _measured_on_text(setting: Setting, lenses: dict[str, Lens], layers: tuple[int, ...]) -> Evaluation:
    text = thinned(rows_of(setting.held_out, setting.choose(**TEXT)), EVERY)
    folder = setting.place("text", layers=list(layers), lenses=list(lenses), every=EVERY)
    with setting.progress("rows that measure the lenses") as advance:
        return evaluate(
            setting.lm, text, {name: lens.f for name, lens in lenses.items()}, layers, seed=setting.seed,
            folder=folder, progress=advance,
        )  # fmt: skip


def _ahead(names: Sequence[str], values: np.ndarray, seed: int) -> str:
    """What a score (F, N) says of lenses: which is first, and before which others surely."""
    means = [known_mean(v, seed) for v in values]
    order = sorted(range(len(names)), key=lambda f: -means[f].value)
    best = order[0]
    apart = {f: difference(values[best], values[f], seed=seed) for f in order[1:]}
    behind = [names[f] for f, gap in apart.items() if gap.low > 0]
    level = [names[f] for f, gap in apart.items() if gap.low <= 0]
    numbers = ", ".join(f"{names[f]} {interval(means[f], 3)}" for f in order)
    if not behind:
        return f"no lens is surely ahead ({numbers})"
    rest = f", and not surely of {' and '.join(level)}" if level else ""
    return f"the {names[best]} is ahead of {' and '.join(behind)}{rest} ({numbers})"


def _which_lens_reading(
    whole: ThoughtScores, names: Sequence[str], layers: Sequence[int], kl: Sequence[Sequence[Estimate]], seed: int
) -> list[str]:
    k, count = KS[READ_AT], range(len(names))
    best, random, other = (a[:, :, READ_AT] for a in (whole.best(), whole.random_best, whole.other_best))
    alone = np.stack([at_one_layer(whole, f, READ_AT, seed) for f in count])
    graded = np.stack([graded_at_one_layer(whole, f, seed) for f in count])
    above = [known_mean(best[f] - random[f], seed) for f in count]
    real = [names[f] for f in count if above[f].low > 0]
    lines = [
        f"By the published score (pass@{k}, the best of {len(layers)} layers, {best.shape[1]} prompts) "
        f"{_ahead(names, best, seed)}.",
        f"Control, random words of like frequency: they reach {_means_listed(names, random, seed)}. "
        + (f"Above them by the whole interval: {', '.join(real)}" if real else "No lens is above them by its interval")
        + f". Less random words, {_ahead(names, best - random, seed)}.",
        f"Control, the same words on other prompts of their set: {_means_listed(names, other, seed)}.",
        f"At one layer, chosen on other prompts, pass@{k}: {_ahead(names, alone, seed)}.",
        "Graded (the share of random words that are less probable than the word, at one layer chosen on other prompts; "
        f"chance is .5): {_ahead(names, graded, seed)}.",
    ]
    lower = [f"{names[int(np.argmin([row[n].value for row in kl]))]}" for n in range(len(layers))]
    lines.append(
        "The next token on held-out text, KL(model ‖ lens): nearest to the model "
        + ", ".join(f"at {lower.count(name)} of {len(layers)} layers the {name}" for name in dict.fromkeys(lower))
        + "; mean over layers "
        + ", ".join(f"{name} {np.mean([e.value for e in kl[f]]):.2f}" for f, name in enumerate(names))
        + " nats."
    )
    return lines


def _swaps(
    setting: Setting, lenses: dict[str, Lens], layers: tuple[int, ...], swaps: Sequence[BridgeSwap]
) -> tuple[dict[str, Any], list[str]]:
    """Tables and sentences on swaps and ablations; where no two-hop prompt can be swapped, no tables, and why."""
    tried = list(swaps)[: setting.choose(**SWAPS)]
    items, left_out = bridge_tokens(setting.lm, tried)
    if not items:
        return {}, [f"No two-hop prompt can be swapped: {left_out_in_words(left_out)}."] if tried else []
    results = run_bridge_swaps(setting, lenses, layers, tried)
    rows = swap_rows(results, list(lenses), setting.seed)
    ablated = ablation_rows(results, list(lenses), setting.seed)
    said_of_swaps = swap_reading(results, rows, ablated, left_out, bridge_band(setting.lm, layers))
    return {"swaps": rows, "ablations": ablated}, said_of_swaps


def _missing(setting: Setting) -> list[str]:
    if setting.lenses or not setting.quick:
        return []
    return ["No Jacobian lens is among these: a quick run fits none. Give one with --lens, or leave out --quick."]


def _means_listed(names: Sequence[str], values: np.ndarray, seed: int) -> str:
    return ", ".join(f"{name} {interval(known_mean(v, seed), 3)}" for name, v in zip(names, values, strict=True))


def _sets_figure(scores: dict[str, ThoughtScores], names: Sequence[str], seed: int) -> Figure:
    """The published score, that less random words, and that at one layer, as bars of the sets."""
    panels = []
    k = KS[READ_AT]
    for title in (f"pass@{k}, any layer", "less random words", "one layer, less random words"):
        series = []
        for f, name in enumerate(names):
            values = [
                known_mean(
                    at_one_layer(one, f, READ_AT, seed, True)
                    if title.startswith("one")
                    else one.best()[f, :, READ_AT] - one.random_best[f, :, READ_AT] * (title[0] == "l"),
                    seed,
                )
                for one in scores.values()
            ]
            series.append(curve(name, list(scores), values))
        panels.append(Panel(title, "", "share of words", series, kind="bars", level=0))
    return Figure("which-lens", panels)


def _layers_figure(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> Figure:
    x = [row["layer"] for row in rows]
    graded = [curve(name, x, [row[f"{name}: above random words"] for row in rows], name == LOGIT) for name in names]
    nearest = [curve(name, x, [row[f"{name}: KL"] for row in rows], name == LOGIT) for name in names]
    rank = [Series(name, x, [row[f"{name}: typical rank"] for row in rows], dashed=name == LOGIT) for name in names]
    return Figure(
        "which-lens-layers",
        (
            Panel("Words not said", "layer", "above random words", graded, level=0.5),
            Panel("Words not said", "layer", "typical rank", rank, log=True),
            Panel("Next token", "layer", "KL(model ‖ lens), nats", nearest),
        ),
    )


EXPERIMENT = Experiment(
    data="JSONL with set, prompt, intermediates (words) and, of swaps, prompt, intermediate, answer, swap_to, "
    "swap_answer",
    run=_run_which_lens,
    lenses=True,
)
