"""A model whose blocks are split among several processes, each holding a part of every weight.

Knows: FSDP2, how a split model is named and hashed. One process is the same path with nothing to do.
Does not know: what a model is run for, how processes share other work (processes.py).
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

from lenscope.distributed.parted_models import keep_identity, together
from lenscope.distributed.processes import Group, joined
from lenscope.distributed.tensor_parallel import is_tensor_parallel
from lenscope.errors import LenscopeError
from lenscope.models.language_model import LM
from lenscope.models.offloaded import bring_in
from lenscope.models.provenance import provenance
from lenscope.models.same_model import model_identity

# what was known of a model before its weights were split
_whole: WeakKeyDictionary[LM, tuple[dict[str, Any], dict[str, Any]]] = WeakKeyDictionary()


@contextmanager
def sharded(lm: LM) -> Iterator[None]:
    """Within the block, each process keeps only its share of the weights of `lm`'s blocks (FSDP2); numbers stay equal.

    A block's weights are brought together when it runs, so that all processes have to run the model equally often:
    all make the same calls, and `fit` and `evaluate` divide the text so that they do. Embedding, norms and head stay
    whole. Blocks that wait on disk are brought in one by one, so that no process ever holds the whole model. The model
    cannot be run after the block. One process: nothing happens. Raises LenscopeError for a model whose readout runs its
    blocks, since lenses run on different states.
    """
    with joined(lm.device) as group:
        if group.world > 1:
            if not lm.runner.readout.splits:
                raise LenscopeError(
                    f"{lm.name}: its readout is {lm.runner.readout.description}; only a plain head can be sharded"
                )
            keep_identity(lm, group)
            _whole[lm] = model_identity(lm), provenance(lm)
            _shard(lm, group.world)
        with together(lm, group) if group.world > 1 else nullcontext():
            yield


def is_sharded(lm: LM) -> bool:
    """Whether the weights of a model's blocks are split among processes."""
    return lm in _whole


def text_share(lm: LM, group: Group) -> Group:
    """The group over which rows of text are divided when a model reads them.

    `group` itself where every process reads rows of its own: replicated models and sharded ones. One process alone
    where all of them run one tensor-parallel model together, and so read the same rows.
    """
    return Group() if is_tensor_parallel(lm) else group


def described(lm: LM) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `identify` and `provenance` say of a model, of a sharded one as they said when it was whole."""
    return _whole.get(lm) or (model_identity(lm), provenance(lm))


def _shard(lm: LM, world: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(lm.device.type, (world,))
    for block in lm.runner.anatomy.blocks:
        bring_in(lm.model, block, lm.device)
        # each is the root of its own tree, which would keep its weights
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
