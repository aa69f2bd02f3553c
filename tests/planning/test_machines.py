"""Machines by name, and this one."""

import pytest
import torch

from lenscope.errors import LenscopeError
from lenscope.planning import machines
from lenscope.planning.machines import MACHINES, machine


def test_a_machine_is_named_or_written_out():
    assert machine("h100") == MACHINES["h100"]
    given = machine("400T,2e12", memory=40e9, disk=1e9)
    assert (given.matrix[16], given.bandwidth, given.memory, given.disk) == (400e12, 2e12, 40e9, 1e9)
    # what is given is reached
    assert given.products(16, "reading") == 400e12
    assert MACHINES["h100"].products(16, "reading") < MACHINES["h100"].matrix[16]


@pytest.mark.parametrize("name", ["h101", "", "400T", "1,1", "x,2T", "1.2.3T,2T", "1e400,1e9"])
def test_what_is_no_machine_is_refused(name):
    with pytest.raises(LenscopeError, match="h100, h200, a100, cpu"):
        machine(name)


def test_this_machine_is_measured():
    here = machine("cpu")
    assert min(here.matrix.values()) > 1e8
    assert here.bandwidth > 1e8
    assert here.memory > 1e9
    assert here.cached


def test_what_is_slow_is_measured_on_smaller_matrices(monkeypatch):
    """A processor without 16-bit products would take minutes."""
    timed = []

    def seconds(product, repeats=5):
        n, dtype = product
        timed.append((n, repeats))
        return 2 * n**3 / (1e8 if dtype == torch.bfloat16 else 1e11)

    monkeypatch.setattr(machines, "_product", lambda n, dtype: (n, dtype))
    monkeypatch.setattr(machines, "_seconds_of", seconds)
    assert machines._rate(1536, torch.bfloat16) == pytest.approx(1e8)
    assert machines._rate(1536, torch.float32) == pytest.approx(1e11)
    assert timed == [(256, 2), (256, 2), (1536, 5)]
