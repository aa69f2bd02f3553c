"""Interventions on a prompt's own run: causal tracing, activation patching, attention knockout, back-patching.

Knows: how each method's cells become rows of patches or of barred attention, and their answers' probabilities effects.
Does not know: how rows are run (rows.py), what effects are saved as (effects.py).

Back-patching is a Patchscope whose target is the source prompt; the others measure what an intervention does to the
probability of an answer that the prompt already has.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenscope.engine import run as rows
from lenscope.engine.patched_rows import Rows
from lenscope.engine.token_choice import top_one
from lenscope.errors import LenscopeError
from lenscope.interventions.effects import Effects, Run, assembled, baselines, measured
from lenscope.models import edits
from lenscope.models.edits import Edit
from lenscope.models.hidden_states import HiddenStates, check_layers
from lenscope.models.inputs import is_integer
from lenscope.models.language_model import LM, PromptLike
from lenscope.models.prompts import Position, Positions, Prompt
from lenscope.models.provenance import provenance
from lenscope.patchscopes.cell_scores import answer_ids, log_prob
from lenscope.patchscopes.patchscope import Patchscope, Target

Prompts = PromptLike | Sequence[PromptLike]
Answers = None | str | int | Sequence[str | int]
# positions of one prompt, a substring meaning all its tokens; for a list of prompts one of these each
Places = Positions | Sequence[Positions] | Sequence[Sequence[Positions]] | None
# below so many nats between the clean and the corrupted run, what was recovered is rounding
LEAST = 0.01


@torch.no_grad()
def causal_tracing(
    lm: LM,
    prompts: Prompts,
    subjects: Places,
    answers: Answers = None,
    *,
    layers: Sequence[int] | None = None,
    positions: Places = None,
    window: int = 1,
    samples: int = 10,
    noise: float | None = None,
    seed: int = 0,
    restore: Tensor | Sequence[Tensor] | None = None,
) -> Effects:
    """Where one clean state, put back, restores an answer whose subject was corrupted (Meng et al. 2022, §2.1).

    The corrupted run adds ε ~ N(0, noise²) to the layer-0 states of every token of the subject; each cell puts the
    clean state back at one layer and position (at `window` layers around it, cut off at the ends). `effect` is the
    indirect effect, averaged over `samples` draws, which are the same for every prompt. `noise` is by default three
    times `embedding_std` of the prompt's own subject; the paper's is three times that of all subjects of its data set.

    `subjects` name positions, a substring all its tokens; `answers` is a token, or a text of several, by default
    the model's own next token. Given a list of prompts, give lists of these, or one string for all. `restore`
    (n_layers + 1, T, D) has other vectors to put back instead of the clean states, as controls do: another prompt's
    states, or random ones of the same norms.
    """
    batched, many = lm.prompts(prompts)
    if samples < 1:
        raise LenscopeError(f"samples {samples}: give at least 1")
    if noise is not None and not 0 < noise < float("inf"):
        raise LenscopeError(f"noise {noise}: give a positive standard deviation, such as 3 * embedding_std(...)")
    numbers = _layers(lm, layers, 0)
    given = _each(None if restore is None else [restore] if isinstance(restore, Tensor) else restore, many, True)
    found = []
    for prompt, subject, answer, at, other in zip(
        many, _each(subjects, many, batched), _each(answers, many, batched), _each(positions, many, batched), given,
        strict=True,
    ):  # fmt: skip
        marked = span(prompt, subject)
        ids = _answer(lm, prompt, answer)
        places = prompt.positions() if at is None else span(prompt, at)
        sigma = 3 * embedding_std(lm, prompt, list(marked)) if noise is None else noise
        longer = _longer(lm, prompt, ids)
        clean = lm.read(longer).tensor[0]
        if other is not None and other.shape != (lm.n_layers + 1, len(prompt), lm.hidden_size):
            raise LenscopeError(
                f"restore of shape {tuple(other.shape)}: give a vector for every layer and position of the prompt, "
                f"({lm.n_layers + 1}, {len(prompt)}, {lm.hidden_size})"
            )
        draws = torch.randn(
            samples, len(marked), lm.hidden_size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        with lm.edit(Edit(0, list(marked), (sigma * draws).to(clean), edits.add)):
            corrupted = lm.read([longer] * samples).tensor
        base = log_prob(lm, corrupted[:, -1, -len(ids) :], ids).cpu().numpy()
        # what comes before the subject is not corrupted: its clean states are there already
        run = [p for p in places if p >= min(marked) or other is not None]
        back = clean[:, : len(prompt)] if other is None else other.to(clean)
        lp = np.broadcast_to(base, (len(numbers), len(places), samples)).copy()
        if run:
            made = _restoring(longer, corrupted, back, min(marked), numbers, run, window)
            known = [places.index(p) for p in run]
            lp[:, known] = _after(lm, made, [ids]).reshape(len(numbers), -1, samples)
        own = log_prob(lm, clean[-1:, -len(ids) :], ids).cpu().numpy()
        error = (np.exp(lp) - np.exp(base)).std(-1, ddof=1) / samples**0.5 if samples > 1 else lp[..., 0] * np.nan
        measures = measured(lp, base) | {"standard_error": error}
        about = Run(prompt.text, prompt.tokens, tuple((p,) for p in places), _text(lm, ids), marked=marked)
        found.append((about, measures, baselines(own[0], base) | {"noise": sigma}))
    how = {"window": window, "samples": samples, "seed": seed, "restore": "clean" if restore is None else "given"}
    return _effects(lm, "causal tracing", numbers, found, how)


@torch.no_grad()
def activation_patching(
    lm: LM,
    clean: Prompts,
    corrupted: Prompts,
    answers: Answers = None,
    alternatives: Answers = None,
    *,
    layers: Sequence[int] | None = None,
    positions: Positions | Sequence[tuple[Position, Position]] | None = None,
    window: int = 1,
) -> Effects:
    """What a state of the clean prompt's run does to an answer in the corrupted prompt's run (denoising).

    Each cell writes the clean run's state at one layer and position over the corrupted run's (at `window` layers
    around it, cut off at the ends). Swap the prompts for noising. The tokens of the two must align one to one; else
    give `positions` as pairs (clean, corrupted), a substring naming its last token.

    `answers` are by default the clean run's own next token. `recovered` is the part of the way from the corrupted
    to the clean run, of ln p(answer), or of ln p(answer) - ln p(alternative) (between single tokens: their logits'
    difference) where `alternatives` are given; NaN where the two runs are less than 0.01 nats apart.
    Raises LenscopeError where prompts of unequal length are given without pairs.
    """
    batched, many = lm.prompts(clean)
    _, others = lm.prompts(corrupted)
    if len(many) != len(others):
        raise LenscopeError(f"{len(many)} clean and {len(others)} corrupted prompts: give one of each to a pair")
    numbers = _layers(lm, layers, 0)
    low, high = _windows(numbers, window, 0, lm.n_layers)
    found = []
    for prompt, other, answer, second in zip(
        many, others, _each(answers, many, batched), _each(alternatives, many, batched), strict=True
    ):
        pairs = _aligned(prompt, other, positions)
        asked = [_answer(lm, prompt, a) for a in ([answer] if alternatives is None else [answer, second])]
        states = lm.read(prompt).tensor[0]
        parts = []
        for n, (a, b) in enumerate((low[i], high[i]) for i in range(len(numbers)) for _ in pairs):
            source, target = pairs[n % len(pairs)]
            parts += [(n, at, target, at * len(prompt) + source) for at in range(a, b + 1)]
        made = _rows(other, len(numbers) * len(pairs), states.flatten(0, 1), *np.array(parts).T)
        lp = _log_probs(lm, made, asked).reshape(len(numbers), len(pairs), -1)
        whole, base = _plain(lm, prompt, asked), _plain(lm, other, asked)
        measures = measured(lp[..., :1], base[:1])
        totals = baselines(whole[0], base[:1])
        now, full, none = lp[..., 0], whole[0], base[0]
        if alternatives is not None:
            now, full, none = lp[..., 0] - lp[..., 1], whole[0] - whole[1], base[0] - base[1]
            measures["difference"] = now
            totals |= {"clean_difference": full, "corrupted_difference": none}
        apart = full - none
        measures["recovered"] = (now - none) / apart if abs(apart) >= LEAST else np.full_like(now, np.nan)
        answered, rival = [*(_text(lm, ids) for ids in asked), ""][:2]
        about = Run(other.text, other.tokens, tuple((b,) for _, b in pairs), answered, rival, other=prompt.text)
        found.append((about, measures, totals))
    return _effects(lm, "activation patching", numbers, found, {"window": window})


@torch.no_grad()
def attention_knockout(
    lm: LM,
    prompts: Prompts,
    keys: Places = None,
    answers: Answers = None,
    *,
    queries: Places = -1,
    layers: Sequence[int] | None = None,
    window: int | None = None,
) -> Effects:
    """What an answer loses when some positions may not attend to others in a window of blocks (Geva et al. 2023).

    `keys` are hidden from `queries` (by default the last position, and the tokens of a longer answer after it) all
    at once, a substring meaning all its tokens; None: every position by itself. Layer l stands for the block between
    layers l - 1 and l, the centre of a window of `window` blocks, cut off at the ends: by default a fifth of all
    blocks, an odd number (9 of 48). `effect` is the change of the probability against the clean run;
    the paper's change in per cent is 100 · (exp(log_effect) - 1).

    Raises LenscopeError where a query would see nothing, or where the model's attention cannot be told what to hide.
    """
    batched, many = lm.prompts(prompts)
    n = lm.n_layers
    wide_by = max(1, n // 5 - (n // 5 + 1) % 2) if window is None else window
    numbers = _layers(lm, layers, 1)
    low, high = _windows(numbers, wide_by, 1, n)
    found = []
    for prompt, hidden, answer, looking in zip(
        many, _each(keys, many, batched), _each(answers, many, batched), _each(queries, many, batched), strict=True
    ):
        marked = span(prompt, looking)
        places = [(p,) for p in range(max(marked) + 1)] if hidden is None else [span(prompt, hidden)]
        edges = [_edges(place, marked, len(prompt)) for place in places]
        parts = [
            (i * len(places) + j, low[i] - 1, high[i], *edge)
            for i in range(len(numbers))
            for j in range(len(places))
            for edge in edges[j]
        ]
        ids = _answer(lm, prompt, answer)
        none = np.zeros(0, dtype=np.int64)
        made = _rows(prompt, len(numbers) * len(places), torch.zeros(1, lm.hidden_size), none, none, none, none)
        lp = _log_probs(lm, replace(made, bars=np.array(parts)), [ids]).reshape(len(numbers), len(places), 1)
        base = _plain(lm, prompt, [ids])
        about = Run(prompt.text, prompt.tokens, tuple(places), _text(lm, ids), marked=marked)
        found.append((about, measured(lp, base), {"clean": np.exp(base[0]), "clean_log_prob": base[0]}))
    return _effects(lm, "attention knockout", numbers, found, {"window": wide_by})


def back_patching(
    lm: LM, prompt: PromptLike, at: Position = -1
) -> tuple[Patchscope, HiddenStates, list[tuple[int, int]]]:
    """Later states written back at earlier layers of the same position and prompt (Biran et al. 2024).

    Returns a Patchscope with its sources and its (source layer, target layer) pairs, every source above its target:
    scope.predict(states, pairs, answers=[...]) for the probability of answers, scope.generate(states, pairs) for
    what is then said.
    """
    target = Target(lm.prompt(prompt), at)
    pairs = [(above, layer) for layer in range(lm.n_layers) for above in range(layer + 1, lm.n_layers + 1)]
    return Patchscope(lm, target), lm.read(target.prompt, positions=at), pairs


def embedding_std(lm: LM, prompts: Prompts, subjects: Places) -> float:
    """The standard deviation of all numbers of the subjects' layer-0 states (Meng et al. 2022: σ; noise is 3 σ)."""
    batched, many = lm.prompts(prompts)
    spans = [list(span(p, s)) for p, s in zip(many, _each(subjects, many, batched), strict=True)]
    states = [lm.read(p, 0, at).tensor.flatten() for p, at in zip(many, spans, strict=True)]
    return float(torch.cat(states).double().std())


def span(prompt: Prompt, at: Any) -> tuple[int, ...]:
    """Positions, ascending; a substring names all its tokens, and must occur once."""
    found: set[int] = set()
    for one in at if isinstance(at, list | tuple | range) else [at]:
        if isinstance(one, str):
            last, start = prompt.position(one), prompt.text.find(one)
            found |= {i for i, (a, b) in enumerate(prompt.spans[: last + 1]) if a < start + len(one) and b > start}
        else:
            found |= set(prompt.positions(one))
    return tuple(sorted(found)) or prompt.positions(())


def _log_probs(lm: LM, made: Rows, answers: Sequence[Sequence[int]]) -> np.ndarray:
    """(N, K) ln p of K answers after each row; answers that differ in their last token alone share a pass."""
    out = np.full((len(made), len(answers)), np.nan)
    for prefix in dict.fromkeys(tuple(ids[:-1]) for ids in answers):
        known = [k for k, ids in enumerate(answers) if tuple(ids[:-1]) == prefix]
        prompts = tuple(_longer(lm, p, answers[known[0]]) for p in made.prompts)
        out[:, known] = _after(lm, replace(made, prompts=prompts), [answers[k] for k in known])
    return out


def _after(lm: LM, made: Rows, answers: Sequence[Sequence[int]]) -> np.ndarray:
    """(N, K) ln p of K answers, all but whose last tokens the rows' prompts end with."""
    out = np.full((len(made), len(answers)), np.nan)
    for some, h in rows.predict(lm, made, len(answers[0])):
        out[some] = np.stack([log_prob(lm, h, ids).cpu().numpy() for ids in answers], 1)
    return out


def _plain(lm: LM, prompt: Prompt, answers: Sequence[Sequence[int]]) -> np.ndarray:
    """(K,) ln p of answers after the prompt itself."""
    found = []
    for ids in answers:
        h = lm.read(_longer(lm, prompt, ids), lm.n_layers, slice(-len(ids), None)).tensor[:, 0]
        found.append(float(log_prob(lm, h, ids)[0]))
    return np.array(found)


def _longer(lm: LM, prompt: Prompt, ids: Sequence[int]) -> Prompt:
    """The prompt followed by all of an answer's tokens but the last."""
    return lm.prompt([*prompt.ids, *ids[:-1]]) if len(ids) > 1 else prompt


def _restoring(
    prompt: Prompt, corrupted: Tensor, back: Tensor, first: int, layers: Sequence[int], places: Sequence[int],
    window: int,
) -> Rows:  # fmt: skip
    """Rows (layers, places, samples) that take up the corrupted run where they restore a state.

    A row writes the corrupted run's states (S, L, T, D) at all positions from `first` on, at the first layer where it
    restores anything: below, every row shares the clean run, whose states are not used.
    """
    samples, depth, length, _ = corrupted.shape
    low, high = (np.array(ends) for ends in _windows(layers, window, 0, depth - 1))
    index, at, sample = (
        a.reshape(-1) for a in np.meshgrid(range(len(layers)), np.array(places, dtype=np.int64), range(samples),
                                           indexing="ij")
    )  # fmt: skip
    row, position = (a.reshape(-1) for a in np.meshgrid(np.arange(len(at)), np.arange(first, length), indexing="ij"))
    kept = position != at[row]
    row, position = row[kept], position[kept]
    start = low[index]
    parts = [(row, start[row], position, (sample[row] * depth + start[row]) * length + position)]
    for step in range(int((high - low).max(initial=0)) + 1):
        mine = np.flatnonzero(start + step <= high[index])
        layer = start[mine] + step
        parts.append((mine, layer, at[mine], samples * depth * length + layer * back.shape[1] + at[mine]))
    vectors = torch.cat([corrupted.flatten(0, 2), back.flatten(0, 1)])
    return _rows(prompt, len(at), vectors, *(np.concatenate(c) for c in zip(*parts, strict=True)))


def _rows(
    prompt: Prompt, n: int, vectors: Tensor, row: np.ndarray, layer: np.ndarray, position: np.ndarray,
    vector: np.ndarray,
) -> Rows:  # fmt: skip
    zeros = np.zeros(len(row), dtype=np.int64)
    target = np.zeros(n, dtype=np.int64)
    return Rows((prompt,), target, vectors, row, layer, position, vector, zeros, (edits.replace,))


def _edges(keys: Sequence[int], queries: Sequence[int], length: int) -> list[tuple[int, int, int]]:
    """(first query, query after the last, key) of what is barred; -1: the last position and all that follow it."""
    found = []
    for q in queries:
        barred = [k for k in keys if k <= q]
        # the token before is in every window of local attention; without both, a query might see nothing
        if q in barred and (q == 0 or q - 1 in barred):
            raise LenscopeError(f"keys {q}: query {q}, hidden from itself, must still see the token before it")
        found += [(q, -1 if q == length - 1 else q + 1, k) for k in barred]
    if not found:
        raise LenscopeError(f"keys {list(keys)}: come after the queries {list(queries)}, which never see them")
    return found


def _aligned(clean: Prompt, corrupted: Prompt, positions: Any) -> list[tuple[int, int]]:
    """Pairs of positions, of the clean and of the corrupted prompt."""
    some = positions if isinstance(positions, list | tuple) else []
    if some and all(isinstance(p, tuple) and len(p) == 2 for p in some):
        return [(clean.position(a), corrupted.position(b)) for a, b in some]
    if len(clean) != len(corrupted):
        raise LenscopeError(
            f"the clean prompt has {len(clean)} tokens, the corrupted one {len(corrupted)}: give positions as pairs "
            "(clean, corrupted), or prompts of equal length"
        )
    return [(p, p) for p in corrupted.positions(positions)]


def _windows(centres: Sequence[int], window: int, least: int, most: int) -> tuple[list[int], list[int]]:
    """The first and last of `window` layers around each centre, an even number having one more before it."""
    if window < 1:
        raise LenscopeError(f"window {window}: give at least 1 layer")
    half = window // 2
    return [max(least, c - half) for c in centres], [min(most, c + window - half - 1) for c in centres]


def _layers(lm: LM, layers: Sequence[int] | None, least: int) -> list[int]:
    wanted = range(least, lm.n_layers + 1) if layers is None else layers
    numbers = sorted(set(check_layers(wanted, lm.n_layers, lm.name)))
    if numbers[0] < least:
        raise LenscopeError(f"layer 0: no block makes it; give blocks by the layers they make, 1–{lm.n_layers}")
    return numbers


def _each(value: Any, prompts: Sequence[Prompt], batched: bool) -> list[Any]:
    """One value for each prompt: those of a list, or the same for all."""
    if not batched or value is None or isinstance(value, str | slice) or is_integer(value):
        return [value] * len(prompts)
    if len(value) != len(prompts):
        raise LenscopeError(f"{len(value)} given for {len(prompts)} prompts: give one each")
    return list(value)


def _answer(lm: LM, prompt: Prompt, answer: str | int | None) -> list[int]:
    if answer is None:
        return top_one(lm, lm.read(prompt, lm.n_layers, -1).tensor[0, 0])[0].tolist()
    return [*answer_ids(lm, prompt, answer)]


def _text(lm: LM, ids: Sequence[int]) -> str:
    return "".join(lm.encoder.tokens(ids))


def _effects(lm: LM, method: str, layers: Sequence[int], found: Sequence[Any], how: dict[str, Any]) -> Effects:
    about = {**provenance(lm), **how, "run": rows.fastest(lm)}
    return assembled(method, lm.name, lm.n_layers, layers, found, about)
