"""The reconstructor of a natural language autoencoder: words into a vector, and how much of a vector is in its words.

Knows: the blocks and the linear map that make a vector of a text; the score, and what it has to be compared with.
Does not know: who wrote the text, how the models were trained.

kitft/natural_language_autoencoders, nla_inference.py: the first K + 1 blocks of a model (K counts from 0, so that the
vectors are of layer K + 1), whose state at the last token of a fixed prompt, before any last norm, is multiplied with
a matrix. The score compares directions: both vectors are brought to one length.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from lenscope.contents import Brief
from lenscope.errors import LenscopeError
from lenscope.files.untrusted import read_safetensors
from lenscope.mappings.foreign_formats import floating_weight
from lenscope.models.bodies import load_body
from lenscope.models.edits import as_vectors
from lenscope.models.language_model import LM
from lenscope.statistics.derangements import derange
from lenscope.statistics.estimates import mean
from lenscope.statistics.intervals import Estimate, bootstrap
from lenscope.verbalisers.autoencoder_contracts import (
    CONTRACT_FILE,
    RECONSTRUCTOR,
    AutoencoderContract,
    filled,
    read_autoencoder_contract,
)

HEAD_FILE = "value_head.safetensors"


@final
class Reconstructor:
    """A model that was trained to make a vector of its explanation.

    Raises LenscopeError, in one line, for all that the contract says and the model or the matrix contradicts: width,
    role, fewer blocks than the vectors' layer, a matrix of another shape or not finite.

    Args:
        lm: the model, of which the first blocks are run.
        head: the matrix (D, D).
        contract: what it was trained with: what `read_autoencoder_contract` reads, or the folder.
    """

    def __init__(self, lm: LM, head: Tensor, contract: AutoencoderContract | str | os.PathLike[str]) -> None:
        if not isinstance(contract, AutoencoderContract):
            contract = read_autoencoder_contract(contract)
        contract.require(RECONSTRUCTOR, lm)
        wanted = (contract.width, contract.width)
        head = floating_weight(head, contract.where, "weight")
        if tuple(head.shape) != wanted or not torch.isfinite(head).all():
            fault = f"is of shape {tuple(head.shape)}" if tuple(head.shape) != wanted else "holds NaN or infinity"
            raise LenscopeError(f"{contract.where}: the matrix of the reconstructor {fault}; it must be {wanted}")
        layer = contract.layer or lm.n_layers
        if layer > lm.n_layers:
            raise LenscopeError(
                f"{contract.where}: makes vectors of layer {layer} with as many blocks, and {lm.name} has {lm.n_layers}"
            )
        self.lm = lm
        self.head = head
        self.contract = contract
        self.layer = layer

    def __repr__(self) -> str:
        return f"Reconstructor({self.lm.name}, layer {self.layer}, vectors of {self.contract.width})"

    @torch.no_grad()
    def reconstruct(self, texts: Sequence[str]) -> Tensor:
        """The vectors (N, D) of N explanations, in float32, in float64 where the model is.

        Their lengths mean nothing. Raises LenscopeError where a prompt does not end with the contract's tokens: the
        tokenizer is then another one, or the explanation merges with what follows.
        """
        template, suffix = self.contract.reconstructor_prompt, self.contract.suffix_ids
        assert template is not None
        prompts = [self.lm.prompt(filled(template, "explanation", text)) for text in texts]
        for prompt in prompts:
            if suffix and prompt.ids[-len(suffix) :] != suffix:
                raise LenscopeError(
                    f"{self.contract.where}: the prompt ends with the tokens {list(suffix)}, and {self.lm.name} makes "
                    f"{list(prompt.ids[-len(suffix) :])} of it; the tokenizer is another one"
                )
        if not prompts:
            raise LenscopeError("texts: there are none; give at least one explanation")
        last = self.lm.read(prompts, self.layer, -1)[self.layer, -1]
        wide = last.double() if last.dtype == torch.float64 else last.float()
        return wide @ self.head.to(wide).T


def load_reconstructor(folder: str | os.PathLike[str], **options: Any) -> Reconstructor:
    """Load a reconstructor from the folder of its model, value_head.safetensors and nla_meta.yaml.

    The model's head and last norm may be missing: they are not run. `options` go to transformers' `from_pretrained`.
    Raises LenscopeError for files that are missing, damaged, or contradict each other.
    """
    contract = read_autoencoder_contract(folder)
    if contract.role != RECONSTRUCTOR:
        raise LenscopeError(f"{contract.where}: is of a {contract.role}; load_autoencoder_verbaliser reads it")
    path = Path(folder)
    path = path.parent if path.name == CONTRACT_FILE else path
    if not (path / HEAD_FILE).is_file():
        raise LenscopeError(f"{path}: has no {HEAD_FILE}, the matrix that makes a vector; fetch it, too")
    tensors = read_safetensors(path / HEAD_FILE)
    if list(tensors) != ["weight"]:
        raise LenscopeError(f"{path / HEAD_FILE}: holds {', '.join(tensors) or 'nothing'}, and must hold one weight")
    return Reconstructor(load_body(path, **options), tensors["weight"], contract)


@final
@dataclass(frozen=True, eq=False, repr=False)
class ReconstructionScores(Brief):
    """How much of N vectors is in what was reconstructed of their words, beside what needs no words.

    Lengths do not count: v and r are unit vectors, and μ is the mean of the v, which is shorter. A fraction of variance
    explained is 1 - Σ ‖r - v‖² / Σ ‖v - μ‖², 1 for the vectors themselves; it may be below 0. Intervals resample the
    vectors, with μ as it is.

    Attributes:
        explained: the fraction of the reconstructions.
        shuffled: the fraction where each vector has another one's reconstruction.
        mean_direction: the fraction where each vector has the direction of μ: what can be said without looking.
        cosine: the mean cosine of a vector and its reconstruction.
        shuffled_cosine: the same with another one's reconstruction.
        mean_vector_cosine: the cosine of μ and what was reconstructed of it; None where that was not given. A vector
            near the mean reconstructs well, whatever is its own.
        cosines: each vector's, (N,).
    """

    explained: Estimate
    shuffled: Estimate
    mean_direction: Estimate
    cosine: Estimate
    shuffled_cosine: Estimate
    mean_vector_cosine: float | None
    cosines: np.ndarray


def score_reconstructions(
    vectors: Tensor,
    reconstructions: Tensor,
    of_mean: Tensor | None = None,
    *,
    units: Sequence[Any] | None = None,
    seed: int = 0,
) -> ReconstructionScores:
    """Score reconstructions (N, D) of vectors (N, D), N at least 2, beside what needs no explanation.

    Raises LenscopeError for vectors of other shapes, not finite or zero, and for vectors that all have one direction.

    Args:
        vectors: the vectors.
        reconstructions: what was made of their explanations.
        of_mean: the reconstruction (D,) of `mean_vector(vectors)`, if it was explained, too.
        units: what each vector belongs to (a document); whole units are resampled.
        seed: fixes intervals and exchanges.
    """
    v, r = (
        _of_length_one(as_vectors(given, name), name)
        for given, name in ((vectors, "vectors"), (reconstructions, "them"))
    )
    if v.shape != r.shape or len(v) < 2:
        raise LenscopeError(f"vectors {tuple(v.shape)} and {tuple(r.shape)}: give two of (N, D), N at least 2")
    middle = v.mean(0)
    spread = ((v - middle) ** 2).sum(-1).numpy()
    if not spread.sum() > 1e-12:
        raise LenscopeError("vectors: all have one direction, so there is no variance to be explained")
    other = derange(range(len(v)), seed)

    def fraction(of: Tensor) -> Estimate:
        error = ((of - v) ** 2).sum(-1).numpy()
        return bootstrap(lambda e, s: float(1 - e.sum() / s.sum()), error, spread, units=units, seed=seed)

    cosines, exchanged = ((v * of).sum(-1).numpy() for of in (r, r[other]))
    own = None
    if of_mean is not None:
        own = float(
            _of_length_one(as_vectors(of_mean, "of_mean"), "of_mean") @ _of_length_one(middle, "the mean vector")
        )
    direction = _of_length_one(middle, "the mean vector").expand_as(v)
    return ReconstructionScores(
        explained=fraction(r),
        shuffled=fraction(r[other]),
        mean_direction=fraction(direction),
        cosine=mean(cosines, units=units, seed=seed),
        shuffled_cosine=mean(exchanged, units=units, seed=seed),
        mean_vector_cosine=own,
        cosines=cosines,
    )


def mean_vector(vectors: Tensor) -> Tensor:
    """The mean (D,) of the directions of vectors (N, D): what of them needs no explanation, to be explained itself."""
    return _of_length_one(as_vectors(vectors, "vectors"), "vectors").mean(0).to(vectors)


def _of_length_one(vectors: Tensor, name: str) -> Tensor:
    wide = vectors.detach().double().cpu()
    length = wide.norm(dim=-1, keepdim=True)
    if not torch.isfinite(wide).all() or not (length > 0).all():
        raise LenscopeError(f"{name}: a vector is zero, or holds NaN or infinity; it has no direction")
    return wide / length
