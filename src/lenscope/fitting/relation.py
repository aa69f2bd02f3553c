"""Linear relational embeddings: how the last state of a sentence moves with its subject's, to first order.

Knows: how examples of a relation become few-shot prompts, and their Jacobians one affine map.
Does not know: how a model is differentiated (jacobian.py), how the map is used, files of mappings.
"""

from collections.abc import Sequence

import torch

from lenscope.errors import LenscopeError
from lenscope.fitting.jacobian import jacobian
from lenscope.mappings.mapping import Affine
from lenscope.models.language_model import LM, PromptLike
from lenscope.models.layers import check_layers
from lenscope.models.prompts import Position
from lenscope.models.same_model import model_identity


def relation_prompts(template: str, examples: Sequence[tuple[str, str]]) -> list[str]:
    """A prompt for each example (subject, object) of a relation, after all the others with their objects.

    `template` has {} in the subject's place, such as "The capital of {} is"; as in Hernandez et al. 2023, §3.
    """
    if template.count("{}") != 1:
        raise LenscopeError(f"template {template!r}: write {{}} once, where the subject stands")
    if len({subject for subject, _ in examples}) < max(len(examples), 2):
        raise LenscopeError(f"examples: {len(examples)}; give at least 2, each of another subject")
    lines = [f"{template.replace('{}', subject)} {answer}.\n" for subject, answer in examples]
    return [
        "".join(line for m, line in enumerate(lines) if m != n) + template.replace("{}", subject)
        for n, (subject, _) in enumerate(examples)
    ]


def fit_relation(
    lm: LM, prompts: Sequence[PromptLike], subjects: Sequence[Position], layer: int, *, beta: float = 1.0
) -> Affine:
    """The relation of `prompts` as an affine map, from a subject's state at `layer` to the last layer's state.

    f(s) = β W s + b with W the mean over prompts of the Jacobian J of the last token's state o with respect to the
    subject's state s, and b the mean of o - J s (Hernandez et al. 2023, arXiv 2308.09124, §3). With it a Patchscope
    into the last layer is their attribute lens. Subjects are positions, one for each prompt; a text names the last
    token of its last occurrence. β is 1 to first order; the authors choose a larger one on other examples, since W
    underestimates how much the object changes.

    Raises LenscopeError for layers and positions out of range, and as many subjects as there are not prompts.

    Args:
        lm: the model.
        prompts: sentences of the relation.
        subjects: where each prompt's subject is.
        layer: the layer that the subject's state is taken from.
        beta: what the mean Jacobian is multiplied by.
    """
    if isinstance(prompts, str) or len(prompts) != len(subjects) or not prompts:
        raise LenscopeError(f"{len(subjects)} subjects: give a list of prompts, and a subject for each")
    (number,) = check_layers((layer,), lm.n_layers, lm.name)
    jacobians = [jacobian(lm, p, at, number) for p, at in zip(prompts, subjects, strict=True)]
    w = torch.stack([j for j, _, _ in jacobians]).mean(0)
    b = torch.stack([o - j @ s for j, s, o in jacobians]).mean(0)
    report = {"method": "LRE", "prompts": len(prompts), "beta": beta}
    return Affine({(number, lm.n_layers): (beta * w, b)}, model_identity(lm), model_identity(lm), report)
