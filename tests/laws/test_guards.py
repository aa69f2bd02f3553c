"""Small changes of the code that no other test would see: each test here kills one, which its docstring names."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from affine_lens import affine

import lenscope as ls
from lenscope.engine import exact_modes, sweep
from lenscope.engine import shared_attention as cascade
from lenscope.engine.patched_rows import PatchedRows
from lenscope.files import weights_folder as artifacts
from lenscope.measures import definitions as measures
from lenscope.measures import streamed as reduction
from lenscope.models import batches
from lenscope.models.batches import Running, pad
from lenscope.models.edits import add, add_norm_matched, replace, replace_norm_matched
from lenscope.models.exactness import tolerance
from lenscope.models.generation import GenerationCheck
from lenscope.models.readout import Traced, find_readout, verify
from lenscope.models.residual_stream import observe

PROMPT = "The capital of France is"


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# -- edits


@pytest.mark.parametrize("layer", [0, 2, 4])
@pytest.mark.parametrize("cached", [True, False])
def test_a_one_token_prompt_is_edited_at_its_own_pass_alone(lm64, layer, cached, monkeypatch):
    """A pass over one new token is as long as the prompt, and is not the prompt: `length >= 1` would edit it too."""
    v = torch.randn(32, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    if not cached:
        monkeypatch.setitem(lm64.runner.measured.values, ("generation",), GenerationCheck(1.0, 1.0))
    with lm64.edit(ls.Edit(layer, 0, v, add)):
        written = lm64.generate([20], 6).ids
        twice = [c.ids for c in lm64.generate([[20], [20], [21]], 6)]

    def change(h):
        h = h.clone()
        h[:, 0] += v
        return h

    blocks, expected = lm64.model.model.layers, []
    if layer == 0:
        handle = blocks[0].register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:]))
    else:
        handle = blocks[layer - 1].register_forward_hook(lambda _m, _a, out: change(out))
    with torch.no_grad():
        while len(expected) < 6:
            expected.append(int(lm64.model(torch.tensor([[20, *expected]])).logits[0, -1].argmax()))
    handle.remove()
    assert list(written) == expected
    assert twice[0] == twice[1] == written
    assert twice[2] != written


def test_several_edits_of_one_block_are_made_each_in_its_turn(lm64):
    """Not one of them several times, and not in another order."""
    draw = torch.Generator().manual_seed(6)
    u, v, w = torch.randn(3, 32, generator=draw, dtype=torch.float64)
    plain = lm64.read(PROMPT)
    with lm64.edit(ls.Edit(1, 0, u), ls.Edit(1, 0, v, add), ls.Edit(3, -1, w)):
        found = lm64.read(PROMPT)
    assert torch.equal(found[1, 0], u + v)
    assert torch.equal(found[3, -1], w)
    assert torch.equal(found[1, -1], plain[1, -1])
    with lm64.edit(ls.Edit(1, 0, v, add), ls.Edit(1, 0, u)):
        assert torch.equal(lm64.read(PROMPT)[1, 0], u)


def test_an_edit_leaves_the_state_that_it_was_given(lm64):
    """Whoever else holds it, such as a cache or a residual branch, must not see the edit."""
    prompt = lm64.prompt(PROMPT)
    running = Running([prompt], [0], 1, pad([prompt], "right", lm64.device))
    h = torch.randn(1, len(prompt), 32, dtype=torch.float64)
    before = h.clone()
    edited = ls.Edit(1, 0, torch.ones(32, dtype=torch.float64)).apply(h, running)
    assert torch.equal(h, before)
    assert not torch.equal(edited, before)


@pytest.mark.parametrize("mode", ["cascade", "fork", "plain"])
def test_patches_of_one_place_are_made_in_the_order_given(lm64, mode):
    """Replaced, then added to; added to, then replaced: another order gives another state."""
    u, v = torch.randn(2, 32, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    prompt = lm64.prompt(PROMPT)
    at = len(prompt) - 2
    made = PatchedRows(
        (prompt,),
        np.zeros(2, dtype=np.int64),
        torch.stack([u, v]),
        np.array([0, 0, 1, 1]),
        np.array([2, 2, 2, 2]),
        np.array([at] * 4),
        np.array([0, 1, 1, 0]),
        np.array([0, 1, 1, 0]),
        (replace, add),
    )
    found = {
        row: h for some, states in sweep.predict(lm64, made, mode=mode) for row, h in zip(some, states, strict=True)
    }
    for row, edits in enumerate(
        ((ls.Edit(2, at, u), ls.Edit(2, at, v, add)), (ls.Edit(2, at, v, add), ls.Edit(2, at, u)))
    ):
        with lm64.edit(*edits):
            assert torch.allclose(found[row][-1], lm64.read(prompt)[-1, -1], atol=1e-10)


def test_a_row_is_one_of_those_that_run(lm64):
    v = torch.zeros(32, dtype=torch.float64)
    for row in (-1, 2):
        with (
            pytest.raises(ls.LenscopeError, match=f"row {row}: 2 prompts are running"),
            lm64.edit(ls.Edit(1, 0, v, row=row)),
        ):
            lm64.read(["a", "b"])


@pytest.mark.parametrize("size", [1e-12, 1e-3, 1.0, 1e6])
def test_a_norm_matched_vector_counts_by_its_direction_alone(size):
    h = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    v = torch.tensor([[0.0, size]], dtype=torch.float64)
    torch.testing.assert_close(add_norm_matched(h, v), torch.tensor([[3.0, 9.0]], dtype=torch.float64))
    torch.testing.assert_close(replace_norm_matched(h, v), torch.tensor([[0.0, 5.0]], dtype=torch.float64))


# -- reading and generating


def test_logits_are_float32_or_wider():
    half = ls.LM(tiny.model("llama", torch.bfloat16), None, "half")
    assert half.unembed(half.read([20, 21])[-1, :]).dtype == torch.float32
    assert ls.Lens(half).logits(half.read([20, 21])[1, :], 1).dtype == torch.float32


def test_runs_hold_no_more_tokens_than_they_may(lm64, monkeypatch):
    """Padding counts, and the prompt that would be too much is the next run's first."""
    monkeypatch.setattr(batches, "TOKENS_PER_RUN", 12)
    prompts = [lm64.prompt([20] * n) for n in (4, 4, 4, 4, 1, 13)]
    groups = list(batches.length_groups(prompts, lambda short, long: True))
    assert sorted(i for group in groups for i in group) == list(range(6))
    assert all(len(g) == 1 or len(g) * max(len(prompts[i]) for i in g) <= 12 for g in groups)
    assert len(groups) == 3


def test_the_context_may_be_filled_to_its_last_token(lm64):
    ids = [20] * (lm64.context - 3)
    assert len(lm64.generate(ids, 3).ids) <= 3
    with pytest.raises(ls.LenscopeError, match="reads at most"):
        lm64.generate(ids, 4)
    assert len(lm64.read([20] * lm64.context).prompts[0]) == lm64.context


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_states_that_are_not_finite_are_refused_whichever_way(value):
    built = tiny.model("llama")
    lm = ls.LM(built, None, "tiny")

    def spoil(_module, _args, out):
        out = out.clone()
        out[..., 1, 2] = value
        return out

    handle = built.model.layers[1].register_forward_hook(spoil)
    with pytest.raises(ls.LenscopeError, match="layer 2: tiny has states that are NaN or infinite"):
        lm.read([20, 21, 22])
    handle.remove()
    lm.read([20, 21, 22])


@pytest.mark.parametrize("part", ["transformer.h.1", "transformer.h.2.mlp.dropout", "transformer.drop"])
def test_a_part_in_training_mode_is_refused(part):
    """Its dropout draws at random, whatever mode the model as a whole is in."""
    built = tiny.model("gpt2")
    lm = ls.LM(built, None, "tiny")
    expected = lm.read([20, 21]).tensor
    built.get_submodule(part).train()
    for call in (lambda: lm.read([20, 21]), lambda: lm.generate([20, 21], 2), lambda: ls.Lens(lm).trajectory([20, 21])):
        with pytest.raises(ls.LenscopeError, match=r"training mode.*call model\.eval\(\)"):
            call()
    built.eval()
    assert torch.equal(lm.read([20, 21]).tensor, expected)


def test_a_model_whose_head_or_forward_is_wrapped_is_refused_or_read_as_it_is():
    """A head without a weight of its own; a forward that does more than its modules."""

    def wrapped_head(built):
        built.lm_head = torch.nn.Sequential(built.lm_head, torch.nn.Tanh())

    def wrapped_forward(built):
        forward = built.forward

        def twice(*args, **kwargs):
            out = forward(*args, **kwargs)
            out.logits = 2 * out.logits
            return out

        built.forward = twice

    for change in (wrapped_head, wrapped_forward):
        built = tiny.model("llama")
        lm = ls.LM(built, None, "tiny")
        change(built)
        with torch.no_grad():
            own = built(torch.tensor([[20, 21]])).logits[0, -1]
        refused, found = "", None
        try:
            found = lm.unembed(lm.read([20, 21])[-1, -1])
        except ls.LenscopeError as error:
            refused = str(error)
        assert "since it was loaded" in refused or torch.allclose(found, own, atol=1e-5)


# -- folders


def saved(folder: Path, lm: ls.LM, seed: int = 0) -> dict:
    affine(lm, seed).save(folder)
    return json.loads((folder / "config.json").read_text())


def leaving(config: dict) -> list[str]:
    """Names of weights that lie elsewhere."""
    name = config["weights"]
    return [f"../a/{name}", f"mapping-x/../../a/{name}", f"mapping-x/{name}", "/etc/mapping.safetensors", "..", ""]


def test_weights_outside_of_a_folder_are_not_read(lm, tmp_path):
    """Their name is that of a file in the folder: a path that begins like one may lead out of it."""
    first = saved(tmp_path / "a", lm)
    inner = tmp_path / "b" / "mapping-x"
    inner.mkdir(parents=True)
    (inner / first["weights"]).write_bytes((tmp_path / "a" / first["weights"]).read_bytes())
    for name in leaving(first):
        (tmp_path / "b" / "config.json").write_text(json.dumps({**first, "weights": name}))
        with pytest.raises(ls.LenscopeError):
            ls.load_mapping(tmp_path / "b")


def test_weights_outside_of_a_folder_are_not_removed(lm, tmp_path):
    """What a new artifact replaces is looked up in the old config, which anybody may have written."""
    first = saved(tmp_path / "a", lm)
    (tmp_path / "b" / "mapping-x").mkdir(parents=True)
    before = files(tmp_path / "a")
    for name in leaving(first):
        (tmp_path / "b" / "config.json").write_text(json.dumps({**first, "weights": name}))
        try:
            saved(tmp_path / "b", lm, seed=1)
        except ls.LenscopeError:
            continue
        assert ls.load_mapping(tmp_path / "b").weights.keys() == affine(lm).weights.keys()
    assert files(tmp_path / "a") == before


def disk_full(monkeypatch, *names: str) -> None:
    """No file of these names, or none at all, can get its name."""
    replace = os.replace

    def full(source, target, **kwargs):
        if not names or Path(target).name in names:
            raise OSError(28, "No space left on device")
        replace(source, target, **kwargs)

    monkeypatch.setattr(os, "replace", full)


def test_equal_weights_stay_when_the_config_cannot_be_written(lm, tmp_path, monkeypatch):
    """Their name is that of the old ones: removing what was just written would remove the old artifact's."""
    saved(tmp_path / "a", lm)
    before = files(tmp_path / "a")
    with monkeypatch.context() as patch:
        disk_full(patch, "config.json")
        with pytest.raises(ls.LenscopeError, match="No space left"):
            saved(tmp_path / "a", lm)
    assert files(tmp_path / "a") == before
    ls.load_mapping(tmp_path / "a")
    # and other weights, whose config was not written, are gone
    with monkeypatch.context() as patch:
        disk_full(patch, "config.json")
        with pytest.raises(ls.LenscopeError, match="No space left"):
            saved(tmp_path / "a", lm, seed=1)
    assert files(tmp_path / "a") == before


def test_nothing_is_left_of_what_could_not_be_written(lm, tmp_path, monkeypatch):
    """Temporary files go whatever happened."""
    lens = ls.Lens(lm)
    grid = ls.Patchscope(lm, "a x").predict(lm.read(PROMPT, positions=-1), [1])
    writers = [
        lambda: affine(lm).save(tmp_path / "m"),
        lambda: lens.trajectory(PROMPT).save(tmp_path / "t.json"),
        lambda: lens.trajectory(PROMPT).save(tmp_path / "t.parquet"),
        lambda: lens.trajectory(PROMPT).to_html(tmp_path / "t.html"),
        lambda: grid.save(tmp_path / "g.parquet"),
        lambda: artifacts.write_folder(tmp_path / "m", "x", {}, {"w": torch.zeros(3)}),
    ]
    for write in writers:
        with monkeypatch.context() as patch:
            disk_full(patch)
            with pytest.raises(ls.LenscopeError, match="No space left"):
                write()
        assert files(tmp_path) == {}
    for write in writers:
        write()
    assert all(not Path(name).name.startswith(".") for name in files(tmp_path))


# -- measures


def test_what_cannot_be_negative_is_not_by_rounding():
    """KL and entropy are differences of sums: without their clamp some come out below zero."""
    draw = torch.Generator().manual_seed(0)
    lm = ls.LM(tiny.model("llama"), None, "tiny")
    final = torch.randn(200, 32, generator=draw)
    h = torch.stack([final + scale * torch.randn(200, 32, generator=draw) for scale in (1e-7, 1e-6, 1e-5)])
    found = reduction.reduce(lm.runner.readout, lm.vocab_size, h, final, None, 1, False)
    apart = reduction.diverge((lm.runner.readout, lm.runner.readout), lm.vocab_size, (h, final.expand_as(h).clone()))
    certain = reduction.reduce(lm.runner.readout, lm.vocab_size, 50 * h, 50 * final, None, 1, False)
    for name in ("kl", "entropy"):
        assert (getattr(found, name) >= 0).all()
        assert (getattr(certain, name) >= 0).all()
    for name in ("js", "total_variation", "kl", "kl_back"):
        assert (getattr(apart, name) >= 0).all()
    # the sums themselves do fall below: the test would see it
    log_p, log_q = (lm.unembed(x).log_softmax(-1) for x in (final, h[0]))
    assert float(measures.kl(log_p, log_q).min()) < 0


class Barred:
    """A readout that rules out its last tokens, as some models rule out padding."""

    description, splits = "barred", False

    def prepare(self, h):
        z = h.clone()
        z[:, 4:] = -torch.inf
        return z

    def columns(self, x, start, stop):
        return x[:, start:stop].clone()

    def tokens(self, x, ids):
        return x.gather(1, ids[:, None])[:, 0]


def test_tokens_that_neither_side_predicts_do_not_make_distances_nan():
    """0 · (ln 0 - ln 0) is 0: where both are ruled out, so is their mean."""
    a, b = torch.randn(2, 2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = reduction.diverge((Barred(), Barred()), 6, (a, b))
    log_p, log_q = (x[..., :4].log_softmax(-1) for x in (a, b))
    torch.testing.assert_close(found.js, measures.js(log_p, log_q))
    torch.testing.assert_close(found.kl, measures.kl(log_p, log_q))
    torch.testing.assert_close(found.total_variation, measures.total_variation(log_p, log_q))


@pytest.mark.parametrize("most", range(1, 11))
def test_every_position_is_reduced_whatever_the_pieces(lm, monkeypatch, most):
    """Also the last one, when it is a piece of its own."""
    h = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    whole = reduction.reduce(lm.runner.readout, lm.vocab_size, h, h[-1], None, 1, True)
    monkeypatch.setattr(reduction, "STATES", most * 2 * 32 * 4)
    found = reduction.reduce(lm.runner.readout, lm.vocab_size, h, h[-1], None, 1, True)
    assert found.entropy.shape == (2, 9)
    torch.testing.assert_close(found.entropy, whole.entropy)


def test_precision_at_k_ends_at_k():
    """The token of rank k is not among the k most probable."""
    log_p = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    for k in range(1, 5):
        found = [measures.precision(log_p, torch.tensor(i), k).item() for i in range(4)]
        assert found == [1.0] * k + [0.0] * (4 - k)


# -- the readout


def test_a_cap_that_is_too_far_off_for_the_model_s_own_states_is_seen_on_others():
    """On what the model says of the probe the missing cap is within the tolerance; on louder states it is not."""
    model = tiny.model("gemma2")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.0005)
    model.config.final_logit_softcapping = 1.0
    anatomy = observe(model)
    uncapped = Traced(anatomy.tail)
    assert verify(uncapped, anatomy).deviation < 1e-4
    with pytest.raises(ls.LenscopeError, match="cannot be verified"):
        find_readout(anatomy, [lambda _: uncapped])


def test_a_hook_of_the_head_counts(lm):
    """A head that is more than its weights is not taken apart by them."""
    h = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    plain = lm.unembed(h)
    handle = lm.model.lm_head.register_forward_hook(lambda _m, _a, z: 2 * z)
    try:
        torch.testing.assert_close(lm.unembed(h), 2 * plain)
        entropy = ls.Lens(lm).trajectory([20, 21]).entropy
    finally:
        handle.remove()
    log_p = (2 * lm.unembed(lm.read([20, 21])[:, :])).log_softmax(-1)
    np.testing.assert_allclose(entropy, measures.entropy(log_p), atol=1e-5)
    torch.testing.assert_close(lm.unembed(h), plain)


# -- attention over a shared prefix


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("floats", [False, True])
def test_masks_count_for_one_query_as_for_several(queries, floats):
    """One query sees all keys of a causal mask, and not all of any other one."""
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 2, 2, queries, 6, generator=draw)
    seen = torch.rand(1, 1, queries, 6, generator=draw) > 0.4
    seen[..., 1] = True
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min) if floats else seen
    allowed = torch.ones(2, queries, 6, dtype=torch.bool)
    allowed[1, :, 1] = False
    got = scores.clone()
    cascade._bar(got, mask, allowed)
    barred = ~seen[:, :, None].expand(2, 2, 2, -1, -1) | ~allowed[:, None, None]
    assert torch.equal(got[~barred], scores[~barred])
    assert (got[barred] < -1e30).all()


@pytest.mark.parametrize("queries", [1, 2, 5])
def test_without_a_mask_every_query_sees_itself_and_what_is_before_it(queries):
    scores = torch.zeros(1, 1, 1, queries, 6)
    cascade._bar(scores, None, None)
    for q in range(queries):
        assert (scores[0, 0, 0, q] > -1e30).tolist() == [key <= 6 - queries + q for key in range(6)]


@pytest.mark.parametrize("mode", ["cascade", "fork"])
def test_states_before_the_first_patch_are_there_when_they_are_asked_for(lm64, mode):
    """The last three positions of a row that is patched at the last of them."""
    prompt = lm64.prompt(PROMPT)
    made = PatchedRows(
        (prompt,),
        np.zeros(1, dtype=np.int64),
        torch.ones(1, 32, dtype=torch.float64),
        *(np.array([n]) for n in (0, 2, len(prompt) - 1, 0, 0)),
        (replace,),
    )
    ((_, found),) = sweep.predict(lm64, made, last=3, mode=mode)
    with lm64.edit(ls.Edit(2, -1, torch.ones(32, dtype=torch.float64))):
        expected = lm64.read(prompt)[-1, -3:]
    assert found.shape == (1, 3, 32)
    assert torch.allclose(found[0], expected, atol=1e-10)


@pytest.mark.parametrize("architecture", ["mistral", "gemma2", "gpt_neo"])
def test_a_window_shorter_than_the_prompt_is_heeded_for_one_token(architecture):
    """The last token alone is run over the shared prefix; what its window hides must stay hidden."""
    config = {"sliding_window": 4} if architecture != "gpt_neo" else {"window_size": 4}
    built = tiny.model(architecture, dtype=torch.float64)
    windowed = type(built)(type(built.config).from_dict({**built.config.to_dict(), **config})).double().eval()
    windowed.load_state_dict(built.state_dict())
    lm = ls.LM(windowed, None, architecture)
    ids = tiny.ids(windowed, 1, 20)[0].tolist()
    vectors = lm.read(ids)[[1, 2], -1]
    made = PatchedRows(
        (lm.prompt(ids),),
        np.zeros(2, dtype=np.int64),
        vectors,
        *(np.array(a) for a in ([0, 1], [1, 3], [19, 19], [0, 1], [0, 0])),
        (lambda h, v: v,),
    )
    plain = torch.cat([h for _, h in sweep.predict(lm, made, mode="plain")])
    for mode in ("cascade", "fork"):
        if exact_modes.mode_deviation(lm, mode) > tolerance(lm.runner):
            continue
        order, found = zip(*sweep.predict(lm, made, mode=mode), strict=True)
        assert torch.allclose(torch.cat(found)[np.argsort(np.concatenate(order))], plain, atol=1e-9), mode
    whole = ls.LM(built, None, "whole")
    assert not torch.allclose(whole.read(ids)[-1, -1], lm.read(ids)[-1, -1], atol=1e-3)
