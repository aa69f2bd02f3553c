"""One part of a sweep, run: its states are read, put where its configuration says, and its rows become a table.

Knows: the order of rows and columns in a part, how a control's vectors are made of its spots alone.
Does not know: files, which parts are run by whom.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from lenscope.engine import sweep as engine
from lenscope.engine.chunked_runs import CHUNK_BYTES
from lenscope.mappings.mapping import call_mapping
from lenscope.models.hidden_states import HiddenStates
from lenscope.models.prompts import Prompt
from lenscope.sweeps.configurations import Bench, Configuration
from lenscope.sweeps.parts import Part, SweepRows
from lenscope.sweeps.row_scores import (
    RowScores,
    answers_behind,
    compare_with_source,
    repeated_row,
    score_answers,
    score_states,
    write_texts,
)
from lenscope.sweeps.row_table import Addresses, nowhere, row_table

# groups of states that are held for the configurations that come next
HELD = 2


class PartRunner:
    """Runs parts of one sweep, one after the other: `run(part)` gives a part's table, the same whoever runs it."""

    def __init__(self, bench: Bench, rows: SweepRows, budget: int = CHUNK_BYTES) -> None:
        self.bench, self.rows, self.budget = bench, rows, budget
        self.layers = bench.layers_read(rows.spots.layer_sets)
        self._held: dict[bytes, HiddenStates] = {}

    @torch.no_grad()
    def run(self, part: Part) -> pa.Table:
        """The rows of a part, in columns that are the same for every part."""
        one = self.rows.configurations[part.configuration]
        if one.control == "unpatched":
            return self._unpatched(part, one)
        return self._lens(part, one) if one.target < 0 else self._patched(part, one)

    # -- what is read

    def _states(self, spots: np.ndarray) -> HiddenStates:
        """The states of spots (S,), one prompt and one position each, at all layers that the sweep reads."""
        key = spots.tobytes()
        if key not in self._held:
            while len(self._held) >= HELD:
                del self._held[next(iter(self._held))]
            self._held[key] = self._read(spots)
        return self._held[key]

    def _read(self, spots: np.ndarray) -> HiddenStates:
        lm, every = self.bench.source, self.rows.spots
        prompts = {int(p): lm.prompt(every.texts[p]) for p in dict.fromkeys(every.prompt[spots].tolist())}
        wanted: dict[int, list[int]] = {}
        for n in spots.tolist():
            wanted.setdefault(int(every.prompt[n]), []).append(int(every.position[n]))
        # prompts that are read at the same places, counted from their ends, are read together
        alike: dict[tuple[int, ...], list[int]] = {}
        for p, positions in wanted.items():
            alike.setdefault(tuple(sorted({at - len(prompts[p]) for at in positions})), []).append(p)
        place: dict[tuple[int, int], Tensor] = {}
        for from_end, together in alike.items():
            read = lm.read([prompts[p] for p in together], self.layers, list(from_end))
            for b, p in enumerate(together):
                for column, position in enumerate(read.positions[b]):
                    place[p, position] = read.tensor[b, :, column]
        at = list(zip(every.prompt[spots].tolist(), every.position[spots].tolist(), strict=True))
        return HiddenStates(
            torch.stack([place[key] for key in at])[:, :, None],
            self.layers,
            lm.n_layers,
            tuple(prompts[p] for p, _ in at),
            tuple((position,) for _, position in at),
            True,
            lm.name,
        )

    def _sources(self, part: Part, one: Configuration) -> tuple[np.ndarray, HiddenStates]:
        """The spots of a part and their states, or what a control has in place of them under their addresses."""
        spots = np.arange(part.start, part.stop)
        states = self._states(spots)
        last = states.tensor[:, -1]
        if one.control == "other-source":
            taken = self._read(self.rows.others[spots]).tensor
            return spots, dataclasses.replace(states, tensor=taken, last=last)
        if one.control == "random":
            return spots, dataclasses.replace(states, tensor=self._random(spots, states.tensor), last=last)
        return spots, states

    def _random(self, spots: np.ndarray, tensor: Tensor) -> Tensor:
        """Directions drawn for each prompt, position and layer by the seed alone, as long as states (S, L, 1, D)."""
        drawn = np.empty(tensor.shape, dtype=np.float64)
        for s, n in enumerate(spots.tolist()):
            for number, layer in enumerate(self.layers):
                key = hashlib.blake2b(self._place(n) + f"{self.bench.spec.seed} {layer}".encode(), digest_size=8)
                draw = np.random.default_rng(int.from_bytes(key.digest(), "little"))
                drawn[s, number, 0] = draw.standard_normal(tensor.shape[-1])
        directions = torch.from_numpy(drawn)
        directions *= tensor.double().norm(dim=-1, keepdim=True).cpu() / directions.norm(dim=-1, keepdim=True)
        return directions.to(tensor.device, tensor.dtype)

    def _place(self, spot: int) -> bytes:
        """The prompt and position of a spot, whatever its answer."""
        every = self.rows.spots
        text = every.texts[int(every.prompt[spot])]
        return hashlib.blake2b(f"{int(every.position[spot])} {text}".encode(), digest_size=16).digest()

    def _addresses(self, one: Configuration, spots: np.ndarray) -> Addresses:
        tables = [one.pairs[n] for n in self.rows.spots.layers[spots].tolist()]
        spot = np.repeat(np.arange(len(spots)), [len(table) for table in tables])
        return Addresses(spots, spot, np.concatenate(tables))

    # -- what is run

    def _patched(self, part: Part, one: Configuration) -> pa.Table:
        scope, lm = self.bench.scope(one), self.bench.explainers[one.explainer]
        spots, states = self._sources(part, one)
        addresses = self._addresses(one, spots)
        pairs = sorted({(int(a), int(b)) for a, b in np.unique(addresses.layers, axis=0)})
        plan = scope.plan(states, pairs)
        rows = plan.rows
        if len(rows) != len(addresses):
            # spots with layers of their own: of all pairs at all spots, those that are theirs
            depth = {layer: n for n, layer in enumerate(self.layers)}
            number = {
                (int(s) // len(self.layers), int(s) % len(self.layers), int(to)): n
                for n, (s, to) in enumerate(zip(plan.source, plan.layer, strict=True))
            }
            own = zip(addresses.spot.tolist(), addresses.layers.tolist(), strict=True)
            rows = rows.only(np.array([number[s, depth[a], b] for s, (a, b) in own]))
        scores = RowScores(len(addresses))
        answers = self._answers(spots)
        asked = [answers[n] for n in addresses.spot.tolist()]
        method, contrast = self.bench.spec.methods[one.method], self.bench.contrast(one)
        if method.kind == "generate":
            writing = scope.contrasted(rows) if contrast else rows
            write_texts(scores, lm, writing, method.max_new_tokens, method.stop, self.budget, contrast)
            scores.mark_mentions(asked)
            return self._table(one, states, addresses, asked, scores)
        prompt = scope.resolved[0][0]
        unpatched = scope.without_patch()
        ((_, base),) = engine.predict(lm, unpatched, budget=self.budget)
        ids = answers_behind(lm, prompt, asked)
        first = np.array([row[0] if row else -1 for row in ids])
        for mine, h in engine.predict(lm, rows, budget=self.budget):
            score_states(scores, lm, mine, h[:, 0], base[:, 0], first[mine], self.bench.spec.top_k, contrast)
        last = states.tensor[:, -1, 0] if states.last is None else states.last[:, 0]
        compare_with_source(scores, lm, self.bench.source, last, addresses.spot)
        score_answers(scores, lm, rows, unpatched, ids, self.budget, contrast)
        return self._table(one, states, addresses, asked, scores)

    def _lens(self, part: Part, one: Configuration) -> pa.Table:
        lm, source = self.bench.explainers[one.explainer], self.bench.source
        spots, states = self._sources(part, one)
        addresses = self._addresses(one, spots)
        f, _ = self.bench.mappings[one.explainer][one.mapping]
        depth = np.searchsorted(self.layers, addresses.layers[:, 0])
        h = states.tensor[torch.from_numpy(addresses.spot), torch.from_numpy(depth), 0]
        if f is not None:
            mapped = torch.empty(len(h), lm.hidden_size, dtype=torch.float32)
            for layer in np.unique(addresses.layers[:, 0]).tolist():
                rows = torch.from_numpy(np.flatnonzero(addresses.layers[:, 0] == layer))
                mapped[rows] = call_mapping(f, h[rows], layer, lm.n_layers).float().cpu()
            h = mapped
        h = h.to(lm.device, lm.dtype)
        last = states.tensor[:, -1, 0] if states.last is None else states.last[:, 0]
        base = last[torch.from_numpy(addresses.spot)] if lm is source else None
        behind = [lm.prompt(_ids_up_to(p, at[0])) for p, at in zip(states.prompts, states.positions, strict=True)]
        answers = self._answers(spots)
        ids = [answers_behind(lm, prompt, [a])[0] for prompt, a in zip(behind, answers, strict=True)]
        first = np.array([ids[n][0] if ids[n] else -1 for n in addresses.spot.tolist()])
        scores = RowScores(len(addresses))
        score_states(scores, lm, np.arange(len(h)), h, base, first, self.bench.spec.top_k)
        several = np.array([len(ids[n]) > 1 for n in addresses.spot.tolist()])
        # what follows the first token of an answer is read by no lens
        scores.numbers["answer_log_prob"][several] = np.nan
        compare_with_source(scores, lm, source, last, addresses.spot)
        return self._table(one, states, addresses, [answers[n] for n in addresses.spot.tolist()], scores)

    def _unpatched(self, part: Part, one: Configuration) -> pa.Table:
        scope, lm = self.bench.scope(one), self.bench.explainers[one.explainer]
        spec = self.bench.spec
        numbers = self.rows.unpatched[part.start : part.stop].tolist()
        answers = [None if n < 0 else self.rows.spots.answers[n] for n in numbers]
        row, scores = scope.without_patch(), RowScores(len(answers))
        method = spec.methods[one.method]
        if method.kind == "generate":
            alone = RowScores(1)
            write_texts(alone, lm, row, method.max_new_tokens, method.stop, self.budget)
            scores = alone.repeated(len(answers))
            scores.mark_mentions(answers)
        else:
            ((_, base),) = engine.predict(lm, row, budget=self.budget)
            ids = answers_behind(lm, scope.resolved[0][0], answers)
            first = np.array([one_answer[0] if one_answer else -1 for one_answer in ids])
            h = base[:, 0].expand(len(answers), -1)
            score_states(scores, lm, np.arange(len(answers)), h, base[:, 0], first, spec.top_k)
            score_answers(scores, lm, repeated_row(row, len(answers)), row, ids, self.budget)
        return self._table(one, None, nowhere(len(answers)), answers, scores)

    def _table(
        self, one: Configuration, states: HiddenStates | None, addresses: Addresses, answers: Sequence[str | None],
        scores: RowScores,
    ) -> pa.Table:  # fmt: skip
        return row_table(
            self.bench, self.rows, one, () if states is None else states.prompts, addresses, answers, scores
        )

    def _answers(self, spots: np.ndarray) -> list[str | None]:
        every = self.rows.spots
        return [None if a < 0 else every.answers[a] for a in every.answer[spots].tolist()]


def _ids_up_to(prompt: Prompt, position: int) -> list[int]:
    return list(prompt.ids[: position + 1])
