"""A model with room for few-shot prompts, a lens of it, and forests that are quickly fitted."""

from functools import partial

import pytest
from detecting import roomy_model, tuned_lens

from lenscope.detection import detector
from lenscope.detection.outliers import Forest


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    """Forests of a hundred trees take most of the time."""
    monkeypatch.setattr(detector, "Forest", partial(Forest, 5))


@pytest.fixture(scope="session")
def lm():
    return roomy_model()


@pytest.fixture(scope="session")
def tuned(lm):
    return tuned_lens(lm)
