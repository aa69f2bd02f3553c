"""The Python that gives what a request gives: a program of a few lines, to run and to go on from.

Knows: how each request is said with the library. Does not know: results, HTTP.
"""

from collections.abc import Callable, Sequence
from typing import Any

from lenscope.web.requests import (
    ComparisonIn,
    ExplanationIn,
    GenerationIn,
    GridIn,
    PatchedTrajectoryIn,
    PromptIn,
    RanksIn,
    SteeringIn,
    TargetIn,
    TrajectoryIn,
)
from lenscope.web.served import IDENTITY, Served


class Snippet:
    """Lines of Python about what a server serves, with each import, model, lens and mapping named once."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.imports = ["import lenscope as ls"]
        self.lines: list[str] = []

    def text(self) -> str:
        """The program."""
        own = sorted(set(self.imports[1:]))
        return "\n".join([*self.imports[:1], *own, "", *self.lines]) + "\n"

    def add(self, name: str, value: str) -> str:
        """Name a value, unless that was done; gives the name."""
        line = f"{name} = {value}"
        if line not in self.lines:
            self.lines.append(line)
        return name

    def model(self, number: int = 0) -> str:
        """The model of a number."""
        model = self.served.models[number]
        options = "".join(f", {name}={value!r}" for name, value in model.options.items())
        return self.add(f"lm{number + 1}" if number else "lm", f"ls.load({model.source or model.lm.name!r}{options})")

    def prompt(self, name: str, asked: PromptIn) -> str:
        """A prompt."""
        if asked.turns is not None:
            turns = [{"role": turn.role, "content": turn.content} for turn in asked.turns]
            return self.add(name, f"{self.model()}.chat({turns!r})")
        return self.add(name, repr(asked.text if asked.ids is None else asked.ids))

    def lens(self, name: str, asked: str) -> str:
        """A lens."""
        lm, one = self.model(), self.served.lenses[asked]
        if one.source is None:
            return self.add(name, f"ls.Lens({lm})")
        return self.add(name, f"ls.Lens({lm}, ls.load_lens({one.source!r}, {lm}), name={asked!r})")

    def scope(self, asked: ExplanationIn | GridIn) -> str:
        """A Patchscope."""
        lm, other = self.model(), self.model(asked.model)
        how = self.mapping(asked.mapping, asked.model) + self.operation(asked.operation)
        if asked.model:
            how += f", source_lm={lm}"
        return self.add("scope", f"ls.Patchscope({other}, {self.target(asked.target)}{how})")

    def target(self, asked: TargetIn) -> str:
        """A target prompt."""
        if asked.name is not None:
            return f"ls.patchscopes.methods.named_target({asked.name!r})"
        return f"ls.Target({asked.text!r}, at={asked.at!r})"

    def mapping(self, asked: str | None, model: int) -> str:
        """The argument f of a Patchscope; nothing where it is the identity."""
        name = self.served.models[model].mapping if asked is None else asked
        if name is None or name == IDENTITY:
            return ""
        return f", f=ls.load_mapping({self.served.mappings[name].source!r})"

    def operation(self, name: str, usual: str = "replace") -> str:
        """The argument op of a Patchscope or an edit; nothing where it is the usual one."""
        if name == usual:
            return ""
        self.imports.append(f"from lenscope.models.edits import {name}")
        return f", op={name}"


def python_of(served: Served, endpoint: str, asked: Any) -> str:
    """The program that gives what a request to an endpoint gives."""
    snippet = Snippet(served)
    SNIPPETS[endpoint](snippet, asked)
    return snippet.text()


def _trajectory(s: Snippet, asked: TrajectoryIn) -> None:
    lens, prompt = s.lens("lens", asked.lens), s.prompt("prompt", asked.prompt)
    target = None if asked.target is None else asked.target
    how = _keywords(layers=asked.layers, positions=asked.positions, target=target, top_k=asked.top_k)
    s.add("trajectory", f"{lens}.trajectory({prompt}{how})")


def _comparison(s: Snippet, asked: ComparisonIn) -> None:
    lens, first, second = s.lens("lens", asked.lens), s.prompt("first", asked.first), s.prompt("second", asked.second)
    how = _keywords(layers=asked.layers, positions=asked.positions)
    if asked.second_lens is not None:
        how += f", lens={s.lens('second_lens', asked.second_lens)}"
    s.add("comparison", f"{lens}.compare({first}, {second}{how}, top_k={asked.top_k})")


def _token_ranks(s: Snippet, asked: RanksIn) -> None:
    lens, prompt = s.lens("lens", asked.lens), s.prompt("prompt", asked.prompt)
    s.add(
        "ranks", f"{lens}.ranks({prompt}, {asked.tokens!r}{_keywords(layers=asked.layers, positions=asked.positions)})"
    )


def _generation(s: Snippet, asked: GenerationIn) -> None:
    lens, prompt = s.lens("lens", asked.lens), s.prompt("prompt", asked.prompt)
    how = _keywords(top_k=asked.top_k)
    if asked.temperature:
        how += _keywords(temperature=asked.temperature, top_p=asked.top_p, seed=asked.seed)
    s.add("written", f"{lens}.generate({prompt}, {asked.max_new_tokens}{how})")
    s.lines += ["for token in written:", "    print(repr(token.text), token.log_prob)"]
    s.add("trajectory", "written.trajectory()")


def _explanation(s: Snippet, asked: ExplanationIn) -> None:
    lm, prompt, scope = s.model(), s.prompt("prompt", asked.prompt), s.scope(asked)
    s.imports.append("from lenscope.patchscopes import stream_explanation")
    s.add("state", f"{lm}.read({prompt}, {asked.layer}, {asked.position})")
    how = f"max_new_tokens={asked.max_new_tokens}, seed={asked.seed}{_contrast(asked)}"
    s.add("explanation", f"stream_explanation({scope}, state{_keywords(layers=asked.layers)}, {how})")
    s.lines += [
        "for tokens in explanation:",
        "    print([(token.row, token.text) for token in tokens])",
        "for row, text in zip(explanation.rows, explanation.texts):",
        "    print(row.kind, row.layer, repr(text))",
    ]


def _cells_of_grid(s: Snippet, asked: GridIn) -> None:
    lm, prompt, scope = s.model(), s.prompt("prompt", asked.prompt), s.scope(asked)
    other = s.served.model(asked.model)
    s.add("states", f"{lm}.read({prompt}, positions={asked.position})")
    sources = _numbers(asked.source_layers, s.served.lm.n_layers)
    targets = _numbers(asked.target_layers, other.n_layers)
    s.add("cells", f"[(source, layer) for source in {sources} for layer in {targets}]")
    if asked.kind == "predict":
        answers = f", answers={asked.answers!r}" if asked.answers else ""
        s.add("grid", f"{scope}.predict(states, cells{answers}{_contrast(asked)})")
    else:
        how = f"max_new_tokens={asked.max_new_tokens}{_contrast(asked)}"
        s.add("grid", f"{scope}.generate(states, cells, {how})")


def _patched_trajectory(s: Snippet, asked: PatchedTrajectoryIn) -> None:
    lm, lens = s.model(), s.lens("lens", asked.lens)
    prompt, source = s.prompt("prompt", asked.prompt), s.prompt("source", asked.source.prompt)
    s.imports.append("from lenscope.lenses import patched_trajectory")
    s.add("state", f"{lm}.read({source}, {asked.source.layer}, {asked.source.position})")
    how = s.operation(asked.operation) + s.mapping(asked.mapping, 0) + _keywords(top_k=asked.top_k)
    into = f"{asked.into.layer}, {asked.into.position}"
    s.add("trajectory", f"patched_trajectory({lens}, {prompt}, state, {into}{how})")


def _steering(s: Snippet, asked: SteeringIn) -> None:
    lm, prompt = s.model(), s.prompt("prompt", asked.prompt)
    s.imports.append("from lenscope.interventions import steer")
    parts = []
    for name, state in (("plus", asked.vector.plus), ("minus", asked.vector.minus)):
        if state is not None:
            source, place = s.prompt(name, state.prompt), f"{state.layer}, {state.position}"
            parts.append(f"{lm}.read({source}, {place})[{place}]")
    s.add("vector", " - ".join(parts))
    how = _keywords(strength=asked.strength, positions=asked.positions)
    how += s.operation(asked.operation, "add") + _keywords(max_new_tokens=asked.max_new_tokens)
    if asked.temperature:
        how += _keywords(temperature=asked.temperature, seed=asked.seed)
    s.add("texts", f"steer({lm}, {prompt}, vector, {asked.layer}{how})")
    s.lines += [
        "for tokens in texts:",
        "    print([(token.row, token.text) for token in tokens])",
        'print("plain:", repr(texts.texts[0]))',
        'print("steered:", repr(texts.texts[1]))',
    ]


def _numbers(layers: Sequence[int] | None, n_layers: int) -> str:
    if layers is None:
        return f"range({n_layers + 1})"
    return repr(list(dict.fromkeys(n % (n_layers + 1) for n in layers)))


def _contrast(asked: ExplanationIn | GridIn) -> str:
    """The argument contrast of a Patchscope's calls; nothing where there is none."""
    return _keywords(contrast=asked.contrast or None)


def _keywords(**values: Any) -> str:
    """Arguments that are not None, each with a comma before it."""
    return "".join(f", {name}={value!r}" for name, value in values.items() if value is not None)


SNIPPETS: dict[str, Callable[[Snippet, Any], None]] = {
    "trajectory": _trajectory,
    "comparison": _comparison,
    "ranks": _token_ranks,
    "generation": _generation,
    "explanation": _explanation,
    "grid": _cells_of_grid,
    "patched_trajectory": _patched_trajectory,
    "steering": _steering,
}
