"""The papers' experiments, one module each; `lenscope reproduce NAME` runs one and saves its report.

Knows: which experiments there are, of which paper, and in one line what each asks. Does not know: any of them.
"""

from importlib import import_module

from lenscope.errors import LenscopeError
from lenscope.experiments.definition import Experiment

# package of a paper → name of an experiment, which its module has too → what it asks, and where in the paper
PAPERS = {
    "tuned_lens_paper": {
        "prediction": "Do tuned lenses predict better than the logit lens? (tuned lens paper, Figs 3–5)",
        "drift": "How do states change by layer, and can a lens be used elsewhere? (tuned lens paper, Figs 6, 7, 13)",
        "fidelity": "Do the directions that matter to a lens matter to the model? (tuned lens paper, Fig 8)",
        "alignment": "Do lens and model change alike when a state is changed? (tuned lens paper, Fig 9)",
        "injection": "Can injected instructions be detected by lens trajectories? (tuned lens paper, Table 1)",
        "difficulty": "Is what is learned late in training predicted late in depth? (tuned lens paper, Table 2)",
        "overthinking": "Do middle layers answer better than the last after wrong examples? (tuned lens paper, Fig 11)",
        "ablations": "Is every block but the first dispensable? (tuned lens paper, appendix)",
    },
    "patchscopes_paper": {
        "next-token": "Does a Patchscope read the next token better than lenses do? (Patchscopes paper, Figs 2, 5)",
        "attributes": "Does a Patchscope find attributes better than a probe? (Patchscopes paper, Table 2, Figs 6, 7)",
        "entities": "From which layers can entities be described? (Patchscopes paper, Figs 3, 8, 9)",
        "cross-model": "Can one model explain another model's states? (Patchscopes paper, Figs 10, 11)",
        "multihop": "Can patching answer two-hop questions? (Patchscopes paper, §5, Fig 12)",
        "worth": "Does a state say more than the text it was read from? (in neither paper)",
    },
    "jacobian_lens_paper": {
        "which-lens": "Which lens shows what a model thinks of and has not said? (Jacobian lens paper)",
    },
    "selfie_adapters_paper": {
        "verbaliser": "What are the words of a trained verbaliser worth? (SelfIE adapters paper)",
    },
}
# name → what it asks
EXPERIMENTS = {name: line for names in PAPERS.values() for name, line in names.items()}


def experiment(name: str) -> Experiment:
    """The experiment of a name; LenscopeError if there is none."""
    paper = next((paper for paper, names in PAPERS.items() if name in names), None)
    if paper is None:
        raise LenscopeError(f"experiment {name!r}: there are {', '.join(EXPERIMENTS)}")
    chosen: Experiment = import_module(f"lenscope.experiments.{paper}.{name.replace('-', '_')}").EXPERIMENT
    return chosen
