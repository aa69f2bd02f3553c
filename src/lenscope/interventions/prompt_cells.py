"""What interventions on a prompt's own run share: their prompts, layers and answers, and how cells become rows.

Knows: how each method's values are given for one prompt or for many, and how probable answers are after rows.
Does not know: what is patched or barred (causal_tracing.py, activation_patching.py, attention_knockout.py), how rows
run, what effects are saved as.

The three methods measure what an intervention does to the probability of an answer that the prompt already has.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from lenscope.engine import exact_modes, sweep
from lenscope.engine.patched_rows import PatchedRows
from lenscope.errors import LenscopeError
from lenscope.interventions.effects import Effects, assemble_effects
from lenscope.measures.streamed import top_token
from lenscope.models import edits
from lenscope.models.inputs import is_integer
from lenscope.models.language_model import LM, PromptLike
from lenscope.models.layers import check_layers
from lenscope.models.prompts import Positions, Prompt
from lenscope.models.provenance import provenance
from lenscope.patchscopes.cell_scores import answer_ids, log_prob

Prompts = PromptLike | Sequence[PromptLike]
Answers = None | str | int | Sequence[str | int]
# positions of one prompt, a substring meaning all its tokens; for a list of prompts one of these each
Places = Positions | Sequence[Positions] | Sequence[Sequence[Positions]] | None


def positions_of(prompt: Prompt, at: Any) -> tuple[int, ...]:
    """Positions, ascending; a substring names all its tokens, and must occur once."""
    positions: set[int] = set()
    for one in at if isinstance(at, list | tuple | range) else [at]:
        if isinstance(one, str):
            last, start = prompt.position(one), prompt.text.find(one)
            positions |= {i for i, (a, b) in enumerate(prompt.spans[: last + 1]) if a < start + len(one) and b > start}
        else:
            positions |= set(prompt.positions(one))
    return tuple(sorted(positions)) or prompt.positions(())


def answers_after_rows(lm: LM, patched: PatchedRows, answers: Sequence[Sequence[int]]) -> np.ndarray:
    """(N, K) ln p of K answers after each row; answers that differ in their last token alone share a pass."""
    out = np.full((len(patched), len(answers)), np.nan)
    for prefix in dict.fromkeys(tuple(ids[:-1]) for ids in answers):
        known = [k for k, ids in enumerate(answers) if tuple(ids[:-1]) == prefix]
        prompts = tuple(with_answer_begun(lm, p, answers[known[0]]) for p in patched.prompts)
        out[:, known] = answers_after_one_prefix(lm, replace(patched, prompts=prompts), [answers[k] for k in known])
    return out


def answers_after_one_prefix(lm: LM, patched: PatchedRows, answers: Sequence[Sequence[int]]) -> np.ndarray:
    """(N, K) ln p of K answers, all but whose last tokens the rows' prompts end with."""
    out = np.full((len(patched), len(answers)), np.nan)
    for mine, h in sweep.predict(lm, patched, len(answers[0])):
        out[mine] = np.stack([log_prob(lm, h, ids).cpu().numpy() for ids in answers], 1)
    return out


def answers_after_prompt(lm: LM, prompt: Prompt, answers: Sequence[Sequence[int]]) -> np.ndarray:
    """(K,) ln p of answers after the prompt itself."""
    log_probs = []
    for ids in answers:
        h = lm.read(with_answer_begun(lm, prompt, ids), lm.n_layers, slice(-len(ids), None)).tensor[:, 0]
        log_probs.append(float(log_prob(lm, h, ids)[0]))
    return np.array(log_probs)


def with_answer_begun(lm: LM, prompt: Prompt, ids: Sequence[int]) -> Prompt:
    """The prompt followed by all of an answer's tokens but the last."""
    return lm.prompt([*prompt.ids, *ids[:-1]]) if len(ids) > 1 else prompt


def replacing_rows(
    prompt: Prompt, n: int, vectors: Tensor, row: np.ndarray, layer: np.ndarray, position: np.ndarray,
    vector: np.ndarray,
) -> PatchedRows:  # fmt: skip
    """Rows (n) of one prompt in which vectors take the place of states.

    Args:
        prompt: the prompt that all rows run.
        n: how many rows there are.
        vectors: what is written, (K, D).
        row: the row of each write, (W,).
        layer: its layer, (W,).
        position: its position in the prompt, (W,).
        vector: which of the vectors it writes, (W,).
    """
    zeros = np.zeros(len(row), dtype=np.int64)
    target = np.zeros(n, dtype=np.int64)
    return PatchedRows((prompt,), target, vectors, row, layer, position, vector, zeros, (edits.replace,))


def layer_windows(centres: Sequence[int], window: int, least: int, most: int) -> tuple[list[int], list[int]]:
    """The first and last of `window` layers around each centre, an even number having one more before it."""
    if window < 1:
        raise LenscopeError(f"window {window}: give at least 1 layer")
    half = window // 2
    return [max(least, c - half) for c in centres], [min(most, c + window - half - 1) for c in centres]


def cell_layers(lm: LM, layers: Sequence[int] | None, least: int) -> list[int]:
    """Layers that cells are of, ascending: those given, or all from `least` on; LenscopeError for any below it."""
    wanted = range(least, lm.n_layers + 1) if layers is None else layers
    numbers = sorted(set(check_layers(wanted, lm.n_layers, lm.name)))
    if numbers[0] < least:
        raise LenscopeError(f"layer 0: no block makes it; give blocks by the layers they make, 1–{lm.n_layers}")
    return numbers


def one_for_each(value: Any, prompts: Sequence[Prompt], batched: bool) -> list[Any]:
    """One value for each prompt: those of a list, or the same for all."""
    if not batched or value is None or isinstance(value, str | slice) or is_integer(value):
        return [value] * len(prompts)
    if len(value) != len(prompts):
        raise LenscopeError(f"{len(value)} given for {len(prompts)} prompts: give one each")
    return list(value)


def answer_or_next_token(lm: LM, prompt: Prompt, answer: str | int | None) -> list[int]:
    """The ids of an answer after a prompt; None: the model's own next token."""
    if answer is None:
        return top_token(lm, lm.read(prompt, lm.n_layers, -1).tensor[0, 0])[0].tolist()
    return [*answer_ids(lm, prompt, answer)]


def joined_tokens(lm: LM, ids: Sequence[int]) -> str:
    """The text of tokens, one after the other."""
    return "".join(lm.encoder.tokens(ids))


def as_effects(lm: LM, method: str, layers: Sequence[int], traced: Sequence[Any], how: dict[str, Any]) -> Effects:
    """What a method measured of each prompt as its result, with `how` it was measured in the provenance.

    Args:
        lm: the model.
        method: the method's name.
        layers: the layers of cells.
        traced: of each prompt the prompt, its measures and its totals.
        how: what the method was called with.
    """
    about = {**provenance(lm), **how, "run": exact_modes.fastest_exact_mode(lm)}
    return assemble_effects(method, lm.name, lm.n_layers, layers, traced, about)
