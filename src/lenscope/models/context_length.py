"""How many tokens a model reads at most: what its configuration says, and how many positions its tables hold.

Knows: the names that configurations have for it, how a table of positions shows itself in a run.
Does not know: prompts.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from lenscope.models.residual_stream import Anatomy, forward_kwargs

# The first one that a configuration has counts.
FIELDS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "max_target_positions",
    "seq_length",
)


def find_context(anatomy: Anatomy) -> int | None:
    """The number of tokens that a model reads at most, or None where nothing limits it.

    That is what the configuration says, unless a table of positions has fewer rows: RoBERTa's first rows are for no
    token. Such tables are found in one short run, by what looks them up: numbers that count up along the tokens.
    """
    config = anatomy.model.config.get_text_config()
    stated = [n for n in (getattr(config, field, None) for field in FIELDS) if type(n) is int and n > 0][:1]
    return min([*stated, *(_tables(anatomy) if _may_have_tables(anatomy.model) else [])], default=None)


def _may_have_tables(model: PreTrainedModel) -> bool:
    """Whether it is worth a run: there is none where positions are rotations and the only table is the tokens'."""
    tokens = model.get_input_embeddings()
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not tokens]
    return bool(tables) or not any(name.endswith("inv_freq") for name, _ in model.named_buffers())


def _tables(anatomy: Anatomy) -> list[int]:
    # one row of tokens that count down: what counts up are positions
    count, middle = anatomy.ids.shape[1], anatomy.n_inputs // 2
    ids = torch.arange(middle, middle - count, -1, device=anatomy.ids.device)[None]
    with torch.no_grad(), _LookedUp(count) as seen:
        anatomy.model(input_ids=ids, **forward_kwargs(anatomy.model, use_cache=False))
    return seen.limits


class _LookedUp(TorchDispatchMode):
    """Notes for each table that is looked up at consecutive rows how many tokens it has rows for."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.limits: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        match func.overloadpacket:
            case torch.ops.aten.embedding:
                self._note(args[0], 0, args[1])
            case torch.ops.aten.index_select | torch.ops.aten.gather:
                self._note(*args[:3])
            case torch.ops.aten.index:
                for axis, places in enumerate(args[1]):
                    if places is not None:
                        self._note(args[0], axis, places)
        return func(*args, **(kwargs or {}))

    def _note(self, table: Tensor, axis: int, places: Tensor) -> None:
        along = [n for n in range(places.ndim) if places.shape[n] == self.count]
        # Tokens beside tokens are distances, which have no limit; what is as long as the text is no table.
        if len(along) != 1 or table.shape[axis] == self.count or places.is_floating_point() or places.is_meta:
            return
        first = places.movedim(along[0], 0).reshape(self.count, -1)[:, 0]
        if bool((first.long().diff() == 1).all()):
            self.limits.append(int(table.shape[axis]) - int(first[0]))
