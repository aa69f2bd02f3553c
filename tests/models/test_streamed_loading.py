"""Models whose blocks stay on disk give what they give in memory, for as few readings of their weights as can be."""

import json
import shutil

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import lenscope as ls
from lenscope.models import load_streamed
from lenscope.models.deviations import deviation
from lenscope.models.same_model import is_same_model, model_identity

# tied embeddings, masks by layer, keys shared between layers, experts that files hold one by one, recurrent layers,
# positions in tables, blocks in parallel, weights shared between blocks
FAMILIES = ["llama", "gpt2", "gpt_neox", "gemma2", "gemma3n_text", "gemma4_text", "mixtral", "mamba", "phi", "zamba"]


def saved(folder, kind, **how):
    tiny.model(kind).save_pretrained(folder, **how)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A tiny llama in files of a few weights each."""
    folder = saved(tmp_path_factory.mktemp("llama"), "llama", max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 4
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LENSCOPE_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_streamed_model_reads_as_in_memory_and_is_the_same_model(family, tmp_path):
    folder = saved(tmp_path / family, family)
    plain, streamed = ls.load(folder), load_streamed(folder)
    assert streamed.runner.stream.passes <= 2
    prompts = [tiny.ids(plain.model, 1, n, seed=n)[0].tolist() for n in (9, 5, 9, 12)]
    before = streamed.runner.stream.passes
    together = streamed.read(prompts).split()
    assert streamed.runner.stream.passes == before + 1
    for prompt, states in zip(prompts, together, strict=True):
        assert deviation(states.tensor, plain.read(prompt).tensor) <= 1e-5
    assert not any(p.is_meta for p in plain.model.parameters())
    known, same = model_identity(plain), model_identity(streamed)
    assert {**known, "probe": None} == {**same, "probe": None}
    assert is_same_model(known, streamed)


def test_memory_holds_the_weights_of_one_block(llama):
    lm = load_streamed(llama)
    seen = []
    lm.runner.anatomy.blocks[2].register_forward_hook(
        lambda *_: seen.append([not next(b.parameters()).is_meta for b in lm.runner.anatomy.blocks])
    )
    lm.read([5, 6, 7])
    assert seen == [[False, False, True, False]]
    assert not any(p.is_meta for name, p in lm.model.named_parameters() if ".layers." not in name)


def test_trajectories_of_many_prompts_take_one_reading_and_are_those_of_each_alone(llama):
    lm, plain = load_streamed(llama), ls.load(llama)
    prompts = ["The cat sat on the mat.", "The capital", "This is a test of the tokenizer.", "The"]
    before = lm.runner.stream.passes
    for t, prompt in zip(ls.Lens(lm).trajectory(prompts), prompts, strict=True):
        expected = ls.Lens(plain).trajectory(plain.prompt(prompt))
        assert t.ids == expected.ids
        assert (t.top_ids[..., 0] == expected.top_ids[..., 0]).all()
        for name in ("kl", "entropy"):
            assert t.measure(name) == pytest.approx(expected.measure(name), rel=1e-4, abs=1e-5)
        assert t.provenance["model_hash"] == expected.provenance["model_hash"]
    assert lm.runner.stream.passes == before + 1


def test_edits_patches_and_writing_work_on_streamed_weights(llama):
    lm, plain = load_streamed(llama), ls.load(llama)
    ids = [[5, 9, 30, 41, 7], [8, 9, 30]]
    edit = ls.Edit(2, 1, plain.read(ids[0])[2, 3])
    with lm.edit(edit), plain.edit(edit):
        assert deviation(lm.read(ids).tensor, plain.read(ids).tensor) <= 1e-5
    assert lm.generate(ids[0], 3).ids == plain.generate(ids[0], 3).ids
    grids = [
        ls.Patchscope(one, ls.Target(ids[1], at=-1)).predict(one.read(ids[0])[:, -1], layers=[0, 2, 4])
        for one in (lm, plain)
    ]
    assert (grids[0].ids == grids[1].ids).all()
    assert grids[0].log_probs == pytest.approx(grids[1].log_probs, abs=1e-4)


def test_windows_are_looked_at_beside_the_batches_that_reach_them(tmp_path):
    """A length at which a model may behave differently costs no reading of its own."""
    folder = saved(tmp_path / "gemma2", "gemma2")
    lm, plain = load_streamed(folder), ls.load(folder)
    prompts = [tiny.ids(plain.model, 1, n, seed=n)[0].tolist() for n in (40, 5)]
    before = lm.runner.stream.passes
    together = lm.read(prompts).split()
    assert lm.runner.stream.passes == before + 1
    assert lm.runner.measured.holds(("causal", lm.regimes.of(40)))
    for prompt, states in zip(prompts, together, strict=True):
        assert deviation(states.tensor, plain.read(prompt).tensor) <= 1e-5


def damaged(folder, target, change):
    """A copy of a checkpoint with the file that holds a weight changed."""
    shutil.copytree(folder, target)
    index = json.loads((target / "model.safetensors.index.json").read_text())
    change(target, index)
    return target


def cut(target, index):
    path = target / index["weight_map"]["model.layers.2.mlp.up_proj.weight"]
    path.write_bytes(path.read_bytes()[:-100])


def drop(target, index):
    path = target / index["weight_map"]["model.layers.2.mlp.up_proj.weight"]
    tensors = load_file(path)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    del index["weight_map"]["model.layers.2.mlp.up_proj.weight"]
    (target / "model.safetensors.index.json").write_text(json.dumps(index))


def break_weight(target, index):
    path = target / index["weight_map"]["model.layers.2.mlp.up_proj.weight"]
    tensors = load_file(path)
    tensors["model.layers.2.mlp.up_proj.weight"][3, 4] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (cut, "cannot be loaded as a causal language model"),
        (drop, "lacks 1 weight of LlamaForCausalLM.*layers.2.mlp.up_proj.weight"),
        (break_weight, "NaN or infinity, first in model.layers.2.mlp.up_proj.weight"),
    ],
)
def test_damage_is_told_in_one_line(llama, tmp_path, change, what):
    folder = damaged(llama, tmp_path / "damaged", change)
    with pytest.raises(ls.LenscopeError, match=what) as error:
        load_streamed(folder)
    assert "\n" not in str(error.value)


def test_what_cannot_be_streamed_is_refused_in_one_line(tmp_path):
    with pytest.raises(ls.LenscopeError, match="GGUF file becomes whole in memory"):
        load_streamed(tmp_path / "model.gguf")


def test_backwards_each_block_is_read_once_ahead_of_its_turn(llama, monkeypatch):
    stream = load_streamed(llama).runner.stream
    stream.drop()
    read, files = [], stream._read
    monkeypatch.setattr(stream, "_read", lambda number: read.append(number) or files(number))
    stream.need(3)
    with stream.backwards():
        for number in (3, 2, 1, 0):
            stream.need(number)
            assert not any(p.is_meta for p in stream.blocks[number].parameters())
    assert read == [3, 2, 1, 0]
    stream.need(0)
    stream.need(1)
    assert read[4:] in ([1], [1, 2])
