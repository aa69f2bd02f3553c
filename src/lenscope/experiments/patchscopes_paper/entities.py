"""Entity description: what a model says of an entity's state, layer by layer, and where the words come from.

Knows: the protocol, which text counts as the description, scores against references, controls, the reading.
Does not know: how states are patched, what controls are (patchscopes/with_controls.py).
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from lenscope.display.figures import Figure
from lenscope.display.panels import Panel
from lenscope.engine import exact_modes
from lenscope.errors import LenscopeError
from lenscope.experiments.definition import Experiment
from lenscope.experiments.estimates_shown import curve, surely
from lenscope.experiments.patchscopes_paper.trained_map import trained_entity_tables
from lenscope.experiments.report import Report
from lenscope.experiments.setting import Setting
from lenscope.patchscopes.control_runs import CONDITIONS, NONE, RANDOM, SHUFFLED, TEXT, VECTOR
from lenscope.patchscopes.controls import prompts_with_text
from lenscope.patchscopes.methods import entity_description, named_target
from lenscope.patchscopes.patchscope import Patchscope
from lenscope.patchscopes.with_controls import (
    ControlledScores,
    ControlledTexts,
    Score,
    continue_texts,
    generate_with_controls,
    texts_by_cell,
)
from lenscope.statistics.estimates import difference, mean, spearman
from lenscope.statistics.intervals import Estimate, group_difference, interval
from lenscope.tasks.relation_files import load_entities
from lenscope.tasks.relations import Entity, builtin_entities
from lenscope.tasks.text_match import compared_words, embedder, rouge
from lenscope.text.packing import after_document_mark

CLAIM = (
    "Ghandeharioun et al. 2024, §4.3, Figs. 3, 8, 9, Tables 3, 6, 7: of the last token's states of an entity's name "
    "in the first 10 layers of Vicuna-7B/13B and Pythia-6.9B/12B, descriptions become more like the reference (RougeL, "
    "Rouge1, embedding similarity) over about five layers, then less again, as the placeholder contaminates what is "
    'said; the 200 rarest entities are far below the 200 most popular (plots, without numbers). "Diana, Princess of '
    'Wales" is Wales at layers 1–2 and Diana at layer 6 (Table 3).'
)
# entities
ENTITIES = {"quick": 32, "full": 120}
STEP = {"quick": 2, "full": 1}  # every so many layers
TOKENS = {"quick": 16, "full": 20}  # new tokens
SCORES = "RougeL", "Rouge1", "similarity"
BELOW = "target", "none", "source"
EXAMPLES = "Diana, Princess of Wales", "William Shakespeare", "Microsoft", "The Beatles"
# shorter words of a name or of the demonstrations say nothing
LETTERS = 4


def _run_entities(setting: Setting) -> Report:
    """Descriptions at every layer, with controls; a layer selected on one half of the entities, used on the other."""
    lm = setting.lm
    chosen = pick(_entities(setting), setting.choose(**ENTITIES))
    names = [e.name for e in chosen]
    layers = tuple(range(0, lm.n_layers + 1, setting.choose(**STEP)))
    new = setting.choose(**TOKENS)
    how: dict[str, Any] = {"layers": list(layers), "tokens": new}
    own = _own_texts(setting, names, how)
    cuts = ControlledTexts(own.cells, {way: _descriptions_in(texts) for way, texts in own.texts.items()})
    scored = {name: cuts.scored(score, seed=setting.seed) for name, score in _scores(setting, chosen).items()}
    below = _below(setting, names, own, how)
    popular = _popular(chosen)
    by_score = [
        _selected_layer(name, group, scored[name], mine)
        for name in SCORES
        for group, mine in _groups_by_popularity(popular)
    ]
    known = [] if popular is None else [_popular_less_rare(name, scored[name], popular) for name in SCORES]
    contaminated = _contaminated(chosen, own, below)
    tables: dict[str, Any] = {"selected layer": by_score}
    if known:
        tables["popular and rare"] = known
    for name in SCORES:
        tables[f"{name} by layer"] = [_short_row(row) for row in scored[name].by_layer()]
    tables["contamination"] = contaminated
    tables |= trained_entity_tables(setting, names, _scores(setting, chosen), description_in, new)
    tables["examples"] = _examples(setting, how)
    return Report(
        experiment="entities",
        model=lm.name,
        claim=CLAIM,
        reading=_entities_reading(scored, popular, contaminated),
        tables=tables,
        figures=(_entities_figure(scored, popular, contaminated),),
        settings=setting.settings(
            entities=len(chosen),
            similarity="of the model's input embeddings, less the mean with the other entities' descriptions",
            popular=None if popular is None else int(popular.sum()),
            **how,
            target=_prompt(),
        ),
        provenance=setting.provenance(),
    )


def pick(entities: Sequence[Entity], count: int) -> list[Entity]:
    """The most popular and the least, half of `count` each, of those described in words that are not in the name.

    Where popularity is not known, the first `count`. Raises LenscopeError for fewer than 8.
    """
    usable = [e for e in entities if set(compared_words(e.description)) - set(compared_words(e.name))]
    if all(e.popular is not None for e in usable):
        usable.sort(key=lambda e: -(e.popular or 0.0))
        half = min(count, len(usable)) // 2
        usable = usable[:half] + usable[len(usable) - half :]
    if len(usable[:count]) < 8:
        raise LenscopeError(f"entities: {len(usable)} with a description of their own; give at least 8")
    return usable[:count]


def description_in(text: str) -> str:
    """The description in what follows a placeholder: after the colon, up to a line's end or the next entry.

    An entry is a name, a colon and a description, which may have commas of its own: the next one begins after the last
    comma before its colon. Words before a colon, if no comma is among them, go on with the name, or say it again.

    >>> described(": British singer, writer, Samsung: company")
    'British singer, writer'
    >>> described(" City: club in England")
    'club in England'
    """
    before, colon, rest = text.split("\n")[0].partition(":")
    while colon and "," not in before:
        before, colon, rest = rest.partition(":")
    return (before.rpartition(",")[0] if colon else before).strip(" ,.;")


def copied(text: str, reference: str, demonstrations: str) -> bool:
    """Whether a text has a word (four letters or more) of the demonstrations that is not in the reference."""
    return bool(_long(text) & _long(demonstrations) - set(compared_words(reference)))


def _entities(setting: Setting) -> list[Entity]:
    return [e for path in setting.data for e in load_entities(path)] if setting.data else builtin_entities()


def _prompt() -> str:
    return str(named_target("entity").prompt)


def _long(text: str) -> set[str]:
    return {word for word in compared_words(text) if len(word) >= LETTERS}


def _descriptions_in(texts: np.ndarray) -> np.ndarray:
    return np.array([[description_in(text) for text in row] for row in texts], dtype=object)


def _scope(setting: Setting, below: str = "target") -> Patchscope:
    return Patchscope(setting.lm, replace(named_target("entity"), below=below), layers="same")


def _own_texts(setting: Setting, names: Sequence[str], how: dict[str, Any]) -> ControlledTexts:
    def compute() -> ControlledTexts:
        lm = setting.lm
        states = lm.read(after_document_mark(lm, names), how["layers"], -1)
        with setting.progress("descriptions") as advance:
            scope = entity_description(lm)
            options: Any = {"max_new_tokens": how["tokens"], "stop": "\n", "seed": setting.seed, "progress": advance}
            options["controls"] = CONDITIONS[1:]
            return generate_with_controls(scope, states, names, **options)

    return setting.cached("entities", compute, names=list(names), **how)


def _below(setting: Setting, names: Sequence[str], own: ControlledTexts, how: dict[str, Any]) -> dict[str, np.ndarray]:
    """What is said of the vectors (N, L) by what later tokens see of the placeholder below the patched layer."""
    by_below = {"target": own.texts[VECTOR]}
    for below in BELOW[1:]:
        # hidden keys need attention that can be told what to hide
        if below == "none" and exact_modes.fastest_exact_mode(setting.lm) != "cascade":
            continue

        def compute(below: str = below) -> np.ndarray:
            # what stands below the patched layer has to have been read
            states = setting.lm.read(after_document_mark(setting.lm, names), positions=-1)
            pairs = [(n, n) for n in how["layers"]]
            with setting.progress(f"descriptions, below: {below}") as advance:
                options: Any = {"max_new_tokens": how["tokens"], "stop": "\n", "progress": advance}
                texts = texts_by_cell(_scope(setting, below).generate(states, pairs, **options))[1]
            return np.array(texts.tolist(), dtype=object)

        by_below[below] = setting.cached(f"entities-{below}", compute, names=list(names), **how)
    return by_below


def _scores(setting: Setting, entities: Sequence[Entity]) -> dict[str, Score]:
    references = [e.description for e in entities]
    both = lru_cache(None)(rouge)
    embed_all = embedder(setting.lm)
    embed = lru_cache(None)(lambda text: embed_all([text])[0])
    own = embed_all(references)
    every = own.sum(0)

    def similarity(text: str, n: int) -> float:
        # texts of one kind are alike whatever they describe: only what is above that is about this entity
        return round(float(embed(text) @ (own[n] - (every - own[n]) / (len(own) - 1))), 9)

    return {
        "RougeL": lambda text, n: both(text, references[n]).rougeL,
        "Rouge1": lambda text, n: both(text, references[n]).rouge1,
        "similarity": similarity,
    }


def _popular(entities: Sequence[Entity]) -> np.ndarray | None:
    """Which half of the entities is the popular one; None where it is not known, or all are alike."""
    known = [e.popular for e in entities if e.popular is not None]
    if len(known) < len(entities) or min(known) == max(known):
        return None
    return np.array(known) > np.median(known)


def _groups_by_popularity(popular: np.ndarray | None) -> list[tuple[str, np.ndarray | None]]:
    return [("all", None)] if popular is None else [("all", None), ("popular", popular), ("rare", ~popular)]


def _selected_layer(name: str, group: str, scored: ControlledScores, mine: np.ndarray | None) -> dict[str, Any]:
    """One score of one group: its own layer selected, beside the best in hindsight and the mean of all."""
    group_scores = scored if mine is None else replace(scored, scores={w: s[mine] for w, s in scored.scores.items()})
    layers = " or ".join(str(source) for source in dict.fromkeys(s for s, _ in group_scores.chosen()))
    row = {"score": name, "entities": group, "layer": layers, **group_scores.row()}
    for kind in ("oracle", "mean"):
        whole = group_scores.row(kind=kind)
        row |= {f"{way}, {kind}": whole[way] for way in (VECTOR, RANDOM, SHUFFLED)}
    return row


def _popular_less_rare(name: str, scored: ControlledScores, popular: np.ndarray) -> dict[str, Any]:
    """Popular less rare entities, each way in the layer selected on the other half of all of them."""
    return {"score": name} | {
        f"popular - rare, {way}": group_difference(scored.selection(way).items_selected, popular)
        for way in (VECTOR, SHUFFLED, RANDOM, TEXT)
    }


def _short_row(row: dict[str, Any]) -> dict[str, Any]:
    return {k: row[k] for k in ("layer", *CONDITIONS, f"vector - {SHUFFLED}", f"vector - {TEXT}")}


def _contaminated(
    entities: Sequence[Entity], own: ControlledTexts, below: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Per layer: what is said as if nothing had been patched, and as if the demonstrations had been, by `below`."""
    shown = re.sub(r"\s*x$", "", _prompt())
    references = [e.description for e in entities]
    unpatched = str(own.texts[NONE][0, 0])

    def copies(texts: Any) -> Estimate:
        return mean([copied(description_in(str(t)), r, shown) for t, r in zip(texts, references, strict=True)])

    plain, with_text = (copies(own.texts[way][:, 0]) for way in (NONE, TEXT))
    rows = []
    for at, (layer, _) in enumerate(own.cells):
        texts = {name: [str(t) for t in table[:, at]] for name, table in below.items()}
        close = {
            b: [rouge(description_in(t), r).rougeL for t, r in zip(texts[b], references, strict=True)] for b in texts
        }
        row: dict[str, Any] = {"layer": layer}
        if compared_words(unpatched):
            row |= {f"Rouge1 with no patch, {b}": mean([rouge(t, unpatched).rouge1 for t in texts[b]]) for b in texts}
        named_by = [
            bool(_long(description_in(t)) & _long(e.name)) for t, e in zip(texts["target"], entities, strict=True)
        ]
        row |= {"says its name": mean(named_by), "says a demonstration's word": copies(texts["target"])}
        row |= {"the same, no patch": plain, "the same, text": with_text}
        row |= {f"RougeL, {b} - target": difference(close[b], close["target"]) for b in close if b != "target"}
        rows.append(row)
    return rows


def _examples(setting: Setting, how: dict[str, Any]) -> list[dict[str, Any]]:
    """What is said of a few entities, as it is said, by layer; the last line is what their names alone say."""
    names = list(EXAMPLES)

    def compute() -> dict[str, Any]:
        lm, scope = setting.lm, _scope(setting)
        options: Any = {"max_new_tokens": how["tokens"], "stop": "\n"}
        with setting.progress("examples") as advance:
            grid = scope.generate(
                lm.read(after_document_mark(lm, names), how["layers"], -1), progress=advance, **options
            )
        return {
            "vector": texts_by_cell(grid)[1].tolist(),
            "text": continue_texts(lm, prompts_with_text(scope, names), **options),
        }

    texts = setting.cached("entities-examples", compute, names=names, **how)
    lines = [*zip(map(str, how["layers"]), zip(*texts["vector"], strict=True), strict=True), (TEXT, texts["text"])]
    return [
        {"layer": layer, **{name: text.strip() for name, text in zip(names, line, strict=True)}}
        for layer, line in lines
    ]


def _entities_reading(
    scored: dict[str, ControlledScores], popular: np.ndarray | None, contaminated: Sequence[dict[str, Any]]
) -> str:
    sentences = []
    for name in SCORES:
        worth = scored[name]
        row, chosen = worth.row(), sorted({source for source, _ in worth.chosen()})
        items = worth.selection().items_selected
        curve = worth.scores[VECTOR]
        after = difference(items, curve[:, -1])
        before = difference(items, curve[:, 0])
        verdict = (
            "replicates"
            if after.low > 0 and before.low > 0
            else "replicates in part"
            if after.low > 0
            else ("does not replicate")
        )
        sentences.append(
            f"That {name} rises and falls over layers {verdict}: {interval(row[VECTOR])} at a layer selected on other "
            f"entities ({' or '.join(map(str, chosen))}), {interval(before)} above layer {worth.cells[0][0]} and "
            f"{interval(after)} above layer {worth.cells[-1][0]}. The state less its controls: less another entity's "
            f"state {interval(row[f'vector - {SHUFFLED}'])}, less a random vector "
            f"{interval(row[f'vector - {RANDOM}'])}, less the name as text {interval(row[f'vector - {TEXT}'])}."
        )
    if popular is not None:
        gaps = []
        for name in SCORES:
            gap = group_difference(scored[name].selection().items_selected, popular)
            other = group_difference(scored[name].selection(SHUFFLED).items_selected, popular)
            gaps.append(f"{name} {interval(gap)} ({interval(other)} with another entity's state)")
            if name == "RougeL":
                verdict = "replicates" if gap.low > 0 else "does not replicate"
        sentences.append(f"Popular above rare entities {verdict} in RougeL. The difference: {', '.join(gaps)}.")
    layers = [row["layer"] for row in contaminated]
    for what, column in (
        ("What the prompt says without a patch", "Rouge1 with no patch, target"),
        ("Words of the prompt's own demonstrations", "says a demonstration's word"),
    ):
        if column in contaminated[0]:
            depth = spearman(layers, [row[column].value for row in contaminated])
            trend = "more" if depth.low > 0 else "less" if depth.high < 0 else "neither more nor less"
            sentences.append(
                f"{what}: {trend} of it with depth (Spearman {interval(depth)}; {interval(contaminated[0][column])} at "
                f"layer {layers[0]}, {interval(contaminated[-1][column])} at layer {layers[-1]})."
            )
    for below in ("none", "source"):
        differences: list[Estimate] = [row[k] for row in contaminated if (k := f"RougeL, {below} - target") in row]
        if differences:
            more, less = surely(differences)
            sentences.append(
                f"With {'nothing' if below == 'none' else 'the source’s states'} of the placeholder below the patched "
                f"layer, RougeL is higher at {more} and lower at {less} of {len(differences)} layers."
            )
    return "\n".join(sentences)


def _entities_figure(
    scored: dict[str, ControlledScores], popular: np.ndarray | None, contaminated: Sequence[dict[str, Any]]
) -> Figure:
    panels = []
    for name in (SCORES[0], SCORES[2]):
        layers = scored[name].by_layer()
        x = [row["layer"] for row in layers]
        lines = [curve(way, x, [row[way] for row in layers], way != VECTOR) for way in CONDITIONS]
        panels.append(Panel(name, "layer", name, lines))
    worth = scored["RougeL"]
    x = [source for source, _ in worth.cells]
    if popular is not None:
        groups = [
            (way, group, mine) for way in (VECTOR, SHUFFLED) for group, mine in _groups_by_popularity(popular)[1:]
        ]
        lines = [
            curve(f"{group}, {way}", x, [mean(column[mine]) for column in worth.scores[way].T], way == SHUFFLED)
            for way, group, mine in groups
        ]
        panels.append(Panel("RougeL, popular and rare", "layer", "RougeL", lines))
    names = [k for k in contaminated[0] if k.startswith("Rouge1")]
    if names:
        lines = [curve(k.partition(", ")[2], x, [row[k] for row in contaminated]) for k in names]
        panels.append(Panel("Contamination: as without a patch", "layer", "Rouge1 with no patch", lines))
    names = [k for k in contaminated[0] if "demonstration" in k or k.startswith("the same")]
    lines = [curve(k, x, [row[k] for row in contaminated], k.startswith("the same")) for k in names]
    panels.append(Panel("Contamination: the demonstrations", "layer", "share of descriptions", lines))
    names = [k for k in contaminated[0] if k.startswith("RougeL")]
    if names:
        lines = [curve(k.partition(", ")[2], x, [row[k] for row in contaminated]) for k in names]
        panels.append(Panel("RougeL by what is below the patch", "layer", "difference", lines, level=0))
    return Figure("entities", panels)


EXPERIMENT = Experiment(
    data="JSONL with name, description, popularity_percentile", lens=False, verbaliser=True, run=_run_entities
)
