"""What every experiment's module offers: a function that makes its report, and what it may be given.

Knows: the fields alone, so that listing experiments loads no model library. Does not know: any experiment.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from lenscope.experiments.report import Report
    from lenscope.experiments.setting import Setting


@final
@dataclass(frozen=True)
class Experiment:
    """An experiment: `run` makes its report; `data` says what its --data takes, "text" or a format of questions.

    `across` is whether states may be patched into another model, `lens` whether states are read through a lens,
    `lenses` whether several may be given, which are compared, and measured on the text too, `verbaliser` whether it
    takes a trained verbaliser.
    """

    data: str
    run: "Callable[[Setting], Report]"
    across: bool = False
    lens: bool = True
    lenses: bool = False
    verbaliser: bool = False
