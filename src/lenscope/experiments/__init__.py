"""The papers' experiments, one module each; `lenscope reproduce NAME` runs one and saves its report.

Knows: which experiments there are, and what every experiment's module has. Does not know: any of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from lenscope.errors import LenscopeError

if TYPE_CHECKING:
    from lenscope.experiments.report import Report
    from lenscope.experiments.setting import Setting

# name → what it shows, in one line, and where in the papers
EXPERIMENTS = {
    "prediction": "tuned and logit lens: cross-entropy, KL and bias per layer (Belrose et al. 2023, Figs 3–5)",
    "drift": "how states and translators change from layer to layer, and transfer (Figs 6, 7, 13)",
    "fidelity": "directions that matter to the lens matter to the model (Fig 8)",
    "alignment": "lens and model respond alike to a change of a state (Fig 9)",
    "injection": "prompt injections are found by their trajectories (Table 1)",
    "difficulty": "examples learned late in training are predicted late in depth (Table 2)",
    "overthinking": "early layers resist incorrect demonstrations (Fig 11)",
    "ablations": "what every block does to the loss and to the trajectory (Appendix)",
    "next-token": "token identity beside lenses and least squares (Ghandeharioun et al. 2024, Figs 2, 5)",
    "attributes": "attributes of subjects, asked of their states, beside linear probes (Table 2, Figs 6, 7)",
    "entities": "entities described from their states in early layers (Figs 3, 8, 9)",
    "cross-model": "one model's states explained by another through fitted maps (Figs 10, 11)",
    "multihop": "two-hop questions: CoT Patchscope and back-patching (§5, Fig 12)",
    "worth": "what a state says beside what its text says",
}


@dataclass(frozen=True)
class Experiment:
    """An experiment: `run` makes its report; `data` says what its --data takes, "text" or a format of questions.

    `across` is whether states may be patched into another model, `lens` whether states are read through a tuned lens.
    """

    name: str
    data: str
    run: "Callable[[Setting], Report]"
    across: bool
    lens: bool


def experiment(name: str) -> Experiment:
    """The experiment of a name; LenscopeError if there is none."""
    if name not in EXPERIMENTS:
        raise LenscopeError(f"experiment {name!r}: there are {', '.join(EXPERIMENTS)}")
    paper = "tuned_lens_paper" if list(EXPERIMENTS).index(name) < 8 else "patchscopes_paper"
    module = import_module(f"lenscope.experiments.{paper}.{name.replace('-', '_')}")
    return Experiment(name, module.DATA, module.run, getattr(module, "ACROSS", False), getattr(module, "LENS", True))
