"""Two-hop questions whose single hops a model answers: the first hop's state patched into the second, and back.

Knows: which questions are asked and after which demonstrations, the grids, their controls, tests, the reading.
Does not know: how states are patched, how cells are selected (statistics/selection.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lenscope.display.figures import Figure
from lenscope.display.panels import Heatmap, Panel
from lenscope.experiments.definition import Experiment
from lenscope.experiments.estimates_shown import curve
from lenscope.experiments.patchscopes_paper.multihop_patches import (
    LEAST_CHAINS,
    PLAIN,
    SHOTS,
    STYLES,
    THOUGHT_TOKENS,
    Kind,
    PatchedTexts,
    back_patched_texts,
    chains_with_other_answers,
    cot_texts,
    kinds_of,
    known_kinds,
    plain_answers,
)
from lenscope.experiments.report import Report
from lenscope.experiments.setting import Setting
from lenscope.patchscopes.control_runs import NONE, RANDOM, SHUFFLED, TEXT, VECTOR
from lenscope.statistics.estimates import mean
from lenscope.statistics.intervals import interval
from lenscope.statistics.selection import SPLITS, crossed
from lenscope.statistics.significance import paired_tests
from lenscope.tasks.relation_files import load_chains
from lenscope.tasks.relations import Chain, builtin_chains
from lenscope.tasks.text_match import mentions

CLAIM = (
    "Ghandeharioun et al. 2024, §5, Fig. 12, Table 8: of 46 two-hop questions whose single hops Vicuna-13B answers, it "
    'answers 19.57 %, after "Let\'s think step by step" 35.71 %, and the CoT Patchscope 50 %: the state of the first '
    "hop's last token patched into the second hop's prompt, right if any of 1,600 pairs of layers is right. "
    "Back-patching writes a state into an earlier layer of its own prompt; it mends up to 66 % of what was wrong, by "
    "the same count (Biran et al. 2024)."
)
# questions that are tried
TRIED = {"quick": 112, "full": 400}
# every so many layers
STEP = {"quick": 4, "full": 3}
# tokens of an answer
TOKENS = {"quick": 6, "full": 8}
COT, BACK = "CoT Patchscope", "back-patching"


@dataclass(frozen=True, eq=False)
class _Grid:
    """Whether each chain is answered in each cell: by source of the vector (N, C), both styles one after the other."""

    cells: tuple[tuple[int, int], ...]
    right: Mapping[str, np.ndarray]
    # the same texts, taken for answers to another chain's question
    other: Mapping[str, np.ndarray]


def _run_multihop(setting: Setting) -> Report:
    """Every way of asking and patching, in hindsight, in cells selected on the other half, and in the mean cell."""
    lm = setting.lm
    new = setting.choose(**TOKENS)
    layers = list(range(0, lm.n_layers + 1, setting.choose(**STEP)))
    kinds, hops = known_kinds(setting, kinds_of(_chains(setting), setting.choose(**TRIED), setting.seed))
    chains = [c for kind in kinds for c in kind.chains]
    how: dict[str, Any] = {"questions": [c.questions[2] for c in chains], "tokens": new}
    asked = plain_answers(setting, kinds, how)
    right = {name: np.array([_says(t, c) for t, c in zip(texts, chains, strict=True)]) for name, texts in asked.items()}
    others = chains_with_other_answers(kinds, setting.seed)
    other = {
        name: np.array([_says(t, chains[m]) for t, m in zip(texts, others, strict=True)])
        for name, texts in asked.items()
    }
    grids = {
        COT: _grid(cot_texts(setting, kinds, layers, how), chains, others),
        BACK: _grid(back_patched_texts(setting, kinds, layers, how), chains, others),
    }
    units = [f"{c.name}: {c.bridge}" for c in chains]
    failed = ~right[PLAIN[0]]
    tables: dict[str, Any] = {"all": _rows(right, other, grids, units, setting.seed)}
    if len({u for u, f in zip(units, failed, strict=True) if f}) >= LEAST_CHAINS:
        grids_failed = {
            name: _Grid(g.cells, _rows_of_arrays(g.right, failed), _rows_of_arrays(g.other, failed))
            for name, g in grids.items()
        }
        mine = [u for u, f in zip(units, failed, strict=True) if f]
        tables["composition wrong"] = _rows(
            _rows_of_arrays(right, failed), _rows_of_arrays(other, failed), grids_failed, mine, setting.seed
        )
    tests = _tests(right, grids, units, setting.seed)
    tables["differences"] = tests
    tables["questions"] = _counts(kinds, hops, right[PLAIN[0]])
    return Report(
        experiment="multihop",
        model=lm.name,
        claim=CLAIM,
        reading=_multihop_reading(tables, len(chains), int(failed.sum())),
        tables=tables,
        figures=(_multihop_figure(tables, grids, layers),),
        settings=setting.settings(
            questions=len(chains),
            layers=layers,
            tokens=new,
            shots=SHOTS,
            thought=THOUGHT_TOKENS,
            splits=SPLITS,
            right="whole words anywhere",
        ),
        provenance=setting.provenance(),
    )


def _chains(setting: Setting) -> list[Chain]:
    return [c for path in setting.data for c in load_chains(path)] if setting.data else builtin_chains()


def _says(text: str, chain: Chain) -> bool:
    return mentions(text, chain.answer)


def _grid(patched: PatchedTexts, chains: Sequence[Chain], others: np.ndarray) -> _Grid:
    def scored(asked: Sequence[Chain]) -> dict[str, np.ndarray]:
        return {
            way: np.array([[_says(t, c) for t in row] for row, c in zip(texts, asked, strict=True)], dtype=float)
            for way, texts in patched.texts.items()
        }

    return _Grid(tuple(patched.cells), scored(chains), scored([chains[m] for m in others]))


def _rows_of_arrays(arrays: Mapping[str, np.ndarray], which: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values[which] for name, values in arrays.items()}


def _items(scores: np.ndarray, units: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """What each question scores (N,) in the best of its cells, in the cell selected on others, and on average."""
    selected = crossed(scores, units, seed)
    return {"best in hindsight": scores.max(1), "selected cell": selected, "mean cell": scores.mean(1)}


def _rows(
    right: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], grids: Mapping[str, _Grid],
    units: Sequence[str], seed: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """What each way of asking and patching answers: in hindsight, in the selected cell, in the mean one."""
    rows = []
    for name, values in right.items():
        e = mean(values, units=units)
        row = {"way": name, "cells": 1, "best in hindsight": e, "selected cell": e, "mean cell": e}
        rows.append({**row, "another's answer": mean(other[name], units=units)})
    for name, grid in grids.items():
        for way, scores in grid.right.items():
            items = _items(scores, units, seed) | {"another's answer": crossed(scores, units, seed, grid.other[way])}
            row = {"way": f"{name}: {way}", "cells": scores.shape[1]}
            rows.append(row | {kind: mean(values, units=units) for kind, values in items.items()})
    return rows


def _tests(
    right: Mapping[str, np.ndarray], grids: Mapping[str, _Grid], units: Sequence[str], seed: int
) -> list[dict[str, Any]]:
    """Paired differences on all questions, each way in a cell of its own; Holm's correction over all of them."""
    pairs: dict[str, tuple[np.ndarray, np.ndarray, Sequence[str]]] = {}
    for name, grid in grids.items():
        items = {way: _items(scores, units, seed) for way, scores in grid.right.items()}
        own, best = items[VECTOR], "selected cell"
        for plain in right:
            pairs[f"{name} - {plain}"] = own[best], right[plain], units
        for way in (w for w in items if w != VECTOR):
            pairs[f"{name} - {way}"] = own[best], items[way][best], units
        for way in (w for w in (SHUFFLED, RANDOM) if w in items):
            for kind, short in (("best in hindsight", "hindsight"), ("mean cell", "mean cell")):
                pairs[f"{name} - {way}, {short}"] = own[kind], items[way][kind], units
    return paired_tests(pairs, seed)


def _counts(kinds: Sequence[Kind], hops: Sequence[np.ndarray], right: np.ndarray) -> list[dict[str, Any]]:
    rows, at = [], 0
    for kind, tried in zip(kinds, hops, strict=True):
        count = len(kind.chains)
        row = {"kind": kind.name, "tried": len(tried), "first hop": float(tried[:, 0].mean())}
        row |= {
            "second hop": float(tried[:, 1].mean()),
            "asked": count,
            "right, few-shot": int(right[at : at + count].sum()),
        }
        rows.append({**row, "prompt": kind.chains[0].questions[2]})
        at += count
    return rows


def _multihop_reading(tables: Mapping[str, Any], count: int, failed: int) -> str:
    rows = {row["way"]: row for row in tables["all"]}
    tests = {row["comparison"]: row for row in tables["differences"]}
    asked = [name for name in PLAIN if name in rows]
    sentences = []
    for name in (COT, BACK):
        own = rows[f"{name}: {VECTOR}"]
        better = [p for p in asked if tests[f"{name} - {p}"]["difference"].low > 0]
        worse = [p for p in asked if tests[f"{name} - {p}"]["difference"].high < 0]
        verdict = (
            "replicates" if len(better) == len(asked) else "replicates in part" if better else "does not replicate"
        )
        sentences.append(
            f"That {name} answers more questions than asking {verdict}: {interval(own['selected cell'])} in a cell "
            f"(pair of layers) selected on other questions. It is above {_way_list(better)}, below {_way_list(worse)}. "
            f"The best of {own['cells']} cells in hindsight, as the paper counts, has "
            f"{interval(own['best in hindsight'])}, the mean cell {interval(own['mean cell'])}."
        )
        for way in (SHUFFLED, RANDOM):
            test, late = tests[f"{name} - {way}"], tests[f"{name} - {way}, hindsight"]
            control = rows[f"{name}: {way}"]
            sentences.append(
                f"Control: the state less {'another question’s' if way == SHUFFLED else 'a random vector'} is "
                f"{interval(test['difference'])} (p {test['p (Holm)']:.3f} after Holm) in a selected cell and "
                f"{interval(late['difference'])} in hindsight, where the control reaches "
                f"{interval(control['best in hindsight'])}."
            )
    sentences.append(
        f"Of {count} questions whose single hops the model answers, it answers "
        + ", ".join(f"{interval(rows[name]['selected cell'])} ({name})" for name in asked)
        + f"; {failed} are wrong after demonstrations."
    )
    text_test = tests.get(f"{COT} - {TEXT}")
    if text_test is not None:
        sentences.append(
            f"Control: {COT} less the first hop as text in the same prompts is {interval(text_test['difference'])}."
        )
    if "composition wrong" in tables:
        wrong = {row["way"]: row for row in tables["composition wrong"]}
        sentences.append(
            f"Of the {failed} that are wrong after demonstrations, these shares are mended: "
            + "; ".join(
                f"{name} {interval(wrong[f'{name}: {VECTOR}']['selected cell'])}, another question's state "
                f"{interval(wrong[f'{name}: {SHUFFLED}']['selected cell'])}"
                for name in (COT, BACK)
            )
            + f"; {', '.join(f'{p} ' + interval(wrong[p]['selected cell']) for p in asked[1:])}. "
            "(They were picked for being wrong, so that any change mends some: compare with the controls.)"
        )
    return "\n".join(sentences)


def _way_list(names: Sequence[str]) -> str:
    return ", ".join(f"“{name}”" for name in names) or "none of the ways to ask"


def _multihop_figure(tables: Mapping[str, Any], grids: Mapping[str, _Grid], layers: Sequence[int]) -> Figure:
    panels: list[Panel | Heatmap] = []
    grid = grids[COT]
    size = len(grid.cells)
    for way in (VECTOR, SHUFFLED):
        for n, style in enumerate(STYLES):
            share = grid.right[way].mean(0)[n * size : (n + 1) * size].reshape(len(layers), len(layers))
            panels.append(
                Heatmap(f"{COT}, {style}, {way}", "target layer", "source layer", layers, layers, share, "right")
            )
    for name in ("all", "composition wrong"):
        if name in tables:
            rows = [r for r in tables[name] if NONE not in r["way"]]
            x = [r["way"].replace(f"{COT}: ", "CoT: ").replace(f"{BACK}: ", "back: ") for r in rows]
            both = [
                curve(k, x, [r[k] for r in rows], k == "best in hindsight")
                for k in ("best in hindsight", "selected cell")
            ]
            panels.append(Panel(name, "", "share right", both, kind="bars"))
    return Figure("multihop", panels)


EXPERIMENT = Experiment(
    data="JSONL with subject, bridge, answer, hop1_prompt, hop1_phrase, hop2_template", lens=False, run=_run_multihop
)
