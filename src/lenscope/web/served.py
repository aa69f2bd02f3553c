"""What one server answers about: the models, lenses, mappings and limits that it was started with.

Knows: their names, prompts in the tokens of a model, tokens that a person searches for.
Does not know: HTTP, how anything is computed of them.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lenscope._version import __version__
from lenscope.errors import LenscopeError
from lenscope.lenses.comparison import DISTANCES
from lenscope.lenses.lens import Lens
from lenscope.lenses.lens_reports import held_out_kl
from lenscope.lenses.trajectory import MEASURES
from lenscope.mappings.mapping import PairMapping
from lenscope.models import edits
from lenscope.models.language_model import LM
from lenscope.models.prompts import Prompt
from lenscope.patchscopes.methods import TARGETS, named_target
from lenscope.patchscopes.target_prompts import Target
from lenscope.web.examples import EXAMPLES
from lenscope.web.limits import Limits
from lenscope.web.requests import PromptIn, TargetIn

OPERATIONS: dict[str, edits.Operation] = {
    "replace": edits.replace,
    "add": edits.add,
    "add_norm_matched": edits.add_norm_matched,
    "replace_norm_matched": edits.replace_norm_matched,
}
LOGIT_LENS = "logit lens"
IDENTITY = "identity"
MOST_HITS = 20


@dataclass(frozen=True)
class ServedModel:
    """A model, what `lenscope.load` was called with for it, and the mapping that other models' states come through."""

    lm: LM
    source: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    mapping: str | None = None


@dataclass(frozen=True)
class ServedLens:
    """A lens of the model that is read, and the place that it was loaded from; None for the logit lens."""

    lens: Lens
    source: str | None = None


@dataclass(frozen=True)
class ServedMapping:
    """A mapping between two models' states, and the folder that it was loaded from."""

    mapping: PairMapping
    source: str


class Served:
    """Models, the first of which is read, lenses and mappings by name, and the limits of what may be asked of them."""

    def __init__(
        self,
        models: Sequence[ServedModel],
        lenses: Sequence[ServedLens] = (),
        mappings: Mapping[str, ServedMapping] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.models = tuple(models)
        self.lenses = {LOGIT_LENS: ServedLens(Lens(self.lm))}
        for one in lenses:
            # results name their lens, by which it is asked for again
            name = _free_name(one.lens.name, self.lenses)
            self.lenses[name] = ServedLens(Lens(self.lm, one.lens.f, name=name), one.source)
        self.mappings = dict(mappings or {})
        self.limits = limits or Limits()
        self._tokenizing = threading.Lock()
        self._tokens: dict[int, list[str]] = {}

    @property
    def lm(self) -> LM:
        """The model that is read."""
        return self.models[0].lm

    def model(self, number: int) -> LM:
        """One of the models by its number."""
        if number >= len(self.models):
            there = "there is model 0 alone" if len(self.models) == 1 else f"there are models 0–{len(self.models) - 1}"
            raise LenscopeError(f"model {number}: {there}")
        return self.models[number].lm

    def lens(self, name: str) -> Lens:
        """A lens by its name."""
        return self._named("lens", name, self.lenses).lens

    def mapping(self, name: str | None, model: int) -> PairMapping | None:
        """A mapping by name from the model that is read to another, by default its own; None is the identity."""
        other = self.model(model)
        wanted = self.models[model].mapping if name is None else name
        if wanted is None or wanted == IDENTITY:
            if other.hidden_size != self.lm.hidden_size:
                raise LenscopeError(
                    f"{other.name}: has states of size {other.hidden_size}, and {self.lm.name} of "
                    f"{self.lm.hidden_size}; start the server with a --mapping between them"
                )
            return None
        mapping: PairMapping = self._named("mapping", wanted, self.mappings).mapping
        mapping.check(self.lm, other)
        return mapping

    def target(self, asked: TargetIn, model: int) -> Target:
        """A target prompt in the tokens of a model, no longer than prompts may be."""
        if asked.name is not None:
            target = named_target(asked.name)
        else:
            target = Target(self.prompt(PromptIn(text=asked.text, model=model), model), at=asked.at)
        with self._tokenizing:
            target.resolve(self.model(model))
        return target

    def prompt(self, asked: PromptIn, model: int | None = None) -> Prompt:
        """A prompt in the tokens of the model it names, which is `model` if given; Refusal where it is too long."""
        if model is not None and asked.model != model:
            raise LenscopeError(f"model {asked.model}: this prompt is read by model {model}; leave its model out")
        lm = self.model(asked.model)
        with self._tokenizing:
            if asked.ids is not None:
                self.limits.require_prompt(len(asked.ids))
                prompt = lm.encoder.prompt(asked.ids)
            elif asked.turns is not None:
                self._require_short(lm, *(turn.content for turn in asked.turns))
                prompt = lm.chat([{"role": turn.role, "content": turn.content} for turn in asked.turns])
            else:
                self._require_short(lm, asked.text or "")
                prompt = lm.encoder.prompt(asked.text or "")
        self.limits.require_prompt(len(prompt))
        return prompt

    def _require_short(self, lm: LM, *texts: str) -> None:
        """Refuse texts that are too long for this server, before the model's own context is looked at."""
        # a token has at least one byte of its text
        if lm.tokenizer is not None and sum(len(text.encode()) for text in texts) > self.limits.prompt_tokens:
            self.limits.require_prompt(sum(len(lm.encoder.ids(text)) for text in texts if text))

    def search(self, query: str, model: int = 0) -> list[dict[str, Any]]:
        """Up to 20 tokens whose text a query is, begins or is in, best first; a number is a token's id, too."""
        encoder = self.model(model).encoder
        with self._tokenizing:
            if model not in self._tokens:
                self._tokens[model] = encoder.tokens(range(encoder.vocab_size))
        texts = self._tokens[model]
        hits: dict[int, str] = {}
        if query.isascii() and query.isdigit() and len(query) < 10 and int(query) < len(texts):
            hits[int(query)] = texts[int(query)]
        if query:
            low, bare = query.lower(), query.lower().strip()
            tests = (
                lambda text: text == query,
                lambda text: bool(bare) and text.lower().strip() == bare,
                lambda text: bool(bare) and text.lower().strip().startswith(bare),
                lambda text: low in text.lower(),
            )
            for test in tests:
                for token, text in enumerate(texts):
                    if len(hits) >= MOST_HITS:
                        break
                    if token not in hits and test(text):
                        hits[token] = text
        return [{"id": token, "text": text} for token, text in hits.items()]

    def info(self) -> dict[str, Any]:
        """What the page must know before anything is asked: names, sizes, limits, examples."""
        lm = self.lm
        return {
            "version": __version__,
            "model": {
                "name": lm.name,
                "n_layers": lm.n_layers,
                "vocab_size": lm.vocab_size,
                "context": lm.context,
                "chat": bool(getattr(lm.tokenizer, "chat_template", None)),
            },
            "explaining_models": [
                {"name": m.lm.name, "n_layers": m.lm.n_layers, "mapping": m.mapping} for m in self.models
            ],
            "lenses": [
                {
                    "name": name,
                    "layers": list(one.lens.layers),
                    "held_out_kl": held_out_kl(getattr(one.lens.f, "report", {}).get("layers")),
                }
                for name, one in self.lenses.items()
            ],
            "mappings": [IDENTITY, *self.mappings],
            "targets": [{"name": name, "text": t.prompt, "at": t.at} for name, t in TARGETS.items()],
            "operations": list(OPERATIONS),
            "measures": MEASURES,
            "distances": DISTANCES,
            "limits": self.limits.to_json(),
            "examples": EXAMPLES,
        }

    def _named(self, what: str, name: str, known: Mapping[str, Any]) -> Any:
        if name not in known:
            there = f"there are {', '.join(known)}" if known else "this server was started without one"
            raise LenscopeError(f"{what} {name!r}: {there}")
        return known[name]


def _free_name(name: str, taken: Mapping[str, Any]) -> str:
    """A name that is not taken: with a number where two lenses are called alike."""
    names = [name, *(f"{name} {n}" for n in range(2, len(taken) + 3))]
    return next(one for one in names if one not in taken)
