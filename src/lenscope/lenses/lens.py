"""Lenses: hidden states decoded straight into distributions over the vocabulary, layer by layer.

Knows: which states to read, which distribution is the final one, how prompts become trajectories.
Does not know: how logits are reduced (measures), how translators are fitted (fitting), how results look.
"""

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from lenscope.engine.token_choice_and_end import TokenChooser
from lenscope.errors import LenscopeError
from lenscope.lenses.comparison import Comparison
from lenscope.lenses.lens_reports import HELD_OUT, doubtful_layers, doubts_entry, held_out_kl
from lenscope.lenses.reduced_trajectory import float32_array, reduced_trajectory
from lenscope.lenses.token_directions import TokenDirections
from lenscope.lenses.token_ranks import TokenRanks
from lenscope.lenses.trajectory import POINTS, Trajectory
from lenscope.lenses.written_trajectory import WrittenTrajectory
from lenscope.mappings import mapping as mappings
from lenscope.mappings.mapping import PairMapping, StateMap
from lenscope.measures.chosen_tokens import rank_tokens
from lenscope.measures.divergences import diverge
from lenscope.models.batches import in_order
from lenscope.models.edits import as_vectors
from lenscope.models.hidden_states import HiddenStates
from lenscope.models.inputs import count, elements, is_integer
from lenscope.models.language_model import LM, PromptLike
from lenscope.models.layers import check_layers
from lenscope.models.prompts import Positions, Prompt
from lenscope.models.provenance import provenance
from lenscope.models.sublayer_states import Point, check_point, read_points

# one token, as text or id, or several
Tokens = str | int | Sequence[str | int]


class Lens:
    """A lens: what each layer of a model would predict next.

    Without `f` it is the logit lens, which skips the remaining layers: it decodes a hidden state as if it were the last
    layer's (nostalgebraist 2020; Belrose et al. 2023, Eq. 3). With fitted affine maps as `f` it is the tuned lens
    (ibid., Eq. 8), which corrects each layer's states first.

    Args:
        lm: the model whose states are read.
        f: a fitted mapping from `lm` to itself, as `fit` and `load_lens` give it, or a function, called as f(h), f(h,
            layer) or f(h, layer, n_layers).
        name: what results call this lens.

    Raises LenscopeError for a mapping of other models, or with none to the last layer.
    """

    def __init__(self, lm: LM, f: StateMap | None = None, *, name: str | None = None) -> None:
        self.lm = lm
        self.f = f
        given = "logit lens" if f is None else getattr(f, "__name__", type(f).__name__)
        check = getattr(f, "check", None)
        if check is not None:
            check(lm, lm)
        if isinstance(f, PairMapping):
            if not set(f.layers(lm.n_layers)) - {lm.n_layers}:
                raise LenscopeError(f"lens {f!r}: maps no layer to layer {lm.n_layers}, the last of {lm.name}")
            given = f.report.get("lens", given)
        elif f is not None:
            mappings.argument_count(f)
        self.name = str(name or given)

    @property
    def layers(self) -> Sequence[int]:
        """The layers that can be read: those that `f` has weights for, or all where it is a function."""
        last = self.lm.n_layers
        return self.f.layers(last) if isinstance(self.f, PairMapping) else range(last + 1)

    @property
    def trusted(self) -> tuple[int, ...]:
        """The layers that can be read and trusted: all of `layers` but those of `doubts`."""
        doubts = self.doubts
        return tuple(layer for layer in self.layers if layer not in doubts)

    @property
    def doubts(self) -> dict[int, str]:
        """The layers at which the lens is not to be trusted, by the report of its fit, and why: {layer: words}.

        `lenscope.lenses.lens_reports.doubtful_layers` says by which rules. Of the logit lens, a function, and a lens
        without a report nothing is known, and nothing is doubted.
        """
        report = self.f.report if isinstance(self.f, PairMapping) else {}
        return doubtful_layers(report, self.layers, self.lm.n_layers)

    def map(self, h: Tensor, layer: int) -> Tensor:
        """Apply `f` to hidden states (..., D) of one layer: states as the last layer would have them.

        Raises LenscopeError for an f that gives states of another shape.
        """
        if self.f is None:
            return h
        mapped = mappings.call_mapping(self.f, h, layer, self.lm.n_layers)
        if mapped.shape != h.shape:
            raise LenscopeError(
                f"lens {self.name}: f gives states of size {mapped.shape[-1]}; {self.lm.name} unembeds size "
                f"{self.lm.hidden_size} (for {tuple(h.shape)} it gives states of shape {tuple(mapped.shape)})"
            )
        return mapped.to(h.dtype)

    def logits(self, h: Tensor, layer: int) -> Tensor:
        """Decode hidden states (..., D) of one layer, a tensor or an array, into logits (..., V)."""
        (number,) = check_layers((layer,), self.lm.n_layers, self.lm.name)
        return self.lm.unembed(self.map(as_vectors(h, "hidden states"), number))

    def direction(self, tokens: Tokens, layer: int) -> Tensor:
        """Give the direction (D,) in a layer's states that raises a token's logit through this lens; several: (n, D).

        For a lens f(h) = A h + b it is Aᵀ r, r being the token's row of the readout as the last state sees it: the row
        of the head through the final norm, whose denominator is held constant (`lenscope.models.readout_rows`). So it
        is J_lᵀ W_U[token] of a Jacobian lens (Gurnee et al. 2026) with the norm's weight, and r for the logit lens. The
        logit, before scale and soft cap, is direction · h / ρ plus what does not depend on h, ρ being the root mean
        square that the norm divides by. In float32, in float64 for a float64 model.

        Args:
            tokens: one token (text or id), or a list of them.
            layer: 0…n_layers.

        Raises LenscopeError for a lens that is a function, layers without a map, tokens that are several, and models
        whose readout is no norm and matrix.
        """
        one = is_integer(tokens) or isinstance(tokens, str)
        listed = [tokens] if one else elements(tokens, "a token or a list of tokens, as texts or ids")
        if not listed:
            raise LenscopeError("tokens: the list is empty; name at least one")
        ids = torch.tensor([self.lm.encoder.token_id(token) for token in listed])
        (number,) = check_layers((layer,), self.lm.n_layers, self.lm.name)
        directions = TokenDirections(self.lm, self.f, self.name).of(ids, number)
        return directions[0] if one else directions

    @overload
    def trajectory(
        self, prompts: PromptLike, layers: Sequence[int] | None = ..., positions: Positions | None = ..., *,
        target: str | int | None = ..., top_k: int = ..., points: Point = ...,
    ) -> Trajectory: ...  # fmt: skip
    @overload
    def trajectory(
        self, prompts: list[str | Prompt] | list[str], layers: Sequence[int] | None = ...,
        positions: Positions | None = ..., *, target: str | int | None = ..., top_k: int = ..., points: Point = ...,
    ) -> list[Trajectory]: ...  # fmt: skip
    def trajectory(
        self,
        prompts: Any,
        layers: Sequence[int] | None = None,
        positions: Positions | None = None,
        *,
        target: str | int | None = None,
        top_k: int = 5,
        points: Point = "block",
    ) -> Trajectory | list[Trajectory]:
        """Read what every layer would predict at every position of a prompt; a list of prompts gives a list.

        KL compares with the model's own final distribution. Time is about one forward pass and one unembedding per
        layer; memory does not grow with the vocabulary. Raises LenscopeError for layers, positions or tokens that do
        not exist, and for points within blocks where they cannot be read: of blocks that add something else than
        attention and an MLP, and through a fitted lens, which has maps for the states between blocks only.

        Args:
            prompts: a text, token ids or a Prompt, or a list of them.
            layers: which layers are read; by default all that f has weights for.
            positions: which positions of each prompt are read; by default all.
            target: the token (text or id) that cross_entropy and rank are about; by default each position's next one.
            top_k: how many of the most probable tokens are listed.
            points: where in a block states are read: layer l is the end of the block that makes it ("block"), or in
                that block, for l = 1…n_layers, the stream after its "attention" or its "mlp" was added to it.
        """
        top_k = count(top_k, "top_k", 1, self.lm.vocab_size)
        chosen = None if target is None else self.lm.encoder.token_id(target)
        batched, many = self.lm.encoder.prompts(prompts)
        numbers = self._layers(layers, points)
        source = provenance(self.lm)
        trajectories = []
        for run in in_order(many, len, self.lm.runner.tokens_together):
            for states in self._read(run, numbers, positions, points).split():
                trajectories.append(self._reduced(states, numbers, chosen, top_k, source, points))
        return trajectories if batched else trajectories[0]

    def ranks(
        self,
        prompt: PromptLike,
        tokens: Sequence[str | int],
        layers: Sequence[int] | None = None,
        positions: Positions | None = None,
        *,
        points: Point = "block",
    ) -> TokenRanks:
        """Follow several tokens at once: their ranks and log-probabilities at every layer and position.

        Each is what `trajectory(target=…, points=…)` gives for that token alone, in one pass for all. Raises
        LenscopeError as that does.
        """
        ids = [self.lm.encoder.token_id(token) for token in elements(tokens, "a list of tokens, as texts or ids")]
        if not ids:
            raise LenscopeError("tokens: the list is empty; name at least one")
        numbers = self._layers(layers, points)
        states = self._read(self.lm.prompt(prompt), numbers, positions, points)
        chosen = torch.tensor(ids, device=states.tensor.device)
        last_alone = self.f is None and numbers[-1] == self.lm.n_layers and points == "block"
        h = self._mapped_all(states, numbers)
        ranked = rank_tokens(self.lm.runner.readout, self.lm.vocab_size, h, chosen, last_alone)
        return TokenRanks(
            ids=tuple(ids),
            layers=numbers,
            positions=states.positions[0],
            rank=ranked.rank.cpu().numpy().astype(np.int64),
            log_prob=float32_array(ranked.log_prob),
            vocabulary=dict(zip(ids, self.lm.encoder.tokens(ids), strict=True)),
            model=self.lm.name,
            lens=f"{self.name} {POINTS[points]}".rstrip(),
        )

    def generate(
        self,
        prompt: PromptLike,
        max_new_tokens: int = 20,
        layers: Sequence[int] | None = None,
        positions: Positions | None = None,
        *,
        target: str | int | None = None,
        top_k: int = 5,
        stop: str | Sequence[str] = (),
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> WrittenTrajectory:
        """Let the model write after a prompt, and read each token's trajectory as it comes: iterate over the result.

        Greedy, as `LM.generate`, or drawn at a `temperature` with a `seed`; it ends at an end-of-text token, where its
        text contains a string of `stop`, or after `max_new_tokens`. A cache is used where it was measured to give this
        model's own states at all layers. Raises LenscopeError as `trajectory` does, and where the model's context has
        no room for the new tokens.

        Args:
            prompt: a text, token ids or a Prompt.
            max_new_tokens: how many tokens are written at most.
            layers: which layers are read; by default all that f has weights for.
            positions: which positions of the prompt are read; by default all. All that are written are.
            target: the token that cross_entropy and rank are about; by default each position's next one.
            top_k: how many of the most probable tokens are listed.
            stop: strings that end the text.
            temperature: 0 takes the most probable token each time.
            top_p: tokens are drawn from the most probable ones that make up this share.
            seed: fixes the draws.
        """
        one, new = self.lm.prompt(prompt), count(max_new_tokens, "max_new_tokens")
        top_k = count(top_k, "top_k", 1, self.lm.vocab_size)
        self.lm.encoder.require_room(len(one), new)
        chosen = None if target is None else self.lm.encoder.token_id(target)
        numbers, source = self._layers(layers), provenance(self.lm)
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        chooser = TokenChooser(self.lm, 1, new, stops, temperature, top_p, seed)

        def reduced(states: HiddenStates) -> Trajectory:
            return self._reduced(states, numbers, chosen, top_k, source)

        how = {"temperature": temperature, "top_p": top_p, "seed": seed}
        return WrittenTrajectory(self.lm, one, self._with_last(numbers), positions, reduced, chooser, new, how)

    def compare(
        self,
        first: PromptLike,
        second: PromptLike,
        layers: Sequence[int] | None = None,
        positions: Positions | None = None,
        *,
        lens: "Lens | None" = None,
        top_k: int = 5,
        points: Point = "block",
    ) -> Comparison:
        """Compare the predictions of two prompts, or of two lenses, at every layer.

        Raises LenscopeError for layers and positions that do not exist, positions of unequal number, a model given as
        the lens, and lenses of models that differ in layers or vocabulary.

        Args:
            first: a text, token ids or a Prompt.
            second: another one.
            layers: which layers are read; by default all that both lenses have.
            positions: of both prompts; by default all, paired from the end where the prompts differ in length.
            lens: what reads the second prompt, by default this one; the same prompt through two lenses compares those.
            top_k: how many of the most probable tokens are listed of each side.
            points: where in a block the states of both are read, as `trajectory` takes it.
        """
        other = self if lens is None else lens
        if not isinstance(other, Lens):
            raise LenscopeError(f"lens: is a {type(other).__name__}; give a Lens, such as Lens(lm) of the other model")
        if other.lm.vocab_size != self.lm.vocab_size or other.lm.n_layers != self.lm.n_layers:
            raise LenscopeError(
                f"{other.lm.name} and {self.lm.name} differ in layers or vocabulary: they cannot be compared"
            )
        both = {*self._layers(None, points)} & {*other._layers(None, points)}
        numbers = self._layers(sorted(both) if layers is None else layers, points)
        sides = (self, first), (other, second)
        states = [side._read(side.lm.prompt(text), numbers, positions, points) for side, text in sides]
        paired = min(len(s.positions[0]) for s in states)
        if positions is not None and len({len(s.positions[0]) for s in states}) > 1:
            raise LenscopeError("positions: name as many in the first prompt as in the second")
        states = [_last_positions(s, paired) for s in states]
        h = tuple(side._mapped_all(s, numbers) for (side, _), s in zip(sides, states, strict=True))
        apart = diverge((self.lm.runner.readout, other.lm.runner.readout), self.lm.vocab_size, (h[0], h[1]))
        a, b = (
            side._reduced(s, numbers, None, top_k, provenance(side.lm), points)
            for (side, _), s in zip(sides, states, strict=True)
        )
        return Comparison(
            texts=(a.text, b.text),
            lenses=(self.name, other.name),
            models=(self.lm.name, other.lm.name),
            layers=numbers,
            positions=tuple(zip(a.positions, b.positions, strict=True)),
            js=float32_array(apart.js),
            total_variation=float32_array(apart.total_variation),
            kl=float32_array(apart.kl),
            kl_back=float32_array(apart.kl_back),
            first=a,
            second=b,
        )

    def _reduced(
        self, states: HiddenStates, layers: tuple[int, ...], target: int | None, top_k: int, source: dict[str, Any],
        points: Point = "block",
    ) -> Trajectory:  # fmt: skip
        return reduced_trajectory(
            self.lm,
            states,
            self._mapped_all(states, layers),
            layers,
            self.name,
            {**source, "lens": self.name, **self._reported(layers)},
            target=target,
            top_k=top_k,
            points=points,
            unmapped=self.f is None,
            identity_at_last=self.f is None or isinstance(self.f, PairMapping),
        )

    def _reported(self, layers: tuple[int, ...]) -> dict[str, Any]:
        """What the report of a fitted f says of how well these layers are read, as a provenance has it."""
        report = self.f.report if isinstance(self.f, PairMapping) else {}
        kl, doubts = held_out_kl(report.get("layers")), self.doubts
        held_out = {} if kl is None else {HELD_OUT: kl}
        return {**held_out, **doubts_entry({layer: doubts[layer] for layer in layers if layer in doubts})}

    def _mapped_all(self, states: HiddenStates, layers: tuple[int, ...]) -> Tensor:
        """f of every layer's states: (L, P, D)."""
        h = states.tensor[0, [states.layers.index(n) for n in layers]]
        return h if self.f is None else torch.stack([self.map(x, n) for x, n in zip(h, layers, strict=True)])

    def _read(self, prompts: Any, layers: tuple[int, ...], positions: Positions | None, points: Point) -> HiddenStates:
        """States of layers at a point of their blocks, and the final ones: among them, or as `last`."""
        if points == "block":
            return self.lm.read(prompts, self._with_last(layers), positions)
        return read_points(self.lm, prompts, points, layers, positions)

    def _layers(self, layers: Sequence[int] | None, points: Point = "block") -> tuple[int, ...]:
        wanted = self.layers if layers is None else layers
        if check_point(points) != "block":
            if isinstance(self.f, PairMapping):
                raise LenscopeError(
                    f"points {points!r}: {self.name} was fitted to states between blocks and has no map for those "
                    "within; read them with the logit lens, or points='block'"
                )
            wanted = [n for n in wanted if n] if layers is None else wanted
        return tuple(sorted(set(check_layers(wanted, self.lm.n_layers, self.lm.name))))

    def _with_last(self, layers: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(dict.fromkeys((*layers, self.lm.n_layers)))


def _last_positions(states: HiddenStates, count: int) -> HiddenStates:
    keep = states.positions[0][-count:]
    tensor = states.tensor[:, :, len(states.positions[0]) - count :]
    last = None if states.last is None else states.last[:, -count:]
    return HiddenStates(tensor, states.layers, states.n_layers, states.prompts, (keep,), False, states.model, last)


def lens_layers(lens: Lens, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The layers asked for, by default all that the lens has but the model's last; LenscopeError for one it lacks."""
    last = lens.lm.n_layers
    wanted = [n for n in lens.layers if n < last] if layers is None else layers
    chosen = tuple(sorted(set(check_layers(wanted, last, lens.lm.name))))
    missing = set(chosen) - set(lens.layers)
    if missing:
        have = ", ".join(map(str, lens.layers))
        raise LenscopeError(f"layer {min(missing)}: {lens.name} has maps for the layers {have}")
    return chosen
