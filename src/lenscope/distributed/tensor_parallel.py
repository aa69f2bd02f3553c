"""A model each of whose products all processes compute together, each with its part of the weights.

Knows: how such a model is told. Does not know: what it is run for, models whose blocks are brought together before
they run (sharding.py), how processes share other work (processes.py).
"""

from lenscope.models.language_model import LM


def is_tensor_parallel(lm: LM) -> bool:
    """Whether all processes run each pass of a model together, by the plan that transformers has for its family."""
    return (getattr(lm.model, "_tp_size", None) or 1) > 1
