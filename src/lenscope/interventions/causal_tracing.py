"""Causal tracing: where a clean state, put back, restores an answer whose subject was corrupted.

Knows: how large the noise is, which states a row takes of the corrupted run and which of the clean one.
Does not know: how rows are run, what effects are saved as.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lenscope.engine.patched_rows import PatchedRows
from lenscope.errors import LenscopeError
from lenscope.interventions.effects import Effects, TracedPrompt, base_run_totals, effect_measures
from lenscope.interventions.prompt_cells import (
    Answers,
    Places,
    Prompts,
    answer_or_next_token,
    answers_after_one_prefix,
    as_effects,
    cell_layers,
    joined_tokens,
    layer_windows,
    one_for_each,
    positions_of,
    replacing_rows,
    with_answer_begun,
)
from lenscope.models import edits
from lenscope.models.edits import Edit
from lenscope.models.language_model import LM
from lenscope.models.prompts import Prompt
from lenscope.patchscopes.cell_scores import log_prob


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
    """Corrupt the subject of a prompt, and see which single clean state restores the answer (Meng et al. 2022, §2.1).

    The corrupted run adds ε ~ N(0, noise²) to the layer-0 states of every token of the subject; each cell puts the
    clean state back at one layer and position (at `window` layers around it, cut off at the ends). `effect` is the
    indirect effect, averaged over `samples` draws, which are the same for every prompt. `noise` is by default three
    times `embedding_std` of the prompt's own subject; the paper's is three times that of all subjects of its data set.

    `subjects` name positions, a substring all its tokens; `answers` is a token, or a text of several, by default the
    model's own next token. Given a list of prompts, give lists of these, or one string for all. `restore` (n_layers +
    1, T, D) has other vectors to put back instead of the clean states, as controls do: another prompt's states, or
    random ones of the same norms.

    Args:
        lm: the model.
        prompts: one prompt or several.
        subjects: what is corrupted.
        answers: what is scored; None: the model's own next token.
        layers: the layers of cells; None: all.
        positions: the positions of cells; None: all.
        window: how many layers around a cell's are restored.
        samples: how often the noise is drawn.
        noise: its standard deviation; None: three times that of the subject's embeddings.
        seed: fixes the draws.
        restore: vectors to put back instead of the clean states.
    """
    batched, many = lm.encoder.prompts(prompts)
    if samples < 1:
        raise LenscopeError(f"samples {samples}: give at least 1")
    if noise is not None and not 0 < noise < float("inf"):
        raise LenscopeError(f"noise {noise}: give a positive standard deviation, such as 3 * embedding_std(...)")
    numbers = cell_layers(lm, layers, 0)
    given = one_for_each(None if restore is None else [restore] if isinstance(restore, Tensor) else restore, many, True)
    traced = []
    each = (one_for_each(value, many, batched) for value in (subjects, answers, positions))
    for prompt, subject, answer, at, other in zip(many, *each, given, strict=True):
        marked = positions_of(prompt, subject)
        ids = answer_or_next_token(lm, prompt, answer)
        places = prompt.positions() if at is None else positions_of(prompt, at)
        sigma = 3 * embedding_std(lm, prompt, list(marked)) if noise is None else noise
        longer = with_answer_begun(lm, prompt, ids)
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
            rows = _restoring(longer, corrupted, back, min(marked), numbers, run, window)
            known = [places.index(p) for p in run]
            lp[:, known] = answers_after_one_prefix(lm, rows, [ids]).reshape(len(numbers), -1, samples)
        own = log_prob(lm, clean[-1:, -len(ids) :], ids).cpu().numpy()
        error = (np.exp(lp) - np.exp(base)).std(-1, ddof=1) / samples**0.5 if samples > 1 else lp[..., 0] * np.nan
        measures = effect_measures(lp, base) | {"standard_error": error}
        cells = tuple((p,) for p in places)
        about = TracedPrompt(prompt.text, prompt.tokens, cells, joined_tokens(lm, ids), marked=marked)
        traced.append((about, measures, base_run_totals(own[0], base) | {"noise": sigma}))
    how = {"window": window, "samples": samples, "seed": seed, "restore": "clean" if restore is None else "given"}
    return as_effects(lm, "causal tracing", numbers, traced, how)


def embedding_std(lm: LM, prompts: Prompts, subjects: Places) -> float:
    """The standard deviation of all numbers of the subjects' layer-0 states (Meng et al. 2022: σ; noise is 3 σ)."""
    batched, many = lm.encoder.prompts(prompts)
    spans = [list(positions_of(p, s)) for p, s in zip(many, one_for_each(subjects, many, batched), strict=True)]
    states = [lm.read(p, 0, at).tensor.flatten() for p, at in zip(many, spans, strict=True)]
    return float(torch.cat(states).double().std())


def _restoring(
    prompt: Prompt, corrupted: Tensor, back: Tensor, first: int, layers: Sequence[int], places: Sequence[int],
    window: int,
) -> PatchedRows:  # fmt: skip
    """Rows (layers, places, samples) that take up the corrupted run where they restore a state.

    A row writes the corrupted run's states (S, L, T, D) at all positions from `first` on, at the first layer where it
    restores anything: below, every row shares the clean run, whose states are not used.
    """
    samples, depth, length, _ = corrupted.shape
    low, high = (np.array(ends) for ends in layer_windows(layers, window, 0, depth - 1))
    index, at, sample = (
        a.reshape(-1) for a in np.meshgrid(range(len(layers)), np.array(places, dtype=np.int64), range(samples),
                                           indexing="ij")
    )  # fmt: skip
    row, position = (a.reshape(-1) for a in np.meshgrid(np.arange(len(at)), np.arange(first, length), indexing="ij"))
    corrupt = position != at[row]
    row, position = row[corrupt], position[corrupt]
    start = low[index]
    parts = [(row, start[row], position, (sample[row] * depth + start[row]) * length + position)]
    for step in range(int((high - low).max(initial=0)) + 1):
        mine = np.flatnonzero(start + step <= high[index])
        layer = start[mine] + step
        parts.append((mine, layer, at[mine], samples * depth * length + layer * back.shape[1] + at[mine]))
    vectors = torch.cat([corrupted.flatten(0, 2), back.flatten(0, 1)])
    return replacing_rows(prompt, len(at), vectors, *(np.concatenate(c) for c in zip(*parts, strict=True)))
