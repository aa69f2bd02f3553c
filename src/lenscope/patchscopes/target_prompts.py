"""Target prompts: what states are patched into, at which of its positions, and what later tokens see of these.

Knows: placeholders, the edits that a target has whether it is patched or not.
Does not know: sources, rows, how patches run.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from lenscope.errors import LenscopeError
from lenscope.models.edits import Edit
from lenscope.models.language_model import LM, PromptLike
from lenscope.models.layers import check_layers
from lenscope.models.prompts import Positions, Prompt

BELOW = ("target", "none", "source")


@dataclass(frozen=True)
class Target:
    """A target prompt, and the positions of it that are patched: its placeholders.

    Args:
        prompt: the prompt.
        at: the placeholder: an index, a substring (its last token) or a list of them. Sources are patched into all of
            them: the same vector, or each its own.
        every: with a substring as `at`, each of its occurrences is a placeholder.
        below: what later tokens see at a placeholder in the blocks below the patched layer: "target", the placeholder's
            own keys and values (as in Ghandeharioun et al. 2024, where they contaminate what is generated, App. D.3);
            "none", nothing; "source", the source's states of those layers.
        edits: edits that are made in every run of the prompt, patched or not, such as a soft prompt's.
    """

    prompt: PromptLike
    at: Positions = -1
    every: bool = False
    below: str = "target"
    edits: Sequence[Edit] = ()

    def resolve(self, lm: LM) -> tuple[Prompt, tuple[int, ...]]:
        """The prompt in the tokens of `lm` and the positions of its placeholders, ascending.

        Raises LenscopeError where a placeholder is missing, or is ambiguous.
        """
        if self.below not in BELOW:
            raise LenscopeError(f"below {self.below!r}: give one of {', '.join(BELOW)}")
        prompt = lm.prompt(self.prompt)
        if not self.every:
            positions = prompt.positions(self.at)
        elif isinstance(self.at, str):
            positions = prompt.every(self.at)
        else:
            raise LenscopeError(f"every: needs a text for at, such as 'x', and at is {self.at!r}")
        if len(set(positions)) < len(positions):
            raise LenscopeError(f"at {self.at!r}: names a position of the target prompt twice")
        return prompt, tuple(sorted(positions))

    def fixed(self, lm: LM) -> tuple[Edit, ...]:
        """The `edits` with layers and positions as numbers, and vectors (positions, D); LenscopeError as `resolve`."""
        prompt = lm.prompt(self.prompt)
        resolved = []
        for edit in self.edits:
            places = list(prompt.positions(edit.position))
            (layer,) = check_layers((edit.layer,), lm.n_layers, lm.name)
            if edit.row is not None or edit.vector.shape not in ((lm.hidden_size,), (len(places), lm.hidden_size)):
                raise LenscopeError(
                    f"edit at layer {layer} of a target: vectors of shape {tuple(edit.vector.shape)} for "
                    f"{len(places)} positions; give (D,) or (positions, D), D = {lm.hidden_size}, and no row"
                )
            vector = edit.vector.detach().expand(len(places), -1)
            resolved.append(dataclasses.replace(edit, layer=layer, position=places, vector=vector))
        return tuple(resolved)
