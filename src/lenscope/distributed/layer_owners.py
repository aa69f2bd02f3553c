"""Which process has which layers, and how states that several processes read come to the owners of their layers.

Knows: how layers are dealt out, which rows of text each process reads, in which order a row's states lie.
Does not know: what is fitted to states, how models are run, what a message is made of (processes.py).

A process that has all tokens of a layer needs nothing of the others to sum over them: a token costs D numbers a layer,
once, where sums of gradients over processes cost D² a layer in each step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from torch import Tensor

from lenscope.distributed.processes import Group


@final
@dataclass(frozen=True)
class LayerOwners:
    """Layers 0 to `n_layers` - 1 dealt out to the processes of a `group`, consecutive ones to each.

    Rows of text are divided over the processes of `text`: row n goes to n % text.world. `text` is the group itself, or
    one process alone where all of them read the same rows.
    """

    n_layers: int
    group: Group
    text: Group

    @property
    def own(self) -> range:
        """The layers of this process; none where there are more processes than layers."""
        return self.layers_of(self.group.rank)

    @property
    def most(self) -> int:
        """How many layers the process with the most has."""
        return len(self.layers_of(0))

    def layers_of(self, rank: int) -> range:
        """The layers of a process."""
        each, more = divmod(self.n_layers, self.group.world)
        first = rank * each + min(rank, more)
        return range(first, first + each + (rank < more))

    def owner(self, layer: int) -> int:
        """The process that has a layer."""
        return next(rank for rank in range(self.group.world) if layer in self.layers_of(rank))

    def everywhere(self, own: Tensor) -> Tensor:
        """What all processes have of their layers, of this one `own` (own layers, …): (n_layers, …), in all of them."""
        if self.group.world == 1:
            return own
        every = own.new_zeros(self.n_layers, *own.shape[1:])
        every[self.own.start : self.own.stop] = own
        # one number and zeros: a sum that rounds nothing
        self.group.sum([every])
        return every

    def rows_of(self, rank: int, rows: range) -> range:
        """Which of some consecutive rows, counted from the first of them, a process reads."""
        return range((rank - rows.start) % self.text.world, len(rows), self.text.world)

    def to_owners(self, read: Tensor, rows: range, into: Tensor) -> None:
        """Bring the states of some rows to the owners of their layers.

        Args:
            read: the states of this process's rows at all layers, (n_layers, rows, T, D).
            rows: the rows that all processes read.
            into: where those of this process's layers go, (own layers, len(rows), T, D), in the order of the rows.
        """
        for number in range(self.most):
            theirs = {rank: self.layers_of(rank) for rank in range(self.group.world)}
            outgoing = {rank: read[layers[number]] for rank, layers in theirs.items() if number < len(layers)}
            self._pass_on(outgoing, rows, into[number] if number < len(self.own) else None)

    def to_all(self, read: Tensor, rows: range, into: Tensor) -> None:
        """Bring what is known of some rows, of this process's (rows, …), to all, into (len(rows), …)."""
        self._pass_on(dict.fromkeys(range(self.group.world), read), rows, into)

    def _pass_on(self, outgoing: dict[int, Tensor], rows: range, into: Tensor | None) -> None:
        """Send parts to the processes; put what comes from each where its rows lie in `into`, None: nothing comes."""
        me = self.group.rank
        if self.text.world == 1:
            # all have read the same
            if into is not None:
                into[:] = outgoing[me]
            return
        incoming = {} if into is None else dict(self._rooms(rows, into))
        if me in incoming:
            incoming.pop(me)
            assert into is not None
            into[self._places(me, rows)] = outgoing[me]
        self.group.exchange({rank: t for rank, t in outgoing.items() if rank != me}, incoming)
        for rank, part in incoming.items():
            assert into is not None
            into[self._places(rank, rows)] = part

    def _rooms(self, rows: range, into: Tensor) -> Iterator[tuple[int, Tensor]]:
        for rank in range(self.group.world):
            yield rank, into.new_empty(len(self.rows_of(rank, rows)), *into.shape[1:])

    def _places(self, rank: int, rows: range) -> slice:
        places = self.rows_of(rank, rows)
        return slice(places.start, places.stop, places.step)
