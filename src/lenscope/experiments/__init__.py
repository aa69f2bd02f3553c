"""The papers' experiments, one module each; `lenscope reproduce NAME` runs one and saves its report.

Knows: which experiments there are, of which paper, and in one line what each shows. Does not know: any of them.
"""

from importlib import import_module

from lenscope.errors import LenscopeError
from lenscope.experiments.definition import Experiment

# package of a paper → name of an experiment, which its module has too → what it shows, and where in the paper
PAPERS = {
    "tuned_lens_paper": {
        "prediction": "tuned and logit lens: cross-entropy, KL and bias per layer (Belrose et al. 2023, Figs 3–5)",
        "drift": "how states and translators change from layer to layer, and transfer (Figs 6, 7, 13)",
        "fidelity": "directions that matter to the lens matter to the model (Fig 8)",
        "alignment": "lens and model respond alike to a change of a state (Fig 9)",
        "injection": "prompt injections are found by their trajectories (Table 1)",
        "difficulty": "examples learned late in training are predicted late in depth (Table 2)",
        "overthinking": "early layers resist incorrect demonstrations (Fig 11)",
        "ablations": "what every block does to the loss and to the trajectory (Appendix)",
    },
    "patchscopes_paper": {
        "next-token": "token identity beside lenses and least squares (Ghandeharioun et al. 2024, Figs 2, 5)",
        "attributes": "attributes of subjects, asked of their states, beside linear probes (Table 2, Figs 6, 7)",
        "entities": "entities described from their states in early layers (Figs 3, 8, 9)",
        "cross-model": "one model's states explained by another through fitted maps (Figs 10, 11)",
        "multihop": "two-hop questions: CoT Patchscope and back-patching (§5, Fig 12)",
        "worth": "what a state says beside what its text says",
    },
}
# name → what it shows
EXPERIMENTS = {name: line for names in PAPERS.values() for name, line in names.items()}


def experiment(name: str) -> Experiment:
    """The experiment of a name; LenscopeError if there is none."""
    paper = next((paper for paper, names in PAPERS.items() if name in names), None)
    if paper is None:
        raise LenscopeError(f"experiment {name!r}: there are {', '.join(EXPERIMENTS)}")
    chosen: Experiment = import_module(f"lenscope.experiments.{paper}.{name.replace('-', '_')}").EXPERIMENT
    return chosen
