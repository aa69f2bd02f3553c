"""Models divided among two processes, in either way, give what the whole one gives: five families each.

Run as a program, with the environment that torchrun sets, this is one of the processes: `test_placement.py FOLDER`.
"""

import io
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from several_processes import exact, near, started
from small_fits import SMALL, fitted, same

import lenscope as ls
from lenscope.cli.main import main
from lenscope.distributed.placement import placed, require_placement
from lenscope.distributed.sharding import is_sharded
from lenscope.distributed.tensor_parallel import is_tensor_parallel
from lenscope.engine.exact_modes import fastest_exact_mode
from lenscope.models.identity import ROUNDED, describe_weights
from lenscope.models.provenance import provenance

# GPT-2 has no tensor-parallel plan
DIVIDED = {
    "fsdp": ("llama", "gpt2", "gpt_neox", "gemma2", "qwen3_moe"),
    "tensor": ("llama", "mistral", "gpt_neox", "gemma2", "qwen3_moe"),
}
PROMPTS = ["The cat sat on the mat", "is a test"]
TEXTS = ["The capital of France is Paris.", "The cat sat on the mat.", "This is a test of the tokenizer.", "The mat."]


def results(lm):
    """What is made of a model by reading, patching, writing and measuring, as arrays by name."""
    lens = ls.Lens(lm)
    trajectory = lens.trajectory(PROMPTS[0])
    states = torch.linspace(-1, 1, 2 * lm.hidden_size).view(2, -1)
    grid = ls.Patchscope(lm, ls.Target("one -> one, two -> two, x ->"))
    vectors = lm.read(PROMPTS[0], positions=-1)
    with lm.edit(ls.Edit(2, -1, states[0])):
        edited = lm.read(PROMPTS).tensor
        written = [one.ids for one in lm.generate(PROMPTS, 2)]
    evaluation = ls.evaluate(lm, TEXTS)
    return {
        "states": lm.read(PROMPTS).tensor.numpy(),
        "logits": lm.unembed(vectors.tensor[0, :, -1]).numpy(),
        "kl": trajectory.kl,
        "edited": edited.numpy(),
        "written": np.array([i for ids in written for i in ids]),
        "patched": grid.generate(vectors, layers=[0, 3], max_new_tokens=2).ids,
        "modes": np.array([fastest_exact_mode(lm) == "cascade"], dtype=float),
        **{f"evaluated {name}": values for name, values in evaluation.values.items()},
    }


def apart(a, b):
    """The largest difference of two results, in parts of the largest number."""
    gaps = {}
    for name, value in a.items():
        assert value.shape == b[name].shape, name
        gaps[name] = float(np.nanmax(np.abs(value - b[name])) / max(1.0, float(np.nanmax(np.abs(value)))))
    return max(gaps.values()), gaps


def refused(call):
    try:
        call()
    except ls.LenscopeError as error:
        return str(error)
    return "it was not refused"


def called(*arguments):
    """What the command line of this process says: its status, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main([str(a) for a in arguments])
        except SystemExit as left:
            return left.code, out.getvalue(), err.getvalue()


def work(folder: Path) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    exact()
    rank, said = int(os.environ["RANK"]), {}
    for placement, kinds in DIVIDED.items():
        for kind in kinds:
            with placed(folder / kind, placement) as lm:
                assert (is_sharded(lm), is_tensor_parallel(lm)) == (placement == "fsdp", placement == "tensor")
                size = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in lm.model.parameters())
                np.savez(folder / f"{placement}-{kind}-{rank}.npz", **results(lm))
                # one process may ask alone who the model is
                known = (describe_weights(lm.model, list(ROUNDED)) if rank else {}), provenance(lm)["model_hash"]
                if kind == "llama":
                    fitted(lm, recipe=SMALL, tokens=1000).save(folder / f"{placement}-{rank}")
                if kind == "llama" and placement == "tensor":
                    said["different"] = refused(lambda lm=lm: lm.read(PROMPTS[rank]))
            said[f"{placement} {kind}"] = size, *known
            said[f"after {placement}"] = refused(lambda lm=lm: lm.read("a"))
    for name, source in (("no plan", "gpt2"), ("heads", "odd")):
        with_plan = placed(folder / source, "tensor")
        said[name] = refused(with_plan.__enter__)
    for placement in DIVIDED:
        where = folder / f"{placement}.json"
        how = "-m", folder / "llama", "--placement", placement, "--json"
        said[f"lens {placement}"] = called("lens", PROMPTS[0], *how, "-o", where)
        said[f"eval {placement}"] = called("eval", "-d", folder / "text.txt", "--length", 16, "--tokens", 3200, *how)
    said["wrong"] = called("lens", "a", "-m", folder / "llama", "--placement", "auto")
    (folder / f"said-{rank}.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two processes found, beside the models that they loaded."""
    root = tmp_path_factory.mktemp("divided")
    for kind in {*DIVIDED["fsdp"], *DIVIDED["tensor"]}:
        tiny.model(kind).save_pretrained(root / kind)
        tiny.tokenizer().save_pretrained(root / kind)
    odd = tiny.config("llama")
    odd.num_key_value_heads = 1
    tiny.AutoModelForCausalLM.from_config(odd).save_pretrained(root / "odd")
    tiny.tokenizer().save_pretrained(root / "odd")
    (root / "text.txt").write_text("\n\n".join(TEXTS * 300))
    started(root, 2, [__file__])
    return root


def said(folder, rank):
    return json.loads((folder / f"said-{rank}.json").read_text())


@pytest.mark.parametrize("kind", sorted({*DIVIDED["fsdp"], *DIVIDED["tensor"]}))
def test_two_processes_read_patch_write_and_measure_what_one_does(folder, kind):
    lm = ls.load(folder / kind)
    whole, size = results(lm), sum(p.numel() for p in lm.model.parameters())
    for placement in (p for p in DIVIDED if kind in DIVIDED[p]):
        for rank in range(2):
            own, described, model_hash = said(folder, rank)[f"{placement} {kind}"]
            gap, gaps = apart(whole, np.load(folder / f"{placement}-{kind}-{rank}.npz"))
            assert gap < 1e-4, (placement, rank, gaps)
            assert own < 0.85 * size
            assert described == (describe_weights(lm.model, list(ROUNDED)) if rank else {})
            assert model_hash == provenance(lm)["model_hash"]


@pytest.mark.parametrize("placement", DIVIDED)
def test_a_lens_fitted_on_a_divided_model_is_the_one_fitted_on_the_whole(folder, placement, monkeypatch):
    exact(monkeypatch)
    lm = ls.load(folder / "llama")
    made = [ls.load_lens(str(folder / f"{placement}-{rank}"), lm) for rank in range(2)]
    assert same(*made)
    near(made[0], fitted(lm, recipe=SMALL, tokens=1000))


def test_mistakes_are_one_clear_line_in_every_process(folder):
    for rank in range(2):
        found = said(folder, rank)
        assert "its processes run different texts" in found["different"]
        assert found["after fsdp"].endswith("which have parted; load it again")
        assert found["after tensor"].endswith("which have parted; load it again")
        assert "no tensor-parallel plan" in found["no plan"]
        assert "its 1 key value heads cannot be divided among 2 processes" in found["heads"]


@pytest.mark.parametrize("placement", DIVIDED)
def test_the_first_process_alone_speaks_and_writes(folder, placement, run):
    first, second = said(folder, 0), said(folder, 1)
    for command in ("lens", "eval"):
        assert second[f"{command} {placement}"] == [0, "", ""]
        code, out, err = first[f"{command} {placement}"]
        assert (code, json.loads(out)["model"]) == (0, "llama")
        assert "saved" in err or command == "eval"
    assert (folder / f"{placement}.json").exists()
    code, out, _ = run("eval", "-d", str(folder / "text.txt"), "--length", "16", "--tokens", "3200", "--json",
                       "-m", str(folder / "llama"))  # fmt: skip
    ours, theirs = json.loads(out), json.loads(first[f"eval {placement}"][1])
    for name in ("kl", "cross_entropy", "bias", "bits_per_byte"):
        one, other = (np.array(result["values"][name], dtype=float) for result in (ours, theirs))
        assert np.allclose(one, other, rtol=1e-4, atol=1e-6, equal_nan=True), name
    assert [ours[name] for name in ("rows", "units", "tokens")] == [theirs[n] for n in ("rows", "units", "tokens")]
    assert ours["provenance"]["ids_sha256"] == theirs["provenance"]["ids_sha256"]


def test_one_of_several_processes_says_what_is_wrong(folder):
    """The first mistake, in one line; of a later one, in processes that go on all the same, nothing more is said."""
    both = [said(folder, rank)["wrong"] for rank in range(2)]
    assert [(code, out) for code, out, _ in both] == [(2, "")] * 2
    (line,) = [line for _, _, err in both for line in err.splitlines()]
    assert line.startswith("lenscope: --placement auto: spreads a model over all devices of one process")


def test_a_placement_applies_to_a_number_of_processes(monkeypatch):
    for world, placement, message in (
        (1, "fsdp", "this is one alone; start several with torchrun --nproc-per-node N$"),
        (1, "tensor", "this is one alone"),
        (2, "auto", "torchrun started 2; give whole, fsdp or tensor$"),
        (2, "pipeline", "^placement pipeline: give whole, auto, fsdp or tensor$"),
    ):
        monkeypatch.setenv("WORLD_SIZE", str(world))
        with pytest.raises(ls.LenscopeError, match=message):
            require_placement(placement)
        with pytest.raises(ls.LenscopeError, match=message), placed("nowhere", placement):
            pass


def test_one_process_loads_as_ever(tmp_path):
    tiny.model("llama").save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    whole = ls.load(tmp_path)
    for placement in ("whole", "auto"):
        with placed(tmp_path, placement, device="cpu") as lm:
            assert torch.equal(lm.read("a b").tensor, whole.read("a b").tensor)
        # it was not divided
        lm.read("a b")


if __name__ == "__main__":
    work(Path(sys.argv[1]))
