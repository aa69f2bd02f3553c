"""The laws on tiny random models of every causal-LM architecture that transformers can build small, offline.

tiny.py has the models and says which architectures are left out and why. REFUSED are those that lenscope itself
turns away, each with the reason it must give. Tolerances are relative to the standard deviation of what is compared.
"""

import numpy as np
import pytest
import tiny
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import lenscope as ls
from lenscope.engine import exact_modes, sweep
from lenscope.engine.patched_rows import PatchedRows
from lenscope.engine.token_choice_and_end import TokenChooser
from lenscope.interventions import steer
from lenscope.lenses import attribute_logit
from lenscope.measures import definitions as measures
from lenscope.models import edits
from lenscope.models.deviations import deviation
from lenscope.models.exactness import tolerance
from lenscope.models.sublayer_states import read_points
from lenscope.models.sublayers import find_sublayers

EXACT = 1e-4
REFUSED = {
    "blt": "the readout cannot be verified",
    "cpmant": "its positions are not the prompt's",
    "hrm_text": "looped models are not supported",
    "inkling2_text": "the readout cannot be verified",
    "mllama": "do not run on plain text",
    "prophetnet": "its positions are not the prompt's",
    "reformer": "readout does not run alone",
    "xlm": "the readout cannot be verified",
    "xlnet": "not a causal language model",
}
ARCHITECTURES = tiny.architectures()


@pytest.fixture(scope="module", params=[a for a in ARCHITECTURES if a not in REFUSED])
def lm(request):
    return ls.LM(tiny.model(request.param), None, request.param)


def prompts(lm, *lengths):
    return [tiny.ids(lm.model, 1, n, seed=n)[0].tolist() for n in lengths]


def test_every_architecture_is_tested_or_left_out_for_a_reason():
    assert set(ARCHITECTURES) | set(tiny.SKIP) == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert not set(ARCHITECTURES) & set(tiny.SKIP)
    assert all(reason.strip() for reason in tiny.SKIP.values())
    assert len(ARCHITECTURES) - len(REFUSED) >= 110


@pytest.mark.parametrize("architecture", REFUSED)
def test_what_cannot_be_read_is_refused_with_its_reason(architecture):
    with pytest.raises(ls.LenscopeError, match=REFUSED[architecture]):
        ls.LM(tiny.model(architecture), None, architecture)


def test_readout_gives_the_models_own_logits(lm):
    """Law 1, on other tokens than those the readout was verified with, and on states no forward pass produced."""
    assert lm.runner.verified.deviation <= EXACT
    assert lm.runner.verified.elsewhere is None or lm.runner.verified.elsewhere <= EXACT
    ids = tiny.ids(lm.model, 2, 9, seed=5)
    with torch.no_grad():
        truth = lm.model(input_ids=ids, use_cache=False).logits
    states = lm.read(ids.tolist())
    assert deviation(lm.unembed(states[lm.n_layers, :]), truth) <= EXACT
    assert truth.std() > 0.5, "logits too small to show a missing scale or cap"


def test_a_state_patched_into_its_own_place_changes_nothing(lm):
    """Law 2, and that a foreign state there does change what follows and nothing before."""
    before = {name: p.clone() for name, p in lm.model.state_dict().items()}
    (ids,) = prompts(lm, 8)
    states = lm.read(ids)
    for layer in (0, lm.n_layers // 2, lm.n_layers):
        with lm.edit(ls.Edit(layer, 4, states[layer, 4])):
            assert deviation(lm.read(ids).tensor, states.tensor) <= EXACT
        with lm.edit(ls.Edit(layer, 4, states[layer, 4].flip(-1))):
            moved = lm.read(ids)
        assert deviation(moved[:, :4], states[:, :4]) <= EXACT
        assert deviation(moved[layer, 4], states[layer, 4].flip(-1)) <= EXACT
        assert deviation(moved[lm.n_layers, 4], states[lm.n_layers, 4]) > 1e-2
    after = lm.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


def test_a_batch_gives_what_each_row_gives_alone(lm):
    """Law 4: reading ragged prompts, padded or in groups."""
    many = prompts(lm, 7, 4, 6)
    together = lm.read(many).split()
    for ids, states in zip(many, together, strict=True):
        assert deviation(states.tensor, lm.read(ids).tensor) <= EXACT


def test_generation_with_cache_equals_recomputation_and_rows_equal_singles(lm):
    """Law 4: greedy tokens from the cache, in a ragged batch, with and without a patch."""
    many = prompts(lm, 7, 4)
    patch = ls.Edit(lm.n_layers // 2, 1, lm.read(many[0])[lm.n_layers // 2, 5])
    for patches in ((), (patch,)):
        with lm.edit(*patches):
            written = [list(c.ids) for c in lm.generate(many, 5)]
            for ids, row in zip(many, written, strict=True):
                assert list(lm.generate(ids, 5).ids) == row
                # the model is causal: one run without a cache has the states after which each token was chosen
                states = lm.read(ids + row[:-1], lm.n_layers, slice(len(ids) - 1, None))[lm.n_layers, :]
                for token, logits in zip(row, lm.unembed(states), strict=True):
                    # a tie within rounding may fall either way
                    assert logits.max() - logits[token] <= EXACT * logits.std()


def test_lens_measures_equal_their_definitions(lm):
    (ids,) = prompts(lm, 6)
    t = ls.Lens(lm).trajectory(ids, top_k=3)
    log_q = lm.unembed(lm.read(ids)[:, :]).double().log_softmax(-1)
    log_p = log_q[-1:].expand_as(log_q)
    following = torch.tensor(ids[1:]).expand(lm.n_layers + 1, -1)
    expected = {
        "entropy": measures.entropy(log_q),
        "kl": measures.kl(log_p, log_q),
        "max_probability": measures.max_probability(log_q),
        "cross_entropy": measures.surprisal(log_q[:, :-1], following),
    }
    for name, values in expected.items():
        found = torch.from_numpy(t.measure(name)).double()[:, : values.shape[1]]
        assert torch.allclose(found, values, rtol=1e-4, atol=1e-4), name
    top = log_q.topk(3).values
    assert torch.allclose(torch.from_numpy(t.top_log_probs).double(), top, rtol=1e-4, atol=1e-4)


def test_the_trajectory_of_a_text_that_is_written_is_that_of_the_text(lm):
    """Token by token, from a cache only where that gives this model's own states; the tokens are `generate`'s."""
    (ids,) = prompts(lm, 7)
    lens = ls.Lens(lm)
    generation = lens.generate(ids, 4, top_k=1)
    written = [token.id for token in generation]
    assert written == list(lm.generate(ids, 4).ids)
    whole, expected = generation.trajectory(), lens.trajectory([*ids, *written], top_k=1)
    assert (whole.ids, whole.positions) == (expected.ids, expected.positions)
    for name in ("entropy", "kl", "max_probability", "cross_entropy"):
        assert np.allclose(whole.measure(name), expected.measure(name), rtol=1e-3, atol=1e-3, equal_nan=True), name


def test_steered_text_is_that_of_runs_whose_every_state_is_changed(lm):
    """Beside the plain one, both token by token, those that are written changed too."""
    (ids,) = prompts(lm, 7)
    layer, states = lm.n_layers // 2, lm.read(ids)
    vector = states[layer, 2] - states[layer, 5]
    texts = steer(lm, ids, vector, layer, max_new_tokens=4)
    list(texts)
    for written, strength in zip(texts.ids, (0.0, 1.0), strict=True):
        with lm.edit(ls.Edit(layer, slice(None), vector * strength, edits.add)):
            states = lm.read(ids + written[:-1], lm.n_layers, slice(len(ids) - 1, None))[lm.n_layers, :]
        for token, logits in zip(written, lm.unembed(states), strict=True):
            # a tie within rounding may fall either way
            assert logits.max() - logits[token] <= EXACT * logits.std()


# Architectures whose prefix is not held once for all rows, but whose cache can be copied for each ...
FORKED = {
    "big_bird",
    "bloom",
    "codegen",
    "doge",
    "dots3_note",
    "dots3_note_text",
    "falcon",
    "git",
    "gpt_neo",
    "gpt_neox_japanese",
    "gptj",
    "inkling_text",
    "megatron-bert",
    "minimax",
    "mpt",
    "mvp",
    "rembert",
    "roformer",
    "rwkv",
    "trocr",
    "xglm",
    "xlstm",
}
# ... those that go on from recurrent states one token at a time only ...
STEPPED = {"falcon_mamba", "jamba", "mamba", "recurrent_gemma", "zamba"}
# ... and those that run by plain hooks: no cache.
PLAIN = {"openai-gpt"}


def expected_mode(name):
    modes = {"fork": FORKED, "steps": STEPPED, "plain": PLAIN}
    return next((mode for mode, names in modes.items() if name in names), "cascade")


def test_a_sweep_gives_what_plain_hooks_give(lm):
    """Laws 3 and 4: several targets, ragged, several placeholders, mixed operations, written tokens; every cell."""
    assert exact_modes.fastest_exact_mode(lm) == expected_mode(lm.name)
    made = mixed_rows(lm, [lm.prompt(p) for p in prompts(lm, 7, 5)])
    found = {}
    for mode in (None, "plain"):
        h = torch.zeros(len(made), 2, lm.hidden_size)
        for some, states in sweep.predict(lm, made, last=2, mode=mode):
            h[some] = states.cpu()
        found[mode] = lm.unembed(h)
    assert deviation(found[None], found["plain"]) <= EXACT
    text = {}
    for mode in (None, "plain"):
        writer = TokenChooser(lm, len(made), 3, (), 0.0, 1.0, 0)
        text[mode] = {}
        for some, wrote in sweep.generate(lm, made, writer.choose, 3, mode=mode):
            text[mode].update(zip(some.tolist(), wrote, strict=True))
    for n in range(len(made)):
        assert text[None][n].ids == text["plain"][n].ids
        assert text[None][n].log_probs == pytest.approx(text["plain"][n].log_probs, abs=1e-3)


@pytest.mark.parametrize(
    "architecture",
    ["llama", "gpt2", "gpt_neox", "gemma2", "qwen3", "phi", "cohere", "opt", "olmo", "mistral", "bloom", "falcon"],
)
def test_in_float64_a_sweep_is_what_plain_hooks_give_to_the_last_digits(architecture):
    lm = ls.LM(tiny.model(architecture, torch.float64), None, architecture)
    assert exact_modes.fastest_exact_mode(lm) != "plain"
    made = mixed_rows(lm, [lm.prompt(p) for p in prompts(lm, 7, 5, 7)])
    found = {}
    for mode in (None, "plain"):
        found[mode] = torch.zeros(len(made), 2, lm.hidden_size, dtype=torch.float64)
        for some, states in sweep.predict(lm, made, last=2, mode=mode):
            found[mode][some] = states
    gap = float((found[None] - found["plain"]).abs().max() / found["plain"].std())
    # gemma2 and bloom take their softmax in float32, which rounds by the shape of the batch on some processors
    assert gap <= (tolerance(lm.runner) if architecture in ("gemma2", "bloom") else 1e-10)
    # norms in float32, as Llama's, are no reason for sums of another shape to differ, but round as much
    assert (tolerance(lm.runner) < 1e-8) == (architecture in ("gpt2", "gpt_neox", "phi", "opt", "falcon"))
    assert tolerance(lm.runner) < 1e-5


# Architectures whose blocks' attention and MLP cannot be read apart: norms stand behind what is added ...
_NOT_SUMS = {
    "bart", "bert", "bert-generation", "big_bird", "blenderbot-small", "camembert", "data2vec-text", "electra",
    "ernie", "git", "marian", "mvp", "openai-gpt", "plbart", "rembert", "roberta", "roc_bert", "roformer", "trocr",
    "xlm-roberta", "xmod",
    # ... or the stream is normed before it is added to, scaled by a vector, or more is added than two things
    "doge", "gpt_neox_japanese", "longcat_flash", "minimax", "qwen4_exp", "qwen4_exp_text", "rwkv", "zaya",
}  # fmt: skip
_ONE_THING = {"falcon_mamba", "mamba", "mamba2", "nemotron_h", "zamba", "zamba2"}
NOT_APART = {
    **dict.fromkeys(_NOT_SUMS, "neither its attention's nor its MLP's output"),
    **dict.fromkeys(_ONE_THING, "adds one thing to the stream"),
    **dict.fromkeys(("deepseek_v4", "gemma3n_text", "hy_v4"), "several parts side by side"),
    "inkling_text": "2 things that look at other positions",
}


def test_what_blocks_add_is_attention_and_mlp_or_refused(lm):
    """That every block is the sum is checked as it is read; here, that both parts are something."""
    if lm.name in NOT_APART:
        with pytest.raises(ls.LenscopeError, match=NOT_APART[lm.name]):
            find_sublayers(lm.runner)
        return
    (ids,) = prompts(lm, 9)
    recipes = find_sublayers(lm.runner)
    mid, after = (read_points(lm, ids, point, range(1, lm.n_layers + 1)) for point in ("attention", "mlp"))
    states = lm.read(ids)
    for layer, recipe in enumerate(recipes, 1):
        sum_of_both = mid[layer, :] + after[layer, :] - states[layer - 1, :] if recipe.parallel else after[layer, :]
        assert deviation(sum_of_both, states[layer, :]) <= EXACT
        assert deviation(mid[layer, :], states[layer, :]) > 1e-2
        assert recipe.keep != 1 or deviation(mid[layer, :], states[layer - 1, :]) > 1e-2
    assert torch.equal(mid.last[0], states[lm.n_layers, :])


def test_most_architectures_can_be_read_within_their_blocks():
    assert len(ARCHITECTURES) - len(REFUSED) - len(NOT_APART) >= 130


# of these the readout is no chain of norm and linear head, so that a logit is no sum of parts of the state
NO_SUM = ("megatron-bert", "modernbert-decoder", "roberta-prelayernorm", "xlm-roberta-xl")


def test_what_parts_add_to_a_logit_sums_to_it_or_is_refused(lm):
    """The law of direct logit attribution, at two positions, for the difference of two tokens' logits.

    In float32, as the models of this file are: rounding took at most 1.3e-7 of the sizes of all parts, and a part that
    is left out, or counted twice, takes hundredths. tests/lenses/test_logit_attribution.py has it in float64.
    """
    (ids,) = prompts(lm, 9)
    if lm.name in NOT_APART or lm.name in NO_SUM:
        with pytest.raises(ls.LenscopeError, match=NOT_APART.get(lm.name, "no chain of norm and linear head")):
            attribute_logit(lm, ids, 17, against=23)
        return
    with torch.no_grad():
        own = lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
    for position in (3, 8):
        a = attribute_logit(lm, ids, 17, position, against=23)
        size = abs(a.embedding) + np.abs(a.attention).sum() + np.abs(a.mlp).sum() + abs(a.bias)
        assert abs(a.rounding) <= 1e-5 * size
        assert abs(a.capped - float(own[position, 17] - own[position, 23])) <= 1e-5 * size


def mixed_rows(lm, targets):
    """Rows at every layer of each target: single patches, two placeholders, a window, additions, and no patch."""
    n = lm.n_layers
    vectors = lm.read(targets[0])[:, -1] * 1.5
    kinds = [[(0, -1, 0)], [(0, -2, 1), (0, -1, 0)], [(0, -1, 0), (1, -1, 1)], [(0, 1, 2)]]
    patches = []
    target = []
    for t, prompt in enumerate(targets):
        for layer in range(n + 1):
            for kind in kinds[: 1 + (layer + t) % 4]:
                for above, position, op in kind:
                    if layer + above <= n:
                        at = position % len(prompt)
                        patches.append((len(target), layer + above, at, (layer + t) % (n + 1), op))
                target.append(t)
        target.append(t)
    row, layer, position, vector, op = np.array(patches).T
    ops = (edits.replace, edits.add, edits.replace_norm_matched)
    return PatchedRows(tuple(targets), np.array(target), vectors, row, layer, position, vector, op, ops)
