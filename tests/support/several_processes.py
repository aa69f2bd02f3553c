"""Processes as torchrun starts them, and what of their results must be equal.

Knows: how processes meet, how near sums in another order are. Does not know: what the processes do.
"""

import os
import subprocess
import sys

import pytest
from torch import distributed as dist

from lenscope.fitting import tuned_lens as tuning


def exact(monkeypatch=None):
    """Products in float32: those in 16 bits depend on how many rows are read together."""
    if monkeypatch is None:
        tuning.low_precision = tuning.fast_products = lambda lm: None
    else:
        for name in ("low_precision", "fast_products"):
            monkeypatch.setattr(tuning, name, lambda lm: None)


def started(folder, world, command):
    """Run `command` as `world` processes, as torchrun does: this process holds the store through which they meet.

    A port that is only looked up and let go again may be another test's by the time that the first process opens it.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, *command, str(folder)],
            env={**os.environ, **shared, "RANK": str(n), "LOCAL_RANK": str(n)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for n in range(world)
    ]  # fmt: skip
    try:
        # one that fails closes its connections, which ends the others; the limit is for those that wait for each other
        outputs = [r.communicate(timeout=600)[0].decode() for r in ranks]
    finally:
        for r in ranks:
            r.kill()
    assert all(r.returncode == 0 for r in ranks), "\n".join(outputs)


def near(a, b):
    """As equal as sums in another order are, and not the same by chance."""
    for pair, found in a.weights.items():
        for x, y in zip(found, b.weights[pair], strict=True):
            assert (x - y).abs().max() < 1e-4 * max(1.0, float(y.abs().max()))
    for x, y in zip(a.report["layers"], b.report["layers"], strict=True):
        assert x["kl"] == pytest.approx(y["kl"], rel=1e-4)
        assert x["kl_logit_lens"] == pytest.approx(y["kl_logit_lens"], rel=1e-4)
    assert a.report["held_out"] == b.report["held_out"]
    assert a.report["loss"] == pytest.approx(b.report["loss"], rel=1e-4)
