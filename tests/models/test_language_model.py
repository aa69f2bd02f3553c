"""Reading, editing and generating: addresses, operations, rows, and what is undone afterwards."""

import pytest
import tiny
import torch

import lenscope as ls
from lenscope.models import exactness, generation
from lenscope.models.edits import add, add_norm_matched, replace_norm_matched
from lenscope.models.exactness import tolerance

PROMPT = "The capital of France is"


def test_states_are_addressed_by_layer_and_position(lm64):
    states = lm64.read(PROMPT)
    n, t = lm64.n_layers, len(lm64.prompt(PROMPT))
    assert states[0, 0].shape == (32,)
    assert states[:, -1].shape == (n + 1, 32)
    assert states[-1, :].shape == (t, 32)
    assert torch.equal(states[-1, :], states[n, :])
    assert torch.equal(states[[0, 2], "France"], states[:, "France"][[0, 2]])
    assert torch.equal(states[2, [0, -1]], states[2, :][[0, -1]])
    assert states[1:3, :2].shape == (2, 2, 32)
    embedded = lm64.model.get_input_embeddings()(torch.tensor([states.prompts[0].ids]))[0]
    assert torch.equal(states[0, :], embedded)


def test_layers_are_the_block_outputs_before_the_final_norm(lm64):
    states = lm64.read(PROMPT)
    ids = torch.tensor([states.prompts[0].ids])
    with torch.no_grad():
        hf = lm64.model(ids, output_hidden_states=True).hidden_states
    for layer in range(lm64.n_layers):
        assert torch.allclose(states[layer, :], hf[layer][0], atol=1e-12)
    # the library's last entry is after the norm
    assert torch.allclose(lm64.model.model.norm(states[lm64.n_layers, :]), hf[-1][0], atol=1e-12)


def test_a_subset_is_what_the_whole_has_there(lm64):
    whole = lm64.read(PROMPT)
    some = lm64.read(PROMPT, layers=[3, 1], positions=["France", -1])
    assert torch.equal(some[3, -1], whole[3, -1])
    assert torch.equal(some[1, "France"], whole[1, "France"])
    assert some.layers == (3, 1)
    with pytest.raises(ls.LenscopeError, match="layer 2: was not read; these states have layers 3, 1"):
        some[2, -1]
    with pytest.raises(ls.LenscopeError, match="position 0: was not read"):
        some[3, 0]


def test_the_forward_pass_stops_at_the_highest_layer_asked_for(lm64):
    ran = []
    handles = [b.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, b in enumerate(lm64.runner.anatomy.blocks)]
    lm64.read(PROMPT, layers=[0, 2])
    for handle in handles:
        handle.remove()
    assert ran == [0, 1]


def test_ragged_batches_keep_their_own_positions(lm64):
    prompts = [PROMPT, "A much longer prompt than the other one, with a comma.", "x"]
    states = lm64.read(prompts)
    last = states[:, -1]
    assert last.shape == (3, lm64.n_layers + 1, 32)
    for row, prompt in enumerate(prompts):
        assert torch.allclose(last[row], lm64.read(prompt)[:, -1], atol=1e-10)
    with pytest.raises(ls.LenscopeError, match=r"split\(\) reads each alone"):
        states[0, :]
    one = states.split()[1]
    assert not one.batched
    assert len(one[0, :]) == len(lm64.prompt(prompts[1]))


def test_layers_out_of_range(lm):
    with pytest.raises(
        ls.LenscopeError, match=r"layer 40: tiny-llama has layers 0–4 \(0 is the input of the first block, 4"
    ):
        lm.read(PROMPT, layers=40)
    with (
        pytest.raises(ls.LenscopeError, match="layer 5"),
        lm.edit(ls.Edit(5, 0, torch.zeros(32))),
    ):
        pass


@pytest.mark.parametrize("layer", range(5))
def test_an_edit_equals_the_same_change_made_by_a_plain_hook(lm64, layer):
    """The oracle: a hook written out by hand on the module itself."""
    v = torch.randn(32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def change(h):
        h = h.clone()
        h[:, 2] = v
        return h

    blocks = lm64.model.model.layers
    if layer == 0:
        handle = blocks[0].register_forward_pre_hook(lambda m, args: (change(args[0]), *args[1:]))
    else:
        handle = blocks[layer - 1].register_forward_hook(lambda m, args, out: change(out))
    ids = torch.tensor([lm64.prompt(PROMPT).ids])
    with torch.no_grad():
        truth = lm64.model(ids).logits[0]
    handle.remove()
    with lm64.edit(ls.Edit(layer, 2, v)):
        found = lm64.unembed(lm64.read(PROMPT)[lm64.n_layers, :])
    assert (found - truth).abs().max() < 1e-12


def test_operations(lm64):
    h = lm64.read(PROMPT)[2, 1]
    v = torch.randn(32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    unit = v / v.norm()
    expected = {
        add: h + v,
        add_norm_matched: h + h.norm() * unit,
        replace_norm_matched: h.norm() * unit,
        (lambda old, new: 2 * old - new): 2 * h - v,
    }
    for op, value in expected.items():
        with lm64.edit(ls.Edit(2, 1, v, op)):
            assert torch.allclose(lm64.read(PROMPT)[2, 1], value, atol=1e-12)


def test_several_positions_rows_and_nested_blocks(lm64):
    prompts = [PROMPT, "One two three"]
    plain = lm64.read(prompts)
    v = torch.randn(2, 2, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with lm64.edit(ls.Edit(1, [0, -1], v)):
        both = lm64.read(prompts)
    for row in range(2):
        assert torch.equal(both[1, 0][row], v[row, 0])
        assert torch.equal(both[1, -1][row], v[row, 1])
    with lm64.edit(ls.Edit(1, 0, v[0, 0], row=1)):
        one = lm64.read(prompts)
        with lm64.edit(ls.Edit(1, 0, v[0, 1], add, row=1)):
            two = lm64.read(prompts)
    assert torch.equal(one[1, 0][0], plain[1, 0][0])
    assert torch.equal(one[1, 0][1], v[0, 0])
    assert torch.allclose(two[1, 0][1], v[0, 0] + v[0, 1])
    assert torch.equal(lm64.read(prompts).tensor, plain.tensor)


def test_rows_stay_theirs_when_prompts_run_in_groups(lm64, monkeypatch):
    monkeypatch.setattr("lenscope.models.batches.TOKENS_PER_RUN", 8)
    prompts = ["a longer prompt here", "b", "c c c"]
    v = torch.ones(32, dtype=torch.float64)
    with lm64.edit(ls.Edit(1, 0, v, row=1)):
        states = lm64.read(prompts)
    assert [torch.equal(states[1, 0][row], v) for row in range(3)] == [False, True, False]


def hooks(lm):
    return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in lm.model.modules()]


def test_edits_are_undone_when_the_body_raises(lm64):
    before, hooked = lm64.read(PROMPT).tensor, hooks(lm64)

    def boom():
        with lm64.edit(ls.Edit(1, 0, torch.zeros(32, dtype=torch.float64))):
            lm64.read(PROMPT)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        boom()
    assert torch.equal(lm64.read(PROMPT).tensor, before)
    assert hooks(lm64) == hooked


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (ls.Edit(1, 0, torch.zeros(31)), "the vector has 31 numbers, a state of this model 32; map it first"),
        (ls.Edit(1, [0, 1], torch.zeros(3, 32)), "give \\(D,\\), \\(positions, D\\) or \\(prompts, positions, D\\)"),
        (ls.Edit(1, 0, torch.zeros(5, 1, 32)), "5 rows of vectors for 1 prompts"),
        (ls.Edit(1, 0, torch.zeros(32), row=3), "row 3: 1 prompts are running, rows 0–0"),
        (ls.Edit(1, 99, torch.zeros(32)), "position 99"),
        (ls.Edit(1, "Spain", torch.zeros(32)), "position 'Spain': not in the prompt"),
    ],
)
def test_edits_that_do_not_fit(lm, edit, message):
    with pytest.raises(ls.LenscopeError, match=message), lm.edit(edit):
        lm.read(PROMPT)


def test_a_bare_call_inside_an_edit_is_refused(lm):
    with (
        pytest.raises(ls.LenscopeError, match="a bare call has no positions"),
        lm.edit(ls.Edit(1, 0, torch.zeros(32))),
    ):
        lm.model(torch.tensor([[5, 6]]))


def test_training_mode_is_refused(lm):
    lm.model.train()
    try:
        with pytest.raises(ls.LenscopeError, match=r"call model\.eval\(\)"):
            lm.read(PROMPT)
    finally:
        lm.model.eval()


def test_generation_is_greedy_whatever_the_checkpoint_asks_for(lm64):
    expected = lm64.generate(PROMPT, 12).ids
    kept = lm64.model.generation_config
    from transformers import GenerationConfig

    sampling = GenerationConfig(
        do_sample=True, temperature=5.0, top_k=3, repetition_penalty=3.0, no_repeat_ngram_size=1, min_new_tokens=2
    )
    lm64.model.generation_config = sampling
    try:
        assert lm64.generate(PROMPT, 12).ids == expected
        assert lm64.model.generation_config is sampling
    finally:
        lm64.model.generation_config = kept


def test_generation_stops_at_the_end_token_and_at_the_context(lm64):
    ids = lm64.generate(PROMPT, 8).ids
    lm64.model.generation_config.eos_token_id, kept = ids[3], lm64.model.generation_config.eos_token_id
    try:
        stopped = lm64.generate([PROMPT, PROMPT], 8)
    finally:
        lm64.model.generation_config.eos_token_id = kept
    first = ids.index(ids[3]) + 1
    assert all(c.ids == ids[:first] for c in stopped)
    with pytest.raises(ls.LenscopeError, match="reads at most 64"):
        lm64.generate(PROMPT, 60)
    with pytest.raises(ls.LenscopeError, match="max_new_tokens 0"):
        lm64.generate(PROMPT, 0)


def test_a_one_token_prompt_can_be_patched_while_generating(lm64):
    """A guard that skips passes of one token (decode steps) must not skip a prompt of one token."""
    other = lm64.read([40])[2, -1]
    plain = lm64.read([20])
    with lm64.edit(ls.Edit(2, 0, other)):
        first = lm64.generate([20], 3).ids
        logits = lm64.unembed(lm64.read([20])[lm64.n_layers, -1])
    assert first[0] == int(logits.argmax())
    assert not torch.allclose(logits, lm64.unembed(plain[lm64.n_layers, -1]))


def test_the_first_generation_may_happen_inside_an_edit():
    """The measurement of cache and padding runs then: the edit must not reach it."""
    fresh = ls.LM(tiny.model("llama", dtype=torch.float64), tiny.tokenizer(), "fresh")
    with fresh.edit(ls.Edit(2, "France", torch.ones(32, dtype=torch.float64))):
        inside = fresh.generate([PROMPT, "To France we go"], 4)
    assert generation.check_generation(fresh.runner).cached < 1e-9
    with fresh.edit(ls.Edit(2, "France", torch.ones(32, dtype=torch.float64))):
        assert [c.ids for c in fresh.generate([PROMPT, "To France we go"], 4)] == [c.ids for c in inside]


def test_where_the_cache_is_wrong_generation_recomputes(lm64, monkeypatch):
    from lenscope.models.generation import GenerationCheck

    expected = [c.ids for c in lm64.generate([PROMPT, "x"], 5)]
    monkeypatch.setitem(lm64.runner.measured.values, ("generation",), GenerationCheck(1.0, 1.0))
    assert [c.ids for c in lm64.generate([PROMPT, "x"], 5)] == expected


def test_check_reports_what_holds(lm):
    report = ls.check(lm)
    assert report.holds
    names = [f.name for f in report.findings]
    assert "readout" in names
    assert report.to_json()["holds"] is True


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_rounding_is_not_taken_for_a_wrong_cache_or_padding(dtype):
    """What is wrong in float32 is still seen; what is only rounded runs together and from the cache."""
    for architecture, right in (("llama", True), ("gpt2", True), ("roberta", False)):
        lm = ls.LM(tiny.model(architecture, dtype=dtype), None, architecture)
        lm.generate([[20, 30, 40], [50, 60]], 2)
        assert (generation.check_generation(lm.runner).cached <= tolerance(lm.runner)) == right
        assert (generation.check_generation(lm.runner).padded <= tolerance(lm.runner)) == right
        assert exactness.right_padding_deviation(lm.runner) <= tolerance(lm.runner)
