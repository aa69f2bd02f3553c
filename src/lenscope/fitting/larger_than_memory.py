"""What fits of more than memory holds have in common: tensors of layers one at a time, and what a streamed fit needs.

Knows: that a tensor is made when it is asked for, which text, folder and processes a fit of streamed weights takes.
Does not know: what the tensors are, how weights come (models.weight_stream), which fit asks.
"""

from collections.abc import Callable, Sequence
from typing import overload

from torch import Tensor

from lenscope.distributed.processes import started_together
from lenscope.errors import LenscopeError
from lenscope.models.language_model import LM
from lenscope.text.corpus import Corpus


class TensorsOnDemand(Sequence[Tensor]):
    """As many tensors, each made anew whenever it is asked for.

    Args:
        make: gives the tensor of a number from 0 on.
        count: how many there are.
    """

    def __init__(self, make: Callable[[int], Tensor], count: int) -> None:
        self.make, self.size = make, count

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, n: int) -> Tensor: ...
    @overload
    def __getitem__(self, n: slice) -> list[Tensor]: ...
    def __getitem__(self, n: int | slice) -> Tensor | list[Tensor]:
        if isinstance(n, slice):
            return [self.make(i) for i in range(self.size)[n]]
        return self.make(range(self.size)[n])


def require_streamed_fit(lm: LM, text: Corpus, folder: object, on_disk: str) -> None:
    """Raise LenscopeError for a fit of a streamed model without text, without a folder, or in several processes.

    `on_disk` says what goes into the folder.
    """
    what = f"{lm.name}: its weights are streamed from disk, and"
    if text.documents is None:
        raise LenscopeError(f"{what} samples of its own would read them once a token; give text to fit on")
    if folder is None:
        raise LenscopeError(f"{what} {on_disk} go to disk; give a folder")
    if started_together() > 1:
        raise LenscopeError(f"{what} it is fitted in one process; run it without torchrun")
