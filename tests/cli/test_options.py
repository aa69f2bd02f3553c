"""Every option of every command: it has an effect wherever it is taken, and is refused, in one line, where it has none.

What is refused is refused before a model is loaded; so is whatever else can be seen without one.
"""

import json

import pytest
import typer

from lenscope.cli.main import command_line
from lenscope.models import loading

SOURCE = {"--dtype", "--device", "--revision", "--attn"}
LENS = ["lens", "hi"]
PATCH = ["patch", "hi"]
EVAL = ["eval", "-d", "TEXT"]
NAMED = ["reproduce", "attributes"]
DETECT = ["detect", "fit", "-d", "PLAIN", "-o", "OUT"]

# Options that have an effect in every combination in which they are taken at all.
ALWAYS = {
    "lens": {"--model", "--file", "--chat", "--layers", "--positions", "--lens", "--compare", "--output", "--json"},
    "patch": {
        "--at", "--target", "--grid", "--layers", "--target-layers", "--answer", "--below", "--model",
        "--target-model", "--mapping", "--output", "--json",
    },
    "check": {"--json"},
    "fit": {
        "--output", "--data", "--tokens", "--recipe", "--held-out", "--length", "--seed", "--model", "--json",
    },
    "eval": {
        "--lens", "--data", "--tokens", "--held-out", "--layers", "--transfer", "--length", "--seed", "--output",
        "--model", "--json",
    },
    "export": {"--model", "--json"},
    "causal": {
        "--lens", "--data", "--layers", "--k", "--tokens", "--seed", "--output", "--model", "--json",
    },
    "reproduce": {"--json"},
    "demo": {"--output", "--model"},
    "detect fit": {
        "--data", "--output", "--lens", "--choice", "--layers", "--method", "--false-positives", "--seed",
        "--model", "--json",
    },
    "detect score": {"--file", "--model"},
}  # fmt: skip

# command and option → command lines where it has none, and what is told.
REFUSED = {
    ("lens", "--measure"): [([*LENS, "--measure", "kl", "--json"], "with --json there is none")],
    ("lens", "--top-k"): [([*LENS, "--compare", "ho", "--top-k", "3"], "shows one token per prompt")],
    ("lens", "--target"): [([*LENS, "--compare", "ho", "--target", "x"], "--compare follows no token")],
    ("lens", "--html"): [([*LENS, "--compare", "ho", "--html", "x.html"], "pages show trajectories")],
    ("lens", "--transferred"): [([*LENS, "--transferred"], "applies to --lens")],
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
    ("patch", "--measure"): [([*PATCH, "--measure", "max_probability", "--json"], "with --json there is none")],
    ("fit", "--field"): [
        (["fit", "-o", "OUT", "--field", "x"], "names the field of --data"),
        (["fit", "-o", "OUT", "-d", "PLAIN", "--field", "x"], "text files have none"),
    ],
    ("fit", "--epochs"): [(["fit", "-o", "OUT", "--epochs", "2"], "the model's own samples have no end")],
    ("fit", "--shard"): [(["fit", "-o", "OUT", "--shard"], "processes of torchrun")],
    ("eval", "--field"): [
        (["eval", "--field", "x"], "names the field of --data"),
        (["eval", "-d", "PLAIN", "--field", "x"], "text files have none"),
    ],
    ("eval", "--measure"): [([*EVAL, "--measure", "kl", "--json"], "--json has every measure")],
    ("eval", "--transferred"): [([*EVAL, "--transferred"], "applies to --lens")],
    ("causal", "--field"): [(["causal", "--field", "x"], "names the field of --data")],
    ("causal", "--transferred"): [(["causal", "--transferred"], "applies to --lens")],
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
    **{
        ("reproduce", option): [(["reproduce", option, *value], "without NAME")]
        for option, *value in (
            ("--quick",), ("--seed", "1"), ("--output", "OUT"), ("--model", "x"), ("--dtype", "float32"),
            ("--device", "cpu"), ("--revision", "x"), ("--attn", "eager"),
        )
    },
    ("detect fit", "--field"): [([*DETECT, "--field", "x"], "other lines have none")],
    ("detect fit", "--transferred"): [([*DETECT, "--transferred"], "applies to --lens")],
    ("detect score", "--field"): [
        (["detect", "score", "LENS", "hi", "--field", "x"], "names the field of --file"),
        (["detect", "score", "LENS", "-f", "PLAIN", "--field", "x"], "other lines have none"),
    ],
}  # fmt: skip

# What is mistyped, out of range or cannot be written, and what is told: all of it is seen without a model.
MISTAKES = [
    ([*LENS, "-m", "smolm2-135m"], "smolm2-135m: no built-in model", "did you mean smollm2-135m?"),
    ([*LENS, "-m", "./nowhere"], "./nowhere: no such folder", ""),
    ([*LENS, "-m", "nobody/nothing"], "nobody/nothing: no built-in model", "the hub cannot be reached"),
    ([*LENS, "-m", "x.gguf"], "x.gguf: no such file", ""),
    ([*LENS, "--lens", "LENZ"], "LENZ: no such file or folder", "did you mean"),
    ([*LENS, "--lens", "lnes"], "lnes: no such file or folder, and the hub cannot be reached", ""),
    ([*LENS, "--lens", "owner/lens"], "owner/lens: no such file or folder, and the hub cannot be reached", ""),
    ([*LENS, "--lens", "EMPTY"], "is no lens", ""),
    ([*LENS, "--lens", "lens.pt"], "lens.pt: no such file or folder", ""),
    ([*LENS, "--measure", "kll"], "measure 'kll': there are", "did you mean kl?"),
    ([*LENS, "--measure", "js"], "measure 'js': there are max_probability", ""),
    ([*LENS, "--compare", "ho", "--measure", "rank"], "measure 'rank': there are js", ""),
    ([*LENS, "--top-k", "0"], "top_k 0", ""),
    ([*LENS, "--layers", "a"], "--layers a: give numbers", ""),
    ([*LENS, "-o", "x.csv"], "x.csv: give a file that ends in .parquet or .json", ""),
    ([*LENS, "-o", "NOWHERE/x.json"], "does not exist", ""),
    ([*LENS, "-o", "FOLDER.json"], "is a folder", ""),
    ([*LENS, "-o", "/proc/x.json"], "/proc/x.json: cannot be written", ""),
    ([*LENS, "-o", f"{'x' * 300}.json"], "cannot be written", ""),
    ([*LENS, "--html", "/proc/x.html"], "/proc/x.html: cannot be written", ""),
    ([*LENS, "-f", "PLAN"], "no such file", ""),
    ([*PATCH, "-t", "entty"], "--target entty: there are identity", "did you mean entity?"),
    ([*PATCH, "--below", "nane"], "--below nane: give one of target, none, source", "did you mean none?"),
    ([*PATCH, "--measure", "kl"], "measure 'kl': there are mean_log_prob", ""),
    ([*PATCH, "--measure", "log_prob: Paris", "--answer", " Rome"], "there are max_probability", "log_prob: Rome"),
    ([*PATCH, "--grid", "--measure", "mean_log_prob"], "measure 'mean_log_prob': there are", ""),
    ([*PATCH, "--target-model", "gemma-270m"], "gemma-270m: no built-in model", "did you mean gemma3-270m?"),
    ([*PATCH, "--mapping", "nowhere"], "nowhere: no such folder", ""),
    ([*PATCH, "--mapping", "EMPTY"], "is no mapping", ""),
    ([*PATCH, "-n", "-1"], "--tokens -1", ""),
    ([*PATCH, "--stop", ""], "an empty text is in every text", ""),
    ([*PATCH, "-o", "/proc/x.json"], "cannot be written", ""),
    (["fit", "-o", "OUT", "--recipe", "muom"], "recipe 'muom': there are muon", "did you mean muon?"),
    (["fit", "-o", "OUT", "-d", "TEXZ"], "TEXZ: no such file or folder", "did you mean"),
    (["fit", "-o", "OUT", "-d", "nothing*.txt"], "no file is like this pattern", ""),
    (["fit", "-o", "OUT", "-d", "owner/name"], "owner/name", ""),
    (["fit", "-o", "OUT", "--held-out", "0"], "held_out 0.0", ""),
    (["fit", "-o", "OUT", "-d", "TEXT", "--epochs", "0"], "--epochs 0", ""),
    (["fit", "-o", "OUT", "--length", "1"], "length 1", ""),
    (["fit", "-o", "OUT", "--seed", "-1"], "--seed -1", ""),
    (["fit", "-o", "/proc/x"], "/proc/x: cannot be made a folder", ""),
    (["fit", "-o", "TEXT"], "cannot be made a folder", ""),
    ([*EVAL, "--lens", "a=LENZ"], "LENZ: no such file or folder", ""),
    ([*EVAL, "--lens", "LENS", "--transfer", "--measure", "kl,cross_entropy"], "shows one measure", ""),
    ([*EVAL, "--measure", "kl,agreemnt"], "measure 'agreemnt'", "did you mean agreement?"),
    ([*EVAL, "-o", "/proc/x.json"], "cannot be written", ""),
    (["export", "LENZ", "OUT"], "LENZ: no such file or folder", ""),
    (["export", "LENS", "/proc/x"], "cannot be made a folder", ""),
    (["causal", "-k", "0"], "--k 0", ""),
    (["causal", "-d", "TEXZ"], "TEXZ: no such file or folder", ""),
    (["causal", "-o", "/proc/x"], "cannot be made a folder", ""),
    (["reproduce", "predicton"], "experiment 'predicton': there are", "did you mean prediction?"),
    (["reproduce", "injection", "--text", "TEXZ"], "no such file", "did you mean"),
    (["reproduce", "prediction", "-o", "/proc/x"], "cannot be made a folder", ""),
    (["demo", "-m", "smollm"], "smollm: no built-in model", "did you mean smollm2-135m?"),
    (["demo", "-o", "/proc/x"], "cannot be made a folder", ""),
    (["detect", "fit", "-d", "PLAIN", "-o", "OUT", "--method", "forrest"], "method 'forrest'", "did you mean forest?"),
    (["detect", "fit", "-d", "PLAIN", "-o", "OUT", "--false-positives", "1"], "--false-positives 1.0", ""),
    (["detect", "fit", "-d", "PLAIN", "-o", "/proc/x"], "cannot be made a folder", ""),
    (["detect", "score", "EMPTY", "hi"], "is no detector", ""),
    (["detect", "score", "LENS", "-f", "PLAN"], "no such file", ""),
    (["check", "smollm2-135"], "smollm2-135: no built-in model", "did you mean smollm2-135m?"),
]  # fmt: skip


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


@pytest.fixture
def call(run, tmp_path, monkeypatch):
    """A command line with real files in it, where no model may be loaded."""

    def loaded(*_, **__):
        raise AssertionError("a model is loaded for what can be seen without one")

    monkeypatch.setattr(loading, "load", loaded)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "a b c"}))
    (tmp_path / "plain.txt").write_text("a b c")
    for folder in ("lens", "empty", "folder.json"):
        (tmp_path / folder).mkdir()
    (tmp_path / "lens" / "config.json").write_text("{}")
    places = {
        "TEXT": "text.jsonl", "TEXZ": "./texz.jsonl", "PLAIN": "plain.txt", "PLAN": "plan.txt", "LENS": "lens",
        "LENZ": "./lenz", "EMPTY": "empty", "OUT": "out",
        "NOWHERE/x.json": "nowhere/x.json", "FOLDER.json": "folder.json", "a=LENZ": "a=./lenz",
    }  # fmt: skip

    def called(arguments):
        return run(*(places.get(a, a) for a in arguments)), places

    return called


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


@pytest.mark.parametrize(("arguments", "message", "more"), MISTAKES, ids=[" ".join(a)[:60] for a, *_ in MISTAKES])
def test_a_mistake_is_told_before_a_model_is_loaded(call, arguments, message, more):
    (status, out, err), places = call(arguments)
    for name, place in places.items():
        message = message.replace(name, place)
    assert (status, out) == (2, ""), err
    assert err.startswith("lenscope: ")
    assert message in err
    assert more in err
    assert err.count("\n") == 1
