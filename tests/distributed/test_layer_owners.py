"""Layers are dealt out evenly, and states of rows that several processes read get where they belong."""

import pytest
import torch

from lenscope.distributed.layer_owners import LayerOwners
from lenscope.distributed.processes import Group


def owners(layers, rank, world, text=None):
    return LayerOwners(layers, Group(rank, world), text or Group(rank, world))


@pytest.mark.parametrize(("layers", "world"), [(4, 1), (5, 2), (80, 8), (3, 7), (1, 2)])
def test_every_layer_has_one_owner_and_shares_are_even(layers, world):
    shares = [owners(layers, rank, world).own for rank in range(world)]
    assert [layer for share in shares for layer in share] == list(range(layers))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) == owners(layers, world - 1, world).most


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_states_get_to_the_owners_of_their_layers_in_the_order_of_rows(monkeypatch, world):
    """All processes in turn: what one sends is put into what the others wait for."""
    layers, rows, length, size = 4, range(3, 10), 2, 3
    whole = torch.arange(layers * len(rows) * length * size).view(layers, len(rows), length, size)
    # what the first pass sends, the second receives, in the same order
    sent: dict[tuple[int, int], list] = {}
    queues: dict[tuple[int, int], list] = {}

    def exchange(group, outgoing, incoming):
        assert group.rank not in {*outgoing, *incoming}
        assert all(t.is_contiguous() for t in (*outgoing.values(), *incoming.values()))
        for to, t in outgoing.items():
            sent.setdefault((group.rank, to), []).append(t)
        for source, room in incoming.items() if queues else ():
            room.copy_(queues[source, group.rank].pop(0))

    monkeypatch.setattr(Group, "exchange", exchange)
    for _ in range(2):
        queues.update({pair: list(many) for pair, many in sent.items()})
        waiting = []
        for rank in range(world):
            own = owners(layers, rank, world)
            mine = [n for n, row in enumerate(rows) if row % world == rank]
            assert list(own.rows_of(rank, rows)) == mine
            into = torch.full((len(own.own), len(rows), length, size), -1)
            own.to_owners(whole[:, mine].contiguous(), rows, into)
            last = torch.full((len(rows), length, size), -1)
            own.to_all(whole[-1, mine].contiguous(), rows, last)
            waiting.append((own, into, last))
    for own, into, last in waiting:
        assert into.equal(whole[own.own.start : own.own.stop])
        assert last.equal(whole[-1])


def test_what_all_have_read_is_not_sent():
    own = owners(4, 1, 2, text=Group())
    into = torch.zeros(2, 3, 1, 1)
    read = torch.arange(12.0).view(4, 3, 1, 1)
    own.to_owners(read, range(3), into)
    assert into.equal(read[2:])
