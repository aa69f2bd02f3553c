"""Models whose weights wait on disk or in memory until they are needed: the same numbers, the same model."""

import numpy as np
import pytest
import tiny
import torch
from accelerate import cpu_offload

import lenscope as ls
from lenscope.engine.chunked_runs import MODES
from lenscope.engine.exact_modes import is_exact_mode
from lenscope.models.check import check
from lenscope.models.identity import ROUNDED, describe_weights, model_hash, parameters_hash
from lenscope.models.offloaded import OnDisk, computes_in_place, offloaded_weights
from lenscope.models.residual_stream import first_bad_parameter

FAMILIES = ("llama", "gpt2", "gpt_neox", "gemma2", "qwen3_moe")
PROMPTS = ["The cat sat on the mat", "is a test", "of"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Every family as a checkpoint."""
    root = tmp_path_factory.mktemp("checkpoints")
    for kind in FAMILIES:
        tiny.model(kind).save_pretrained(root / kind)
        tiny.tokenizer().save_pretrained(root / kind)
    return root


def every_second_block_on_disk(lm):
    """A device map with a place for every module, as `device_map="auto"` makes one."""
    blocks = lm.runner.anatomy.name
    trunk, _, name = blocks.rpartition(".")
    beside = {f"{trunk}.{n}" for n, _ in lm.model.get_submodule(trunk).named_children() if n != name}
    beside |= {n for n, _ in lm.model.named_children() if n != trunk}
    return dict.fromkeys(beside, "cpu") | {f"{blocks}.{n}": ("disk", "cpu")[n % 2] for n in range(lm.n_layers)}


@pytest.fixture(scope="module", params=["llama", "gpt2", "qwen3_moe"])
def pair(request, folders):
    """A family's model as a whole, and with every second block on disk."""
    whole = ls.load(folders / request.param)
    place = every_second_block_on_disk(whole)
    return whole, ls.load(folders / request.param, device_map=place, offload_folder=folders / "more")


def on_disk(folders, kind):
    return ls.load(folders / kind, device_map={"": "disk"}, offload_folder=folders / "all")


def test_the_same_states_and_the_same_model(pair):
    whole, parted = pair
    waiting = offloaded_weights(parted.model)
    assert waiting
    assert all(isinstance(part, OnDisk) for part in waiting.values())
    assert torch.equal(parted.read(PROMPTS).tensor, whole.read(PROMPTS).tensor)
    assert describe_weights(parted.model, list(ROUNDED)) == describe_weights(whole.model, list(ROUNDED))
    assert parameters_hash(parted.model) == parameters_hash(whole.model)
    # the head computes where it is, and its rows are walked in pieces
    assert parted.runner.readout.splits == whole.runner.readout.splits
    mine, its = (ls.Lens(lm).trajectory(PROMPTS[0]) for lm in (parted, whole))
    assert (mine.kl == its.kl).all()


def test_the_same_patches_and_words_in_every_way_of_running(pair):
    whole, parted = pair
    assert [is_exact_mode(parted, mode) for mode in MODES] == [is_exact_mode(whole, mode) for mode in MODES]
    states = whole.read(PROMPTS[0], positions=-1)
    target = ls.Target("one -> one, two -> two, x ->")
    grids = [ls.Patchscope(lm, target).generate(states, layers=[0, 2, 4], max_new_tokens=2) for lm in (parted, whole)]
    assert (grids[0].ids == grids[1].ids).all()
    edit = ls.Edit(2, -1, states[1, -1] * 2)
    with whole.edit(edit), parted.edit(edit):
        assert parted.generate(PROMPTS, 2) == whole.generate(PROMPTS, 2)
        assert torch.equal(parted.read(PROMPTS).tensor, whole.read(PROMPTS).tensor)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_models_all_on_disk_with_their_heads_tied_or_not(folders, kind):
    whole, parted = ls.load(folders / kind), on_disk(folders, kind)
    assert not parted.runner.readout.splits
    assert torch.equal(parted.unembed(whole.read(PROMPTS).tensor), whole.unembed(whole.read(PROMPTS).tensor))
    # a run parts tied weights
    assert model_hash(parted.model) == model_hash(whole.model)
    assert check(parted).holds
    rows = ["The cat sat on the mat.", "The capital of France is Paris."]
    a, b = (ls.evaluate(lm, rows, {"logit lens": None}) for lm in (whole, parted))
    for name, values in a.values.items():
        assert np.allclose(values, b.values[name], rtol=0, atol=1e-5), name


def test_a_lens_fitted_on_an_offloaded_model_is_the_one_fitted_on_the_whole(folders):
    from small_fits import SMALL, fitted, same

    whole = ls.load(folders / "gpt_neox")
    parted = ls.load(folders / "gpt_neox", device_map=every_second_block_on_disk(whole))
    lenses = [fitted(lm, recipe=SMALL, tokens=1000) for lm in (whole, parted)]
    assert same(*lenses)
    lenses[1].check(whole, whole)


def test_a_weight_that_is_not_a_number_is_found_where_it_waits(folders, tmp_path):
    model = tiny.model("llama")
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[3, 3] = torch.nan
    model.save_pretrained(tmp_path / "broken")
    tiny.tokenizer().save_pretrained(tmp_path / "broken")
    with pytest.raises(ls.LenscopeError, match=r"first in model\.layers\.2\.mlp\.down_proj\.weight"):
        ls.load(tmp_path / "broken", device_map={"": "disk"}, offload_folder=tmp_path / "off")
    hooked = cpu_offload(model, execution_device="cpu")
    assert first_bad_parameter(hooked) == "model.layers.2.mlp.down_proj.weight"


def test_a_file_that_changes_is_another_model(folders, tmp_path):
    model = tiny.model("llama")
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    lm = ls.load(tmp_path, device_map={"": "disk"})
    before = model_hash(lm.model)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.weight[3, 3] += 1
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path)
    assert model_hash(lm.model) not in (before, None)
    assert model_hash(lm.model) == model_hash(model)


def test_computing_in_place_is_told_from_bringing_in():
    model = cpu_offload(tiny.model("llama"), execution_device="cpu")
    assert not computes_in_place(model.lm_head)
    plain = tiny.model("llama")
    assert computes_in_place(plain.lm_head)
    plain.lm_head.forward = lambda x: x
    assert not computes_in_place(plain.lm_head)


def test_where_weights_go_is_said_together(folders):
    with pytest.raises(ls.LenscopeError, match=r"^max_memory: applies to a device_map, such as device_map='auto'$"):
        ls.load(folders / "llama", max_memory={"cpu": "1GB"})
    with pytest.raises(ls.LenscopeError, match=r"^offload_folder: applies"):
        ls.load(folders / "llama", offload_folder="there")
