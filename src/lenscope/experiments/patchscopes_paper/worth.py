"""What explanations are worth: the same score for a state, for its text, for nothing, and for other vectors.

Knows: which Patchscopes are tried, on what, by which score; tables and the reading.
Does not know: how controls are run (verbalizing.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lenscope.display.figures import Figure, Panel
from lenscope.errors import LenscopeError
from lenscope.experiments.patchscopes_paper.entities import described, pick
from lenscope.experiments.report import Report
from lenscope.experiments.setting import Setting
from lenscope.experiments.wording import cached_json, curve, interval
from lenscope.patchscopes.methods import entity_description, feature_extraction, token_identity
from lenscope.patchscopes.patchscope import Patchscope
from lenscope.patchscopes.sources import Layers
from lenscope.patchscopes.with_controls import (
    CONDITIONS,
    NONE,
    RANDOM,
    SHUFFLED,
    TEXT,
    VECTOR,
    ControlledScores,
    ControlledTexts,
    Score,
    continue_texts,
    generate_with_controls,
)
from lenscope.statistics.selection import balanced
from lenscope.statistics.significance import compared
from lenscope.tasks.known_facts import known_facts
from lenscope.tasks.relation_files import load_relations
from lenscope.tasks.relations import Relation, builtin_entities, builtin_relations
from lenscope.tasks.text_match import mentions, rouge
from lenscope.text.packing import after_document_mark

DATA = "TSV or JSONL with relation, subject, object (and template, target)"
# no lens is read through
LENS = False
CLAIM = (
    "Ghandeharioun et al. 2024 do not ask this: their scores are of patched vectors alone. A verbaliser that is told "
    "the text which the state was read from has what its own knowledge makes of it; only what a state adds to that is "
    "the state's (as argued in arXiv 2509.13316)."
)
IDENTITY, FEATURES, ENTITY = "token identity", "feature extraction", "entity description"
SCORES = {
    IDENTITY: "the model's own next token, 0 or 1",
    FEATURES: "an answer said, 0 or 1",
    ENTITY: "RougeL of the description",
}
# quick and full: facts of a relation that are tried, and used, relations, prompts, entities
TRIED, USED, RELATIONS, PROMPTS, ENTITIES = (16, 48), (6, 12), (6, 12), (40, 160), (20, 60)
# every so many layers, of the ways with one target layer, and of grids; tokens
STEP, COARSE, TOKENS, DESCRIBED = (3, 2), (6, 4), (8, 10), (12, 16)


@dataclass(frozen=True, eq=False)
class _Case:
    """States of texts, told by one Patchscope: by what they are scored, and what no two exchanged ones have alike."""

    name: str
    scope: Patchscope
    texts: Sequence[str]
    score: Score
    layers: Layers
    new: int
    answers: Sequence[Any] | None = None


def run(setting: Setting) -> Report:
    """Three Patchscopes, each scored with the vector and without: by layer, and in a layer selected on other items."""
    facts, left_out = _facts(setting)
    cases = [_identity(setting, facts), *(_features(setting, relation) for relation in facts), _entity(setting)]
    told = {case.name: _scored(setting, case) for case in cases}
    subjects = [fact.subject for relation in facts for fact in relation.facts]
    whole = {
        IDENTITY: told[IDENTITY],
        FEATURES: _together([told[_name(relation)] for relation in facts], subjects, setting.seed),
        ENTITY: told[ENTITY],
    }
    rows = [_row(name, whole[name]) for name in whole]
    pairs = {}
    for name, worth in whole.items():
        items = {way: worth.selection(way).items_selected for way in CONDITIONS}
        for way in CONDITIONS[1:]:
            pairs[f"{name}, vector - {way}"] = items[VECTOR], items[way], worth.units
    tables: dict[str, Any] = {
        "worth": rows,
        "relations": [_row(_name(r), told[_name(r)]) for r in facts],
        "differences": compared(pairs, setting.seed),
        **{f"{name} by layer": _by_layer(worth) for name, worth in whole.items()},
    }
    return Report(
        experiment="worth",
        model=setting.lm.name,
        claim=CLAIM,
        reading=_reading(rows, tables["differences"]),
        tables=tables,
        figures=(_figure(tables),),
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
    tried, used = setting.sized(*TRIED), setting.sized(*USED)
    made: list[Relation] = []
    most = setting.sized(*RELATIONS)
    left_out = {relation.name: f"after the first {most}" for relation in given[most:]}
    for relation in given[:most]:
        order = np.random.default_rng(setting.seed).permutation(len(relation.facts)).tolist()
        some = Relation(
            relation.name, relation.template, relation.target, tuple(relation.facts[n] for n in order[:tried])
        )
        if len(some.facts) < 6:
            left_out[relation.name] = f"has {len(some.facts)} facts"
            continue

        def make(some: Relation = some) -> list[bool]:
            with setting.progress(f"facts, {some.name}") as advance:
                return known_facts(setting.lm, some, 5, setting.seed, advance).tolist()

        right = cached_json(setting, f"worth-known-{relation.name}", make, subjects=[f.subject for f in some.facts])
        facts = [fact for fact, yes in zip(some.facts, right, strict=True) if yes]
        knows = len(facts)
        facts = [facts[n] for n in balanced([fact.answers for fact in facts], used)]
        if len(facts) < 4:
            left_out[relation.name] = f"{knows} of {len(some.facts)} known"
        else:
            made.append(Relation(relation.name, relation.template, relation.target, tuple(facts)))
    if not made:
        raise LenscopeError(
            f"relations: {setting.lm.name} knows fewer than 4 facts, with 2 answers, of each; give others with --data"
        )
    return made, left_out


def _name(relation: Relation) -> str:
    return f"{FEATURES}: {relation.name}"


def _layers(setting: Setting, sizes: tuple[int, int]) -> list[int]:
    return list(range(0, setting.lm.n_layers + 1, setting.sized(*sizes)))


def _identity(setting: Setting, facts: Sequence[Relation]) -> _Case:
    """Prompts whose next token the model predicts, the facts' own: does their last state say it in a list of words?"""
    texts = [relation.template.replace("{}", fact.subject) for relation in facts for fact in relation.facts]
    order = np.random.default_rng(setting.seed).permutation(len(texts)).tolist()[: 2 * setting.sized(*PROMPTS)]
    some = [texts[n] for n in order]
    # after what their states are read from: the first token of a text is taken otherwise than one in its middle
    read = after_document_mark(setting.lm, some)
    every = cached_json(
        setting, "worth-own", lambda: continue_texts(setting.lm, read, 1), ids=[list(p.ids) for p in read]
    )
    chosen = balanced(every, setting.sized(*PROMPTS))
    own = [every[n] for n in chosen]
    # not the last one, whose state is the prediction itself
    scope, layers = token_identity(setting.lm), [(n, n) for n in _layers(setting, STEP) if n < setting.lm.n_layers]
    return _Case(IDENTITY, scope, [some[n] for n in chosen], lambda said, n: float(said == own[n]), layers, 1, own)


def _features(setting: Setting, relation: Relation) -> _Case:
    layers = _layers(setting, COARSE)
    pairs = [(a, b) for a in layers for b in layers]
    texts, answers = [f.subject for f in relation.facts], [f.answers for f in relation.facts]
    scope = feature_extraction(setting.lm, relation.target)
    new = setting.sized(*TOKENS)
    return _Case(_name(relation), scope, texts, lambda said, n: mentions(said, answers[n]), pairs, new, answers)


def _entity(setting: Setting) -> _Case:
    chosen = pick(builtin_entities(), setting.sized(*ENTITIES))
    layers = [(n, n) for n in _layers(setting, STEP)]

    def score(said: str, n: int) -> float:
        return rouge(described(said), chosen[n].description).rougeL

    scope, names = entity_description(setting.lm), [e.name for e in chosen]
    return _Case(ENTITY, scope, names, score, layers, setting.sized(*DESCRIBED))


def _scored(setting: Setting, case: _Case) -> ControlledScores:
    def make() -> dict[str, Any]:
        states = setting.lm.read(after_document_mark(setting.lm, case.texts), positions=-1)
        with setting.progress(f"cells, {case.name}") as advance:
            how: Any = {"answers": case.answers, "max_new_tokens": case.new, "stop": "\n", "seed": setting.seed}
            return generate_with_controls(
                case.scope, states, case.texts, case.layers, progress=advance, **how
            ).to_json()

    name = f"worth-{case.name}".replace(" ", "-").replace(":", "")
    found = cached_json(setting, name, make, texts=list(case.texts), layers=case.layers, tokens=case.new)
    return ControlledTexts.from_json(found).scored(case.score, seed=setting.seed)


def _together(several: Sequence[ControlledScores], units: Sequence[str], seed: int) -> ControlledScores:
    scores = {way: np.concatenate([w.scores[way] for w in several]) for way in CONDITIONS}
    return ControlledScores(several[0].cells, scores, list(units), seed)


def _row(name: str, worth: ControlledScores) -> dict[str, Any]:
    cells = " or ".join(f"{a} → {b}" for a, b in dict.fromkeys(worth.chosen()))
    row = {"Patchscope": name, "items": len(worth.scores[TEXT]), "cell": cells, **worth.row()}
    best = worth.row(kind="oracle")
    return row | {f"{way}, hindsight": best[way] for way in (VECTOR, RANDOM, SHUFFLED)}


def _by_layer(worth: ControlledScores) -> list[dict[str, Any]]:
    kept = "layer", *CONDITIONS, f"vector - {TEXT}", "vector above text"
    return [{k: row[k] for k in kept} for row in worth.by_layer()]


def _reading(rows: Sequence[Mapping[str, Any]], tests: Sequence[Mapping[str, Any]]) -> str:
    p = {test["comparison"]: test["p (Holm)"] for test in tests}
    said = []
    for row in rows:
        name, gap, other = row["Patchscope"], row[f"vector - {TEXT}"], row[f"vector - {SHUFFLED}"]
        verdict = "adds to" if gap.low > 0 else "is worth less than" if gap.high < 0 else "is not told apart from"
        shares = row["vector above text"].value, row["text above vector"].value
        said.append(
            f"{name} ({SCORES[name]}, {row['items']} items): the vector {verdict} its text, {interval(row[VECTOR])} "
            f"against {interval(row[TEXT])}, difference {interval(gap)} (p {p[f'{name}, vector - {TEXT}']:.3f} after "
            f"Holm); it is higher on {shares[0]:.0%} of the items, the text on {shares[1]:.0%}. Without a patch "
            f"{interval(row[NONE])}, a random vector {interval(row[RANDOM])}, another item's state "
            f"{interval(row[SHUFFLED])} (vector less that: {interval(other)})."
        )
    return " ".join(said)


def _figure(tables: Mapping[str, Any]) -> Figure:
    panels = []
    for name, what in SCORES.items():
        rows = tables[f"{name} by layer"]
        x = [row["layer"] for row in rows]
        lines = [curve(way, x, [row[way] for row in rows], way != VECTOR) for way in CONDITIONS]
        panels.append(Panel(name, "source layer", what, lines))
    return Figure("worth", panels)
