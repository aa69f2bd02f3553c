"""How likely a Patchscope finds the label of each vector, beside every control: ln p per token of the label.

Knows: how labels are read token by token behind a patched prompt, one row for each item and cell.
Does not know: which controls there are (control_runs.py), how rows are run (engine/sweep.py), where labels come from.
"""

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenscope.engine import sweep
from lenscope.errors import LenscopeError
from lenscope.measures.streamed import top_token
from lenscope.models.hidden_states import HiddenStates
from lenscope.models.language_model import LM
from lenscope.models.progress import Progress
from lenscope.models.prompts import Prompt
from lenscope.models.readout import wide
from lenscope.patchscopes.cell_scores import log_prob
from lenscope.patchscopes.control_runs import (
    CONTROLS,
    NONE,
    SHUFFLED,
    TEXT,
    VECTOR,
    cell_count,
    control_runs,
    exchanged_items,
    item_count,
    require_items,
    text_prompts,
)
from lenscope.patchscopes.controls import rearranged
from lenscope.patchscopes.patchscope import Patchscope
from lenscope.patchscopes.sources import Layers
from lenscope.patchscopes.with_controls import ControlledScores


def likelihoods_with_controls(
    scope: Patchscope,
    states: HiddenStates | Tensor,
    labels: Sequence[str],
    texts: Sequence[str] | None = None,
    layers: Layers = None,
    *,
    answers: Sequence[Hashable] | None = None,
    controls: Sequence[str] | None = None,
    units: Sequence[Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ControlledScores:
    """Score the label of each of N states or vectors by its ln p per token, with the vector and in every control.

    The score of an item is the mean ln p of its label's tokens, in nats, each read behind those before it; that of a
    "shuffled source" is the item's own label behind another item's vector. What controls there are is said at
    `generate_with_controls`.

    Args:
        scope: a Patchscope with one target.
        states: states of N prompts at one position each, or vectors (N, D) or (N, K, D).
        labels: what should follow the target prompt, (N,), as it follows it: with a space in front where one is due.
        texts: what stands in the place of the placeholder instead of a vector, (N,); None: there is no such control.
        layers: as of `Patchscope.generate`.
        answers: what no two exchanged items have alike, (N,); None: all differ.
        controls: names of controls; None: all that exist.
        units: what each item belongs to, and is resampled with.
        seed: fixes random vectors, exchanges and intervals.
        progress: called with how much is done and how much there is.

    Raises LenscopeError as `generate_with_controls` does, and where labels are not as many, or are no tokens.
    """
    states = require_items(scope, states, layers)
    count = item_count(states)
    if len(labels) != count:
        raise LenscopeError(f"{len(labels)} labels, {count} items: give one label for each")
    if controls is not None and TEXT in controls and texts is None:
        raise LenscopeError(f"control {TEXT!r}: give the texts")
    runs = control_runs(scope, states, layers, controls, seed)
    asked = CONTROLS if controls is None else controls
    sources = {way: run.sources for way, run in runs.items()}
    scopes = {way: run.scope for way, run in runs.items()}
    if SHUFFLED in asked and count > 1:
        sources[SHUFFLED], scopes[SHUFFLED] = rearranged(states, exchanged_items(answers, count, seed)), scope
    each = cell_count(scope, states, layers)
    tables: dict[str, np.ndarray] = {}
    cells: tuple[tuple[int, int], ...] = ()
    before = 0
    for way, given in sources.items():

        def advance(done: int, total: int, before: int = before) -> None:
            if progress is not None:
                progress(before + done, each * len(sources))

        cells, tables[way] = label_log_likelihoods(scopes[way], given, labels, layers, progress=advance)
        before += each
    if texts is not None and TEXT in asked:
        tables[TEXT] = _behind_prompts(scope.lm, text_prompts(scope, texts, count), labels)[:, None]
    if NONE in asked:
        own = scope.resolved[0][0]
        # the target's own edits are made in every prompt of the batch
        with scope.lm.edit(*(replace(edit, row=None) for edit in scope.fixed[0])):
            tables[NONE] = _behind_prompts(scope.lm, [own] * count, labels)[:, None]
    in_order = {way: tables[way] for way in (VECTOR, *CONTROLS) if way in tables}
    return ControlledScores(cells, in_order, units, seed)


@torch.no_grad()
def label_log_likelihoods(
    scope: Patchscope,
    states: HiddenStates | Tensor,
    labels: Sequence[str],
    layers: Layers = None,
    *,
    progress: Progress | None = None,
) -> tuple[tuple[tuple[int, int], ...], np.ndarray]:
    """Read each item's label behind the target prompt with its vector patched in: the cells, and ln p per token (N, C).

    Every row is run once up to the label, whose tokens are then fed to it one by one, as if it had written them: the
    prompt's beginning is shared by all rows, whatever their labels. Cells are (source layer, target layer), -1 for
    vectors.

    Args:
        scope: a Patchscope with one target.
        states: states of N prompts at one position each, or vectors (N, D) or (N, K, D).
        labels: what should follow the target prompt, (N,).
        layers: as of `Patchscope.generate`.
        progress: called with how many rows are done and how many there are.
    """
    states = require_items(scope, states, layers)
    if len(labels) != item_count(states):
        raise LenscopeError(f"{len(labels)} labels, {item_count(states)} items: give one label for each")
    lm, plan = scope.lm, scope.plan(states, layers)
    ids = lm.encoder.answer_ids(scope.resolved[0][0], list(labels))
    per_item = len(states.layers) if isinstance(states, HiddenStates) else 1
    item = plan.source // per_item
    wanted = [ids[n] for n in item.tolist()]
    longest = max(map(len, wanted))
    scope.require_room(longest)

    def forced(h: Tensor, rows: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        tokens = np.array([wanted[n][step] for n in rows.tolist()])
        _, _, total = top_token(lm, h)
        z = wide(lm.runner.readout.tokens(lm.runner.readout.prepare(h), torch.from_numpy(tokens).to(h.device)))
        ended = np.array([len(wanted[n]) == step + 1 for n in rows.tolist()])
        return tokens, (z - total).cpu().numpy(), ended

    values = np.full(len(plan.rows), np.nan)
    done = 0
    for mine, wrote in sweep.generate(lm, plan.rows, forced, longest, budget=scope.budget):
        values[mine] = [float(np.mean(one.log_probs)) for one in wrote]
        done += len(mine)
        if progress is not None:
            progress(done, len(plan.rows))
    source_layer = [plan.sources.addresses[n].layer for n in plan.source.tolist()]
    pairs = list(zip(source_layer, plan.layer.tolist(), strict=True))
    cells = tuple(sorted(set(pairs)))
    number = {cell: n for n, cell in enumerate(cells)}
    table = np.full((len(labels), len(cells)), np.nan)
    table[item, [number[pair] for pair in pairs]] = values
    return cells, table


def _behind_prompts(lm: LM, prompts: Sequence[Prompt], labels: Sequence[str]) -> np.ndarray:
    """ln p per token (N,) of each label behind its prompt, nothing patched."""
    values = np.zeros(len(prompts))
    ids = [lm.encoder.answer_ids(p, [label])[0] for p, label in zip(prompts, labels, strict=True)]
    for size in sorted({len(i) for i in ids}):
        mine = [n for n, i in enumerate(ids) if len(i) == size]
        states = lm.read([lm.prompt([*prompts[n].ids, *ids[n][:-1]]) for n in mine], lm.n_layers, slice(-size, None))
        h = states.tensor[:, 0, :size]
        values[mine] = [float(log_prob(lm, one[None], ids[n])[0]) / size for one, n in zip(h, mine, strict=True)]
    return values
