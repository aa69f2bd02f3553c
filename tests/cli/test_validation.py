"""What can be seen without a model is told without one: what is mistyped, out of range or cannot be written."""

import pytest

LENS = ["lens", "hi"]
PATCH = ["patch", "hi"]
EVAL = ["eval", "-d", "TEXT"]

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
    (["detect", "fit", "-d", "MANY", "-o", "/proc/x"], "cannot be made a folder", ""),
    (["detect", "score", "EMPTY", "hi"], "is no detector", ""),
    (["detect", "score", "LENS", "-f", "PLAN"], "no such file", ""),
    (["check", "smollm2-135"], "smollm2-135: no built-in model", "did you mean smollm2-135m?"),
]  # fmt: skip


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
