"""A model each of whose products all processes compute together, each with its part of the weights.

Knows: the plans that transformers has for families, how such a model is told, that all processes read the same text.
Does not know: what it is run for, models whose blocks are brought together before they run (sharding.py), how processes
share other work (processes.py).
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lenscope.distributed.parted_models import keep_identity, together, whole_tensor
from lenscope.distributed.processes import Group, joined
from lenscope.errors import LenscopeError
from lenscope.models.deviations import TOLERANCE
from lenscope.models.language_model import LM
from lenscope.models.loading import load_with
from lenscope.models.readout import Traced, verify
from lenscope.models.residual_stream import first_bad_parameter

# the last parts of names of products that make keys, which can be divided by whole heads only
_KEYS = ("k_proj", "qkv_proj", "query_key_value")


def is_tensor_parallel(lm: LM) -> bool:
    """Whether all processes run each pass of a model together, by the plan that transformers has for its family."""
    return (getattr(lm.model, "_tp_size", None) or 1) > 1


@contextmanager
def tensor_parallel(source: Any, options: dict[str, Any], revision: str | None, device: torch.device) -> Iterator[LM]:
    """Within the block, a model of which each process loads its part of every product, by transformers' own plan.

    All processes make the same calls, and all get the results. Raises LenscopeError for a family without a plan, for
    attention heads that cannot be divided evenly, and, in a run, where processes run different texts.
    """
    with joined(device) as group:

        def look(model: PreTrainedModel) -> None:
            bad = next((name for name in group.gathered(first_bad_parameter(model)) if name), None)
            if bad:
                raise LenscopeError(f"{source}: weights contain NaN or infinity, first in {bad}; the file is broken")
            _require_whole_heads(str(source), model, group.world)

        try:
            how = {**options, "distributed_config": _divided_by(group.world), "look": look}
            lm = load_with(source, None, how, revision)
        except LenscopeError as error:
            if "tp_plan" not in str(error):
                raise
            raise LenscopeError(
                f"{source}: transformers has no tensor-parallel plan for models of its kind; split its blocks instead "
                "(placement fsdp)"
            ) from error
        _hold_whole_head(lm)
        watch = lm.model.register_forward_pre_hook(_same_text(lm, group), with_kwargs=True)
        keep_identity(lm, group)
        try:
            with together(lm, group):
                yield lm
        finally:
            watch.remove()


def _divided_by(world: int) -> Any:
    from transformers.distributed.configuration_utils import DistributedConfig

    return DistributedConfig(tp_size=world)


def _hold_whole_head(lm: LM) -> None:
    """Decode with the whole head in each process: a head that all compute together needs the same states in all.

    Where each process decodes the layers that it owns, a divided head would mix what they give it. Raises LenscopeError
    for a readout that is no plain head, and one that does not give the model's logits.
    """
    runner = lm.runner
    readout = runner.readout
    name, head = readout.chain[-1] if isinstance(readout, Traced) else ("", None)
    if not isinstance(readout, Traced) or type(head) is not nn.Linear:
        raise LenscopeError(f"{lm.name}: its readout is {readout.description}; only a plain head can be divided")
    if readout.splits:
        return
    with torch.device("meta"):
        whole = nn.Linear(head.in_features, head.out_features, head.bias is not None)
    whole.weight = nn.Parameter(whole_tensor(head.weight).clone(), requires_grad=False)
    if head.bias is not None:
        whole.bias = nn.Parameter(whole_tensor(head.bias).clone(), requires_grad=False)
    verified = verify(replace(readout, chain=(*readout.chain[:-1], (name, whole))), runner.anatomy)
    worst = max(verified.deviation, verified.elsewhere or 0.0)
    if not worst <= TOLERANCE.get(lm.dtype, 1e-4):
        raise LenscopeError(f"{lm.name}: its whole head is off by {worst:.2g} standard deviations of the logits")
    runner.verified, runner.readout = verified, verified.readout


def _require_whole_heads(name: str, model: PreTrainedModel, world: int) -> None:
    plan = getattr(model, "_tp_plan", None) or {}
    if not any(key.rsplit(".", 1)[-1] in _KEYS and style == "colwise" for key, style in plan.items()):
        return
    config = model.config.get_text_config()
    for field in ("num_attention_heads", "num_key_value_heads"):
        heads = getattr(config, field, None)
        if isinstance(heads, int) and heads % world:
            raise LenscopeError(
                f"{name}: its {heads} {field[4:].replace('_', ' ')} cannot be divided among {world} processes; start "
                f"as many as divide it, or split its blocks instead (placement fsdp)"
            )


def _same_text(lm: LM, group: Group) -> Any:
    """A hook that raises LenscopeError, in all processes, where they run different texts together."""

    def check(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if not isinstance(ids, Tensor):
            return
        codes = torch.zeros(group.world, dtype=torch.int64, device=lm.device)
        codes[group.rank] = zlib.crc32(repr(tuple(ids.shape)).encode() + ids.cpu().numpy().tobytes())
        group.sum([codes])
        if len(set(codes.tolist())) > 1:
            raise LenscopeError(
                f"{lm.name}: its processes run different texts, and can only run one together; make the same calls in "
                "all of them"
            )

    return check
