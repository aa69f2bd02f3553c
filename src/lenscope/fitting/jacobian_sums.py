"""What a Jacobian lens is made of: sums of Jacobians over two halves of the prompts, their folder, and how they add up.

Knows: the mean of each half and of both, which sums may be added, the files that a run goes on from and that
`merge` joins. Does not know: how a Jacobian is had (jacobian_passes.py), which text is read (jacobian_run.py).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from lenscope.errors import LenscopeError
from lenscope.files.kinds import CONFIG
from lenscope.files.weights_folder import opened_folder, write_folder
from lenscope.fitting.jacobian_texts import rows_in_common
from lenscope.fitting.larger_than_memory import TensorsOnDemand
from lenscope.models.residual_stream import is_finite

STEM = "jacobian"
FORMAT = 1
# the folder of the sums, in that of the lens
SUMS = "halves"


@final
@dataclass(eq=False)
class JacobianSums:
    """Sums over prompts of Jacobians, (2, L, D, D) in float32: of the two halves, for L layers.

    Args:
        total: the sums; a prompt's Jacobian is the mean over its source positions.
        prompts: how many prompts of each half are in them.
        settings: what must be equal where sums are added, as JSON values.
        rows: for each part of a text, by its name (jacobian_texts.py), how many of its rows were read in each half.
    """

    total: Tensor
    prompts: list[int]
    settings: dict[str, Any]
    rows: dict[str, int] = field(default_factory=dict)

    def mean(self) -> Tensor:
        """The mean Jacobians (L, D, D) of all prompts."""
        self._require_prompts()
        return self.total.sum(0) / sum(self.prompts)

    def _require_prompts(self) -> None:
        if min(self.prompts) < 1:
            raise LenscopeError("Jacobians: a half has no prompt yet; read more text")

    def by_layer(self, half: int | None, layers: int) -> Sequence[Tensor]:
        """The mean Jacobians (D, D) of a half of the prompts (None: of all), the identity above the target layer.

        Each is made when it is asked for: sums may be larger than memory.
        """
        self._require_prompts()

        def mean_of_layer(layer: int) -> Tensor:
            if layer >= self.total.shape[1]:
                return torch.eye(self.total.shape[-1], device=self.total.device, dtype=self.total.dtype)
            if half is None:
                return self.total[:, layer].sum(0) / sum(self.prompts)
            return self.total[half, layer] / self.prompts[half]

        return TensorsOnDemand(mean_of_layer, layers)

    def save(self, folder: Path) -> None:
        """Write the sums into a folder; whenever writing ends, it holds the old ones or these, whole."""
        config = {"format": FORMAT, "prompts": self.prompts, "rows": self.rows, "settings": self.settings}
        write_folder(folder, STEM, config, {"total": self.total.detach().cpu().contiguous()})

    @staticmethod
    def load(folder: Path) -> "JacobianSums":
        """Read what `save` wrote; LenscopeError for what is missing, damaged or something else."""
        with opened_folder(folder, STEM, FORMAT) as (config, tensors):
            total, prompts, rows = tensors["total"], config["prompts"], config["rows"]
            right = total.ndim == 4 and total.shape[0] == 2 and total.dtype == torch.float32
            counts = [type(n) is int and n >= 0 for n in prompts]
            ends = isinstance(rows, dict) and all(type(n) is int for n in rows.values())
            if not right or counts != [True, True] or not isinstance(config["settings"], dict) or not ends:
                raise LenscopeError(f"{folder}: its sums or its counts of prompts are not those of two halves")
            if not is_finite(total):
                raise LenscopeError(f"{folder}: its sums hold NaN or infinity")
            return JacobianSums(total, list(prompts), config["settings"], dict(rows))

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether a folder has sums."""
        return (folder / CONFIG).exists()

    def require_settings(self, settings: dict[str, Any], where: object) -> None:
        """Raise LenscopeError unless these sums are of a run with such settings; `where` names the sums."""
        now = json.loads(json.dumps(settings))
        differ = [name for name in {**now, **self.settings} if self.settings.get(name) != now.get(name)]
        if differ:
            name = differ[0]
            raise LenscopeError(
                f"{where}: is of another run, with {_setting(name, self.settings.get(name))} where this one has "
                f"{_setting(name, now.get(name))}; give another folder, or remove it"
            )


def _setting(name: str, value: Any) -> str:
    text = f"{name} {value!r}"
    return text if len(text) <= 90 else text[:89] + "…"


def added_sums(parts: Sequence[JacobianSums], names: Sequence[str]) -> JacobianSums:
    """The sums of several runs as those of one run that read all their text: prompts weigh the same wherever read.

    Raises LenscopeError for runs with other settings, and for text that two of them read.
    """
    first = parts[0]
    if len(parts) < 2:
        raise LenscopeError(f"{names[0]}: is one lens; give at least two to merge")
    for part, name in zip(parts[1:], names[1:], strict=True):
        if part.total.shape != first.total.shape:
            raise LenscopeError(
                f"{name}: has {part.total.shape[1]} layers of {part.total.shape[-1]}, and {names[0]} has "
                f"{first.total.shape[1]} of {first.total.shape[-1]}"
            )
        part.require_settings(first.settings, name)
    rows: dict[str, int] = {}
    for part, name in zip(parts, names, strict=True):
        if any(rows_in_common(one, other) for one in rows for other in part.rows):
            raise LenscopeError(
                f"{name}: has read text that another of these lenses has read, too; give lenses of different text, or "
                "of different --part of one text, such as 1/2 and 2/2"
            )
        rows.update(part.rows)
    total = torch.stack([part.total for part in parts]).sum(0)
    prompts = [sum(part.prompts[half] for part in parts) for half in range(2)]
    return JacobianSums(total, prompts, first.settings, rows)
