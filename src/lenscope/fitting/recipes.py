"""Recipes of a tuned lens: where its translators begin, what changes them, and what of it is kept.

Knows: the recipes that have a name, how a recipe is written into a report, which optimizer it makes.
Does not know: how a run reads and steps, what optimizers do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.fitting.optimizers import MakeOptimizer, Muon, Nesterov, Optimizer, Units


@final
@dataclass(frozen=True)
class Recipe:
    """How a tuned lens is fitted. `fit` also takes the name of a recipe, such as "ridge".

    Args:
        start: what the maps begin as: "ridge", least squares onto the last layer, or "identity".
        optimizer: makes the optimizer that changes them then, from their weights (D + 1, D), the bias being the last
            row, their KL and their units; None: they stay as they begin.
        tokens_per_step: tokens of a step of the optimizer.
        columns: how many tokens of the vocabulary a step compares; None: all.
        bias_only: only the biases are changed.
        loss: "kl", KL(model ‖ lens), or "cross_entropy" of the token that comes next, over the whole vocabulary.
        best: keep, layer by layer, what has the lowest KL on held-out text: identity, start or result.
    """

    start: str = "ridge"
    optimizer: MakeOptimizer | None = Muon
    tokens_per_step: int = 512
    columns: int | None = 3072
    bias_only: bool = False
    loss: str = "kl"
    best: bool = True

    def __post_init__(self) -> None:
        if self.start not in ("ridge", "identity"):
            raise LenscopeError(f"start {self.start!r}: give 'ridge' or 'identity'")
        if self.loss not in ("kl", "cross_entropy"):
            raise LenscopeError(f"loss {self.loss!r}: give 'kl' or 'cross_entropy'")
        if self.loss == "cross_entropy" and self.columns is not None:
            raise LenscopeError(f"columns {self.columns}: cross-entropy takes the whole vocabulary; give columns=None")
        if self.tokens_per_step < 1 or (self.columns is not None and self.columns < 2):
            raise LenscopeError(
                f"tokens_per_step {self.tokens_per_step}, columns {self.columns}: give at least 1 token and 2 columns"
            )


# name → recipe: the default; its closed form alone; a bias per layer (Belrose et al. 2023, Eq. 7); and their published
# recipe: identity, SGD with Nesterov momentum, all columns, 262,144 tokens a step (250 steps are 65.5M tokens), also
# with their other loss
PUBLISHED = Recipe("identity", Nesterov, tokens_per_step=1 << 18, columns=None, best=False)


RECIPES = {
    "muon": Recipe(),
    "ridge": Recipe(optimizer=None),
    "bias": Recipe("identity", partial(Muon, lr=1.0, most=1.0), bias_only=True),
    "published": PUBLISHED,
    "published-ce": replace(PUBLISHED, loss="cross_entropy"),
}


def named_recipe(recipe: str | Recipe) -> tuple[str, Recipe]:
    """What a recipe is called, "own" where it has no name, and the recipe; LenscopeError for a name of none."""
    if isinstance(recipe, Recipe):
        return next((name for name, known in RECIPES.items() if known == recipe), "own"), recipe
    if recipe not in RECIPES:
        raise LenscopeError(f"recipe {recipe!r}: there are {', '.join(RECIPES)}")
    return recipe, RECIPES[recipe]


def make_optimizer(
    recipe: Recipe, low: torch.dtype | None, weights: list[Tensor], kl: Sequence[float], units: Sequence[Units]
) -> Optimizer:
    """The optimizer of a recipe that has one.

    Args:
        recipe: whose optimizer it is.
        low: the dtype of Muon's products where those of the model are made in 16 bits, None: float32.
        weights: the weights (D + 1, D) of this process's layers, which the optimizer changes in place.
        kl: the held-out KL in nats of each layer's weights.
        units: the sizes of each layer's inputs and outputs.
    """
    assert recipe.optimizer is not None
    # where products are made in 16 bits, Muon's may be too
    make = partial(Muon, low=low) if recipe.optimizer is Muon else recipe.optimizer
    return make(weights, kl, units)


def recipe_as_json(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON values."""
    optimizer: Any = recipe.optimizer
    name = getattr(optimizer, "__name__", type(optimizer).__name__)
    if isinstance(optimizer, partial):
        given = [*map(repr, optimizer.args), *(f"{key}={value!r}" for key, value in optimizer.keywords.items())]
        name = f"{getattr(optimizer.func, '__name__', optimizer.func)}({', '.join(given)})"
    return {**vars(recipe), "optimizer": None if optimizer is None else name}
