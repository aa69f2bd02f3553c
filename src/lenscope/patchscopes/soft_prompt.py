"""Soft prompts: learned vectors in place of the first states of a target prompt, and their files.

Knows: what of a soft prompt is kept in a folder, which model it was learned for. Does not know: how it is learned.
"""

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.files.weights_folder import opened_folder, write_folder
from lenscope.models.edits import Edit
from lenscope.models.language_model import LM
from lenscope.models.same_model import is_same_model
from lenscope.patchscopes.target_prompts import Target

# Pal et al. 2023: the fixed prompts of the authors' code
FIXED_PROMPTS = (
    'Hello! Could you please tell me more about "',
    'The multi-tokens present here are "',
    "The concepts in this hidden state listed are: (",
    "<|endoftext|> This state is describing about the following concept:",
)

FORMAT = 1
STEM = "softprompt"


@dataclass(frozen=True, eq=False)
class SoftPrompt:
    """A learned target prompt: vectors (K, D) for layer 0 of K tokens. `fit_soft_prompt` learns it.

    Attributes:
        vectors: the vectors, (K, D).
        ids: the tokens that it was started from, whose states the vectors replace, (K,).
        layer: the layer of the sources.
        target_layer: the layer that they are patched into, at the last token.
        model: the identity of its model.
        report: how far patched runs are from the source's own.
    """

    vectors: Tensor
    ids: tuple[int, ...]
    layer: int
    target_layer: int
    model: dict[str, Any]
    report: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"SoftPrompt({len(self.ids)} vectors, layer {self.layer} → {self.target_layer}, {self.model['model']})"

    def target(self, lm: LM) -> Target:
        """The target prompt to patch at the last token; LenscopeError for another model than it was learned for."""
        if not is_same_model(self.model, lm):
            raise LenscopeError(
                f"soft prompt: learned for {self.model['model']}, not for {lm.name} or not these weights; learn "
                "one for this model"
            )
        return Target(self.ids, edits=(Edit(0, slice(None), self.vectors),))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json and softprompt-….safetensors into a folder, whole or not at all."""
        config = {
            "format": FORMAT,
            "ids": self.ids,
            "layer": self.layer,
            "target_layer": self.target_layer,
            "model": self.model,
            "report": self.report,
        }
        write_folder(folder, STEM, config, {"vectors": self.vectors.cpu().contiguous()})


def load_soft_prompt(folder: str | os.PathLike[str]) -> SoftPrompt:
    """Load what `SoftPrompt.save` wrote. Raises LenscopeError for what is missing, damaged or of another format."""
    with opened_folder(folder, STEM, FORMAT) as (config, tensors):
        vectors, ids = tensors["vectors"], tuple(int(i) for i in config["ids"])
        if vectors.shape != (len(ids), config["model"]["hidden_size"]) or not torch.isfinite(vectors).all():
            raise LenscopeError(f"{folder}: its vectors are not finite, or not one for each of {len(ids)} tokens")
        layers = int(config["layer"]), int(config["target_layer"])
        return SoftPrompt(vectors, ids, *layers, dict(config["model"]), dict(config["report"]))
