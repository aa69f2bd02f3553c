"""The verbaliser of a natural language autoencoder: a vector in place of one token's embedding, and what is said of it.

Knows: the prompt and its mark, which are checked against the model's tokens; which part of the text is the explanation.
Does not know: the reconstructor, how the model was trained.

In the published code (kitft/natural_language_autoencoders, nla_inference.py) the vector, brought to a fixed length,
replaces the row of the mark among the embeddings as the first block gets them: in Gemma, behind the multiplication by
√d. That is layer 0 here. Explanations are drawn at temperature 1.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from lenscope.contents import Brief
from lenscope.errors import LenscopeError
from lenscope.mappings.vector_map import VectorMap
from lenscope.models.hidden_states import HiddenStates
from lenscope.models.language_model import LM
from lenscope.models.loading import load
from lenscope.patchscopes.grid import Grid
from lenscope.patchscopes.patchscope import Patchscope
from lenscope.patchscopes.target_prompts import Target
from lenscope.verbalisers.autoencoder_contracts import (
    CONTRACT_FILE,
    VERBALISER,
    AutoencoderContract,
    filled,
    read_autoencoder_contract,
)

_EXPLANATION = re.compile(r"<explanation>\s*(.*?)\s*</explanation>", re.DOTALL)


@final
@dataclass(frozen=True, eq=False, repr=False)
class VectorExplanations(Brief):
    """What an autoencoder's verbaliser says of N vectors. `AutoencoderVerbaliser.explain` makes it.

    Attributes:
        texts: the explanations, without the tags around them, (N,); the whole text where there were no tags.
        whole: whether both tags were there, (N,): where not, the text was cut off or the vector did not go in.
        grid: all that was written, with its tokens and log-probabilities.
    """

    texts: tuple[str, ...]
    whole: tuple[bool, ...]
    grid: Grid


@final
class AutoencoderVerbaliser:
    """A model that was trained to put a vector into words, with the contract beside its weights.

    The vector, brought to the contract's length, takes the place of one token at layer 0 of a fixed prompt in the
    model's chat template. `scope` is the Patchscope that does it; what it says of a vector is no measurement of the
    vector: compare with `random_vectors`, another prompt's states, and the reconstruction.

    Raises LenscopeError, in one line, for all that the contract says and the model contradicts: width, the mark, which
    must be one token with the contract's id, its two neighbours, and a mark that the prompt has once alone.

    Args:
        lm: the verbaliser.
        contract: what it was trained with: what `read_autoencoder_contract` reads, or the folder.
    """

    def __init__(self, lm: LM, contract: AutoencoderContract | str | os.PathLike[str]) -> None:
        if not isinstance(contract, AutoencoderContract):
            contract = read_autoencoder_contract(contract)
        contract.require(VERBALISER, lm)
        self.lm = lm
        self.contract = contract
        turn = filled(contract.verbaliser_prompt, "injection_char", contract.mark)
        prompt = lm.encoder.chat(turn)
        alone = lm.encoder.ids(contract.mark)
        if alone != [contract.mark_id]:
            raise LenscopeError(
                f"{contract.where}: the mark {contract.mark!r} is token {contract.mark_id}, and {lm.name} reads it as "
                f"{alone}; the tokenizer is another one"
            )
        places = [i for i, token in enumerate(prompt.ids) if token == contract.mark_id]
        if len(places) != 1 or not 0 < places[0] < len(prompt) - 1:
            raise LenscopeError(
                f"{contract.where}: the mark {contract.mark!r} is {len(places)} tokens of the prompt, and must be one, "
                "neither the first nor the last"
            )
        (place,) = places
        for side, token, at in (("left", contract.left_id, place - 1), ("right", contract.right_id, place + 1)):
            there = prompt.ids[at]
            if token != there:
                raise LenscopeError(
                    f"{contract.where}: the {side} neighbour of the mark is token {token}, and {lm.name} has {there} "
                    f"({lm.encoder.tokens([there])[0]!r}) there; its chat template or tokenizer is another one"
                )
        _require_embeddings_alone(lm, contract, prompt.ids, place)
        scale = VectorMap(scale=torch.tensor(contract.scale))
        self.scope = Patchscope(lm, Target(prompt, at=place), scale, layers=0)

    def __repr__(self) -> str:
        return f"AutoencoderVerbaliser({self.lm.name}, vectors of {self.contract.width})"

    def explain(
        self,
        vectors: HiddenStates | Tensor,
        *,
        temperature: float = 1.0,
        max_new_tokens: int = 200,
        seed: int = 0,
        **options: Any,
    ) -> VectorExplanations:
        """Put vectors (N, D), or states, into words. `options` are what else `Patchscope.generate` takes.

        Raises LenscopeError for vectors of another width.
        """
        how: Any = {"temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed, **options}
        width = vectors.tensor.shape[-1] if isinstance(vectors, HiddenStates) else torch.as_tensor(vectors).shape[-1]
        if width != self.contract.width:
            raise LenscopeError(
                f"vectors of {width} numbers: {self.contract.where} is for {self.contract.width}; give states of the "
                "model that it explains"
            )
        grid = self.scope.generate(vectors, **how)
        cut = [cut_explanation(text) for text in grid.texts]
        whole = tuple(one is not None for one in cut)
        texts = tuple(text if one is None else one for text, one in zip(grid.texts, cut, strict=True))
        return VectorExplanations(texts, whole, grid)


def load_autoencoder_verbaliser(folder: str | os.PathLike[str], **options: Any) -> AutoencoderVerbaliser:
    """Load the verbaliser of a natural language autoencoder from the folder of its model and nla_meta.yaml.

    `options` are what else `lenscope.load` takes. Raises LenscopeError as that does, and for all that the file says and
    the model contradicts; what can be seen without the weights is refused before they are read.
    """
    contract = read_autoencoder_contract(folder)
    if contract.role != VERBALISER:
        raise LenscopeError(f"{contract.where}: is of a {contract.role}; load_reconstructor reads it")
    return AutoencoderVerbaliser(load(_folder_of_weights(folder), **options), contract)


def cut_explanation(text: str) -> str | None:
    """The explanation in a text: what stands between <explanation> tags, without spaces around; None without both."""
    match = _EXPLANATION.search(text)
    return None if match is None else match[1].strip()


def _folder_of_weights(folder: str | os.PathLike[str]) -> Path:
    path = Path(folder)
    return path.parent if path.name == CONTRACT_FILE else path


def _require_embeddings_alone(lm: LM, contract: AutoencoderContract, ids: tuple[int, ...], place: int) -> None:
    """Raise LenscopeError where layer 0 is more than a token's embedding: there the vector would replace that too."""
    same = lm.read([contract.mark_id] * (place + 1), 0, [0, place])[0, :]
    if not torch.equal(same[0], same[-1]):
        raise LenscopeError(
            f"{contract.where}: the vector replaces an embedding, and {lm.name} adds what stands for the position to "
            "its embeddings before the first block; such models are not read as verbalisers of this kind"
        )
