"""Edits along directions of tokens: one swapped for another, one added, the strongest taken out, over a band of layers.

Knows: what is added to a state, the sizes that an edit had in each prompt, which layers are the middle of a model.
Does not know: how directions are had (lenses/token_directions.py), what edits do to an answer (token_edit_effects.py).

A direction is that of `TokenDirections.unit`: J_lᵀ W_U[token] of a Jacobian lens, of rows less the vocabulary's mean
row, of length 1. Each edit is computed from the states as they come in that very run, so what an edit does at one layer
of a band is seen by the edit at the next.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import overload

import torch
from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.lenses.lens import Lens, lens_layers
from lenscope.lenses.token_directions import TokenDirections
from lenscope.models.edits import ComputedEdit
from lenscope.models.inputs import count
from lenscope.models.layers import Layers, check_layers, layers_in_words
from lenscope.models.prompts import Position, Positions, Prompt
from lenscope.models.readout import wide
from lenscope.text.packing import counted_positions, mark_ids

# layer, prompt, its states (T, D), positions (P) → what is added (P, D), and the sign of each addition (P,)
SignedChange = Callable[[int, Prompt, Tensor, list[int]], tuple[Tensor, Tensor]]
# States whose strongest tokens are sought at once, and how small a share of a span's largest extent counts as none.
ROWS, FLAT = 64, 1e-10


@dataclass(frozen=True, eq=False)
class EditedStates:
    """What an edit did to one prompt's states at one layer.

    `amounts` (P,) are the lengths of what was added, negative where it was added against the direction; `lengths` (P,)
    those of the states before.
    """

    amounts: Tensor
    lengths: Tensor


class TokenEdit(Sequence[ComputedEdit]):
    """An edit along tokens' directions, with one part for each layer of a band: `with lm.edit(*edit):`.

    `swap_tokens`, `steer_token`, `ablate_tokens` and `control_edit` make it. It keeps what it did to each prompt that
    ran with it, which controls of equal size need.

    Attributes:
        lens: the lens whose directions are used.
        directions: the directions of its tokens; controls of the edit use them too.
        name: what is done, in words.
        layers: the layers of the band, ascending.
        positions: which positions of each prompt are changed; None: all.
        tokens: the ids of the tokens that it names.
        k: how many directions are taken out; None for edits along a single direction.
    """

    def __init__(
        self, lens: Lens, directions: TokenDirections, name: str, layers: Sequence[int], positions: Positions | None,
        tokens: Sequence[int], change: SignedChange, k: int | None = None,
    ) -> None:  # fmt: skip
        self.lens, self.directions, self.name, self.positions, self.k = lens, directions, name, positions, k
        self.layers, self.tokens = tuple(layers), tuple(tokens)
        self._change = change
        self._edited: dict[tuple[int, tuple[int, ...]], EditedStates] = {}

    def __repr__(self) -> str:
        return f"TokenEdit({self.name}, {layers_in_words(self.layers)}, {self.lens.name})"

    def __len__(self) -> int:
        return len(self.layers)

    @overload
    def __getitem__(self, at: int) -> ComputedEdit: ...
    @overload
    def __getitem__(self, at: slice) -> list[ComputedEdit]: ...
    def __getitem__(self, at: int | slice) -> ComputedEdit | list[ComputedEdit]:
        chosen = self.layers[at]
        return self._part(chosen) if isinstance(chosen, int) else [self._part(layer) for layer in chosen]

    def _part(self, layer: int) -> ComputedEdit:
        return ComputedEdit(layer, self.positions, partial(self._changed, layer), self.name)

    def _changed(self, layer: int, prompt: Prompt, h: Tensor, places: list[int]) -> Tensor:
        size = self.lens.lm.hidden_size
        if h.shape[-1] != size:
            raise LenscopeError(
                f"{self.name}: its lens reads states of {self.lens.lm.name}, of size {size}, not of size {h.shape[-1]}"
            )
        change, sign = self._change(layer, prompt, h, places)
        amounts = change.norm(dim=-1) * torch.where(sign < 0, -1.0, 1.0).to(change)
        self._edited[layer, prompt.ids] = EditedStates(amounts, h[places].norm(dim=-1))
        return change.to(h)

    def at(self, layer: int, prompt: Prompt) -> EditedStates:
        """What it did to a prompt's states at a layer when it last ran. LenscopeError where it has not."""
        edited = self._edited.get((layer, prompt.ids))
        if edited is None:
            raise LenscopeError(
                f"{self.name}: it has not run on this prompt at layer {layer}; run the prompt with the edit first, so "
                "that the sizes of its control are known"
            )
        return edited

    def sizes(self, prompt: Prompt) -> tuple[Tensor, Tensor]:
        """The lengths (L, P) of what was added to a prompt's states when it last ran, and of the states before.

        Raises LenscopeError where it has not run on this prompt.
        """
        every = [self.at(layer, prompt) for layer in self.layers]
        added, lengths = (
            [x.cpu() for x in xs] for xs in zip(*((e.amounts.abs(), e.lengths) for e in every), strict=True)
        )
        return torch.stack(added), torch.stack(lengths)


def swap_tokens(
    lens: Lens,
    source: str | int,
    replacement: str | int,
    layers: Layers | None = None,
    positions: Positions | None = None,
) -> TokenEdit:
    """Put one token's direction in the place of another's: h ← h - (h·û) û + (h·û) v̂, û the source's, v̂ the other's.

    As in the open replication of Gurnee et al. 2026 (xiangchensong/jacobian-lens-open-frontier, "transfer"), at every
    layer of a band and, by default, every position of the prompt. The paper exchanges both coordinates instead, which
    is the reflection h ← h - 2 (h·d) d with d the unit vector along û - v̂. A second layer's reflection undoes the
    first's, so over a band it comes and goes with the number of layers (TransformerLens issue 1746). This edit does
    not.

    Args:
        lens: the lens whose directions are used.
        source: the token, text or id, whose direction is taken out.
        replacement: the token whose direction takes its place.
        layers: the band: an integer, a slice or a list; None: the middle two thirds (`middle_band`).
        positions: of each prompt: an index, a substring, a slice or a list of these; None: all.

    Raises LenscopeError for layers that the lens has no map for, tokens that are several or the same one, and a lens or
    model without directions (`Lens.direction`).
    """
    ids = [lens.lm.encoder.token_id(token) for token in (source, replacement)]
    texts = [repr(text) for text in lens.lm.encoder.tokens(ids)]
    if ids[0] == ids[1]:
        raise LenscopeError(f"token {texts[0]}: is put in its own place, which changes nothing; name two tokens")
    band, directions = _band(lens, layers), TokenDirections(lens.lm, lens.f, lens.name)
    units = _units(directions, ids)
    for layer in band:
        units(layer)

    def change(layer: int, prompt: Prompt, h: Tensor, places: list[int]) -> tuple[Tensor, Tensor]:
        u, v = units(layer).to(h)
        amount = h[places] @ u
        return amount[:, None] * (v - u), amount

    return TokenEdit(lens, directions, f"swap {texts[0]} → {texts[1]}", band, _checked_edit(positions), ids, change)


def steer_token(
    lens: Lens,
    token: str | int,
    strength: float = 1.0,
    layers: Layers | None = None,
    positions: Positions | None = None,
) -> TokenEdit:
    """Add a token's direction: h ← h + strength · m · û, m the mean length of the prompt's states at that layer.

    As Gurnee et al. 2026 inject a concept. Means leave out the first position and special tokens, whose states may be a
    hundred times as long, where the prompt has others.

    Args:
        lens: the lens whose directions are used.
        token: a text or an id.
        strength: how much of it, in mean lengths of states; negative: against the direction.
        layers: the band: an integer, a slice or a list; None: the middle two thirds (`middle_band`).
        positions: of each prompt: an index, a substring, a slice or a list of these; None: all.

    Raises LenscopeError as `swap_tokens`, and for a strength that is not finite.
    """
    if not math.isfinite(strength):
        raise LenscopeError(f"strength {strength}: give a finite number")
    token_id = lens.lm.encoder.token_id(token)
    band, directions = _band(lens, layers), TokenDirections(lens.lm, lens.f, lens.name)
    units, marks = _units(directions, [token_id]), mark_ids(lens.lm)
    for layer in band:
        units(layer)

    def change(layer: int, prompt: Prompt, h: Tensor, places: list[int]) -> tuple[Tensor, Tensor]:
        counts = torch.from_numpy(counted_positions(prompt.ids, marks)).to(h.device)
        mean = (h[counts] if counts.any() else h).norm(dim=-1).mean()
        added = strength * mean * units(layer)[0].to(h)
        return added.expand(len(places), -1), torch.full((len(places),), strength).to(h)

    name = f"steer {lens.lm.encoder.tokens([token_id])[0]!r} × {strength:g}"
    return TokenEdit(lens, directions, name, band, _checked_edit(positions), [token_id], change)


def ablate_tokens(
    lens: Lens, k: int = 10, layers: Layers | None = None, positions: Positions | None = None
) -> TokenEdit:
    """Take out of each state the directions of the k tokens of its largest lens logits: their span is projected out.

    As Gurnee et al. 2026 (k = 10) and its open replication, the tokens being those of the state as it comes. Directions
    that others of the k span already are no more taken out twice.

    Args:
        lens: the lens that says which tokens, and whose directions are used.
        k: how many tokens.
        layers: the band: an integer, a slice or a list; None: the middle two thirds (`middle_band`).
        positions: of each prompt: an index, a substring, a slice or a list of these; None: all.

    Raises LenscopeError as `swap_tokens`, and for a k below 1, or of as many as a state has dimensions.
    """
    count(k, "k", 1, lens.lm.hidden_size - 1)
    band, directions = _band(lens, layers), TokenDirections(lens.lm, lens.f, lens.name)

    def change(layer: int, prompt: Prompt, h: Tensor, places: list[int]) -> tuple[Tensor, Tensor]:
        parts = []
        for part in h[places].split(ROWS):
            units = directions.unit(strongest_tokens(lens, part, layer, k).flatten(), layer)
            parts.append(-projected(part, units.view(len(part), k, -1).to(part)))
        return torch.cat(parts), torch.ones(len(places))

    return TokenEdit(lens, directions, f"ablate {k} tokens", band, _checked_edit(positions), [], change, k)


def middle_band(lens: Lens) -> tuple[int, ...]:
    """The middle two thirds of a model's layers that a lens has maps for, ascending.

    Below them lenses read next to nothing (published viewers of Jacobian lenses leave the first layers out); above them
    a direction is that of the next token itself, so that an edit writes the answer instead of what it is made from.

    Raises LenscopeError where the lens has no map for any of them.
    """
    last = lens.lm.n_layers
    band = tuple(n for n in lens.layers if last / 6 <= n <= 5 * last / 6)
    if not band:
        have = ", ".join(map(str, lens.layers))
        raise LenscopeError(f"layers: {lens.name} has maps for the layers {have}, none in the middle; name layers")
    return band


@torch.no_grad()
def strongest_tokens(lens: Lens, h: Tensor, layer: int, k: int) -> Tensor:
    """The ids (N, k) of the tokens that a lens gives states (N, D) the largest logits for."""
    readout = lens.lm.runner.readout
    x = readout.prepare(lens.map(h, layer).to(device=lens.lm.device, dtype=lens.lm.dtype))
    return wide(readout.columns(x, 0, lens.lm.vocab_size)).topk(k, -1).indices


def projected(h: Tensor, directions: Tensor) -> Tensor:
    """The parts (N, D) of states (N, D) in the spans of k directions (N, k, D) each, of which some may be alike."""
    d = directions.double()
    extents, axes = torch.linalg.eigh(d @ d.mT)
    inverse = torch.where(extents > FLAT * extents.amax(-1, keepdim=True), 1 / extents.clamp_min(1e-300), 0.0)
    along = axes.mT @ (d @ h.double()[..., None])
    return (d.mT @ (axes @ (inverse[..., None] * along)))[..., 0].to(h)


def _band(lens: Lens, layers: Layers | None) -> tuple[int, ...]:
    if layers is None:
        return middle_band(lens)
    return lens_layers(lens, check_layers(layers, lens.lm.n_layers, lens.lm.name))


def _units(directions: TokenDirections, ids: Sequence[int]) -> Callable[[int], Tensor]:
    """The unit directions (n, D) of tokens at a layer, made once; LenscopeError for a token that has none."""
    chosen = torch.tensor(ids)

    @cache
    def units(layer: int) -> Tensor:
        vectors = directions.unit(chosen, layer)
        for token, length in zip(ids, vectors.norm(dim=-1).tolist(), strict=True):
            if not abs(length - 1) < 1e-3:
                text = directions.lm.encoder.tokens([token])[0]
                raise LenscopeError(
                    f"token {text!r}: {directions.name} has no direction of it at layer {layer}; name another"
                )
        return vectors

    return units


def _checked_edit(positions: Positions | None) -> Positions | None:
    """Positions that can be used again: a list of them as a tuple."""
    if positions is None or isinstance(positions, str | slice | int) or not isinstance(positions, Sequence):
        return positions
    listed: list[Position] = [*positions]
    return tuple(listed)
