"""The training whose examples' difficulty is looked at: a small model trained here, or given checkpoints.

Knows: which text is read how often, how large the model is, what makes a folder of checkpoints a training.
Does not know: how models are trained (fitting/pretraining.py), what is compared (difficulty.py).
"""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lenscope.errors import LenscopeError
from lenscope.experiments.setting import HELD_OUT, Setting
from lenscope.fitting.pretraining import NAMED, Checkpoints, Plan, blank, pretrain
from lenscope.fitting.tuned_lens import fit
from lenscope.mappings.mapping import PairMapping
from lenscope.models.identity import model_hash
from lenscope.models.language_model import LM
from lenscope.text.corpus import Corpus
from lenscope.text.documents import find_documents
from lenscope.text.installed import installed_texts

# how the model is trained
PLANS = {"quick": Plan(steps=320, every=10), "full": Plan(steps=900, every=18)}
# tokens that a lens is fitted on
FITTED = {"quick": 25_000, "full": 50_000}
# characters that the vocabulary is learned from
LEARNED_FROM = 4_000_000
# times that a training may read its text
EPOCHS = 64
# checkpoints beside a given model that make a training
FEWEST = 5


class Study(NamedTuple):
    """A training to look at: its checkpoints, the last model, text to fit lenses on, held-out text, what was done."""

    name: str
    checkpoints: Checkpoints
    lm: LM
    text: Corpus
    held: Corpus
    translators: PairMapping
    about: dict[str, Any]


@contextmanager
def training_to_study(setting: Setting) -> Iterator[Study]:
    """The checkpoints beside the given model, if they are enough, else those of a model that is trained here."""
    source = Path(setting.lm.source)
    beside = Checkpoints.in_folder(source.parent) if NAMED.fullmatch(source.name) else Checkpoints(source, ())
    if len(beside.steps) >= FEWEST:
        yield _given(setting, beside)
        return
    if setting.lens is not None:
        raise LenscopeError(
            f"--lens: applies to a checkpoint that has {FEWEST} or more beside it; {setting.lm.name} has none, and a "
            "model is trained here with a lens of its own; leave it out"
        )
    if setting.folder is not None:
        yield _trained(setting, setting.folder)
        return
    with tempfile.TemporaryDirectory(prefix="lenscope-") as folder:
        yield _trained(setting, Path(folder))


def _given(setting: Setting, beside: Checkpoints) -> Study:
    if not setting.text:
        raise LenscopeError(
            f"{beside.folder}: to look at checkpoints of your own give text that they were not trained on"
        )
    last = max(s for s in beside.steps if beside.path(s) == Path(setting.lm.source))
    steps = tuple(s for s in beside.steps if s <= last)
    if len(steps) < FEWEST:
        raise LenscopeError(
            f"{setting.lm.source}: has {len(steps)} checkpoints up to its own; give the training's last"
        )
    text, held = setting.corpus.split(HELD_OUT)
    translators = setting.translators
    about = setting.settings(trained=f"not here: the checkpoints of {beside.folder} up to step {last}")
    return Study(setting.lm.name, replace(beside, steps=steps), setting.lm, text, held, translators, about)


def _trained(setting: Setting, folder: Path) -> Study:
    plan = setting.choose(**PLANS)
    data: Any = [Path(t) for t in setting.text] or installed_texts()
    documents = (d for d in find_documents(data).read(setting.seed, 0) if isinstance(d, str))
    start = blank(_up_to(LEARNED_FROM, documents), seed=setting.seed)
    text, held = Corpus.open(start, data, seed=setting.seed, epochs=EPOCHS).split(HELD_OUT)
    with setting.progress("tokens of training") as advance:
        checkpoints = pretrain(text, plan, folder / "pretrained", progress=advance)
    lm = checkpoints.load(plan.steps)
    text, held = (replace(c, lm=lm, epochs=1) for c in (text, held))
    place = setting.place("lens", model=model_hash(lm.model), text=text.provenance())
    f = fit_lens(setting, text, place or folder / "lens")
    size = sum(p.numel() for p in lm.model.parameters())
    about = {
        "quick": setting.quick,
        "seed": setting.seed,
        "text": list(setting.text) or "Python's language reference and what the installed packages say of themselves",
        "trained": f"here, from random weights: {start.name}, V {lm.vocab_size}, {size:,} parameters",
        "plan": vars(plan),
        "tokens": plan.steps * plan.rows * text.length,
        "lens": f"fitted on {f.report['tokens']:,} tokens of the same text",
        "not used": setting.lm.name,
    }
    return Study(f"{start.name}, trained here", checkpoints, lm, text, held, f, about)


def _up_to(characters: int, documents: Iterable[str]) -> Iterator[str]:
    for document in documents:
        yield document
        characters -= len(document)
        if characters <= 0:
            return


def fit_lens(setting: Setting, text: Corpus, folder: Path | None) -> PairMapping:
    """A tuned lens of the text's model; what is done of it is kept in the folder."""
    with setting.progress("tokens of text for the lens") as advance:
        tokens = setting.choose(**FITTED)
        return fit(text.lm, text, tokens=tokens, held_out=HELD_OUT, seed=setting.seed, folder=folder, progress=advance)
