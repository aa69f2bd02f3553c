"""Directions of a layer's states: which matter to a lens, and whether they matter to the model."""

from lenscope.directions.alignment import Alignment, alignment
from lenscope.directions.basis import Basis, load_basis
from lenscope.directions.causal_basis import causal_basis, principal_basis, random_basis
from lenscope.directions.covariances import Covariances, covariances
from lenscope.directions.influence import Influence, influence

__all__ = [
    "Alignment",
    "Basis",
    "Covariances",
    "Influence",
    "alignment",
    "causal_basis",
    "covariances",
    "influence",
    "load_basis",
    "principal_basis",
    "random_basis",
]
