"""Every option of every command: it has an effect wherever it is taken, and is refused, in one line, where it has none.

And how prompts, positions and amounts are read; tests/laws/test_parsing.py tries whatever may be written.
"""

import gzip
import json
from collections import Counter
from typing import Annotated

import pytest
import typer

from lenscope.cli.main import command_line
from lenscope.cli.options import (
    DEFAULT_MODEL,
    CommonOptions,
    Model,
    common_options,
    parse_amount,
    parse_positions,
    places_by_name,
)
from lenscope.cli.prompt_files import given_prompts, placed_prompts_of_file
from lenscope.experiments.tuned_lens_paper import injection_data as injected
from lenscope.models import loading

SOURCE = {"--dtype", "--device", "--revision", "--attn", "--placement", "--adapter"}
LENS = ["lens", "hi"]
PATCH = ["patch", "hi"]
EVAL = ["eval", "-d", "TEXT"]
NAMED = ["reproduce", "attributes"]
VERBALISER = ["fit-verbaliser", "--titles", "PLAIN", "-o", "OUT"]
SWAP = ["swap", "hi", "a", "b"]
DETECT = ["detect", "fit", "-d", "PLAIN", "-o", "OUT"]
ATTACKS = [*DETECT, "--attacks", "PLAIN"]

# Options that have an effect in every combination in which they are taken at all.
ALWAYS = {
    "lens": {
        "--model", "--file", "--chat", "--layers", "--positions", "--lens", "--output", "--html", "--json",
        "--stream",
    },
    "patch": {
        "--at", "--target", "--grid", "--layers", "--target-layers", "--answer", "--below", "--model",
        "--target-model", "--target-adapter", "--mapping", "--verbaliser", "--output", "--html", "--json",
        "--contrast",
    },
    "ask": {
        "--oracle", "--verbaliser", "--at", "--layers", "--max-tokens", "--stop", "--contrast", "--seed", "--model",
        "--json",
    },
    "attribute": {"--token", "--model", "--against", "--at", "--heads", "--chat", "--output", "--json"},
    "check": {"--json"},
    "fit": {
        "--output", "--data", "--tokens", "--recipe", "--held-out", "--length", "--seed", "--model", "--json",
        "--moments-on", "--stream",
    },
    "fit-verbaliser": {
        "--output", "--titles", "--vectors", "--prompts", "--layers", "--shape", "--steps", "--minutes", "--seed",
        "--model", "--json",
    },
    "merge": {"--output", "--data", "--stream", "--model", "--json"},
    "sweep": {"--output", "--engine", "--status", "--dry-run", "--json"},
    "plan": {"--task", "--gpus", "--memory", "--disk", "--length", "--json"},
    "eval": {
        "--lens", "--data", "--tokens", "--held-out", "--layers", "--transfer", "--length", "--seed", "--output",
        "--html", "--model", "--json",
    },
    "export": {"--format", "--model", "--json"},
    "push": {"--json"},
    "causal": {
        "--lens", "--data", "--layers", "--k", "--tokens", "--seed", "--output", "--model", "--json",
    },
    "swap": {
        "--lens", "--layers", "--positions", "--answer", "--swap-answer", "--controls", "--model", "--output", "--json",
    },
    "reproduce": {"--json"},
    "serve": {
        "--host", "--lens", "--mapping", "--max-prompt-tokens", "--model", "--open", "--port", "--target-model",
        "--token",
    },
    "demo": {"--output", "--model"},
    "detect fit": {
        "--data", "--output", "--attacks", "--false-positives", "--seed", "--model", "--json",
    },
    "detect evaluate": {"--data", "--lens", "--layers", "--prompts", "--seed", "--output", "--model", "--json"},
    "detect score": {"--file", "--model", "--where"},
}  # fmt: skip

# command and option → command lines where it has none, and what is told.
REFUSED = {
    ("lens", "--measure"): [([*LENS, "--measure", "kl", "--json"], "with --json there is none")],
    ("lens", "--field"): [
        ([*LENS, "--field", "p"], "names the field of --file"),
        ([*LENS, "--file", "-", "--field", "p"], "names a field of .jsonl files"),
    ],
    ("lens", "--top-k"): [([*LENS, "--compare", "ho", "--top-k", "3"], "shows one token per prompt")],
    ("lens", "--target"): [([*LENS, "--compare", "ho", "--target", "x"], "--compare follows no token")],
    ("lens", "--transferred"): [([*LENS, "--transferred"], "applies to --lens")],
    ("lens", "--points"): [
        ([*LENS, "--points", "mlp", "--lens", "LENS"], "maps for the ends of blocks only"),
        ([*LENS, "--points", "mlp", "--generate", "2"], "reads the ends of blocks"),
    ],
    ("lens", "--generate"): [
        ([*LENS, "--compare", "ho", "--generate", "2"], "--compare writes nothing"),
        ([*LENS, "--lens", "LENS", "--lens", "logit", "--generate", "2"], "through one lens"),
    ],
    ("lens", "--compare"): [([*LENS, "--lens", "LENS", "--lens", "logit", "--compare", "ho"], "through one lens")],
    ("lens", "--temperature"): [
        ([*LENS, "--temperature", "1"], "applies to --generate"),
        ([*LENS, "--temperature", "0"], "applies to --generate"),
    ],
    ("lens", "--seed"): [
        ([*LENS, "--seed", "1"], "applies to --temperature"),
        ([*LENS, "--generate", "2", "--seed", "1"], "applies to --temperature"),
    ],
    ("attribute", "--top-k"): [
        (["attribute", "hi", "--token", "x", "--top-k", "3", "--json"], "with --json there is none"),
    ],
    ("patch", "--placeholder"): [
        ([*PATCH, "--placeholder", "3"], "entity is a target prompt by name"),
        ([*PATCH, "-t", "identity", "--placeholder", "cat"], "identity is a target prompt by name"),
    ],
    ("patch", "--tokens"): [
        ([*PATCH, "--grid", "-n", "5"], "--grid tells next tokens"),
        ([*PATCH, "--answer", "x", "-n", "5"], "--answer tells next tokens"),
    ],
    ("patch", "--stop"): [
        ([*PATCH, "--stop", "x", "--grid"], "--grid tells next tokens"),
        ([*PATCH, "--stop", "x", "--answer", "y"], "--answer tells next tokens"),
        ([*PATCH, "--stop", "x", "-n", "0"], "--tokens 0 tells next tokens"),
    ],
    ("patch", "--controls"): [
        ([*PATCH, "--controls", "--grid"], "compares what is written"),
        ([*PATCH, "--controls", "--answer", "x"], "--answer has pmi"),
        ([*PATCH, "--controls", "--json"], "with --json there is none"),
    ],
    ("patch", "--measure"): [([*PATCH, "--measure", "max_probability", "--json"], "with --json there is none")],
    ("fit", "--field"): [
        (["fit", "-o", "OUT", "--field", "x"], "names the field of --data"),
        (["fit", "-o", "OUT", "-d", "PLAIN", "--field", "x"], "text files have none"),
    ],
    ("fit", "--epochs"): [(["fit", "-o", "OUT", "--epochs", "2"], "the model's own samples have no end")],
    ("fit", "--shard"): [(["fit", "-o", "OUT", "--shard"], "processes of torchrun")],
    **{
        ("fit", option): [(["fit", "-o", "OUT", option, value], "applies to --recipe jacobian")]
        for option, value in (
            *(("--until", "0.9"), ("--targets", "same"), ("--target-layer", "0")),
            *(("--rule", "relp"), ("--part", "1/2")),
        )
    },
    ("fit-verbaliser", "--labels"): [([*VERBALISER, "--labels", "PLAIN"], "names the vectors of --vectors")],
    ("fit-verbaliser", "--rank"): [([*VERBALISER, "--rank", "3"], "applies to --shape low_rank")],
    ("fit-verbaliser", "--each-layer"): [([*VERBALISER, "--each-layer"], "needs several --layers")],
    ("sweep", "--limit"): [
        (["sweep", "PLAIN", "-o", "OUT", "--status", "--limit", "3"], "nothing is run"),
        (["sweep", "PLAIN", "--dry-run", "--limit", "3"], "nothing is run"),
    ],
    **{
        ("sweep", option): [(["sweep", "PLAIN", "-o", "OUT", option, "2"], "--engine ray asks for")]
        for option in ("--workers", "--cpus-per-worker", "--gpus-per-worker")
    },
    ("plan", "--tokens"): [(["plan", "x", "--task", "sweep", "--tokens", "4k"], "a sweep has --rows")],
    ("plan", "--rows"): [(["plan", "x", "--rows", "3"], "are those of a sweep")],
    ("plan", "--new-tokens"): [(["plan", "x", "--task", "lens", "--new-tokens", "3"], "are those of a sweep")],
    ("plan", "--recipe"): [(["plan", "x", "--task", "lens", "--recipe", "ridge"], "is that of a fit")],
    ("plan", "--tuned"): [(["plan", "x", "--tuned"], "says which lens is read")],
    ("eval", "--field"): [
        (["eval", "--field", "x"], "names the field of --data"),
        (["eval", "-d", "PLAIN", "--field", "x"], "text files have none"),
    ],
    ("eval", "--measure"): [([*EVAL, "--measure", "kl", "--json"], "--json has every measure")],
    ("eval", "--transferred"): [([*EVAL, "--transferred"], "applies to --lens")],
    ("causal", "--field"): [(["causal", "--field", "x"], "names the field of --data")],
    ("causal", "--transferred"): [(["causal", "--transferred"], "applies to --lens")],
    ("swap", "--transferred"): [([*SWAP, "--transferred"], "applies to --lens")],
    ("swap", "--control"): [([*SWAP, "--controls", "0", "--control", "random"], "there are no controls")],
    ("swap", "--seed"): [([*SWAP, "--controls", "0", "--seed", "1"], "there are no controls")],
    ("reproduce", "--data"): [(["reproduce", "-d", "TEXT"], "without NAME")],
    ("reproduce", "--text"): [
        (["reproduce", "--text", "TEXT"], "without NAME"),
        ([*NAMED, "--text", "TEXT"], "attributes needs none"),
        (["reproduce", "prediction", "--text", "TEXT"], "the --data of prediction is its text"),
        (["reproduce", "overthinking", "--text", "TEXT", "--lens", "LENS"], "--lens gives one"),
    ],
    ("reproduce", "--lens"): [
        (["reproduce", "--lens", "LENS"], "without NAME"),
        ([*NAMED, "--lens", "LENS"], "reads through no lens"),
        (["reproduce", "cross-model", "--lens", "LENS"], "reads through no lens"),
    ],
    ("reproduce", "--transferred"): [
        (["reproduce", "--transferred"], "without NAME"),
        (["reproduce", "prediction", "--transferred"], "applies to --lens"),
    ],
    ("reproduce", "--target-model"): [
        (["reproduce", "--target-model", "x"], "without NAME"),
        ([*NAMED, "--target-model", "smollm2-135m"], "stays within one model"),
    ],
    ("reproduce", "--verbaliser"): [
        (["reproduce", "--verbaliser", "LENS"], "without NAME"),
        (["reproduce", "worth", "--verbaliser", "LENS"], "has no row of a trained map"),
    ],
    **{
        ("reproduce", option): [(["reproduce", option, *value], "without NAME")]
        for option, *value in (
            ("--quick",), ("--seed", "1"), ("--output", "OUT"), ("--model", "x"), ("--dtype", "float32"),
            ("--device", "cpu"), ("--revision", "x"), ("--attn", "eager"),
        )
    },
    ("detect fit", "--field"): [([*DETECT, "--field", "x"], "other lines have none")],
    ("detect evaluate", "--transferred"): [
        (["detect", "evaluate", "-d", "PLAIN", "--transferred"], "applies to --lens"),
    ],
    ("detect evaluate", "--write-card"): [
        (["detect", "evaluate", "-d", "PLAIN", "--write-card"], "is for the detectors that are given"),
    ],
    ("detect fit", "--transferred"): [([*DETECT, "--transferred"], "applies to --lens")],
    ("detect fit", "--choice"): [([*DETECT, "--attacks", "PLAIN", "--choice", "a"], "without --attacks")],
    ("detect fit", "--method"): [([*DETECT, "--attacks", "PLAIN", "--method", "forest"], "without --attacks")],
    ("detect fit", "--view"): [([*DETECT, "--view", "length"], "is about detectors of --attacks")],
    ("detect fit", "--lens"): [
        ([*ATTACKS, "--view", "last state", "--lens", "LENS"], "the view 'last state' does not read through it"),
        ([*ATTACKS, "--view", "trajectory logit", "--lens", "logit", "--lens", "LENS"], "does not read through it"),
    ],
    ("detect fit", "--layers"): [([*ATTACKS, "--view", "length", "--layers", "1"], "reads no layer")],
    ("detect fit", "--calibration"): [([*DETECT, "--calibration", "platt"], "is about detectors of --attacks")],
    ("detect fit", "--abstain"): [([*DETECT, "--abstain", "0"], "is about detectors of --attacks")],
    ("detect score", "--field"): [
        (["detect", "score", "LENS", "hi", "--field", "x"], "names the field of --file"),
        (["detect", "score", "LENS", "-f", "PLAIN", "--field", "x"], "other lines have none"),
    ],
    ("detect score", "--batch"): [
        (["detect", "score", "LENS", "hi", "--batch", "3"], "is about the prompts of --file"),
        (["detect", "score", "LENS", "-f", "PLAIN", "--batch", "3", "--where"], "one prompt after the other"),
    ],
    **{
        ("detect score", option): [(["detect", "score", "LENS", "hi", option, *value], "applies to --where")]
        for option, *value in (("--json",), ("--output", "OUT.json"), ("--html", "OUT.html"))
    },
}  # fmt: skip


def commands():
    found = {}

    def walk(command, name):
        parts = getattr(command, "commands", None)
        if parts:
            for n, part in parts.items():
                walk(part, f"{name} {n}".strip())
        else:
            options = [p.opts for p in command.params if any(o.startswith("-") for o in p.opts)]
            found[name] = {max(names, key=len) for names in options} - {"--help"}

    walk(typer.main.get_command(command_line()), "")
    return found


def test_every_option_of_every_command_is_accounted_for():
    for name, options in commands().items():
        refused = {option for command, option in REFUSED if command == name}
        told = ALWAYS[name] | refused | (set() if name == "demo" else SOURCE & options)
        assert options == told, name
    assert commands().keys() == ALWAYS.keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(a, m) for cases in REFUSED.values() for a, m in cases],
    ids=[" ".join(a) for cases in REFUSED.values() for a, _ in cases],
)
def test_an_option_without_effect_is_refused(call, arguments, message):
    (status, out, err), _ = call(arguments)
    assert (status, out) == (2, "")
    assert err.startswith("lenscope: --")
    assert "leave it out" in err or "give it as --data" in err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "value"), [("8192", 8192), ("100_000", 100_000), ("200k", 200_000), ("1M", 10**6), ("1.5k", 1500)]
)
def test_amounts(text, value):
    assert parse_amount(text, "tokens") == value


def test_the_command_line_and_the_library_have_one_default_model():
    """The command line cannot ask loading.py for it: that would load the heavy libraries before --help."""
    assert DEFAULT_MODEL == loading.DEFAULT_MODEL


def test_the_first_use_of_a_built_in_model_says_that_it_is_unpacked(run, model, monkeypatch):
    load = loading.load
    monkeypatch.setattr(loading, "load", lambda name, **how: load(model, **how))
    monkeypatch.setattr(loading, "to_unpack", lambda name: "/cache" if name == "smollm2-135m" else None)
    assert run("lens", "the cat")[2] == "lenscope: first use of smollm2-135m: unpacking it into /cache, once\n"
    assert run("lens", "the cat", "-m", model)[2] == ""


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_commands_read_prompts_with_it(tmp_path, encoding, end):
    wanted = ["The capital of France is", "one\u2028prompt", "an\x0cother\x85 "]
    (tmp_path / "p.txt").write_bytes(end.join([*wanted, "", " "]).encode(encoding))
    placed = list(placed_prompts_of_file(str(tmp_path / "p.txt"), "text"))
    assert given_prompts([], str(tmp_path / "p.txt"), None) == placed
    assert [text for _, text in placed] == wanted
    assert [place.rsplit(", ")[-1] for place, _ in placed] == ["line 1", "line 2", "line 3"]
    rows = [json.dumps({"p": text}, ensure_ascii=False) for text in wanted]
    for name, raw in (("p.jsonl", end.join(rows).encode(encoding)), ("p.jsonl.gz", None)):
        (tmp_path / name).write_bytes(raw or gzip.compress((tmp_path / "p.jsonl").read_bytes()))
        assert [text for _, text in placed_prompts_of_file(str(tmp_path / name), "p")] == wanted
    (tmp_path / "t.jsonl").write_bytes(end.join(json.dumps({"text": t, "label": 1}) for t in wanted).encode(encoding))
    assert injected.labelled(str(tmp_path / "t.jsonl"))
    assert [row["text"] for row in injected.texts_of(str(tmp_path / "t.jsonl"), Counter())] == wanted


@pytest.mark.parametrize(
    ("given", "prompts", "wanted"),
    [
        ("2,000", [], ["2,000"]),
        ("2,500", ["It cost 2,500 euros"], ["2,500"]),
        ("2, 500", ["It cost 2,500 euros"], [2, 500]),
        ("2,500", ["It cost"], [2, 500]),
        ("5", ["5 and 6"], [5]),
        ('"5"', ["5 and 6"], ["5"]),
        ("'a b'", ["an 'a b' c"], ["'a b'"]),
        ("-5:", [], slice(-5, None)),
        ("0,2,-1", ["a"], [0, 2, -1]),
    ],
)
def test_positions_of_a_command_may_be_text_with_digits(given, prompts, wanted):
    assert parse_positions(given, "at", prompts) == wanted


def test_names_of_lenses(tmp_path):
    (tmp_path / "a=b").mkdir()
    given = ["x=/some/where", "/else/where/", f"{tmp_path}/a=b"]
    assert places_by_name(given) == {"x": "/some/where", "where": "/else/where/", "a=b": f"{tmp_path}/a=b"}


def test_a_command_ends_with_the_common_options_but_those_that_it_has_itself():
    given = []

    @common_options("attention")
    def command(
        prompt: Annotated[str, typer.Argument()],
        model: Model = "mine",
        depth: Annotated[int, typer.Option()] = 3,
        *,
        common: CommonOptions,
    ) -> None:
        given.append((prompt, model, depth, common))

    app = typer.Typer()
    app.command()(command)
    built = typer.main.get_command(app)
    names = ["prompt", "model", "depth", "as_json", "dtype", "device", "revision"]
    assert [p.name for p in built.params if p.name != "help"][: len(names)] == names
    built(["a", "--revision", "main", "--depth", "4"], standalone_mode=False)
    assert given == [("a", "mine", 4, CommonOptions("mine", revision="main"))]
    assert CommonOptions().model == DEFAULT_MODEL
