"""What edits along tokens' directions do to the next token: each prompt before, after and under controls of equal size.

Knows: that prompts run as they are, then edited, then with controls, and whose answers are followed.
Does not know: what an edit is (token_edits.py), what a result shows (token_edit_results.py).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.interventions.token_controls import control_edit
from lenscope.interventions.token_edit_results import EditedPrompt, EditEffects
from lenscope.interventions.token_edits import TokenEdit, swap_tokens
from lenscope.lenses.lens import Lens
from lenscope.models.inputs import count, elements, is_integer
from lenscope.models.interruption import check_interruption
from lenscope.models.language_model import LM, PromptLike
from lenscope.models.layers import Layers
from lenscope.models.prompts import Positions, Prompt
from lenscope.models.provenance import provenance
from lenscope.patchscopes.cell_scores import answer_ids

# one token, as text or id, or one for each prompt
TokenOrTokens = str | int | Sequence[str | int]


def swap_effects(
    lens: Lens,
    prompts: PromptLike | Sequence[PromptLike],
    source: TokenOrTokens,
    replacement: TokenOrTokens,
    answers: Any = None,
    *,
    layers: Layers | None = None,
    positions: Positions | None = None,
    controls: int = 8,
    control: str = "random",
    seed: int = 0,
    top_k: int = 5,
) -> EditEffects:
    """Swap one token's direction for another's in a prompt, or in several, and measure what that does to answers.

    `edit_effects` of `swap_tokens`. Raises LenscopeError as these do.

    Args:
        lens: the lens whose directions are used.
        prompts: one prompt or a list of them.
        source: the token, text or id, whose direction is taken out; for several prompts also a list, one for each.
        replacement: the token whose direction takes its place; likewise.
        answers: the answers that are followed, as `edit_effects` takes them.
        layers: the band; None: the middle two thirds.
        positions: which positions of each prompt are changed; None: all.
        controls: how many controls each prompt has.
        control: the kind of controls: "random" or "random token".
        seed: fixes what controls draw.
        top_k: how many of the most probable tokens are listed.
    """
    batched, many = lens.lm.encoder.prompts(prompts)
    sources, replacements = (
        _edited_tokens(v, len(many), batched, w) for v, w in ((source, "source"), (replacement, "other"))
    )
    edits: dict[tuple[Any, Any], TokenEdit] = {}
    for pair in zip(sources, replacements, strict=True):
        edits.setdefault(pair, swap_tokens(lens, *pair, layers, positions))
    each = [edits[pair] for pair in zip(sources, replacements, strict=True)]
    how: dict[str, Any] = {"controls": controls, "control": control, "seed": seed, "top_k": top_k}
    return edit_effects(many if batched else many[0], each if batched else each[0], answers, **how)


def edit_effects(
    prompts: PromptLike | Sequence[PromptLike],
    edit: TokenEdit | Sequence[TokenEdit],
    answers: Any = None,
    *,
    controls: int = 8,
    control: str = "random",
    seed: int = 0,
    top_k: int = 5,
) -> EditEffects:
    """Measure what an edit along tokens' directions does to the next token of a prompt, or of several.

    Each prompt runs as it is, with the edit, and with `controls` other edits, which at every layer and position are as
    long as the edit was there and go elsewhere (`control_edit`). What an edit does beyond its controls is what its
    directions mean; what both do, any change of that size does. Of several prompts each is what it would be alone.

    Args:
        prompts: one prompt or a list of them.
        edit: what is done, of `swap_tokens`, `steer_token` or `ablate_tokens`; for a list of prompts also a list of
            edits, one for each.
        answers: the answers that are followed, each one token: one or a list of them; for a list of prompts one answer
            for all, or a list with one for each, or with a list of them for each. None: the most probable token.
        controls: how many controls each prompt has, 0 for none.
        control: "random" or "random token".
        seed: fixes what controls draw.
        top_k: how many of the most probable tokens are listed.

    Raises LenscopeError for answers of several tokens, edits of different lenses or layers, and as the edits do.
    """
    single = isinstance(edit, TokenEdit)
    first = edit if isinstance(edit, TokenEdit) else next(iter(edit), None)
    if not isinstance(first, TokenEdit):
        raise LenscopeError("edit: give what swap_tokens, steer_token or ablate_tokens gave, or a list of these")
    lens, lm = first.lens, first.lens.lm
    batched, many = lm.encoder.prompts(prompts)
    each = [first] * len(many) if single else [*edit]
    if len(each) != len(many) or not all(isinstance(e, TokenEdit) for e in each):
        raise LenscopeError(f"edit: {len(each)} given for {len(many)} prompts: give one for all, or one each")
    if any(e.lens is not lens or e.layers != first.layers for e in each):
        raise LenscopeError("edit: the edits of several prompts must be of one lens and the same layers")
    count(controls, "controls", 0)
    count(top_k, "top_k", 1, lm.vocab_size)
    states = [torch.empty(0)] * len(many)
    sizes = np.zeros((len(many), len(first.layers)), dtype=np.float32)
    for one in dict.fromkeys(each):
        mine = [n for n, e in enumerate(each) if e is one]
        runs = _last_states(lm, [many[n] for n in mine], one, controls, control, seed)
        for n, h in zip(mine, runs, strict=True):
            states[n] = h
            added, lengths = one.sizes(many[n])
            sizes[n] = (added / lengths.clamp_min(torch.finfo(lengths.dtype).tiny)).mean(-1).numpy()
    followed = _followed_answers(lm, many, batched, answers, states)
    scores = [_answer_scores(lm, h, ids, top_k) for h, ids in zip(states, followed, strict=True)]
    log_prob, rank, top_ids, top_log_probs = (np.stack(values) for values in zip(*scores, strict=True))
    described = [
        EditedPrompt(
            p.text, p.tokens, tuple(sorted(set(p.positions(e.positions)))), e.name, tuple(lm.encoder.tokens(ids)), ids
        )
        for p, e, ids in zip(many, each, followed, strict=True)
    ]
    every = sorted({*top_ids.reshape(-1).tolist(), *(i for ids in followed for i in ids)})
    return EditEffects(
        model=lm.name,
        lens=lens.name,
        n_layers=lm.n_layers,
        layers=first.layers,
        control=control,
        prompts=tuple(described),
        log_prob=log_prob,
        rank=rank,
        top_ids=top_ids,
        top_log_probs=top_log_probs,
        relative_size=sizes,
        vocabulary=dict(zip(every, lm.encoder.tokens(every), strict=True)),
        provenance={**provenance(lm), "lens": lens.name, "controls": controls, "control": control, "seed": seed},
    )


def _last_states(
    lm: LM, prompts: list[Prompt], edit: TokenEdit, controls: int, control: str, seed: int
) -> list[Tensor]:
    """The last state of each prompt (R, D): as it is, edited, under each control."""
    runs = [lm.read(prompts, lm.n_layers, -1).tensor[:, 0, 0]]
    every = [edit, *(control_edit(edit, control, seed=seed * 1_000_003 + n) for n in range(controls))]
    for one in every:
        check_interruption()
        with lm.edit(*one):
            runs.append(lm.read(prompts, lm.n_layers, -1).tensor[:, 0, 0])
    return [*torch.stack(runs, 1)]


def _answer_scores(lm: LM, h: Tensor, ids: Sequence[int], top_k: int) -> tuple[np.ndarray, ...]:
    """Of last states (R, D): ln p and rank of answers (R, K), ids and ln p of the most probable tokens (R, T)."""
    log_p = lm.unembed(h).log_softmax(-1)
    chosen = log_p[:, list(ids)]
    rank = (log_p[:, None] > chosen[..., None]).sum(-1)
    top = log_p.topk(top_k, -1)
    floats = (x.cpu().numpy().astype(np.float32) for x in (chosen, top.values))
    log_prob, top_log_probs = floats
    return log_prob, rank.cpu().numpy().astype(np.int64), top.indices.cpu().numpy(), top_log_probs


def _followed_answers(
    lm: LM, prompts: Sequence[Prompt], batched: bool, answers: Any, states: Sequence[Tensor]
) -> list[tuple[int, ...]]:
    """The ids of each prompt's answers; LenscopeError for one of several tokens, naming them."""
    if answers is None:
        return [(int(lm.unembed(h[:1]).argmax()),) for h in states]
    if isinstance(answers, str) or is_integer(answers):
        each: list[Any] = [[answers]] * len(prompts)
    elif not batched:
        each = [elements(answers, "an answer or a list of answers")]
    else:
        each = [a if isinstance(a, list | tuple) else [a] for a in elements(answers, "answers, one for each prompt")]
        if len(each) != len(prompts):
            raise LenscopeError(f"answers: {len(each)} given for {len(prompts)} prompts: give one for all, or one each")
    if len({len(a) for a in each}) != 1 or not each[0]:
        raise LenscopeError("answers: give as many for every prompt, at least one")
    return [tuple(_one_token(lm, p, a) for a in mine) for p, mine in zip(prompts, each, strict=True)]


def _one_token(lm: LM, prompt: Prompt, answer: Any) -> int:
    ids = answer_ids(lm, prompt, answer)
    if len(ids) != 1:
        pieces = ", ".join(repr(t) for t in lm.encoder.tokens(ids))
        raise LenscopeError(f"answer {answer!r}: it is {len(ids)} tokens ({pieces}); give one of them")
    return ids[0]


def _edited_tokens(value: TokenOrTokens, prompts: int, batched: bool, what: str) -> list[str | int]:
    """One token for each prompt."""
    if isinstance(value, str) or is_integer(value):
        return [value] * prompts  # type: ignore[list-item]
    listed = elements(value, f"a token, or one for each prompt ({what})")
    if not batched or len(listed) != prompts:
        raise LenscopeError(f"{what} tokens: {len(listed)} given for {prompts} prompts: give one for all, or one each")
    return listed
