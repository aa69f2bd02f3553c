"""Example difficulty (Belrose et al. 2023, §5.3, Table 2): whether what is predicted late in depth is learned late.

Knows: when an example was learned and at which depth it is predicted; what else could make the two agree.
Does not know: which training is looked at (difficulty_training.py), which places of text are examples
(difficulty_examples.py).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lenscope.display.figures import Figure
from lenscope.display.panels import Panel, Series
from lenscope.experiments.definition import Experiment
from lenscope.experiments.estimates_shown import curve
from lenscope.experiments.report import Report, prose
from lenscope.experiments.setting import Setting, content
from lenscope.experiments.tuned_lens_paper.difficulty_examples import (
    Examples,
    count_tokens,
    counting_surprisals,
    next_token_examples,
)
from lenscope.experiments.tuned_lens_paper.difficulty_training import Study, fit_lens, training_to_study
from lenscope.lenses.lens import Lens
from lenscope.mappings.mapping import PairMapping
from lenscope.measures.definitions import prediction_depth
from lenscope.models.identity import model_hash
from lenscope.models.language_model import LM
from lenscope.models.prompts import Prompt
from lenscope.models.provenance import provenance
from lenscope.statistics.estimates import mean
from lenscope.statistics.intervals import Estimate
from lenscope.statistics.rank_correlations import correlations, shuffled_within

CLAIM = (
    "Belrose et al. 2023, §5.3, Table 2: what a model learns late in training it predicts late in depth. Prediction "
    "depth is the first layer from which on the top token never changes again, iteration learned the first checkpoint "
    "of which the same is true. Their Spearman correlation (Pythia-12B, 142 checkpoints, 11 tasks) is up to .66, and "
    "higher with the tuned than with the logit lens on 8 of 11 tasks (e.g. QQP .585 against -.340, QNLI .409 against "
    "-.099)."
)

# tokens that are measured
MEASURED = {"quick": 12_288, "full": 24_576}
# tokens whose frequencies are counted
COUNTED = 1_000_000
# tokens that make a task
TASK = 100
# how far the early checkpoint is, whose depths are a control
EARLY = 0.1

ENTROPY, RARITY = "entropy of the last prediction", "rarity of the predicted token"
MARGIN = "closeness of its first two tokens"
DEPTH = "prediction depth, tuned lens"
TUNED, LOGIT, APART = "tuned lens", "logit lens", "tuned - logit"


class Seen(NamedTuple):
    """What is read at N places: the top token of every layer (L, N); of the last one, (N,) each, how sure it is.

    That is its entropy, the surprisal of the right token, and the difference in log-probability of its first two.
    """

    top: Tensor
    surprisal: Tensor
    entropy: Tensor
    margin: Tensor


def _run_difficulty(setting: Setting) -> Report:
    """Train a small model, or take the checkpoints beside a given one, and compare depths with iterations learned."""
    with training_to_study(setting) as study:
        return _report(setting, study)


# -- what is seen


def _see(lm: LM, f: PairMapping | None, rows: Sequence[tuple[list[int], list[int]]], layers: Sequence[int]) -> Seen:
    """What a lens, or the model itself at its last layer, predicts at all places."""
    prompts: list[str | Prompt] = [lm.prompt(ids) for ids, _ in rows]
    read = Lens(lm, f).trajectory(prompts, layers, top_k=2)
    both = list(zip(read, (at for _, at in rows), strict=True))
    return Seen(
        torch.from_numpy(np.concatenate([t.top_ids[:, at, 0] for t, at in both], 1)),
        torch.from_numpy(np.concatenate([t.cross_entropy[-1, at] for t, at in both])),
        torch.from_numpy(np.concatenate([t.entropy[-1, at] for t, at in both])),
        torch.from_numpy(np.concatenate([t.top_log_probs[-1, at, 0] - t.top_log_probs[-1, at, 1] for t, at in both])),
    )


def _learning(setting: Setting, study: Study, places: Examples) -> tuple[Tensor, Tensor]:
    """Of every checkpoint: the top tokens and the surprisal of the right ones, (C, N) each."""
    steps, last = study.checkpoints.steps, (study.lm.n_layers,)

    def compute() -> tuple[Tensor, Tensor]:
        done = []
        with setting.progress("checkpoints") as advance:
            for n, step in enumerate(steps):
                done.append(_see(study.checkpoints.load(step), None, places.rows, last))
                advance(n + 1, len(steps))
        return torch.cat([d.top for d in done]).to(torch.int32), torch.stack([d.surprisal for d in done])

    return setting.cached("learning", compute, **_inputs(study, places))


def _inputs(study: Study, places: Examples) -> dict[str, Any]:
    """What the numbers depend on beside the setting."""
    return {
        "checkpoints": [[step, content(study.checkpoints.path(step))] for step in study.checkpoints.steps],
        "model": model_hash(study.lm.model),
        "text": study.held.provenance(),
        "examples": [len(places.rows), len(places.target)],
    }


# -- the report


def _report(setting: Setting, study: Study) -> Report:
    lm, steps = study.lm, study.checkpoints.steps
    places = next_token_examples(study.held, setting.choose(**MEASURED))
    top_tokens, surprisals = _learning(setting, study, places)
    final = _see(lm, None, places.rows, range(lm.n_layers + 1))
    tuned = _see(lm, study.translators, places.rows, range(lm.n_layers + 1))
    depths = [prediction_depth(seen.top).numpy() for seen in (tuned, final)]
    learned = prediction_depth(top_tokens).numpy()
    top = final.top[-1].numpy()
    known = count_tokens(study.text, COUNTED)
    own = -np.log1p(known.tokens[np.stack([top, places.target])])
    confidence = [final.entropy.numpy(), final.surprisal.numpy(), -final.margin.numpy()]
    earlier = _earlier(setting, study, places)
    compared = partial(_correlations_with_learning, learned, document=places.document, seed=setting.seed)
    controls = {
        "as in the paper": compared(depths),
        "depths shuffled": compared([shuffled_within(d, np.zeros(len(d)), setting.seed) for d in depths]),
        "shuffled among examples with the same prediction": compared(
            [shuffled_within(d, top, setting.seed) for d in depths]
        ),
        "examples with the same prediction": compared(depths, within=top),
        "given the frequency of the predicted and the right token": compared(depths, given=own),
        "given entropy, surprisal and margin": compared(depths, given=confidence),
        "given all five": compared(depths, given=[*own, *confidence]),
        "same prediction, given entropy, surprisal and margin": compared(depths, within=top, given=confidence),
        **{f"depths in the model of step {step}": compared(d) for step, d in earlier.items()},
    }
    right = top == places.target
    tasks = {name: places.task == name for name in sorted({*places.task})}
    tasks = {"all": np.ones(len(top), dtype=bool), **{n: which for n, which in tasks.items() if which.sum() >= TASK}}
    rows = [
        {
            "task": name,
            "examples": int(which.sum()),
            "right": mean(right[which], units=places.document[which], seed=setting.seed),
            **_correlations_with_learning(
                learned[which], [d[which] for d in depths], document=places.document[which], seed=setting.seed
            ),
        }
        for name, which in tasks.items()
    ]
    only = _correlations_with_learning(
        learned[right], [d[right] for d in depths], document=places.document[right], seed=setting.seed
    )
    never = _correlations_with_learning(
        np.where(right, learned, len(steps)), depths, document=places.document, seed=setting.seed
    )
    controls = {**controls, "right in the end and from then on": only, "the same, never right counting as last": never}
    others = {
        DEPTH: depths[0],
        "prediction depth, logit lens": depths[1],
        ENTROPY: confidence[0],
        "surprisal of the right token": confidence[1],
        MARGIN: confidence[2],
        RARITY: own[0],
    }
    spearmans = correlations(learned, list(others.values()), places.document, seed=setting.seed)
    predictors = dict(zip(others, spearmans, strict=False))
    surprisal = surprisals.double().mean(1).numpy()
    unigram, bigram = counting_surprisals(known, places.before, places.target)
    tables: dict[str, Any] = {
        "Spearman of depth and iteration learned": rows,
        "controls": [{"control": name, **row} for name, row in controls.items()],
        "what goes with iteration learned": [{"of all examples": n, "Spearman": v} for n, v in predictors.items()],
        "surprisal of held-out text in nats": [
            {"model": "frequencies of tokens", "nats": unigram},
            {"model": "frequencies behind the token before", "nats": bigram},
            *({"model": f"step {steps[n]}", "nats": surprisal[n]} for n in _ten(len(steps))),
        ],
    }
    settings = {
        **study.about,
        "checkpoints": list(steps),
        "measured_on": f"{len(top):,} tokens in {len(places.rows)} rows, {len({*places.document.tolist()})} documents",
    }
    reading = _difficulty_reading(rows, controls, predictors, (unigram, bigram, float(surprisal[-1])), list(earlier))
    figures = (_difficulty_figure(rows, depths, learned, steps, surprisal, (unigram, bigram)),)
    made_with = {**provenance(lm), "lens": study.translators.report}
    return Report("difficulty", study.name, CLAIM, reading, tables, figures, settings, made_with)


def _correlations_with_learning(learned: np.ndarray, depths: Sequence[np.ndarray], **how: Any) -> dict[str, Estimate]:
    return dict(zip((TUNED, LOGIT, APART), correlations(learned, depths, **how), strict=True))


def _earlier(setting: Setting, study: Study, places: Examples) -> dict[int, list[np.ndarray]]:
    """Depths with both lenses in the first and in an early checkpoint, each with a tuned lens of its own, by step."""
    steps = study.checkpoints.steps
    early = min(steps[1:-1], key=lambda s: abs(s - EARLY * steps[-1]))

    def compute() -> dict[int, list[np.ndarray]]:
        depths = {}
        for step in (steps[0], early):
            lm = study.checkpoints.load(step)
            f = fit_lens(setting, replace(study.text, lm=lm), None)
            seen = [_see(lm, g, places.rows, range(lm.n_layers + 1)) for g in (f, None)]
            depths[step] = [prediction_depth(s.top).numpy() for s in seen]
        return depths

    return setting.cached("earlier", compute, **_inputs(study, places))


def _ten(count: int) -> list[int]:
    """About ten of so many checkpoints, the first and the last with them."""
    return sorted({round(n * (count - 1) / 10) for n in range(11)})


def _difficulty_reading(
    rows: Sequence[dict[str, Any]],
    controls: dict[str, dict[str, Estimate]],
    predictors: dict[str, Estimate],
    nats: tuple[float, float, float],
    earlier: Sequence[int],
) -> str:
    whole, tasks = controls["as in the paper"], rows[1:]
    learned = whole[TUNED].low > 0
    ahead = [r["task"] for r in tasks if r[APART].value > 0]
    surely = [r["task"] for r in tasks if r[APART].low > 0]
    better = whole[APART].low > 0 and len(ahead) > len(tasks) / 2
    beyond = controls["given all five"][TUNED]
    same = controls["examples with the same prediction"][TUNED]
    constant = controls["shuffled among examples with the same prediction"][TUNED]
    entropy, margin, rarity, depth = (predictors[n] for n in (ENTROPY, MARGIN, RARITY, DEPTH))
    without_lens = max(entropy.value, margin.value, rarity.value)
    first, early = (controls[f"depths in the model of step {step}"][TUNED] for step in earlier)
    unigram, bigram, final = nats
    parts = [
        f"{'Replicates' if learned else 'Does not replicate'}: tokens that are predicted late in depth "
        f"{'are' if learned else 'are not reliably'} learned late in training, Spearman {prose(whole[TUNED])} with the "
        f"tuned lens and {prose(whole[LOGIT])} with the logit lens.",
        f"{'Replicates' if better else 'Does not replicate'}: the tuned lens is {'' if better else 'not '}better than "
        f"the logit lens. It differs by {prose(whole[APART])} on all examples and is ahead on {len(ahead)} of "
        f"{len(tasks)} tasks, reliably on {len(surely)}.",
        "Control: which token is predicted explains a part, since some tokens come early in depth and in training "
        f"wherever they stand. Depths shuffled among examples with the same prediction still give {prose(constant)} "
        f"with the tuned lens; among examples with the same prediction {prose(same)} remains.",
        f"Control: depth {'says more' if beyond.low > 0 else 'does not reliably say more'} than confidence and "
        "frequency. With the last model's entropy, surprisal and margin of the first two tokens, and the frequencies "
        f"of the tokens, held fixed, {prose(beyond)} remains of {prose(whole[TUNED])}.",
        f"Control: without any lens the entropy has a correlation of {prose(entropy)} with iteration learned, a small "
        f"margin {prose(margin)}, how rare the predicted token is {prose(rarity)}: "
        f"{'less' if without_lens < depth.value else 'no less'} than depth.",
        f"Control: depths in the model of step {earlier[0]} give {prose(first)}, in that of step {earlier[1]} "
        f"{prose(early)}.",
        f"The last checkpoint's loss is {final:.2f} nats a token on held-out text, "
        f"{'below' if final < bigram else 'not below'} that of a model of pairs of tokens ({bigram:.2f}; of single "
        f"tokens: {unigram:.2f}). This is one training: intervals are over documents, not over trainings.",
    ]
    return "\n".join(parts)


def _difficulty_figure(
    rows: Sequence[dict[str, Any]],
    depths: Sequence[np.ndarray],
    learned: np.ndarray,
    steps: Sequence[int],
    surprisal: np.ndarray,
    nats: tuple[float, float],
) -> Figure:
    names = [r["task"] for r in rows]
    bars = [curve(lens, names, [r[lens] for r in rows]) for lens in (TUNED, LOGIT)]
    seen = [n for n in range(len(steps)) if (learned == n).any()]
    lines = [
        Series(lens, [steps[n] for n in seen], [float(d[learned == n].mean()) for n in seen])
        for lens, d in zip((TUNED, LOGIT), depths, strict=True)
    ]
    course = [
        Series("this model", steps, surprisal.tolist()),
        *(
            Series(name, (steps[0], steps[-1]), (v, v), dashed=True)
            for name, v in zip(("single tokens", "pairs"), nats, strict=True)
        ),
    ]
    return Figure(
        "difficulty",
        (
            Panel("prediction depth and iteration learned", "", "Spearman", bars, kind="bars", level=0.0),
            Panel("depth of what is learned at a step", "step", "mean prediction depth", lines),
            Panel("held-out text", "step", "nats a token", course),
        ),
    )


EXPERIMENT = Experiment(data="text", run=_run_difficulty)
