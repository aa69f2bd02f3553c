"""Attribute extraction: what a subject's hidden states say of it, asked in words, beside a trained probe.

Knows: which facts and texts are used, what stands in for a state, which scores are compared, the reading.
Does not know: how facts are read and asked for (tasks), how cells are scored and compared (attribute_scores.py), how
probes are trained (statistics/probes.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from lenscope.display.figures import Figure
from lenscope.display.panels import Heatmap, Panel
from lenscope.errors import LenscopeError
from lenscope.experiments.definition import Experiment
from lenscope.experiments.estimates_shown import mean_curve
from lenscope.experiments.patchscopes_paper.attribute_scores import (
    ALL,
    FOLDS,
    SCORES,
    SourceScores,
    comparisons,
    hits,
    other_subjects_hits,
    rows_of_relation,
    rows_over_relations,
)
from lenscope.experiments.patchscopes_paper.trained_map import trained_attribute_tables
from lenscope.experiments.report import Report
from lenscope.experiments.setting import Setting
from lenscope.models.hidden_states import HiddenStates
from lenscope.models.layers import evenly_spaced
from lenscope.patchscopes.controls import prompts_with_text, random_vectors
from lenscope.patchscopes.methods import feature_extraction
from lenscope.statistics.estimates import mean
from lenscope.statistics.intervals import Estimate, interval
from lenscope.statistics.probes import Probed, probe
from lenscope.tasks.builtin_facts import ABOUT_THINGS
from lenscope.tasks.model_knowledge import known_facts
from lenscope.tasks.relation_files import load_relations
from lenscope.tasks.relations import Fact, Relation, builtin_relations, prompt_up_to
from lenscope.tasks.text_match import mentions

CLAIM = (
    "Ghandeharioun et al. 2024, Table 2, Figs 6, 7: on GPT-J-6B a Patchscope that asks for an attribute in words, "
    "without training, is more accurate than logistic regression on the same states at 6 of 12 relations (p < 1e-5, "
    "e.g. country currency .51 against .18) and less at one (object superclass .55 against .66). A source layer "
    "counts as right if the answer is among 20 generated tokens at any target layer; accuracies are means over "
    "source layers. No control is reported."
)

# relations
RELATIONS = {"quick": 7, "full": 99}
# known facts of a relation
FACTS = {"quick": 12, "full": 16}
# texts of a fact that states are read in for the Patchscope
TEXTS = {"quick": 1, "full": 1}
# texts of a fact for the probe
PROBED = {"quick": 3, "full": 5}
# source and target layers
LAYERS = {"quick": 7, "full": 9}
TOKENS = {"quick": 8, "full": 10}  # new tokens
# facts of a relation that the model is asked
ASKED = {"quick": 48, "full": 160}
# built-in relations of a quick run: objects of many subjects, and of one each
FIRST = "language", "city", "capital", "color", "kind", "opposite", "currency"
# with fewer known facts, or objects among them, a relation says nothing
FEWEST, FEWEST_OBJECTS = 6, 2
SHOTS = 5
STATE, OTHER, RANDOM = "hidden state", "another subject's state", "random vector of equal norm"
NOTHING, TEXT = "no patch", "the subject as text"
PROBE, MAJORITY, CONTROL = "probe", "most frequent object", "probe of exchanged objects"
COMPARED = (
    (STATE, PROBE, "paper"),
    (STATE, PROBE, "selected"),
    (STATE, OTHER, "paper"),
    (STATE, OTHER, "selected"),
    (STATE, RANDOM, "paper"),
    (STATE, RANDOM, "selected"),
    (STATE, TEXT, "selected"),
)


@dataclass(frozen=True, eq=False)
class _Studied:
    """A relation's facts that the model knows, all that stood for their subjects, and what the states said.

    `texts` is (facts, source layers, target layers) of texts; `heard` is the share of the probe's items whose object
    is one that it was trained on.
    """

    relation: Relation
    facts: Sequence[Fact]
    known: int
    asked: int
    heard: float
    texts: np.ndarray
    sources: Mapping[str, SourceScores]


def _run_attributes(setting: Setting) -> Report:
    """Ask for attributes of known facts at all pairs of source and target layers, and train probes at source layers."""
    layers = evenly_spaced(list(range(setting.lm.n_layers + 1)), setting.choose(**LAYERS))
    chosen, left_out = _chosen(setting)
    studied = [_study(setting, one, layers) for one in chosen]
    scored = {one.relation.name: one.sources for one in studied}
    together = rows_over_relations(scored) if len(scored) > 1 else rows_of_relation(*next(iter(scored.items())))
    tests = comparisons(scored, COMPARED, setting.seed)
    return Report(
        experiment="attributes",
        model=setting.lm.name,
        claim=CLAIM,
        reading=_attributes_reading(studied, together, tests, layers),
        tables={
            "all relations": together,
            "relations": [row for name, sources in scored.items() for row in rows_of_relation(name, sources)],
            "tests": tests,
            **trained_attribute_tables(setting, [one.relation for one in chosen], setting.choose(**TOKENS)),
            "facts": [_about(one, layers) for one in studied],
            "by source layer": [row for one in studied for row in _attributes_by_layer(one, layers)],
        },
        figures=(
            Figure("by_source_layer", [_attributes_panel(one, layers) for one in studied]),
            Figure("cells", [_heatmap(one, layers) for one in studied]),
        ),
        settings=setting.settings(
            facts=f"up to {setting.choose(**FACTS)} of each relation that the model knows, greedily after {SHOTS} "
            "others",
            texts={"Patchscope": setting.choose(**TEXTS), "probe": setting.choose(**PROBED)},
            layers=list(layers),
            new_tokens=setting.choose(**TOKENS),
            folds=FOLDS,
            left_out=left_out or "nothing",
        ),
        provenance=setting.provenance(),
    )


# -- facts


@dataclass(frozen=True)
class _Chosen:
    """A relation with the facts that are used, how many are known, and how many were asked."""

    relation: Relation
    known: int
    asked: int


def _chosen(setting: Setting) -> tuple[list[_Chosen], dict[str, str]]:
    """Relations whose facts the model knows, with those that are used; the other ones, and why."""
    given = load_relations(setting.data) if setting.data else builtin_relations()
    if not setting.data:
        given.sort(key=lambda r: FIRST.index(r.name) if r.name in FIRST else len(FIRST))
    chosen: list[_Chosen] = []
    left_out: dict[str, str] = {}
    for relation in given:
        if len(chosen) == setting.choose(**RELATIONS):
            break
        order = np.random.default_rng(setting.seed).permutation(len(relation.facts)).tolist()
        with_texts = [_with_texts(relation.facts[n], setting.choose(**PROBED)) for n in order]
        usable = tuple(fact for fact in with_texts if fact.texts)[: setting.choose(**ASKED)]
        if len(usable) < max(FEWEST, SHOTS + 1):
            left_out[relation.name] = f"has {len(usable)} facts"
            continue
        asked = replace(relation, facts=usable)
        right = setting.cached(
            _cache_name(relation, "known"), partial(_known_facts_of, setting, asked), of=_identity_prompts(asked)
        )
        facts = tuple(fact for fact, knows in zip(usable, right.tolist(), strict=True) if knows)
        used = facts[: setting.choose(**FACTS)]
        if len(used) < FEWEST or len({f.answers for f in used}) < FEWEST_OBJECTS:
            left_out[relation.name] = f"{len(facts)} of {len(usable)} known"
            continue
        chosen.append(_Chosen(replace(relation, facts=used), len(facts), len(usable)))
    if not chosen:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(left_out.items())[:3])
        raise LenscopeError(
            f"{setting.lm.name}: {FEWEST} known facts with {FEWEST_OBJECTS} objects are the least of a relation, none "
            f"of {len(given)} has them ({why}); give others, or another model"
        )
    return chosen, left_out


def _with_texts(fact: Fact, most: int) -> Fact:
    """A fact with up to `most` texts that do not tell its answer; none where the subject tells it."""
    given = fact.texts or tuple(sentence.replace("{}", fact.subject) for sentence in ABOUT_THINGS)
    return replace(fact, texts=tuple(text for text in given if not mentions(text, fact.answers))[:most])


def _known_facts_of(setting: Setting, relation: Relation) -> np.ndarray:
    with setting.progress(f"facts asked: {relation.name}") as advance:
        return known_facts(setting.lm, relation, SHOTS, setting.seed, advance)


def _identity_prompts(relation: Relation) -> list[Any]:
    return [relation.template, relation.target, [[f.subject, f.answers, f.texts] for f in relation.facts]]


def _cache_name(relation: Relation, what: str) -> str:
    return f"attributes-{relation.name}-{what}"


# -- what stands for a subject


def _study(setting: Setting, one: _Chosen, layers: Sequence[int]) -> _Studied:
    lm, relation, facts = setting.lm, one.relation, one.relation.facts
    subjects = [fact.subject for fact in facts]
    owner = [n for n, fact in enumerate(facts) for _ in fact.texts[: setting.choose(**TEXTS)]]
    prompts = [prompt_up_to(lm, text, f.subject) for f in facts for text in f.texts[: setting.choose(**TEXTS)]]
    states = lm.read(prompts, layers, -1)
    texts = {
        kind: _generated(setting, relation, kind, sources, layers)
        for kind, sources in ((STATE, states), (RANDOM, random_vectors(states, setting.seed)))
    }
    hit = {kind: hits(table, facts) for kind, table in texts.items()}
    others, whose = other_subjects_hits(hit[STATE], owner, facts)
    new = setting.choose(**TOKENS)
    alone = lm.generate(relation.target, new).text
    asked = [c.text for c in lm.generate(prompts_with_text(feature_extraction(lm, relation.target), subjects), new)]

    def scored(scores: np.ndarray, of: Sequence[int]) -> SourceScores:
        # without target layers, or without any
        cells = scores if scores.ndim == 3 else scores.reshape(len(scores), -1, 1)
        return SourceScores(cells.astype(float), [subjects[n] for n in of], setting.seed)

    own = np.arange(len(owner))
    everyone = range(len(facts))
    read, heard = _probes(setting, relation, layers)
    mine = [n for n, fact in enumerate(facts) for _ in fact.texts]
    sources = {
        STATE: scored(hit[STATE][own, ..., owner], owner),
        OTHER: scored(others, whose),
        RANDOM: scored(hit[RANDOM][own, ..., owner], owner),
        NOTHING: scored(hits(np.array([alone]), facts)[0], everyone),
        TEXT: scored(np.diag(hits(np.array(asked), facts)), everyone),
        **{kind: scored(values, mine) for kind, values in read.items()},
    }
    return _Studied(relation, facts, one.known, one.asked, heard, texts[STATE], sources)


def _generated(
    setting: Setting, relation: Relation, kind: str, sources: HiddenStates, layers: Sequence[int]
) -> np.ndarray:
    """What is generated, (items, source layers, target layers) of texts."""

    def compute() -> np.ndarray:
        scope = feature_extraction(setting.lm, relation.target)
        with setting.progress(f"cells: {relation.name}, {kind}") as advance:
            grid = scope.generate(sources, list(layers), max_new_tokens=setting.choose(**TOKENS), progress=advance)
        return np.array(grid.cells().tolist(), dtype=object)

    name = _cache_name(relation, kind.split()[0])
    return setting.cached(name, compute, of=_identity_prompts(relation), layers=list(layers)).reshape(
        -1, len(layers), len(layers)
    )


def _probes(setting: Setting, relation: Relation, layers: Sequence[int]) -> tuple[dict[str, np.ndarray], float]:
    """(items, source layers) of the probe and its controls, over all texts; and the share that could be learned."""
    lm, texts = setting.lm, [(fact, text) for fact in relation.facts for text in fact.texts]

    def compute() -> list[Probed]:
        states = lm.read([prompt_up_to(lm, text, fact.subject) for fact, text in texts], layers, -1)
        h = states.tensor[:, :, 0].float().cpu().numpy()
        probed = []
        with setting.progress(f"layers probed: {relation.name}") as advance:
            for n in range(len(layers)):
                labels, groups = [fact.answers for fact, _ in texts], [fact.subject for fact, _ in texts]
                probed.append(probe(h[:, n], labels, groups, FOLDS, setting.seed))
                advance(n + 1, len(layers))
        return probed

    probed = setting.cached(
        _cache_name(relation, "probes"), compute, of=_identity_prompts(relation), layers=list(layers)
    )
    right = {
        PROBE: np.stack([p.correct for p in probed], 1),
        CONTROL: np.stack([p.shuffled for p in probed], 1),
        MAJORITY: probed[0].majority[:, None],
    }
    return right, float(torch.from_numpy(probed[0].heard).float().mean())


# -- what is shown


def _about(one: _Studied, layers: Sequence[int]) -> dict[str, Any]:
    """What was asked, and what the state of the first subject says in the cell that is chosen for it."""
    selection = one.sources[STATE].selection
    cell = selection.chosen[int(selection.fold[0])]
    at = divmod(cell, len(layers))
    return {
        "relation": one.relation.name,
        "target prompt": one.relation.target,
        "known": f"{one.known} of {one.asked}",
        "used": len(one.facts),
        "objects": len({fact.answers for fact in one.facts}),
        "share a probe can know": one.heard,
        "selected cells": " or ".join(dict.fromkeys(_cell(c, layers) for c in selection.chosen)),
        "example": f"{one.facts[0].subject}: {' '.join(str(one.texts[0][at]).split())}",
    }


def _cell(cell: int, layers: Sequence[int]) -> str:
    source, target = divmod(cell, len(layers))
    return f"{layers[source]} into {layers[target]}"


def _attributes_by_layer(one: _Studied, layers: Sequence[int]) -> list[dict[str, Any]]:
    curves = {kind: one.sources[kind].layers() for kind in (STATE, OTHER, RANDOM, PROBE, CONTROL)}
    return [
        {"relation": one.relation.name, "source layer": layer, **{k: mean(v[:, n]) for k, v in curves.items()}}
        for n, layer in enumerate(layers)
    ]


def _attributes_panel(one: _Studied, layers: Sequence[int]) -> Panel:
    series = []
    for kind in (STATE, PROBE, OTHER, RANDOM):
        label = f"Patchscope, {kind}" if kind != PROBE else kind
        means = mean_curve(label, layers, one.sources[kind].layers(), dashed=kind in (OTHER, RANDOM))
        series.append(means if kind in (STATE, PROBE) else replace(means, low=None, high=None))
    level = float(one.sources[MAJORITY].scores.mean())
    return Panel(one.relation.name, "source layer", "accuracy, any target layer", series, level=level)


def _heatmap(one: _Studied, layers: Sequence[int]) -> Heatmap:
    values = one.sources[STATE].scores.mean(0)
    return Heatmap(one.relation.name, "target layer", "source layer", layers, layers, values, "accuracy")


def _attributes_reading(
    studied: Sequence[_Studied], together: Sequence[Mapping[str, Any]], tests: Sequence[Mapping[str, Any]],
    layers: Sequence[int],
) -> str:  # fmt: skip
    scores = {row["source"]: row for row in together}

    def compared(source: str, score: str) -> tuple[str, Estimate]:
        mine = [row for row in tests if row["comparison"] == f"{STATE} - {source}" and row["score"] == SCORES[score]]
        single = [row for row in mine if row["relation"] != ALL]
        sure = [row for row in single if row["p (Holm)"] < 0.05]
        above, below = (sum((row["difference"].value > 0) == up for row in sure) for up in (True, False))
        return f"above at {above} of {len(single)} relations, below at {below} (p < .05 after Holm)", mine[-1][
            "difference"
        ]

    def value(source: str, score: str) -> str:
        return f"{scores[source][SCORES[score]].value:.2f}"

    where, apart = compared(PROBE, "paper")
    verdict = "replicates" if apart.low > 0 else "does not replicate" if apart.high < 0 else "is undecided"
    parts = [
        f"By the paper's score the Patchscope's advantage over the probe {verdict}: {value(STATE, 'paper')} against "
        f"{value(PROBE, 'paper')} over {len(studied)} relations, {where}, difference {interval(apart)}."
    ]
    blind = [one.relation.name for one in studied if one.heard == 0]
    if blind:
        parts.append(
            f"The probe cannot be right on {', '.join(blind)}, where every subject left out has an object of its own."
        )
    without_state = max(scores[kind][SCORES["paper"]].value for kind in (OTHER, RANDOM, NOTHING))
    own = scores[STATE][SCORES["paper"]].value
    share = f", {without_state / own:.0%} of it at most" if own else ""
    parts.append(
        f"Control: that score is the best of {len(layers)} tries. Without the subject's state it is "
        f"{value(OTHER, 'paper')} (another subject's state), {value(RANDOM, 'paper')} (random vectors), "
        f"{value(NOTHING, 'paper')} (no patch){share}."
    )
    for source in (OTHER, RANDOM):
        where, apart = compared(source, "selected")
        parts.append(
            f"Control: in pairs of layers selected on other subjects the state has {value(STATE, 'selected')}, "
            f"{source} {value(source, 'selected')}: {where}, difference {interval(apart)}."
        )
    where, apart = compared(PROBE, "selected")
    parts.append(f"The probe at a layer selected so has {value(PROBE, 'selected')}: {where}, {interval(apart)}.")
    where, apart = compared(TEXT, "selected")
    parts.append(f"Told the subject as text, it is {value(TEXT, 'selected')}: the state is {where}, {interval(apart)}.")
    cells = np.mean([one.sources[STATE].scores.mean(0) for one in studied], 0)
    best = int(cells.argmax())
    parts.append(
        f"The mean pair of layers has {value(STATE, 'mean')}; the best over all relations, {_cell(best, layers)}, "
        f"{cells.reshape(-1)[best]:.2f}."
    )
    return "\n".join(parts)


EXPERIMENT = Experiment(
    data="TSV or JSONL with relation, subject, object and, if known, template, target, text",
    lens=False,
    verbaliser=True,
    run=_run_attributes,
)
