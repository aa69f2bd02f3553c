"""A tuned lens held to its laws: what it recovers, what it reports, when it is refused or read again."""

import math
import threading
import weakref

import pytest
import tiny
import torch
from small_fits import LENGTH, SMALL, documents, fitted, make, same

import lenscope as ls
from lenscope.fitting import held_out as choosing
from lenscope.fitting import state_block
from lenscope.fitting.recipes import Recipe
from lenscope.fitting.schedule import Schedule
from lenscope.fitting.tuned_lens import fit
from lenscope.mappings.mapping import load_mapping
from lenscope.models import precision
from lenscope.text.corpus import Corpus

# readable ones of every kind: norms, no norm, projections, scales, caps, experts, state spaces, parallel, replayed
MANY = (
    *(
        "llama",
        "gemma2",
        "cohere",
        "granite",
        "gpt2",
        "gpt_neox",
        "opt",
        "openai-gpt",
        "bloom",
        "falcon",
        "mamba",
        "phi",
    ),
    *("qwen3", "olmo2", "mixtral", "mpt", "codegen", "starcoder2", "glm4", "nemotron", "gemma3n_text"),
)


def silence(model):
    """Blocks that change nothing."""
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()


def test_layers_that_are_the_last_lose_nothing():
    model = tiny.model("llama")
    silence(model)
    lens = fitted(ls.LM(model, tiny.tokenizer(), "silent"))
    assert all(layer["kl"] < 1e-5 and layer["kl_logit_lens"] < 1e-5 for layer in lens.report["layers"])


def test_a_known_affine_map_is_recovered():
    model = tiny.model("llama", torch.float64)
    silence(model)
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(32, 32, dtype=torch.float64, generator=draw) / 5
    b = torch.randn(32, dtype=torch.float64, generator=draw)
    model.model.layers[-1].register_forward_hook(
        lambda _m, _a, out: (out[0] @ a.T + b, *out[1:]) if isinstance(out, tuple) else out @ a.T + b
    )
    lens = fitted(ls.LM(model, tiny.tokenizer(), "affine"), recipe="ridge")
    for layer in range(4):
        found = lens.weights[layer, 4]
        assert (found[0] - a).abs().max() < 5e-3
        assert (found[1] - b).abs().max() < 5e-3
        report = lens.report["layers"][layer]
        assert report["kl"] < 1e-4 < 1 < report["kl_logit_lens"]


@pytest.mark.parametrize("kind", MANY)
def test_a_lens_is_never_worse_than_the_logit_lens(kind):
    lens = fitted(make(kind), tokens=1500)
    assert [layer["layer"] for layer in lens.report["layers"]] == list(range(4))
    for layer in lens.report["layers"]:
        assert math.isfinite(layer["kl"])
        assert layer["gain_95"][1] >= 0
    assert all(math.isfinite(loss) for loss in lens.report["loss"])
    if lens.report["layers"][0]["kl_logit_lens"] > 0.1:
        assert lens.report["layers"][0]["kl"] < lens.report["layers"][0]["kl_logit_lens"]


@pytest.mark.parametrize(
    ("dtype", "near"), [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 0.02), (torch.float16, 0.01)]
)
def test_the_report_is_what_is_measured_from_the_text_again(dtype, near):
    lm = make(dtype=dtype)
    lens = fitted(lm, tokens=2000)
    held = Corpus.open(lm, documents(), length=LENGTH).split(0.1)[1].split(0.5)[0]
    exact = tiny.model("llama", dtype).double() if dtype != torch.float64 else lm.model
    rows = [row for batch in held.batches(None, 8) for row in zip(batch.row, batch.ids, batch.counted, strict=True)]
    _, every = choosing.spread(LENGTH, choosing.MEASURING)
    counts = torch.arange(LENGTH) % every == every - 1
    rows = [(ids, counted & counts) for n, ids, counted in rows if n < 1024 // LENGTH]
    assert len(rows) > 8
    kept = []
    blocks = lm.model.model.layers
    hooks = [blocks[0].register_forward_pre_hook(lambda _m, args: kept.append(args[0]))]
    hooks += [
        b.register_forward_hook(lambda _m, _a, out: kept.append(out[0] if type(out) is tuple else out)) for b in blocks
    ]
    with torch.no_grad():
        lm.model(torch.stack([ids for ids, _ in rows]))
        for hook in hooks:
            hook.remove()
        states = [h[torch.stack([counted for _, counted in rows])].double() for h in kept]

        def log_probabilities(h):
            return exact.lm_head(exact.model.norm(h)).log_softmax(-1)

        log_p = log_probabilities(states[-1])
        for layer in lens.report["layers"]:
            a, b = (w.double() for w in lens.weights[layer["layer"], 4])
            h = states[layer["layer"]]
            for name, mapped in (("kl", h @ a.T + b), ("kl_logit_lens", h)):
                kl = (log_p.exp() * (log_p - log_probabilities(mapped))).sum(-1).mean().item()
                assert layer[name] == pytest.approx(kl, rel=near)
    assert lens.report["held_out"]["tokens"][1] == len(states[0])


def test_a_seed_fixes_the_lens(lm):
    recipe = Recipe(columns=64, tokens_per_step=256)
    first = fitted(lm, recipe=recipe)
    assert same(first, fitted(lm, recipe=recipe))
    assert not same(first, fitted(lm, recipe=recipe, seed=1))
    # sampled columns do about what all do
    full = fitted(lm, recipe=Recipe(columns=None, tokens_per_step=256))
    for some, every in zip(first.report["layers"], full.report["layers"], strict=True):
        assert some["kl"] == pytest.approx(every["kl"], rel=0.1)


@pytest.mark.parametrize("recipe", ["muon", "ridge", "bias"])
def test_a_lens_reads_the_same_before_and_after_its_file(tmp_path, lm, recipe):
    lens = fitted(lm, recipe=recipe)
    lens.save(tmp_path)
    h = lm.read("The cat sat on the mat.").tensor[0]
    again = load_mapping(tmp_path)
    for layer in range(lm.n_layers):
        assert torch.equal(lens(h[layer], layer, lm.n_layers), again(h[layer], layer, lm.n_layers))
        assert all(w.is_contiguous() for w in lens.weights[layer, lm.n_layers])


def test_text_is_hashed_a_batch_at_a_time(lm, monkeypatch):
    alive, most = weakref.WeakSet(), 0
    own = Corpus._batch

    def batch(self, *given):
        nonlocal most
        new = own(self, *given)
        alive.add(new)
        most = max(most, len(alive))
        return new

    monkeypatch.setattr(Corpus, "_batch", batch)
    text = Corpus.open(lm, documents(4000), length=LENGTH)
    (*_, last) = text.batches(100_000, 8)
    alive, most = weakref.WeakSet(), 0
    assert text.digest(100_000) == last.digest
    assert 0 < most <= 2


def test_a_finished_lens_is_read_again_and_another_run_does_not_overwrite_it(lm, tmp_path, monkeypatch):
    made = fitted(lm, tokens=600, folder=tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def run(*_):
        raise AssertionError("the model ran")

    monkeypatch.setattr(state_block.StateBlock, "read", run)
    assert same(fitted(lm, tokens=600, folder=tmp_path), made)
    other = make()
    with torch.no_grad():
        other.model.model.layers[0].mlp.down_proj.weight.mul_(2)
    # how many rows a block has depends on the dtype that this processor keeps states in
    block = made.report["schedule"]["block"]
    least = Schedule.of(lm, 600, LENGTH, room=1, per_step=512, ridge=True, low=precision.low_precision(lm)).block
    room = 1 if least != block else 1 << 29
    for model, changed, why in (
        (lm, {"seed": 1}, "corpus|other text|seed 0, not 1"),
        (lm, {"tokens": 900}, "schedule rows"),
        (lm, {"recipe": "ridge"}, "recipe muon, not ridge"),
        (lm, {"recipe": SMALL}, "recipe muon, not own"),
        (lm, {"room": room}, "schedule block"),
        (lm, {"held_out": 0.2}, "other text"),
        (lm, {"docs": documents(seed=4)}, "other text"),
        (lm, {"docs": lambda: iter(documents(seed=4))}, "other text"),
        (other, {}, "another model"),
    ):
        with pytest.raises(ls.LenscopeError, match=rf"holds a lens of another run \(({why}).*; give another folder"):
            fitted(model, **{"tokens": 600, "folder": tmp_path, **changed})
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ls.LenscopeError, match=r"has a config.json that is damaged or of something else"):
        fitted(lm, tokens=600, folder=tmp_path)
    (tmp_path / "config.json").write_bytes(before["config.json"])
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_two_fits_at_once_do_not_share_a_folder(lm, tmp_path):
    refused = []

    def progress(done, _):
        if not refused:
            other = threading.Thread(target=second)
            other.start()
            other.join()

    def second():
        with pytest.raises(ls.LenscopeError, match="another run is writing to it") as error:
            fitted(make(), tokens=600, folder=tmp_path)
        refused.append(str(error.value))

    made = fitted(lm, tokens=600, folder=tmp_path, progress=progress)
    assert len(refused) == 1
    assert same(load_mapping(tmp_path), made)


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_model_runs(lm, tmp_path, monkeypatch):
    def run(*_):
        raise AssertionError("the model ran")

    monkeypatch.setattr(state_block.StateBlock, "read", run)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ls.LenscopeError, match="cannot be written to"):
        fitted(lm, tokens=600, folder=tmp_path / "file" / "lens")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"docs": documents(20)}, "ends after .* 4000 were wanted"),
        ({"docs": [[20, 21, 22]] * 3}, "less than one row of 32 tokens"),
        ({"held_out": 1e-6}, "held-out text: .*less than one row"),
        (
            {"docs": [d[:40] for d in documents() if len(d) >= 40], "held_out": 0.003},
            "held-out text: .*one half of them",
        ),
        ({"held_out": 1.5}, "held_out 1.5: give a fraction"),
        ({"tokens": 0}, "tokens 0"),
        ({"room": 0}, "room 0"),
        ({"length": 1}, "length 1"),
        ({"recipe": "sgd"}, "recipe 'sgd': there are muon, ridge"),
    ],
)
def test_bad_input_is_refused_before_the_model_runs(changed, told, monkeypatch):
    lm = make()

    def run(*_):
        raise AssertionError("the model ran")

    monkeypatch.setattr(state_block.StateBlock, "read", run)
    with pytest.raises(ls.LenscopeError, match=told) as error:
        fitted(lm, **changed)
    assert len(str(error.value).splitlines()) == 1


def test_a_models_own_samples_are_text_too():
    lens = fit(make(), None, tokens=600, length=LENGTH, recipe="ridge")
    assert all(layer["kl"] <= layer["kl_logit_lens"] for layer in lens.report["layers"])
    assert lens.report["text"] is None
