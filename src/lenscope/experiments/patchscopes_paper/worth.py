"""What explanations are worth: the same score for a state, for its text, for nothing, and for other vectors.

Knows: which Patchscopes are tried, on what, by which score; tables and the reading.
Does not know: how controls are run (patchscopes/with_controls.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lenscope.display.figures import Figure
from lenscope.display.panels import Panel
from lenscope.errors import LenscopeError
from lenscope.experiments.definition import Experiment
from lenscope.experiments.estimates_shown import curve
from lenscope.experiments.patchscopes_paper.entities import description_in, pick
from lenscope.experiments.report import Report
from lenscope.experiments.setting import Setting
from lenscope.patchscopes.control_runs import CONDITIONS, NONE, RANDOM, SHUFFLED, TEXT, VECTOR
from lenscope.patchscopes.methods import entity_description, feature_extraction, token_identity
from lenscope.patchscopes.patchscope import Patchscope
from lenscope.patchscopes.sources import Layers
from lenscope.patchscopes.with_controls import (
    ControlledScores,
    ControlledTexts,
    Score,
    continue_texts,
    generate_with_controls,
)
from lenscope.statistics.intervals import interval
from lenscope.statistics.selection import balanced
from lenscope.statistics.significance import paired_tests
from lenscope.tasks.model_knowledge import known_facts
from lenscope.tasks.relation_files import load_relations
from lenscope.tasks.relations import Relation, builtin_entities, builtin_relations
from lenscope.tasks.text_match import mentions, rouge
from lenscope.text.packing import after_document_mark

CLAIM = (
    "Ghandeharioun et al. 2024 do not ask this: their scores are of patched vectors alone. But the model that puts a "
    "state into words has knowledge of its own. Given the text that the state was read from, in the place of the "
    "state, it may say as much; only what a state adds to that is the state's (as argued in arXiv 2509.13316)."
)
IDENTITY, FEATURES, ENTITY = "token identity", "feature extraction", "entity description"
SCORES = {
    IDENTITY: "the model's own next token, 0 or 1",
    FEATURES: "an answer said, 0 or 1",
    ENTITY: "RougeL of the description",
}
# facts of a relation that are tried
TRIED = {"quick": 16, "full": 48}
# facts of a relation that are used
USED = {"quick": 6, "full": 12}
# relations
RELATIONS = {"quick": 6, "full": 12}
# prompts of token identity
PROMPTS = {"quick": 40, "full": 160}
# entities
ENTITIES = {"quick": 20, "full": 60}
# every so many layers, where there is one target layer
STEP = {"quick": 3, "full": 2}
# every so many layers of a grid
COARSE = {"quick": 6, "full": 4}
# new tokens of an answer
TOKENS = {"quick": 8, "full": 10}
# new tokens of a description
DESCRIBED = {"quick": 12, "full": 16}


@dataclass(frozen=True, eq=False)
class _Case:
    """States of texts, read by one Patchscope: by what they are scored, and what no two exchanged ones have alike."""

    name: str
    scope: Patchscope
    texts: Sequence[str]
    score: Score
    layers: Layers
    new: int
    answers: Sequence[Any] | None = None


def _run_worth(setting: Setting) -> Report:
    """Three Patchscopes, each scored with the vector and without: by layer, and in a layer selected on other items."""
    facts, left_out = _facts(setting)
    cases = [
        _identity_case(setting, facts),
        *(_feature_case(setting, relation) for relation in facts),
        _entity(setting),
    ]
    scores = {case.name: _score_case(setting, case) for case in cases}
    subjects = [fact.subject for relation in facts for fact in relation.facts]
    whole = {
        IDENTITY: scores[IDENTITY],
        FEATURES: _pooled_scores([scores[_name(relation)] for relation in facts], subjects, setting.seed),
        ENTITY: scores[ENTITY],
    }
    rows = [_worth_row(name, whole[name]) for name in whole]
    pairs = {}
    for name, worth in whole.items():
        items = {way: worth.selection(way).items_selected for way in CONDITIONS}
        for way in CONDITIONS[1:]:
            pairs[f"{name}, vector - {way}"] = items[VECTOR], items[way], worth.units
    tables: dict[str, Any] = {
        "worth": rows,
        "relations": [_worth_row(_name(r), scores[_name(r)]) for r in facts],
        "differences": paired_tests(pairs, setting.seed),
        **{f"{name} by layer": _worth_by_layer(worth) for name, worth in whole.items()},
    }
    return Report(
        experiment="worth",
        model=setting.lm.name,
        claim=CLAIM,
        reading=_worth_reading(rows, tables["differences"]),
        tables=tables,
        figures=(_worth_figure(tables),),
        settings=setting.settings(
            items={name: len(worth.scores[TEXT]) for name, worth in whole.items()},
            cells={name: len(worth.cells) for name, worth in whole.items()},
            relations=[relation.name for relation in facts],
            left_out=left_out or "nothing",
        ),
        provenance=setting.provenance(),
    )


def _facts(setting: Setting) -> tuple[list[Relation], dict[str, str]]:
    """Relations with the facts that the model knows, at least four each; the other ones, and why they are left out."""
    given = load_relations(setting.data) if setting.data else builtin_relations()
    tried, used = setting.choose(**TRIED), setting.choose(**USED)
    known: list[Relation] = []
    most = setting.choose(**RELATIONS)
    left_out = {relation.name: f"after the first {most}" for relation in given[most:]}
    for relation in given[:most]:
        order = np.random.default_rng(setting.seed).permutation(len(relation.facts)).tolist()
        asked = Relation(
            relation.name, relation.template, relation.target, tuple(relation.facts[n] for n in order[:tried])
        )
        if len(asked.facts) < 6:
            left_out[relation.name] = f"has {len(asked.facts)} facts"
            continue

        def compute(asked: Relation = asked) -> list[bool]:
            with setting.progress(f"facts, {asked.name}") as advance:
                return [bool(knows) for knows in known_facts(setting.lm, asked, 5, setting.seed, advance)]

        right = setting.cached(f"worth-known-{relation.name}", compute, subjects=[f.subject for f in asked.facts])
        facts = [fact for fact, yes in zip(asked.facts, right, strict=True) if yes]
        knows = len(facts)
        facts = [facts[n] for n in balanced([fact.answers for fact in facts], used)]
        if len(facts) < 4:
            left_out[relation.name] = f"{knows} of {len(asked.facts)} known"
        else:
            known.append(Relation(relation.name, relation.template, relation.target, tuple(facts)))
    if not known:
        raise LenscopeError(
            f"relations: {setting.lm.name} knows fewer than 4 facts, with 2 answers, of each; give others with --data"
        )
    return known, left_out


def _name(relation: Relation) -> str:
    return f"{FEATURES}: {relation.name}"


def _layers(setting: Setting, step: dict[str, int]) -> list[int]:
    return list(range(0, setting.lm.n_layers + 1, setting.choose(**step)))


def _identity_case(setting: Setting, facts: Sequence[Relation]) -> _Case:
    """Prompts whose next token the model predicts, the facts' own: does their last state say it in a list of words?"""
    texts = [relation.template.replace("{}", fact.subject) for relation in facts for fact in relation.facts]
    order = np.random.default_rng(setting.seed).permutation(len(texts)).tolist()[: 2 * setting.choose(**PROMPTS)]
    drawn = [texts[n] for n in order]
    # after what their states are read from: the first token of a text is taken otherwise than one in its middle
    read = after_document_mark(setting.lm, drawn)
    every = setting.cached("worth-own", lambda: continue_texts(setting.lm, read, 1), ids=[list(p.ids) for p in read])
    chosen = balanced(every, setting.choose(**PROMPTS))
    own = [every[n] for n in chosen]
    # not the last one, whose state is the prediction itself
    scope, layers = token_identity(setting.lm), [(n, n) for n in _layers(setting, STEP) if n < setting.lm.n_layers]
    return _Case(IDENTITY, scope, [drawn[n] for n in chosen], lambda text, n: float(text == own[n]), layers, 1, own)


def _feature_case(setting: Setting, relation: Relation) -> _Case:
    layers = _layers(setting, COARSE)
    pairs = [(a, b) for a in layers for b in layers]
    texts, answers = [f.subject for f in relation.facts], [f.answers for f in relation.facts]
    scope = feature_extraction(setting.lm, relation.target)
    new = setting.choose(**TOKENS)
    return _Case(_name(relation), scope, texts, lambda text, n: mentions(text, answers[n]), pairs, new, answers)


def _entity(setting: Setting) -> _Case:
    chosen = pick(builtin_entities(), setting.choose(**ENTITIES))
    layers = [(n, n) for n in _layers(setting, STEP)]

    def score(text: str, n: int) -> float:
        return rouge(description_in(text), chosen[n].description).rougeL

    scope, names = entity_description(setting.lm), [e.name for e in chosen]
    return _Case(ENTITY, scope, names, score, layers, setting.choose(**DESCRIBED))


def _score_case(setting: Setting, case: _Case) -> ControlledScores:
    def compute() -> ControlledTexts:
        states = setting.lm.read(after_document_mark(setting.lm, case.texts), positions=-1)
        with setting.progress(f"cells, {case.name}") as advance:
            how: Any = {"answers": case.answers, "max_new_tokens": case.new, "stop": "\n", "seed": setting.seed}
            how["controls"] = CONDITIONS[1:]
            return generate_with_controls(case.scope, states, case.texts, case.layers, progress=advance, **how)

    name = f"worth-{case.name}".replace(" ", "-").replace(":", "")
    texts = setting.cached(name, compute, texts=list(case.texts), layers=case.layers, tokens=case.new)
    return texts.scored(case.score, seed=setting.seed)


def _pooled_scores(several: Sequence[ControlledScores], units: Sequence[str], seed: int) -> ControlledScores:
    scores = {way: np.concatenate([w.scores[way] for w in several]) for way in CONDITIONS}
    return ControlledScores(several[0].cells, scores, list(units), seed)


def _worth_row(name: str, worth: ControlledScores) -> dict[str, Any]:
    cells = " or ".join(f"{a} → {b}" for a, b in dict.fromkeys(worth.chosen()))
    row = {"Patchscope": name, "items": len(worth.scores[TEXT]), "cell": cells, **worth.row()}
    best = worth.row(kind="oracle")
    return row | {f"{way}, hindsight": best[way] for way in (VECTOR, RANDOM, SHUFFLED)}


def _worth_by_layer(worth: ControlledScores) -> list[dict[str, Any]]:
    columns = "layer", *CONDITIONS, f"vector - {TEXT}", "vector above text"
    return [{k: row[k] for k in columns} for row in worth.by_layer()]


def _worth_reading(rows: Sequence[Mapping[str, Any]], tests: Sequence[Mapping[str, Any]]) -> str:
    p = {test["comparison"]: test["p (Holm)"] for test in tests}
    sentences = []
    for row in rows:
        name, gap, other = row["Patchscope"], row[f"vector - {TEXT}"], row[f"vector - {SHUFFLED}"]
        verdict = "says more than" if gap.low > 0 else "says less than" if gap.high < 0 else "cannot be told from"
        shares = row["vector above text"].value, row["text above vector"].value
        sentences.append(
            f"{name} ({SCORES[name]}, {row['items']} items): the vector {verdict} its text, {interval(row[VECTOR])} "
            f"against {interval(row[TEXT])}, difference {interval(gap)} (p {p[f'{name}, vector - {TEXT}']:.3f} after "
            f"Holm). The vector is higher on {shares[0]:.0%} of the items, the text on {shares[1]:.0%}. Controls: "
            f"without a patch {interval(row[NONE])}, a random vector {interval(row[RANDOM])}, another item's state "
            f"{interval(row[SHUFFLED])} (the vector less that: {interval(other)})."
        )
    return "\n".join(sentences)


def _worth_figure(tables: Mapping[str, Any]) -> Figure:
    panels = []
    for name, what in SCORES.items():
        rows = tables[f"{name} by layer"]
        x = [row["layer"] for row in rows]
        lines = [curve(way, x, [row[way] for row in rows], way != VECTOR) for way in CONDITIONS]
        panels.append(Panel(name, "source layer", what, lines))
    return Figure("worth", panels)


EXPERIMENT = Experiment(
    data="TSV or JSONL with relation, subject, object (and template, target)", lens=False, run=_run_worth
)
