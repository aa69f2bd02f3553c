"""Swaps of an unsaid bridge along lenses' directions, and ablations: what the model answers then, beside controls.

Knows: which prompts and tokens, conditions, what is measured of an answer, the rows and the sentences.
Does not know: how states are edited (interventions/token_edits.py), how controls are as long (token_controls.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenscope.experiments.jacobian_lens_paper.prompt_sets import BridgeSwap
from lenscope.experiments.setting import Setting
from lenscope.interventions.token_controls import CONTROLS, control_edit
from lenscope.interventions.token_edits import TokenEdit, ablate_tokens, swap_tokens
from lenscope.lenses.lens import Lens
from lenscope.models.language_model import LM
from lenscope.models.layers import layers_in_words
from lenscope.models.prompts import Prompt
from lenscope.statistics.estimates import difference, mean
from lenscope.statistics.intervals import Estimate, interval
from lenscope.text.packing import after_document_mark

# two-hop prompts, and controls of each kind for each edit
SWAPS, SEEDS = {"quick": 8, "full": 100_000}, {"quick": 1, "full": 3}
# the first prompts of these, of which tokens are taken out: that reads the vocabulary at every layer and position
ABLATIONS = {"quick": 4, "full": 16}
# tokens whose directions an ablation takes out of each state, as in the paper
ABLATED = 10
SWAP, ABLATE = "swap", "ablate"
# why a prompt is left out
NO_TOKEN, SAME_TOKEN = "a bridge is not one token", "both bridges are the same token"
ALIKE = "the answers begin alike"
# what is measured of each prompt: whether the answer is first, whether the other one is, ln p of both
MEASURES = ("right", "other", "log_answer", "log_other")


@dataclass(frozen=True)
class BridgeTokens:
    """A two-hop prompt with the tokens that stand for its bridges and answers."""

    swap: BridgeSwap
    prompt: Prompt
    bridge: int
    other_bridge: int
    answer: int
    other_answer: int


def bridge_tokens(lm: LM, swaps: Sequence[BridgeSwap]) -> tuple[list[BridgeTokens], dict[str, int]]:
    """The prompts that can be swapped, and how many cannot, by reason.

    Bridges are single tokens, the first of " word", "word", " Word", "Word" that is one, as published. Answers are read
    behind the prompt without spaces at its end, by the first token of " answer" (a space alone is none).
    """
    prompts = after_document_mark(lm, [s.prompt.rstrip() for s in swaps])
    usable: list[BridgeTokens] = []
    left_out = dict.fromkeys((NO_TOKEN, SAME_TOKEN, ALIKE), 0)
    for swap, prompt in zip(swaps, prompts, strict=True):
        bridges = [_single_token(lm, word) for word in (swap.bridge, swap.other_bridge)]
        answers = [_first_token_with_text(lm, word) for word in (swap.answer, swap.other_answer)]
        if None in bridges:
            left_out[NO_TOKEN] += 1
        elif bridges[0] == bridges[1]:
            left_out[SAME_TOKEN] += 1
        elif answers[0] == answers[1]:
            left_out[ALIKE] += 1
        else:
            usable.append(BridgeTokens(swap, prompt, *(b for b in bridges if b is not None), *answers))
    return usable, left_out


def _single_token(lm: LM, word: str) -> int | None:
    for form in (f" {word}", word, f" {word.capitalize()}", word.capitalize()):
        ids = lm.encoder.ids(form)
        if len(ids) == 1:
            return ids[0]
    return None


def _first_token_with_text(lm: LM, word: str) -> int:
    """The first token of a word behind a space that holds some of the word."""
    ids = lm.encoder.ids(f" {word}")
    texts = lm.encoder.tokens(ids)
    return next((i for i, text in zip(ids, texts, strict=True) if text.strip()), ids[0])


def bridge_band(lm: LM, layers: Sequence[int]) -> tuple[int, ...]:
    """The layers that are edited, fixed beforehand: the middle two thirds of the model that all lenses read."""
    last = lm.n_layers
    return tuple(n for n in layers if last / 6 <= n <= 5 * last / 6) or tuple(layers)


def run_bridge_swaps(
    setting: Setting, lenses: Mapping[str, Lens], layers: Sequence[int], swaps: Sequence[BridgeSwap]
) -> dict[str, np.ndarray]:
    """What the model answers under each edit, (items, measures) each; the key says lens, edit and control.

    "unedited" is the model as it is; "LENS|swap|edit" swaps the bridges, "LENS|ablate|edit" takes the strongest tokens
    out, of the first prompts alone, and instead of "edit" stand the kinds of controls, which are means over seeds.
    """
    lm, band, seeds = setting.lm, bridge_band(setting.lm, layers), setting.choose(**SEEDS)
    items, _ = bridge_tokens(lm, swaps)
    ablated = min(setting.choose(**ABLATIONS), len(items))

    def compute() -> dict[str, np.ndarray]:
        results: dict[str, list[np.ndarray]] = {}
        with setting.progress("two-hop prompts, edited") as advance:
            for n, item in enumerate(items):
                results.setdefault("unedited", []).append(_answers_under(lm, item, None))
                for name, lens in lenses.items():
                    edits = {SWAP: swap_tokens(lens, item.bridge, item.other_bridge, list(band))}
                    if n < ablated:
                        edits[ABLATE] = ablate_tokens(lens, ABLATED, list(band))
                    for what, edit in edits.items():
                        results.setdefault(f"{name}|{what}|edit", []).append(_answers_under(lm, item, edit))
                        for control in CONTROLS:
                            several = [
                                _answers_under(lm, item, control_edit(edit, control, seed=setting.seed * 100 + s))
                                for s in range(seeds)
                            ]
                            results.setdefault(f"{name}|{what}|{control}", []).append(np.mean(several, 0))
                advance(n + 1, len(items))
        return {key: np.stack(rows) for key, rows in results.items()}

    known = [[i.swap.id, list(i.prompt.ids), i.bridge, i.other_bridge, i.answer, i.other_answer] for i in items]
    return setting.cached(
        "bridge-swaps", compute, items=known, ablated=ablated, band=list(band), lenses=list(lenses), seeds=seeds
    )


@torch.no_grad()
def _answers_under(lm: LM, item: BridgeTokens, edit: TokenEdit | None) -> np.ndarray:
    """MEASURES of a prompt's next token, under an edit or without."""
    with lm.edit(*(edit or ())):
        h: Tensor = lm.read(item.prompt, [lm.n_layers], -1)[lm.n_layers, -1]
    log = lm.unembed(h).log_softmax(-1)
    first = int(log.argmax())
    values = first == item.answer, first == item.other_answer, float(log[item.answer]), float(log[item.other_answer])
    return np.array(values, dtype=float)


def swap_rows(results: Mapping[str, np.ndarray], lenses: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """A row for each lens and condition of swaps: flipped answers, and changes of ln p in nats.

    Flips are counted of prompts whose unedited answer is right; changes are of all.
    """
    before = results["unedited"]
    right = before[:, 0] == 1
    rows = []
    for lens in lenses:
        edit = results[f"{lens}|{SWAP}|edit"]
        for condition in ("edit", *CONTROLS):
            after = results[f"{lens}|{SWAP}|{condition}"]
            moved = _odds_moved(after, before)
            rows.append({
                "lens": lens,
                "swap": "bridge → other bridge" if condition == "edit" else f"control: {condition}",
                "flipped of right": _mean_or_nothing(after[right, 1], seed),
                "Δ ln p answer": _mean_or_nothing(after[:, 2] - before[:, 2], seed),
                "Δ ln p other answer": _mean_or_nothing(after[:, 3] - before[:, 3], seed),
                "Δ ln odds": _mean_or_nothing(moved, seed),
                "Δ ln odds, edit minus control": None if condition == "edit" else difference(
                    _odds_moved(edit, before), moved, seed=seed
                ),
            })  # fmt: skip
    return rows


def _odds_moved(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """By how much ln p of the other answer rose over that of the answer."""
    return np.asarray((after[:, 3] - before[:, 3]) - (after[:, 2] - before[:, 2]))


def _mean_or_nothing(values: np.ndarray, seed: int) -> Estimate:
    return mean(values, seed=seed) if len(values) else Estimate(np.nan, np.nan, np.nan)


def ablation_rows(results: Mapping[str, np.ndarray], lenses: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """A row for each lens and condition of ablations: answers that stay right, and the change of ln p in nats."""
    before = results["unedited"][: len(results[f"{lenses[0]}|{ABLATE}|edit"])]
    right = before[:, 0] == 1
    rows = []
    for lens in lenses:
        edit = results[f"{lens}|{ABLATE}|edit"]
        for condition in ("edit", *CONTROLS):
            after = results[f"{lens}|{ABLATE}|{condition}"]
            rows.append({
                "lens": lens,
                "taken out": f"{ABLATED} strongest tokens" if condition == "edit" else f"control: {condition}",
                "prompts": len(after),
                "still right of right": _mean_or_nothing(after[right, 0], seed),
                "Δ ln p answer": _mean_or_nothing(after[:, 2] - before[:, 2], seed),
                "Δ ln p answer, edit minus control": None if condition == "edit" else difference(
                    edit[:, 2], after[:, 2], seed=seed
                ),
            })  # fmt: skip
    return rows


def swap_reading(
    results: Mapping[str, np.ndarray], rows: Sequence[Mapping[str, Any]], ablated: Sequence[Mapping[str, Any]],
    left_out: Mapping[str, int], band: Sequence[int],
) -> list[str]:  # fmt: skip
    """What the swaps and ablations say, in sentences."""
    before = results["unedited"]
    right, count = int(before[:, 0].sum()), len(before)
    missing = left_out_in_words(left_out)
    answered = f"{right} right unedited" if right else "none right unedited, so that no right answer can flip"
    lines = [
        f"Swaps of the unsaid bridge ({layers_in_words(band)}, fixed beforehand; {count} two-hop prompts, of which "
        f"the model answers {answered}{'; left out: ' + missing if missing else ''}): "
        + "; ".join(_swap_sentence([row for row in rows if row["lens"] == lens]) for lens in _lenses_of(rows))
        + "."
    ]
    parts = []
    for lens in _lenses_of(ablated):
        edit, *controls = [row for row in ablated if row["lens"] == lens]
        against = ", ".join(f"{c['taken out']} {interval(c['Δ ln p answer'])}" for c in controls)
        parts.append(f"{lens} {interval(edit['Δ ln p answer'])} ({against})")
    lines.append(
        f"Taking out the {ABLATED} strongest tokens changes ln p of the answer, in {ablated[0]['prompts']} prompts, "
        f"by: {'; '.join(parts)}."
    )
    return lines


def left_out_in_words(left_out: Mapping[str, int]) -> str:
    """How many prompts were left out for which reason; empty where none was."""
    return "; ".join(f"of {n} {why}" for why, n in left_out.items() if n)


def _lenses_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["lens"] for row in rows))


def _swap_sentence(rows: Sequence[Mapping[str, Any]]) -> str:
    edit, *controls = rows
    gaps = [c["Δ ln odds, edit minus control"] for c in controls]
    verdict = "more than every control" if all(g.low > 0 for g in gaps) else "not surely more than every control"
    flips, odds = edit["flipped of right"], edit["Δ ln odds"]
    flipped = "" if np.isnan(flips.value) else f"flips {interval(flips)} of these and "
    return (
        f"{edit['lens']} {flipped}moves the other answer's odds by {interval(odds)} nats, {verdict} "
        f"({', '.join(interval(c['Δ ln odds']) for c in controls)})"
    )
