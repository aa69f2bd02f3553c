"""Next-token prediction: whether a Patchscope that repeats tokens reads it better than lenses do.

Knows: the methods and controls compared, which layers the paper's claim is about, statistics, the reading.
Does not know: how states are patched (patchscopes/patchscope.py), how readings are scored
(next_token_readings.py).
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from lenscope.display.figures import Figure
from lenscope.display.panels import Panel
from lenscope.experiments.definition import Experiment
from lenscope.experiments.estimates_shown import mean_curve
from lenscope.experiments.patchscopes_paper.next_token_readings import (
    PRECISION,
    SAMPLED,
    SURPRISAL,
    TOKENS,
    ReadingScores,
    draw_places,
    fit_map,
    held_out,
    score_readings,
    top_tokens,
    training,
    with_other_answers,
)
from lenscope.experiments.patchscopes_paper.trained_map import trained_next_token_tables
from lenscope.experiments.report import Report, ReportTable, prose
from lenscope.experiments.setting import Setting
from lenscope.lenses.lens import Lens
from lenscope.models.hidden_states import HiddenStates
from lenscope.patchscopes.controls import random_vectors
from lenscope.patchscopes.methods import drawn, token_identity
from lenscope.patchscopes.patchscope import Patchscope
from lenscope.statistics.estimates import difference, mean
from lenscope.statistics.intervals import Estimate, bootstrap
from lenscope.statistics.selection import select
from lenscope.statistics.significance import holm, sign_flips

CLAIM = (
    "Ghandeharioun et al. 2024, §4.1, Figs 2 and 5. The token identity Patchscope writes a state over the last token "
    "of a prompt that repeats words (cat -> cat …). From layer 10 of 40 on, what the model says then is its own next "
    "token more often than what the logit lens and least-squares maps read, with a gain of up to 98 % in layers 18–22; "
    "below layer 10 it is about as good as the logit lens. Random demonstrations do as well as the chosen ones, a "
    "placeholder alone does worse (curves; LLaMA2-13B, Vicuna-13B, GPT-J-6B, Pythia-12B)."
)
LOGIT, TUNED, SQUARES = "logit lens", "tuned lens", "least squares"
IDENTITY, DRAWN = "token identity", "identity, drawn words"
# the placeholder's own state is replaced, so that any other token in its place reads the same
ALONE = '"?" alone'
SHUFFLED, RANDOM, NOTHING = "identity, shuffled source", "identity, random vector", "identity, no patch"
METHODS = (LOGIT, TUNED, SQUARES, IDENTITY, DRAWN, ALONE, SHUFFLED, RANDOM, NOTHING)
LENSES = (LOGIT, TUNED, SQUARES)
# what token identity is compared with, paired
OTHERS = (*LENSES, ALONE)
# documents
DOCUMENTS = {"quick": 96, "full": 160}
# layers, at most
LAYERS = {"quick": 10, "full": 1000}
# drawn sets of demonstrations
SETS = {"quick": 2, "full": 4}
# demonstrations of a drawn set, at least and at most
DRAWN_WORDS = 1, 10
# the paper's layers as depths: from which on identity is better, and where most
FROM, MIDDLE = 10 / 40, (18 / 40, 22 / 40)


class _Read(NamedTuple):
    """What was read: layers (L,), scores (N, L) by method, those of every drawn set, and each set's words."""

    layers: tuple[int, ...]
    scores: Mapping[str, ReadingScores]
    sets: Sequence[ReadingScores]
    words: Sequence[tuple[str, ...]]

    def at(self, method: str, measure: str) -> np.ndarray:
        """Scores (N, L) of a method."""
        return self.scores[method][measure == SURPRISAL]

    def gain(self, method: str, measure: str) -> np.ndarray:
        """How much better token identity is, (N, L): above 0 is better."""
        apart = self.at(IDENTITY, measure) - self.at(method, measure)
        return -apart if measure == SURPRISAL else apart

    @property
    def before(self) -> list[int]:
        """The columns before the last layer, where lenses are exact."""
        return list(range(len(self.layers) - 1))

    @property
    def middle(self) -> list[int]:
        """The columns of the paper's middle layers; at least the one that is nearest to half depth."""
        depth = np.array(self.layers) / self.layers[-1]
        inside = [n for n in self.before if MIDDLE[0] <= depth[n] <= MIDDLE[1]]
        return inside or [int(np.abs(depth[:-1] - 0.5).argmin())]


def _run_next_token(setting: Setting) -> Report:
    """Reads one random place of each held-out document at every layer, in every way, and scores the top tokens."""
    lm, seed = setting.lm, setting.seed
    step = max(1, round(lm.n_layers / setting.choose(**LAYERS)))
    known = {*Lens(lm, setting.translators).layers, lm.n_layers}
    layers = tuple(n for n in sorted({*range(0, lm.n_layers, step), lm.n_layers}) if n in known)
    tokens = setting.choose(**(TOKENS if setting.text else SAMPLED))
    train = partial(training, setting)
    squares, r2 = fit_map(setting, "least-squares", (lm, lm), (layers[:-1], (lm.n_layers,)), tokens, train)
    prompts, _ = draw_places(lm, lm, held_out(setting, setting.choose(**DOCUMENTS)), seed)
    states = lm.read(prompts, layers, -1)
    final = states[lm.n_layers, -1]
    sets = [_demonstrations(setting, n) for n in range(setting.choose(**SETS))]

    def compute() -> dict[str, np.ndarray]:
        lenses = {LOGIT: None, TUNED: setting.translators, SQUARES: squares}
        top = {name: _through(Lens(lm, f), states, layers) for name, f in lenses.items()}
        identity = token_identity(lm)
        patches: dict[str, tuple[Patchscope, HiddenStates]] = {
            IDENTITY: (identity, states),
            RANDOM: (identity, random_vectors(states, seed)),
            ALONE: (Patchscope(lm, "?", layers="same"), states),
            **{f"set {n}": (token_identity(lm, words), states) for n, words in enumerate(sets)},
        }
        for name, (scope, sources) in patches.items():
            with setting.progress(f"patches: {name}") as advance:
                top[name] = scope.predict(sources, top_k=1, progress=advance).ids.reshape(len(prompts), len(layers))
        # what another document's state says is known
        top[SHUFFLED] = top[IDENTITY][with_other_answers(top_tokens(lm, final).tolist(), seed)]
        unpatched = top_tokens(lm, lm.read(identity.resolved[0][0], lm.n_layers, -1)[lm.n_layers, -1])
        top[NOTHING] = np.full_like(top[IDENTITY], unpatched)
        return top

    top_ids = setting.cached("readings", compute, prompts=[list(p.ids) for p in prompts], layers=layers, sets=sets)
    each = {name: score_readings(lm, final, ids) for name, ids in top_ids.items()}
    of_sets = [each.pop(f"set {n}") for n in range(len(sets))]
    each[DRAWN] = ReadingScores(*(np.mean([s[m] for s in of_sets], axis=0) for m in (0, 1)))
    read = _Read(layers, each, of_sets, sets)
    tested = {m: _tests_by_layer(read, m, seed) for m in (PRECISION, SURPRISAL)}
    tables: dict[str, ReportTable] = {m: _next_token_by_layer(read, m) for m in (PRECISION, SURPRISAL)}
    tables |= {f"gain in {m}": rows for m, rows in tested.items()}
    own = [lm.encoder.decode([i]) for i in top_tokens(lm, final).tolist()]
    tables |= trained_next_token_tables(setting, prompts, own)
    tables |= {"middle layers": _middle(read, seed), "target prompts": _by_target_prompt(read)}
    return Report(
        experiment="next-token",
        model=lm.name,
        claim=CLAIM,
        reading=_next_token_reading(read, tested, tables["middle layers"]),
        tables=tables,
        figures=(_next_token_figure(read),),
        settings=setting.settings(
            documents=len(prompts), layers=list(layers), place="one at random in each document, after 8–127 tokens",
            least_squares=f"ridge, {tokens:,} tokens of other documents, R² {np.nanmin(r2):.2f}–{np.nanmax(r2):.2f}",
            demonstrations=[list(words) for words in sets],
        ),
        provenance=setting.provenance(),
    )  # fmt: skip


def _demonstrations(setting: Setting, n: int) -> tuple[str, ...]:
    """The words of a drawn set, as many as chance says."""
    random = np.random.default_rng((setting.seed, n))
    return drawn(setting.lm, int(random.integers(DRAWN_WORDS[0], DRAWN_WORDS[1] + 1)), seed=setting.seed + 1000 * n)


def _through(lens: Lens, states: HiddenStates, layers: Sequence[int]) -> np.ndarray:
    """The top token (N, L) of a lens at every layer."""
    return np.stack([top_tokens(lens.lm, lens.map(states[n, -1], n)) for n in layers], 1)


def _next_token_by_layer(read: _Read, measure: str) -> list[dict[str, Any]]:
    return [
        {"layer": layer, **{method: mean(read.at(method, measure)[:, n]) for method in METHODS}}
        for n, layer in enumerate(read.layers)
    ]


def _tests_by_layer(read: _Read, measure: str, seed: int) -> list[dict[str, Any]]:
    """Per layer before the last how much better token identity is than each other, p corrected for all of them."""
    gains = {(n, other): read.gain(other, measure)[:, n] for n in read.before for other in OTHERS}
    p = dict(zip(gains, holm([sign_flips(g, seed=seed) for g in gains.values()]), strict=True))
    rows: list[dict[str, Any]] = []
    for n in read.before:
        row: dict[str, Any] = {"layer": read.layers[n]}
        for other in OTHERS:
            row |= {f"over {other}": mean(gains[n, other]), f"p, {other}": p[n, other]}
        rows.append(row)
    return rows


def _middle(read: _Read, seed: int) -> list[dict[str, Any]]:
    """The gain over each lens in the paper's middle layers, and in the layer that is best for it on other documents."""
    rows: list[dict[str, Any]] = []
    for measure in (PRECISION, SURPRISAL):
        mine = read.at(IDENTITY, measure)[:, read.middle].mean(1)
        for other in LENSES:
            its = read.at(other, measure)[:, read.middle].mean(1)
            chosen = select(read.gain(other, measure)[:, read.before], seed=seed)
            rows.append(
                {
                    "measure": measure,
                    "beside": other,
                    IDENTITY: mean(mine),
                    "the other": mean(its),
                    "gain": mean(read.gain(other, measure)[:, read.middle].mean(1)),
                    "relative": bootstrap(_relative, mine, its, seed=seed),
                    "gain at a layer chosen on the other half": chosen.selected,
                    "chosen": " or ".join(str(read.layers[c]) for c in dict.fromkeys(chosen.chosen)),
                }
            )
    return rows


def _relative(mine: np.ndarray, its: np.ndarray) -> float:
    return float(mine.mean() / its.mean() - 1) if its.mean() else float("nan")


def _by_target_prompt(read: _Read) -> list[dict[str, Any]]:
    """Every target prompt alone: means over the layers before the last, and over the middle ones."""
    scores = {
        "cat, 1135, hello (the paper's)": read.scores[IDENTITY],
        **{", ".join(words): s for words, s in zip(read.words, read.sets, strict=True)},
        ALONE: read.scores[ALONE],
        "the paper's, shuffled source": read.scores[SHUFFLED],
        "the paper's, random vector": read.scores[RANDOM],
        "the paper's, no patch": read.scores[NOTHING],
    }
    rows: list[dict[str, Any]] = []
    for name, s in scores.items():
        row: dict[str, Any] = {"demonstrations": name}
        for measure, values in ((PRECISION, s.precision), (SURPRISAL, s.surprisal)):
            row[f"{measure}, all layers"] = mean(values[:, read.before].mean(1))
            row[f"{measure}, middle layers"] = mean(values[:, read.middle].mean(1))
        rows.append(row)
    return rows


def _next_token_figure(read: _Read) -> Figure:
    drawn_methods = [m for m in METHODS if m != NOTHING]
    panels = []
    for measure in (PRECISION, SURPRISAL):
        series = [mean_curve(m, read.layers, read.at(m, measure), m in (SHUFFLED, RANDOM)) for m in drawn_methods]
        level = float(read.at(NOTHING, measure)[:, 0].mean())
        panels.append(Panel(f"{measure} (dotted: no patch)", "layer", measure, series, level=level))
    sets = {"the paper's": read.scores[IDENTITY]}
    sets |= {f"{len(w)} drawn: {w[0]}, …": s for w, s in zip(read.words, read.sets, strict=True)}
    sets[ALONE] = read.scores[ALONE]
    series = [mean_curve(name, read.layers, s.precision, name == ALONE) for name, s in sets.items()]
    panels.append(Panel("target prompts", "layer", PRECISION, series))
    return Figure("next-token", panels)


def _next_token_reading(read: _Read, tested: Mapping[str, Sequence[Mapping[str, Any]]], middle: ReportTable) -> str:
    parts = [_verdict(read, tested[PRECISION])]
    for measure, rows in tested.items():
        beside = []
        for other in LENSES:
            better, worse = (_sure(rows, other, sign) for sign in (1, -1))
            beside.append(f"the {other}: better at {_layer_list(better, read)}, worse at {_layer_list(worse, read)}")
        parts.append(f"Token identity's {measure} beside {'; beside '.join(beside)} (p < .05 after Holm).")
    rows = [r for r in middle if r["measure"] == PRECISION]
    names = ", ".join(str(read.layers[n]) for n in read.middle)
    gains = "; ".join(
        f"that of the {r['beside']} {r['the other'].value:.2f}, gain {prose(r['gain'])} ({_percent(r['relative'])}), "
        f"and at a layer chosen on the other half of the documents (layer {r['chosen']}) a gain of "
        f"{prose(r['gain at a layer chosen on the other half'])}"
        for r in rows
    )
    parts.append(
        f"In the middle (layer{'s' * (len(read.middle) > 1)} {names}; the paper's 18–22 of 40, up to 98 %) its "
        f"precision@1 is {prose(rows[0][IDENTITY])}: {gains}."
    )
    values = [s.precision[:, read.before].mean() for s in read.sets]
    own = read.at(IDENTITY, PRECISION)[:, read.before].mean()
    apart = {m: difference(*(read.at(x, PRECISION)[:, read.before].mean(1) for x in (IDENTITY, m)))
             for m in (ALONE, DRAWN)}  # fmt: skip
    parts.append(
        f"Mean precision@1 before the last layer: {own:.2f} with the paper's demonstrations, {min(values):.2f}–"
        f"{max(values):.2f} with {len(values)} drawn sets (standard deviation {np.std(values):.3f}). The paper's less "
        f"the drawn ones: {prose(apart[DRAWN])}; the paper's less a placeholder alone: {prose(apart[ALONE])}."
    )
    control = {m: read.at(m, PRECISION)[:, read.before].mean() for m in (SHUFFLED, RANDOM, NOTHING)}
    parts.append(
        f"Controls: the mean precision@1 is {control[SHUFFLED]:.3f} with another document's state, "
        f"{control[RANDOM]:.3f} with a random vector of equal norm, {control[NOTHING]:.3f} without a patch."
    )
    return "\n".join(parts)


def _verdict(read: _Read, rows: Sequence[Mapping[str, Any]]) -> str:
    """Whether identity beats the paper's lenses from a quarter of the depth on, and from which layer on all of them."""
    deep = [n for n in read.before if read.layers[n] >= FROM * read.layers[-1]]
    better = {other: set(_sure(rows, other, 1)) for other in LENSES}
    hits = [n for n in deep if n in better[LOGIT] & better[SQUARES]]
    too = [n for n in hits if n in better[TUNED]]
    verdict = "Replicates" if hits == deep else "Replicates in part" if hits else "Does not replicate"
    values = {m: read.at(m, PRECISION).mean(0) for m in (IDENTITY, *LENSES)}
    behind = [n for n in read.before if values[IDENTITY][n] <= max(values[other][n] for other in LENSES)]
    start = behind[-1] + 1 if behind else 0
    if start > read.before[-1]:
        ahead = f"At layer {read.layers[read.before[-1]]}, the last before the end, one of them is ahead or level"
    else:
        ahead = f"By value it is ahead of all three from layer {read.layers[start]} on, up to the last before the end"
    return (
        f"{verdict}: token identity's precision@1 (the share of places where the model's own top token is read) is "
        f"above those of the logit lens and least squares (p < .05 after Holm) at {len(hits)} of {len(deep)} layers "
        f"from a quarter of the depth on ({_layer_list(hits, read)}). At {len(too)} of these it is above that of a "
        f"trained tuned lens too, which the paper does not have. {ahead}."
    )


def _sure(rows: Sequence[Mapping[str, Any]], other: str, sign: int) -> list[int]:
    """The rows where identity is better (1) or worse (-1) than another, corrected for all tests."""
    return [n for n, r in enumerate(rows) if r[f"p, {other}"] < 0.05 and sign * r[f"over {other}"].value > 0]


def _layer_list(columns: Sequence[int], read: _Read) -> str:
    return f"layer{'s' * (len(columns) > 1)} {', '.join(str(read.layers[n]) for n in columns)}" if columns else "none"


def _percent(e: Estimate) -> str:
    return f"{100 * e.value:+.0f} % [{100 * e.low:+.0f}, {100 * e.high:+.0f}]" if np.isfinite(e.value) else "of none"


EXPERIMENT = Experiment(data="text", verbaliser=True, run=_run_next_token)
