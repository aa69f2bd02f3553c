"""Prior methods: each equals the same thing done by hand on the transformers model, by hooks, its norm and its head."""

import random
from contextlib import ExitStack

import numpy as np
import pytest
import tiny
import torch
from cells_by_hand import PROMPT, answered, run_by_hand
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import lenscope as ls
from lenscope.fitting.model_to_model import fit_mapping
from lenscope.models.edits import add
from lenscope.patchscopes import methods

SOURCE = "The capital of France is"
V = tiny.VOCAB


def by_hand(model, ids, patches):
    """Log-probabilities (V,) after `ids`, with vectors written at (layer, position) by plain hooks."""

    def writing(layer):
        def write(h):
            for (where, position), v in patches.items():
                if where == layer:
                    h = torch.cat([h[:, :position], v[None, None], h[:, position + 1 :]], 1)
            return h

        return write

    with ExitStack() as undo:
        for layer in {layer for layer, _ in patches}:
            change = writing(layer)
            if layer:
                hook = model.model.layers[layer - 1].register_forward_hook(lambda m, a, out, c=change: c(out))
            else:
                hook = model.model.layers[0].register_forward_pre_hook(lambda m, a, c=change: (c(a[0]), *a[1:]))
            undo.callback(hook.remove)
        with torch.no_grad():
            return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0, -1].log_softmax(-1)


def plain_states(model, ids):
    """The stream (n_layers + 1, T, D) by plain hooks."""
    kept = []
    with ExitStack() as undo:
        first = model.model.layers[0].register_forward_pre_hook(lambda m, a: kept.append(a[0][0]))
        undo.callback(first.remove)
        for block in model.model.layers:
            undo.callback(block.register_forward_hook(lambda m, a, out: kept.append(out[0])).remove)
        with torch.no_grad():
            model(input_ids=torch.tensor([list(ids)]), use_cache=False)
    return torch.stack(kept)


def distribution(grid, n):
    """Log-probabilities (V,) of a cell of a grid made with top_k=V."""
    out = torch.empty(V, dtype=torch.float64)
    out[torch.from_numpy(grid.ids[n])] = torch.from_numpy(grid.log_probs[n]).double()
    return out


def same(found, expected, atol=2e-6):
    assert torch.allclose(found.double(), expected.double(), atol=atol, rtol=0)


@pytest.fixture(scope="module")
def states(lm64):
    return lm64.read(SOURCE, positions=[1, -1])


@pytest.fixture(scope="module")
def plain(lm64):
    return plain_states(lm64.model, lm64.prompt(SOURCE).ids)


@pytest.fixture(scope="module")
def roomy():
    """A model that reads prompts as long as the paper's with a tokenizer of hardly more than letters."""
    config = tiny.config("llama")
    config.max_position_embeddings = 256
    built = AutoModelForCausalLM.from_config(config).eval()
    tiny._randomise(built, 2)
    return ls.LM(built.double(), tiny.tokenizer(), "tiny-roomy")


def unembedded(lm, h):
    with torch.no_grad():
        return lm.model.lm_head(lm.model.model.norm(h)).log_softmax(-1)


# -- lenses


@pytest.mark.parametrize("at", [1, -1, "France"])
def test_the_logit_lens_is_norm_and_head(lm64, plain, at):
    read = lm64.read(SOURCE, positions=at)
    grid = methods.lens_patchscope(lm64, SOURCE, at=at).predict(read, top_k=V)
    place = lm64.prompt(SOURCE).position(at)
    lens = ls.Lens(lm64).trajectory(SOURCE, positions=[place])
    assert grid.layer.tolist() == [4] * 5
    for n, cell in enumerate(grid):
        same(distribution(grid, n), unembedded(lm64, plain[n, place]))
        assert cell.measures["kl"] == pytest.approx(lens.kl[n, 0], abs=1e-6)
        assert cell.measures["entropy"] == pytest.approx(lens.entropy[n, 0], abs=1e-6)


def test_the_tuned_lens_is_norm_and_head_of_f(lm64, plain):
    draw = torch.Generator().manual_seed(0)
    a = torch.eye(32, dtype=torch.float64) + 0.1 * torch.randn(5, 32, 32, dtype=torch.float64, generator=draw)

    def f(h, layer):
        return h.double() @ a[layer].T + layer

    grid = methods.lens_patchscope(lm64, SOURCE, f).predict(lm64.read(SOURCE, positions=-1), top_k=V)
    lens = ls.Lens(lm64, f).trajectory(SOURCE, positions=-1)
    for n, cell in enumerate(grid):
        same(distribution(grid, n), unembedded(lm64, a[n] @ plain[n, -1] + n))
        assert cell.measures["kl"] == pytest.approx(lens.kl[n, 0], abs=1e-6)


def test_the_linear_shortcut_is_least_squares(lm64):
    draw = random.Random(0)
    words = ["the", "cat", "sat", "on", "a mat", "capital", "of France", "is", "Paris", "this", "test"]
    texts = [" ".join(draw.choices(words, k=12)) for _ in range(40)]
    f = fit_mapping(lm64, lm64, texts, layers=[1], target_layers=[4], ridges=[1e-13], length=48, held_out=0.1)
    fitted = random.Random(0).sample(list(dict.fromkeys(texts)), len(set(texts)))[4:]
    pairs = [plain_states(lm64.model, lm64.prompt(text).ids[:48])[:, 1:] for text in fitted]
    x, y = (torch.cat([p[layer] for p in pairs]).numpy() for layer in (1, 4))
    solution = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0]
    h = lm64.read(SOURCE, positions=-1)
    grid = methods.lens_patchscope(lm64, SOURCE, f).predict(h, [(1, 4)], top_k=V)
    expected = np.append(h[1, -1].numpy(), 1) @ solution
    same(distribution(grid, 0), unembedded(lm64, torch.from_numpy(expected)), atol=1e-4)


# -- target prompts


def test_token_identity_patches_each_layer_at_itself(lm64, states, plain):
    grid = methods.token_identity(lm64).predict(states, top_k=V)
    ids = lm64.prompt("cat -> cat\n1135 -> 1135\nhello -> hello\n?").ids
    assert [c.layer for c in grid] == [0, 1, 2, 3, 4] * 2
    for n, cell in enumerate(grid):
        h = plain[cell.source.layer, cell.source.position]
        same(distribution(grid, n), by_hand(lm64.model, ids, {(cell.layer, len(ids) - 1): h}))
    own = methods.token_identity(lm64).predict(states, [3], top_k=1)
    assert set(own.layer.tolist()) == {3}
    assert len(own) == 10


def test_drawn_demonstrations_are_whole_words(lm64, states, plain):
    words = methods.drawn(lm64, 4, seed=1)
    assert len(set(words)) == 4
    assert all(word.isalpha() and len(lm64.tokenizer(f" {word}")["input_ids"]) == 1 for word in words)
    assert methods.drawn(lm64, 4, seed=1) == words
    assert {methods.drawn(lm64, 4, seed=s) for s in range(5)} != {words}
    grid = methods.token_identity(lm64, words[:2]).predict(states, top_k=V)
    ids = lm64.prompt(f"{words[0]} -> {words[0]}\n{words[1]} -> {words[1]}\n?").ids
    same(distribution(grid, 7), by_hand(lm64.model, ids, {(2, len(ids) - 1): plain[2, -1]}))
    with pytest.raises(ls.LenscopeError, match="k 400: tiny-llama has"):
        methods.drawn(lm64, 400)
    with pytest.raises(ls.LenscopeError, match="k 0: give at least 1"):
        methods.drawn(lm64, 0)


def test_zero_shot_features_are_asked_for_at_all_pairs_of_layers(lm64, roomy, states, plain):
    assert len(methods.RELATIONS) == 12
    scope = methods.feature_extraction(lm64, "country_currency")
    assert scope.resolved[0][0].text == "The official currency of x"
    grid = scope.predict(states, top_k=V)
    assert len(grid) == 10 * 5
    ids = lm64.prompt("The official currency of x").ids
    for n in range(0, len(grid), 7):
        h = plain[grid[n].source.layer, grid[n].source.position]
        same(distribution(grid, n), by_hand(lm64.model, ids, {(grid[n].layer, len(ids) - 1): h}))
    for name, text in methods.RELATIONS.items():
        prompt, slots = methods.named_target(name).resolve(roomy)
        assert prompt.text == text
        assert prompt.tokens[slots[0]].strip() == "x", name
    assert methods.feature_extraction(lm64, "The river through x").resolved[0][0].text == "The river through x"
    with pytest.raises(ls.LenscopeError, match="ends in x, or one of fruit_inside_color"):
        methods.feature_extraction(lm64, "country_curency")


def test_entities_are_described_by_another_model(roomy):
    other = ls.LM(tiny.model("llama", dtype=torch.float64, seed=5), tiny.tokenizer(), "tiny-other")
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(32, 32, dtype=torch.float64, generator=draw) / 6

    def f(h):
        return h.double() @ a.T

    read = other.read("Paris", positions=-1)
    grid = methods.entity_description(roomy, f, source_lm=other).predict(read, top_k=V)
    target = methods.TARGETS["entity"].prompt
    assert target.startswith("Syria: Country in the Middle East, Leonardo DiCaprio: American actor, Samsung: ")
    ids = roomy.prompt(target).ids
    h = plain_states(other.model, other.prompt("Paris").ids)[:, -1]
    for n in range(5):
        same(distribution(grid, n), by_hand(roomy.model, ids, {(n, len(ids) - 1): a @ h[n]}))


def test_tokens2words_replaces_the_words_embedding(lm64, states, plain):
    grid = methods.tokens2words(lm64).predict(states, top_k=V)
    ids = lm64.prompt("Next is the same word twice: 1) x 2)").ids
    slot = [n for n, i in enumerate(ids) if lm64.tokenizer.decode(i).strip() == "x"][-1]
    assert lm64.tokenizer.decode(ids[:slot]).strip() == "Next is the same word twice: 1)"
    embedding = lm64.model.get_input_embeddings().weight
    for n, cell in enumerate(grid):
        embedded = embedding[list(ids)].clone()
        embedded[slot] = plain[cell.source.layer, cell.source.position]
        with torch.no_grad():
            expected = lm64.model(inputs_embeds=embedded[None], use_cache=False).logits[0, -1].log_softmax(-1)
        same(distribution(grid, n), expected)


# -- SelfIE


def test_selfie_fills_all_slots_of_a_chat_message(lm64, states, plain):
    scope = methods.selfie(lm64, placeholders=3)
    prompt, slots = scope.resolved[0]
    tokens = [lm64.tokenizer.decode(i) for i in prompt.ids]
    assert "".join(tokens[: slots[0]]) == "<s>[user] "
    assert "".join(tokens[slots[-1] + 1 :]) == "\n[assistant] Sure, I'll summarize your message:"
    assert len(slots) == 3
    grid = scope.predict(states, top_k=V)
    assert set(grid.layer.tolist()) == {1}
    for n, cell in enumerate(grid):
        h = plain[cell.source.layer, cell.source.position]
        same(distribution(grid, n), by_hand(lm64.model, prompt.ids, {(1, slot): h for slot in slots}))


def test_selfies_slots_are_tokens_of_their_own_where_the_tokenizer_merges_them(lm64):
    vocabulary = {c: n for n, c in enumerate([*(chr(c) for c in range(32, 127)), "\n", "_ ", "_ _ ", "\u0120"])}
    merging = Tokenizer(models.BPE(vocab=vocabulary, merges=[("_", " "), ("_ ", "_ ")], unk_token=" "))
    merging.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    wrapped = PreTrainedTokenizerFast(tokenizer_object=merging)
    wrapped.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    lm = ls.LM(lm64.model, wrapped, "merging")
    assert len(lm.encoder.ids("_ _ ")) == 1
    prompt, slots = methods.selfie(lm, placeholders=4, answer="so:").resolved[0]
    assert len(slots) == 4
    tokens = wrapped.convert_ids_to_tokens(list(prompt.ids))
    assert tokens == ["[", "_", "_", "_", "_", "]", "s", "o", ":"]
    assert slots == (1, 2, 3, 4)


def test_selfie_refuses_models_that_do_not_chat(lm64):
    bare = PreTrainedTokenizerFast(tokenizer_object=tiny.tokenizer().backend_tokenizer)
    with pytest.raises(ls.LenscopeError, match="has no chat template"):
        methods.selfie(ls.LM(lm64.model, bare, "bare"))
    bare.chat_template = "{% for m in messages %}{{ m['content'] | lower }}{% endfor %}"
    with pytest.raises(ls.LenscopeError, match="changes or repeats the user's message"):
        methods.selfie(ls.LM(lm64.model, bare, "lower"))
    with pytest.raises(ls.LenscopeError, match="placeholders 0"):
        methods.selfie(lm64, placeholders=0)


# -- edits that a target always has


def test_a_targets_edits_are_made_with_and_without_a_source(lm64, states, plain):
    soft = torch.randn(3, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    push = torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    prompt = lm64.prompt("one x two three")
    # a source takes the place of an edit at its own
    edits = (ls.Edit(0, [0, 1, -1], soft), ls.Edit(0, "x", push), ls.Edit(3, -2, push, add))
    targets = [ls.Target(SOURCE), ls.Target(prompt, at="x", edits=edits)]
    scope = ls.Patchscope(lm64, targets, layers="same")
    grid = scope.predict(states, top_k=V, answers=[7])
    last = len(prompt) - 1
    base = {(0, 0): soft[0], (0, 1): soft[1], (0, last): soft[2]}
    slot = prompt.position("x")
    base[0, slot] = push

    def expected(patches):
        free = by_hand_states(lm64.model, prompt.ids, patches, 3, last - 1)
        return by_hand(lm64.model, prompt.ids, {**patches, (3, last - 1): free + push})

    unpatched = expected(base)
    for n, cell in enumerate(grid):
        h = plain[cell.source.layer, cell.source.position]
        if cell.target.text == SOURCE:
            length = len(lm64.prompt(SOURCE))
            same(distribution(grid, n), by_hand(lm64.model, lm64.prompt(SOURCE).ids, {(cell.layer, length - 1): h}))
            continue
        log_p = expected({**base, (cell.layer, slot): h})
        same(distribution(grid, n), log_p)
        kl = float((unpatched.exp() * (unpatched - log_p)).sum())
        assert cell.measures["kl"] == pytest.approx(kl, abs=1e-5)
        assert cell.measures["pmi:7"] == pytest.approx(float(log_p[7] - unpatched[7]), abs=1e-5)
    written = scope.generate(states, max_new_tokens=4)
    with lm64.edit(*edits, ls.Edit(2, slot, states[2, -1])):
        assert written[17].ids == lm64.generate(prompt, 4).ids
    assert written.provenance["target_edits"][1][0] == {"layer": 0, "positions": [0, 1, last], "op": "replace"}


def by_hand_states(model, ids, patches, layer, position):
    """The state (D,) at a layer and position of a run with patches, by plain hooks."""
    kept = []
    hook = model.model.layers[layer - 1].register_forward_hook(lambda m, a, out: kept.append(out[0, position]))
    by_hand(model, ids, patches)
    hook.remove()
    return kept[0]


def test_a_targets_edits_that_do_not_fit_are_refused(lm64, states):
    def scope(*edits):
        return ls.Patchscope(lm64, ls.Target("one x", at="x", edits=edits))

    with pytest.raises(ls.LenscopeError, match=r"vectors of shape \(2, 32\) for 1 positions"):
        scope(ls.Edit(0, 0, torch.zeros(2, 32)))
    with pytest.raises(ls.LenscopeError, match="and no row"):
        scope(ls.Edit(0, 0, torch.zeros(32), row=0))
    with pytest.raises(ls.LenscopeError, match="layer 9: tiny-llama has layers 0–4"):
        scope(ls.Edit(9, 0, torch.zeros(32)))


def test_answers_of_several_tokens_are_read_with_the_targets_edits(lm64, states):
    prompt, answer = "one x two", "France is"
    slot = lm64.prompt(prompt).position("x")
    vectors = states[1:3, :].flatten(0, 1)
    edits = [ls.Edit(0, 0, torch.ones(32, dtype=torch.float64)), ls.Edit(1, -1, torch.ones(32, dtype=torch.float64))]
    grid = ls.Patchscope(lm64, ls.Target(prompt, at="x", edits=edits)).predict(vectors, 2, answers=[answer])
    ids = lm64.encoder.ids(answer)
    whole, last = [*lm64.prompt(prompt).ids, *ids], len(lm64.prompt(prompt)) - 1
    for n, h in enumerate(vectors):
        found = []
        for patch in ([], [ls.Edit(2, slot, h)]):
            with lm64.edit(edits[0], ls.Edit(1, last, edits[1].vector), *patch):
                log_p = lm64.unembed(lm64.read(whole)[lm64.n_layers, :]).log_softmax(-1)
            found.append(sum(float(log_p[last + k, i]) for k, i in enumerate(ids)))
        assert grid[n].measures[f"log_prob:{answer}"] == pytest.approx(found[1], abs=1e-5)
        assert grid[n].measures[f"pmi:{answer}"] == pytest.approx(found[1] - found[0], abs=1e-5)


def test_unknown_names_are_told_the_known_ones():
    with pytest.raises(ls.LenscopeError, match="there are identity, entity, fruit_inside_color"):
        methods.named_target("nothing")


def test_back_patches_write_later_states_earlier(lm64):
    scope, states, pairs = methods.back_patching(lm64, PROMPT, "cat")
    grid = scope.predict(states, pairs, answers=["o"])
    at = lm64.prompt(PROMPT).position("cat")
    own = run_by_hand(lm64, lm64.prompt(PROMPT).ids)[1]
    n = lm64.n_layers
    assert [(c.source.layer, c.layer) for c in grid] == [(a, b) for a in range(1, n + 1) for b in range(a)]
    for cell in grid:
        log_p = run_by_hand(lm64, lm64.prompt(PROMPT).ids, [(cell.layer, at, own[cell.source.layer, at])])[0]
        assert cell.measures["log_prob:o"] == pytest.approx(answered(log_p, lm64.encoder.ids("o")), abs=1e-6)
