"""Example difficulty (Belrose et al. 2023, §5.3, Table 2): whether what is predicted late in depth is learned late.

Knows: the small model that is trained for it, or the given one whose checkpoints are taken instead; when an example was
learned and at which depth it is predicted; what else could make the two agree.
Does not know: how models are trained (fitting/pretraining.py), which places of text are examples
(difficulty_examples.py).
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lenscope.display.figures import Figure, Panel, Series
from lenscope.errors import LenscopeError
from lenscope.experiments.definition import Experiment
from lenscope.experiments.estimates_shown import curve
from lenscope.experiments.report import Report, prose
from lenscope.experiments.setting import HELD_OUT, Setting, content
from lenscope.experiments.tuned_lens_paper.difficulty_examples import (
    Examples,
    count_tokens,
    counting_surprisals,
    next_token_examples,
)
from lenscope.fitting.pretraining import NAMED, Checkpoints, Plan, blank, pretrain
from lenscope.fitting.tuned_lens import fit
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
from lenscope.text.corpus import Corpus
from lenscope.text.documents import find_documents
from lenscope.text.installed import installed_texts

CLAIM = (
    "Examples that a model learns late in training it predicts late in depth: Spearman's correlation of prediction "
    "depth and iteration learned (both: the first index from which on the top-1 never changes again) for Pythia-12B, "
    "142 checkpoints, 11 tasks. With the tuned lens it is higher than with the logit lens on 8 of 11 (e.g. QQP .585 "
    "against -.340, QNLI .409 against -.099) and up to .66 (§5.3, Table 2)."
)

# how the model is trained, tokens that are measured, tokens that a lens is fitted on
PLANS = {"quick": Plan(steps=320, every=10), "full": Plan(steps=900, every=18)}
MEASURED = {"quick": 12_288, "full": 24_576}
FITTED = {"quick": 25_000, "full": 50_000}
# characters that the vocabulary is learned from, tokens whose frequencies are counted
LEARNED_FROM, COUNTED = 4_000_000, 1_000_000
# times that a training may read its text
EPOCHS = 64
# checkpoints beside a given model that make a training, tokens that make a task
FEWEST, TASK = 5, 100
# how far the early checkpoint is, whose depths are a control
EARLY = 0.1

ENTROPY, RARITY = "entropy of the last prediction", "rarity of the predicted token"
MARGIN = "closeness of its first two tokens"
DEPTH = "prediction depth, tuned lens"
TUNED, LOGIT, APART = "tuned lens", "logit lens", "tuned - logit"


class Study(NamedTuple):
    """A training to look at: its checkpoints, the last model, text to fit lenses on, held-out text, what was done."""

    name: str
    checkpoints: Checkpoints
    lm: LM
    text: Corpus
    held: Corpus
    translators: PairMapping
    about: dict[str, Any]


class Seen(NamedTuple):
    """What is read at N places: the top token of every layer (L, N); of the last one, (N,) each, how sure it is.

    That is its entropy, the surprisal of the right token, and the difference in log-probability of its first two.
    """

    top: Tensor
    surprisal: Tensor
    entropy: Tensor
    margin: Tensor


def _run(setting: Setting) -> Report:
    """Train a small model, or take the checkpoints beside a given one, and compare depths with iterations learned."""
    with _study(setting) as study:
        return _report(setting, study)


# -- what is studied


@contextmanager
def _study(setting: Setting) -> Iterator[Study]:
    source = Path(setting.lm.source)
    beside = Checkpoints.in_folder(source.parent) if NAMED.fullmatch(source.name) else Checkpoints(source, ())
    if len(beside.steps) >= FEWEST:
        yield _given(setting, beside)
        return
    if setting.lens is not None:
        raise LenscopeError(
            f"--lens: applies to a checkpoint that has {FEWEST} or more beside it; {setting.lm.name} has none, and a "
            "model is trained here with a lens of its own; leave it out"
        )
    if setting.folder is not None:
        yield _trained(setting, setting.folder)
        return
    with tempfile.TemporaryDirectory(prefix="lenscope-") as folder:
        yield _trained(setting, Path(folder))


def _given(setting: Setting, beside: Checkpoints) -> Study:
    if not setting.text:
        raise LenscopeError(
            f"{beside.folder}: to look at checkpoints of your own give text that they were not trained on"
        )
    last = max(s for s in beside.steps if beside.path(s) == Path(setting.lm.source))
    steps = tuple(s for s in beside.steps if s <= last)
    if len(steps) < FEWEST:
        raise LenscopeError(
            f"{setting.lm.source}: has {len(steps)} checkpoints up to its own; give the training's last"
        )
    text, held = setting.corpus.split(HELD_OUT)
    translators = setting.translators
    about = setting.settings(trained=f"not here: the checkpoints of {beside.folder} up to step {last}")
    return Study(setting.lm.name, replace(beside, steps=steps), setting.lm, text, held, translators, about)


def _trained(setting: Setting, folder: Path) -> Study:
    plan = setting.choose(**PLANS)
    data: Any = [Path(t) for t in setting.text] or installed_texts()
    documents = (d for d in find_documents(data).read(setting.seed, 0) if isinstance(d, str))
    start = blank(_up_to(LEARNED_FROM, documents), seed=setting.seed)
    text, held = Corpus.open(start, data, seed=setting.seed, epochs=EPOCHS).split(HELD_OUT)
    with setting.progress("tokens of training") as advance:
        checkpoints = pretrain(text, plan, folder / "pretrained", progress=advance)
    lm = checkpoints.load(plan.steps)
    text, held = (replace(c, lm=lm, epochs=1) for c in (text, held))
    place = setting.place("lens", model=model_hash(lm.model), text=text.provenance())
    f = _fitted(setting, text, place or folder / "lens")
    size = sum(p.numel() for p in lm.model.parameters())
    about = {
        "quick": setting.quick,
        "seed": setting.seed,
        "text": list(setting.text) or "Python's language reference and what the installed packages say of themselves",
        "trained": f"here, from random weights: {start.name}, V {lm.vocab_size}, {size:,} parameters",
        "plan": vars(plan),
        "tokens": plan.steps * plan.rows * text.length,
        "lens": f"fitted on {f.report['tokens']:,} tokens of the same text",
        "not used": setting.lm.name,
    }
    return Study(f"{start.name}, trained here", checkpoints, lm, text, held, f, about)


def _up_to(characters: int, documents: Iterable[str]) -> Iterator[str]:
    for document in documents:
        yield document
        characters -= len(document)
        if characters <= 0:
            return


def _fitted(setting: Setting, text: Corpus, folder: Path | None) -> PairMapping:
    with setting.progress("tokens of text for the lens") as advance:
        tokens = setting.choose(**FITTED)
        return fit(text.lm, text, tokens=tokens, held_out=HELD_OUT, seed=setting.seed, folder=folder, progress=advance)


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
    compared = partial(_compared, learned, document=places.document, seed=setting.seed)
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
            **_compared(learned[which], [d[which] for d in depths], document=places.document[which], seed=setting.seed),
        }
        for name, which in tasks.items()
    ]
    only = _compared(learned[right], [d[right] for d in depths], document=places.document[right], seed=setting.seed)
    never = _compared(np.where(right, learned, len(steps)), depths, document=places.document, seed=setting.seed)
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
    reading = _reading(rows, controls, predictors, (unigram, bigram, float(surprisal[-1])), list(earlier))
    figures = (_figure(rows, depths, learned, steps, surprisal, (unigram, bigram)),)
    made_with = {**provenance(lm), "lens": study.translators.report}
    return Report("difficulty", study.name, CLAIM, reading, tables, figures, settings, made_with)


def _compared(learned: np.ndarray, depths: Sequence[np.ndarray], **how: Any) -> dict[str, Estimate]:
    return dict(zip((TUNED, LOGIT, APART), correlations(learned, depths, **how), strict=True))


def _earlier(setting: Setting, study: Study, places: Examples) -> dict[int, list[np.ndarray]]:
    """Depths with both lenses in the first and in an early checkpoint, each with a tuned lens of its own, by step."""
    steps = study.checkpoints.steps
    early = min(steps[1:-1], key=lambda s: abs(s - EARLY * steps[-1]))

    def compute() -> dict[int, list[np.ndarray]]:
        depths = {}
        for step in (steps[0], early):
            lm = study.checkpoints.load(step)
            f = _fitted(setting, replace(study.text, lm=lm), None)
            seen = [_see(lm, g, places.rows, range(lm.n_layers + 1)) for g in (f, None)]
            depths[step] = [prediction_depth(s.top).numpy() for s in seen]
        return depths

    return setting.cached("earlier", compute, **_inputs(study, places))


def _ten(count: int) -> list[int]:
    """About ten of so many checkpoints, the first and the last with them."""
    return sorted({round(n * (count - 1) / 10) for n in range(11)})


def _reading(
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
        f"{'Replicates' if better else 'Does not replicate'}: the tuned lens is {'' if better else 'not '}better; it "
        f"differs by {prose(whole[APART])} on all examples and is ahead on {len(ahead)} of {len(tasks)} tasks, "
        f"reliably on {len(surely)}.",
        f"Which token is predicted explains a part of it: some tokens come early in depth and in training alike, "
        f"wherever they stand, and depths shuffled among examples with the same prediction still give "
        f"{prose(constant)} with the tuned lens; among examples with the same prediction there remains {prose(same)}.",
        f"Depth {'is more' if beyond.low > 0 else 'is not reliably more'} than confidence and frequency: given the "
        f"final model's entropy, surprisal and margin of the first two tokens, and how frequent the tokens are, "
        f"{prose(beyond)} remains of {prose(whole[TUNED])}. Without any lens the entropy gives {prose(entropy)}, a "
        f"small margin {prose(margin)}, how rare the predicted token is {prose(rarity)}: "
        f"{'less' if without_lens < depth.value else 'no less'} than depth.",
        f"Depths in the model of step {earlier[0]} give {prose(first)}, in that of step {earlier[1]} {prose(early)}.",
        f"The last checkpoint's surprisal is {final:.2f} nats a token on held-out text, "
        f"{'below' if final < bigram else 'not below'} that of pairs of tokens ({bigram:.2f}; single ones: "
        f"{unigram:.2f}). This is one training: intervals are over documents, not over trainings. A token that is "
        "right in the end is learned when it is right and stays so: the stricter definition differs only for those "
        "that never are.",
    ]
    return " ".join(parts)


def _figure(
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


EXPERIMENT = Experiment(data="text", run=_run)
