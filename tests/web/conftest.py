"""A server of the tiny model, with a lens, an explaining model and a mapping to it, for all tests of the view."""

import pytest
import tiny
from view_server import serve_both, serving

import lenscope as ls


@pytest.fixture(scope="session")
def view_models():
    return (
        ls.LM(tiny.model("llama"), tiny.tokenizer(), "tiny-llama"),
        ls.LM(tiny.model("gpt2"), tiny.tokenizer(), "tiny-gpt2"),
    )


@pytest.fixture(scope="session")
def served(view_models):
    return serve_both(*view_models)


@pytest.fixture(scope="session")
def view(served):
    with serving(served) as server:
        yield server
