"""The laws of lenscope tried on one given model: what was found in it and how exactly it behaves.

Knows: which promises reading, editing and generating make. Does not know: what is done with a report,
why a model is refused when it is loaded (refusals.py, residual_stream.py, readout.py).
"""

from dataclasses import dataclass
from typing import Any

import torch

from lenscope.files.parquet_tables import columns_frame
from lenscope.models import exactness, generation
from lenscope.models.deviations import TOLERANCE, deviation
from lenscope.models.edits import Edit
from lenscope.models.language_model import LM


@dataclass(frozen=True)
class Finding:
    """One line of a report. `holds` is None for a fact that nothing is expected of."""

    name: str
    value: str
    holds: bool | None = None


@dataclass(frozen=True)
class ModelCheck:
    """What `check` found; `holds` if nothing failed that later numbers depend on."""

    model: str
    findings: tuple[Finding, ...]

    @property
    def holds(self) -> bool:
        """Whether every law held."""
        return all(f.holds is not False for f in self.findings)

    def to_dataframe(self) -> Any:
        """A row for each finding; `holds` is null for a fact that nothing is expected of.

        It is a data frame of pandas, or of polars where only that is installed; LenscopeError without both.
        """
        rows = [(f.name, f.value, f.holds) for f in self.findings]
        return columns_frame(dict(zip(("name", "value", "holds"), zip(*rows, strict=True), strict=True)))

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        findings = [{"name": f.name, "value": f.value, "holds": f.holds} for f in self.findings]
        return {"kind": "check", "version": 1, "model": self.model, "holds": self.holds, "findings": findings}


def check(lm: LM) -> ModelCheck:
    """Check how exactly a model behaves: readout, patches, padding, cached generation. Takes a few short runs.

    Deviations are the largest absolute difference in standard deviations of what is compared. Padding that is not exact
    is no failure: such prompts run in groups of equal length. `holds` of the result says whether every law held.
    """
    tolerance = TOLERANCE.get(lm.dtype, 1e-4)
    anatomy, verified = lm.runner.anatomy, lm.runner.verified
    kinds = sorted({type(b).__name__ for b in anatomy.blocks})
    stream = "" if len(anatomy.stream.rest) == 1 else f", a stream of {' × '.join(map(str, anatomy.stream.rest))}"
    embedded = anatomy.model.get_input_embeddings()(anatomy.ids).to(anatomy.states[0].device)
    plain = embedded.shape == anatomy.states[0].shape and torch.allclose(embedded, anatomy.states[0])
    findings = [
        Finding("architecture", type(anatomy.model).__name__),
        Finding("weights", f"finite, {sum(p.numel() for p in anatomy.model.parameters()):,} parameters"),
        *_unused(lm),
        Finding("blocks", f"{lm.n_layers} in {anatomy.name} ({', '.join(kinds)})"),
        Finding("hidden size", f"{lm.hidden_size}{stream}, {str(lm.dtype).removeprefix('torch.')}"),
        Finding("vocabulary", f"{lm.vocab_size}"),
        Finding("context", "not stated" if lm.context is None else f"{lm.context} tokens"),
        Finding("layer 0", "the embedding layer's output" if plain else "not the embedding layer's plain output"),
        Finding("causal", "changing a token leaves earlier states as they were", True),
        Finding("readout", verified.readout.description, True),
        _law("readout against the model's own logits", verified.deviation, tolerance),
        Finding("readout on foreign states", "no replay to compare with")
        if verified.elsewhere is None
        else _law("readout on foreign states, against the replayed forward", verified.elsewhere, tolerance),
    ]
    for layer in sorted({0, lm.n_layers // 2, lm.n_layers}):
        noop, earlier = _patched(lm, layer)
        findings.append(_law(f"self-patch at layer {layer} changes nothing", noop, tolerance))
        findings.append(_law(f"a patch at layer {layer} leaves earlier positions", earlier, tolerance))
    same_run = exactness.tolerance(lm.runner)
    right, generated = exactness.right_padding_deviation(lm.runner), generation.check_generation(lm.runner)
    findings.append(
        _expedient("right padding (reading)", right, same_run, "prompts of unequal length are read in groups")
    )
    findings.append(
        _expedient("cache (generating)", generated.cached, same_run, "generates without a cache, one prompt a time")
    )
    findings.append(
        _expedient("left padding (generating)", generated.padded, same_run, "prompts of unequal length run in groups")
    )
    if generated.failure:
        findings.append(Finding("unsupported by transformers", generated.failure))
    written, recomputed = _continuations(lm)
    same: bool | None = written == recomputed
    value = "equal" if same else f"differ: {written} and {recomputed}"
    if not same and same_run > TOLERANCE[torch.float32]:
        same, value = None, f"{value}; in 16 bits rounding decides near-ties"
    findings.append(Finding("8 greedy tokens, generated and recomputed", value, same))
    findings.append(Finding("tokenizer", _tokenizer(lm)))
    return ModelCheck(lm.name, tuple(findings))


def _unused(lm: LM) -> list[Finding]:
    if not lm.unused:
        return []
    more = ", …" if len(lm.unused) > 4 else ""
    return [Finding("in the files, not in the model", f"{len(lm.unused)}: {', '.join(lm.unused[:4])}{more}")]


def _law(name: str, gap: float, tolerance: float) -> Finding:
    return Finding(name, f"deviation {gap:.1e} (tolerance {tolerance:.0e})", gap <= tolerance)


def _expedient(name: str, gap: float, tolerance: float, otherwise: str) -> Finding:
    exact = gap <= tolerance
    return Finding(
        name, f"{'the same within rounding' if exact else f'not the same: {otherwise}'}, deviation {gap:.1e}"
    )


def _patched(lm: LM, layer: int) -> tuple[float, float]:
    """How far the last layer moves when a state is put in its own place, and before the place of a foreign state."""
    prompt = lm.runner.anatomy.ids[0].tolist()
    place = len(prompt) // 2
    before = lm.read(prompt, layers=sorted({layer, lm.n_layers}))
    last = before[lm.n_layers, :]
    h = before[layer, place]
    with lm.edit(Edit(layer, place, h)):
        same = lm.read(prompt, layers=[lm.n_layers])
    with lm.edit(Edit(layer, place, h.flip(-1) + h.std())):
        other = lm.read(prompt, layers=[lm.n_layers])
    return deviation(same[lm.n_layers, :], last), deviation(other[lm.n_layers, :place], last[:place])


def _continuations(lm: LM) -> tuple[list[int], list[int]]:
    prompt = lm.runner.anatomy.ids[0].tolist()
    cached = list(lm.generate(prompt, 8).ids)
    ids = list(prompt)
    for _ in cached:
        ids.append(int(lm.unembed(lm.read(ids, layers=[lm.n_layers], positions=-1)[lm.n_layers, -1]).argmax()))
    return cached, ids[len(prompt) :]


def _tokenizer(lm: LM) -> str:
    if lm.tokenizer is None:
        return "none: prompts are lists of token ids"
    chat = "with" if getattr(lm.tokenizer, "chat_template", None) else "without"
    return f"{type(lm.tokenizer).__name__}, {len(lm.tokenizer)} tokens, {chat} a chat template"
