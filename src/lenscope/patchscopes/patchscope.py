"""Patchscopes: hidden states patched into a target run that says in words, or in probabilities, what they mean.

Knows: sources, targets, mappings, and how their combinations become rows and rows become a grid.
Does not know: how rows are run, how a token is chosen (both in engine/), prior methods (methods.py).
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lenscope.engine import chunked_runs, exact_modes, sweep
from lenscope.engine.contrasted_rows import ContrastedRows, read_along
from lenscope.engine.patched_rows import PatchedRows
from lenscope.engine.token_choice_and_end import TokenChooser
from lenscope.errors import LenscopeError
from lenscope.measures.contrasted_readout import contrast_weight
from lenscope.models.adapters import with_adapter
from lenscope.models.edits import Operation, add, replace
from lenscope.models.hidden_states import HiddenStates
from lenscope.models.inputs import count
from lenscope.models.language_model import LM, PromptLike
from lenscope.models.progress import Progress
from lenscope.models.prompts import Prompt
from lenscope.models.provenance import provenance
from lenscope.patchscopes.cell_scores import CellScores, name_answers
from lenscope.patchscopes.grid import Grid
from lenscope.patchscopes.grid_cells import Spot
from lenscope.patchscopes.sources import Layers, Sources, Vectors, cells, gather
from lenscope.patchscopes.target_prompts import Target


class SweepInterrupted(KeyboardInterrupt):
    """A sweep was interrupted; `grid` holds the cells that were done, if any."""

    def __init__(self, grid: Grid | None) -> None:
        super().__init__()
        self.grid = grid


class Patchscope:
    """Write hidden states into a target prompt, and see what the model predicts or writes from there.

    In the terms of Ghandeharioun et al. 2024, §3.1: h[target layer, placeholder] ← f(h[source layer, position]).
    Sources may come from the same model or from another one.

    Args:
        lm: the model that reads the target prompt.
        target: a `Target`, a prompt that is patched at its last token, or several targets.
        f: maps states of the source's model to states of `lm`, called as f(h), f(h, layer) or f(h, layer,
            target_layer); None: states are written as they are.
        op: how f(h) is written: it replaces the state, or is added to it (`lenscope.models.edits`).
        window: at how many layers, from the target layer on, the same is written.
        layers: the layers that calls use which name none; None: all.
        source_lm: the model that the sources come from, if it is not `lm`: needed for surprisal and precision.
        budget: bytes that the states, keys and values of one chunk may take.
        adapter: an adapter that is on in `lm` for the target's runs alone (patched, unpatched, controls): a folder, a
            hub id or a name, as `with_adapter` takes it. `lm` itself stays as it is, also as the source's model.
    """

    def __init__(
        self,
        lm: LM,
        target: "Target | PromptLike | Sequence[Target]",
        f: Callable[..., Any] | None = None,
        *,
        op: Operation = replace,
        window: int = 1,
        layers: Layers = None,
        source_lm: LM | None = None,
        budget: int = chunked_runs.CHUNK_BYTES,
        adapter: Any = None,
    ) -> None:
        window = count(window, "window", 1)
        several: Any = isinstance(target, list | tuple) and target and isinstance(target[0], Target)
        many: Any = target if several else [target]
        self.source_lm = source_lm or lm
        self.lm = lm = lm if adapter is None else with_adapter(lm, adapter)
        self.targets = [t if isinstance(t, Target) else Target(t) for t in many]
        self.resolved = [t.resolve(lm) for t in self.targets]
        self.fixed = [t.fixed(lm) for t in self.targets]
        self.f = f
        self.op = op
        self.window = window
        self.layers = layers
        self.budget = budget
        check = getattr(f, "check", None)
        if check is not None:
            check(self.source_lm, lm)

    @torch.no_grad()
    def predict(
        self,
        sources: HiddenStates | Tensor,
        layers: Layers = None,
        *,
        top_k: int = 5,
        answers: str | int | Sequence[str | int] = (),
        contrast: float = 0.0,
        progress: Progress | None = None,
    ) -> Grid:
        """Predict the next token after the target prompt, with each source patched in at each of `layers`.

        Each cell of the result has its most probable tokens, and of each answer the log-probability and the PMI against
        the target prompt without a patch.

        Args:
            sources: hidden states, each prompt, layer and position of which is a source; or vectors (N, D), or (N, K,
                D) for targets with K placeholders.
            layers: target layers: a number, a list, "same" (each state's own layer), or a list of (source layer, target
                layer) pairs; None: the Patchscope's own, by default all.
            top_k: how many tokens of each cell are listed.
            answers: tokens (text or id), or texts of several tokens, as they follow the target prompt.
            contrast: as of `generate`: tokens, probabilities and all measures are of the contrasted distribution; the
                KL and the PMI are still against the plain run without a patch.
            progress: called with how much is done and how much there is.
        """
        plan, contrast = self.plan(sources, layers), contrast_weight(contrast)
        top_k = count(top_k, "top_k", 1, self.lm.vocab_size)
        named = name_answers(self.lm, plan.rows.prompts, answers)
        base = self._unpatched(plan.rows.prompts, 1)[:, 0]
        scores = CellScores(self.lm, self.source_lm, plan.rows, plan.sources, plan.source, base, named, top_k, contrast)
        done: list[np.ndarray] = []
        total = scores.passes
        ready = 0

        def advance(n: int) -> None:
            nonlocal ready
            ready += n
            if progress is not None:
                progress(ready, total)

        try:
            for mine, h in sweep.predict(self.lm, plan.rows, budget=self.budget):
                scores.take(mine, h[:, 0])
                done.append(mine)
                advance(len(mine))
            for answer in scores.long_answers:
                # the target prompt and all of the answer that its last token is read after
                texts = tuple(self.lm.prompt([*p.ids, *answer.ids[:-1]]) for p in plan.rows.prompts)
                longer = dataclasses.replace(plan.rows, prompts=texts).only(answer.rows)
                plain = self._unpatched(texts, len(answer.ids))
                for part, h in sweep.predict(self.lm, longer, len(answer.ids), self.budget):
                    scores.take_answer(answer, answer.rows[part], h, plain)
                    advance(len(part))
        except KeyboardInterrupt as stop:
            raise SweepInterrupted(self._grid(plan, done, scores.columns, contrast) if done else None) from stop
        return self._grid(plan, done, scores.columns, contrast)

    @torch.no_grad()
    def generate(
        self,
        sources: HiddenStates | Tensor,
        layers: Layers = None,
        *,
        max_new_tokens: int = 20,
        stop: str | Sequence[str] = (),
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        contrast: float = 0.0,
        progress: Progress | None = None,
    ) -> Grid:
        """Write on after the target prompt, with each source patched in at each of `layers`.

        Greedy, or drawn at a `temperature` with a `seed`; a row ends at an end-of-text token, where its text contains a
        string of `stop` (which is cut off), or after `max_new_tokens`. Later tokens see the patch through the cache.

        With a `contrast` α each token is chosen from (1 + α) · patched - α · unpatched logits (BALOR, arXiv
        2602.00300), so that what the target prompt would say of itself counts less. The unpatched run reads the target
        prompt without the patch, with the target's own edits, and then what this cell has written so far.

        The grid's log-probabilities, and the measures made of them, are of the distribution at temperature 1 and with
        the whole vocabulary: without a contrast the patched model's own, with one the contrasted distribution, which
        tokens are chosen from and which is none that the model itself gives.

        Args:
            sources: hidden states, or vectors (N, D) or (N, K, D).
            layers: as of `predict`.
            max_new_tokens: tokens of a text at most.
            stop: strings that end a text.
            temperature: 0 takes the most probable token each time.
            top_p: tokens are drawn from the most probable ones that make up this share.
            seed: fixes the draws.
            contrast: α, from 0 to 1000; 0 is the patched run alone.
            progress: called with how much is done and how much there is.
        """
        plan, contrast = self.plan(sources, layers), contrast_weight(contrast)
        max_new_tokens = count(max_new_tokens, "max_new_tokens")
        self.require_room(max_new_tokens)
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        writer = TokenChooser(self.lm, len(plan.rows), max_new_tokens, stops, temperature, top_p, seed, contrast)
        ids = np.full((len(plan.rows), max_new_tokens), -1)
        log_probs = np.full((len(plan.rows), max_new_tokens), np.nan, dtype=np.float32)
        done: list[np.ndarray] = []

        def written(finished: np.ndarray) -> dict[str, Any]:
            mine = [ids[n][ids[n] >= 0].tolist() for n in finished]
            with_numbers = log_probs[finished]
            mean = np.nanmean(with_numbers, 1) if len(finished) else np.zeros(0, dtype=np.float32)
            return {
                "kind": "generate",
                "ids": ids[finished],
                "log_probs": with_numbers,
                "texts": tuple(writer.text(i) for i in mine),
                "ended": tuple(writer.reason(n) for n in finished.tolist()),
                "measures": {"mean_log_prob": mean, "max_probability": np.exp(with_numbers[:, 0])},
            }

        try:
            how: Any = writer.choose, max_new_tokens, self.budget
            rows = self.contrasted(plan.rows) if contrast else None
            chunks = rows.generate(self.lm, *how) if rows else sweep.generate(self.lm, plan.rows, *how)
            for mine, wrote in chunks:
                for n, one in zip(mine.tolist(), wrote, strict=True):
                    ids[n, : len(one.ids)], log_probs[n, : len(one.ids)] = one.ids, one.log_probs
                done.append(mine)
                if progress is not None:
                    progress(sum(map(len, done)), len(plan.rows))
        except KeyboardInterrupt as stop_now:
            raise SweepInterrupted(self._grid(plan, done, written, contrast) if done else None) from stop_now
        return self._grid(plan, done, written, contrast)

    def require_room(self, max_new_tokens: int) -> None:
        """Raise LenscopeError where a target prompt and so many new tokens are more than the model reads."""
        longest = max(len(p) for p, _ in self.resolved)
        if self.lm.context is not None and longest + max_new_tokens > self.lm.context:
            raise LenscopeError(
                f"max_new_tokens {max_new_tokens}: {self.lm.name} reads at most {self.lm.context} tokens, and a target "
                f"prompt has {longest}; ask for fewer new tokens"
            )

    def contrasted(self, rows: PatchedRows, patched: np.ndarray | None = None) -> ContrastedRows:
        """Rows of this Patchscope, beside each of which its target without a patch reads what it writes.

        `patched` (N,) says beside which rows; the others are contrasted with themselves, so that they stay plain.
        """
        which = np.ones(len(rows), dtype=bool) if patched is None else patched
        plain = self.without_patch(rows.target[which])
        return read_along(rows, plain, np.where(which, np.cumsum(which) - 1, -1))

    def without_patch(self, target: np.ndarray | None = None) -> PatchedRows:
        """A row for each target as it is, that starts where its patched rows do: nothing is added to a placeholder.

        `target` (N,) asks for N rows of these targets.
        """
        target = np.arange(len(self.targets)) if target is None else target
        n, slots = np.arange(len(target)), np.array([slots[0] for _, slots in self.resolved])[target]
        nothing = torch.zeros(1, self.lm.hidden_size, dtype=self.lm.dtype, device=self.lm.device)
        prompts, last = tuple(p for p, _ in self.resolved), np.full_like(n, self.lm.n_layers)
        return self._with_fixed(PatchedRows(prompts, target, nothing, n, last, slots, 0 * n, 0 * n, (add,)))

    def _unpatched(self, prompts: Sequence[Prompt], tokens: int) -> Tensor:
        """The last layer's states (targets, tokens, D) at the last tokens of the targets, run without a patch."""
        fixed = [dataclasses.replace(edit, row=t) for t, edits in enumerate(self.fixed) for edit in edits]
        with self.lm.edit(*fixed):
            states = self.lm.read([p.ids for p in prompts], self.lm.n_layers, slice(-tokens, None))
        return states[self.lm.n_layers, :]

    def plan(self, sources: HiddenStates | Tensor, layers: Layers = None) -> "SweepPlan":
        """The rows that `predict` and `generate` run for such sources and layers, and which cell each is."""
        gathered = gather(sources, self.source_lm.name)
        source, layer = cells(gathered, self.layers if layers is None else layers, self.lm)
        target = np.repeat(np.arange(len(self.targets)), len(source))
        source, layer = np.tile(source, len(self.targets)), np.tile(layer, len(self.targets))
        table = Vectors(gathered, self.f, self.lm)
        # (row, layer, position, name of the vector) of every patch, and the attention barred
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
        hidden_keys = [np.zeros((0, 6), dtype=np.int64)]
        for t, (spec, (_, slots)) in enumerate(zip(self.targets, self.resolved, strict=True)):
            mine = np.flatnonzero(target == t)
            if gathered.vectors.shape[1] not in (1, len(slots)):
                raise LenscopeError(
                    f"sources: have vectors for {gathered.vectors.shape[1]} placeholders, and this target prompt has "
                    f"{len(slots)}; give one for each, or (N, D) for the same vector in all of them"
                )
            for k, slot in enumerate(slots):
                which = k if gathered.vectors.shape[1] > 1 else 0

                def put(here: np.ndarray, at: np.ndarray, what: np.ndarray, which: int = which, s: int = slot) -> None:
                    parts.append((here, at, np.full_like(at, s), table.at(what, at, which)))

                for below in range(int(layer[mine].max()) if spec.below == "source" else 0):
                    here = mine[layer[mine] > below]
                    stacked = [gathered.at(n, below) for n in source[here].tolist()]
                    put(here, np.full_like(here, below), np.array(stacked))
                for w in range(self.window):
                    here = mine[layer[mine] + w <= self.lm.n_layers]
                    put(here, layer[here] + w, source[here])
                if spec.below == "none":
                    low = mine[layer[mine] > 0]
                    zero = np.zeros_like(low)
                    hidden_keys.append(np.stack([low, zero, layer[low], zero + slot + 1, zero - 1, zero + slot], 1))
        row, at, position, name = (np.concatenate(c) for c in zip(*parts, strict=True))
        vectors, vector = table.table(name)
        op = np.zeros(len(row), dtype=np.int64)
        prompts = tuple(p for p, _ in self.resolved)
        planned = PatchedRows(
            prompts, target, vectors, row, at, position, vector, op, (self.op,), np.concatenate(hidden_keys)
        )
        return SweepPlan(gathered, self._with_fixed(planned), source, layer)

    def _with_fixed(self, planned: PatchedRows) -> PatchedRows:
        """The rows with their targets' own edits, which are made before the sources come in."""
        columns: list[np.ndarray] = []
        vectors, ops = [planned.vectors], list(planned.ops)
        for t, edit in ((t, edit) for t, edits in enumerate(self.fixed) for edit in edits):
            mine, places = np.flatnonzero(planned.target == t), np.array(edit.position)
            row, place = (grid.ravel() for grid in np.meshgrid(mine, np.arange(len(places)), indexing="ij"))
            start = sum(map(len, vectors))
            same = np.ones_like(row)
            columns.append(np.stack([row, edit.layer * same, places[place], start + place, len(ops) * same]))
            vectors.append(edit.vector.to(planned.vectors.device))
            ops.append(edit.op)
        if not columns or planned.vectors.shape[-1] != self.lm.hidden_size:
            return planned
        own = np.stack([planned.row, planned.layer, planned.position, planned.vector, planned.op])
        row, layer, position, vector, op = np.concatenate([*columns, own], 1)
        return dataclasses.replace(
            planned, vectors=torch.cat(vectors), row=row, layer=layer, position=position, vector=vector, op=op,
            ops=tuple(ops),
        )  # fmt: skip

    def _grid(
        self, plan: "SweepPlan", done: list[np.ndarray], fill: Callable[[np.ndarray], dict[str, Any]], contrast: float
    ) -> Grid:
        finished = np.sort(np.concatenate(done)) if done else np.zeros(0, dtype=np.int64)
        columns = fill(finished)
        known = sorted({int(i) for i in np.unique(columns["ids"]) if i >= 0})
        spots = tuple(
            Spot(p.text, p.tokens, slots, t.below) for t, (p, slots) in zip(self.targets, self.resolved, strict=True)
        )
        about = {
            **provenance(self.lm),
            "source_model": self.source_lm.name,
            "f": "identity" if self.f is None else _function_name(self.f),
            "op": _function_name(self.op),
            "window": self.window,
            "target_edits": [
                [{"layer": e.layer, "positions": e.position, "op": _function_name(e.op)} for e in edits]
                for edits in self.fixed
            ],
            "contrast": contrast,
            "run": exact_modes.fastest_exact_mode(self.lm),
        }
        return Grid(
            model=self.lm.name,
            n_layers=self.lm.n_layers,
            sources=plan.sources.addresses,
            targets=spots,
            source=plan.source[finished],
            layer=plan.layer[finished],
            target=plan.rows.target[finished],
            vocabulary=dict(zip(known, self.lm.encoder.tokens(known), strict=True)),
            provenance=about,
            **{"ended": (), **columns},
        )


@dataclass(frozen=True, eq=False)
class SweepPlan:
    """What a call runs: its sources, its rows, and which cell each row is."""

    sources: Sources
    rows: PatchedRows
    source: np.ndarray
    layer: np.ndarray


def _function_name(function: Any) -> str:
    return str(getattr(function, "__name__", type(function).__name__))
