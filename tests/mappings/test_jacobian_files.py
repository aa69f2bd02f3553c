"""Files of Jacobian lenses: read as their own packages read them, written as these read."""

import pytest
import tiny
import torch
from foreign_lenses import IDS, LAYERS, D, assert_reads, jacobian_file

import lenscope as ls
from lenscope.mappings.jacobian_files import export_jacobian_lens, name_of_jacobian_file
from lenscope.mappings.lens_files import load_lens
from lenscope.models import same_model


def test_a_jacobian_lens_counts_block_outputs_from_zero(lm64, tmp_path):
    js = jacobian_file(tmp_path / "lens.pt")
    for where in (tmp_path / "lens.pt", tmp_path):
        lens = load_lens(where, lm64)
        assert lens.layers(LAYERS) == (1, 2, 3, 4)
        assert lens.report == {"lens": "Jacobian lens", "format": "jacobian-lens", "base_model": None, "prompts": 7}
        # the reference records the outputs of blocks: hooks on the model itself
        found = {}
        hooks = [
            block.register_forward_hook(lambda _, __, out, k=k, to=found: to.update({k: out[0]}))
            for k, block in enumerate(lm64.model.model.layers)
        ]
        with torch.no_grad():
            lm64.model(torch.tensor([IDS]))
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            expected = {
                k + 1: lm64.model.lm_head(lm64.model.model.norm(found[k].reshape(-1, D) @ j.double().T))
                for k, j in js.items()
            }
        assert_reads(lens, lm64, expected, [1, 2, 3])
        trajectory = ls.Lens(lm64, lens).trajectory(IDS)
        assert trajectory.layers == (1, 2, 3, 4)
        assert trajectory.lens == "Jacobian lens"
        with pytest.raises(ls.LenscopeError, match=r"pair \(0, 4\)"):
            ls.Lens(lm64, lens).trajectory(IDS, layers=[0, 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 48, "J": {k: torch.eye(48) for k in range(3)}}, "states of size 48; tiny-llama has 32"),
        ({"blocks": range(LAYERS)}, "has blocks 0–3; of tiny-llama it would have 0–2"),
        ({"blocks": [0, 1]}, "has blocks 0–1; of tiny-llama it would have 0–2"),
        ({"blocks": [-1, 2]}, "has blocks -1, 2"),
        ({"J": {}}, "must hold matrices"),
        ({"J": {"0": torch.eye(D)}}, "must hold matrices"),
        (
            {"J": {0: torch.eye(D), 1: torch.eye(D), 2: torch.zeros(D, 3)}},
            "matrix .32, 3., and block 0 .32, 32.",
        ),
        ({"J": dict.fromkeys(range(3), torch.full((D, D), torch.nan))}, "NaN or infinity"),
        ({"J": ..., "n_prompts": 3}, "is no Jacobian lens: it has no J"),
        ({"J": ..., "jacobian_sum": {0: torch.eye(D)}}, "jacobian_sum of n_done None prompts, of which there is no"),
        ({"d_model": D // 2}, "says d_model 16 from 16, but its matrices are .32, 32."),
        ({"source_layers": [0, 1, 3]}, "source_layers are 0–1, 3, but J has the blocks 0–2"),
        ({"source_layers": ["a", 1, 2]}, "source_layers hold 'a'; they must be block numbers"),
        ({"source_layers": []}, "source_layers are none, but J has the blocks 0–2"),
        ({"J": {3: torch.eye(D)}, "source_layers": [3]}, "has blocks none; of tiny-llama it would have 0–2"),
        ({"n_prompts": -3}, "is the mean of n_prompts -3; give"),
        ({"d_model": torch.tensor([D, D])}, "says d_model tensor.* but its matrices are .32, 32."),
        ({"metadata": {"target_layer": torch.tensor([3, 3])}}, "tiny-llama is read after block 3"),
        ({"provenance": {"capture_point": "mlp_out"}}, "reads 'mlp_out'; lenses here read the outputs of blocks"),
        ({"provenance": {"model_id": "gpt2"}}, "was fitted for 'gpt2'"),
        ({"metadata": {"target_layer": 2}}, "maps to block 2; tiny-llama is read after block 3"),
        ({"metadata": {"model_name": "google/gemma-2-2b"}}, "was fitted for 'google/gemma-2-2b'"),
    ],
)
def test_a_jacobian_lens_that_does_not_fit_is_refused(changes, message, lm64, tmp_path):
    jacobian_file(tmp_path / "lens.pt", **changes)
    with pytest.raises(ls.LenscopeError, match=message) as told:
        load_lens(tmp_path / "lens.pt", lm64)
    assert "\n" not in str(told.value)


def test_sums_beside_a_lens_that_is_not_there_are_unfinished(lm64, tmp_path):
    jacobian_file(tmp_path / "lens.pt", J=None, jacobian_sum={k: torch.eye(D) for k in range(3)}, n_done=4)
    lens = load_lens(tmp_path / "lens.pt", lm64)
    assert lens.report["unfinished"] == "unfinished: a checkpoint of a fit after 4 prompts"


def test_a_jacobian_lens_is_known_by_its_file_s_name(lm64, tmp_path):
    jacobian_file(tmp_path / "Tiny-Llama_jacobian_lens_n1000.pt", [0, 1])
    assert load_lens(tmp_path / "Tiny-Llama_jacobian_lens_n1000.pt", lm64).layers(LAYERS) == (1, 2, 4)
    jacobian_file(tmp_path / "gpt2_jacobian_lens.pt")
    with pytest.raises(ls.LenscopeError, match="was fitted for 'gpt2'"):
        load_lens(tmp_path / "gpt2_jacobian_lens.pt", lm64)


CONFIG = """# Jacobian lens fit
np_model_id: "tiny"
hf_model_name: "someone/tiny-llama"
dataset:
  name: "Salesforce/wikitext"
  config: "wikitext-103-raw-v1"
fit:
  n_prompts: 1000
  target_layer: null
  stop_at_delta: 0.002
results:
  prompts_fitted: 7
"""


def beside(folder, text):
    (folder / "config.yaml").write_text(text)
    return load_lens(folder / "lens.pt", ls.LM(tiny.model("llama", dtype=torch.float64), None, "tiny-llama"))


def test_the_config_beside_a_file_says_what_it_is(tmp_path):
    jacobian_file(tmp_path / "lens.pt")
    report = {"lens": "Jacobian lens", "format": "jacobian-lens", "base_model": "someone/tiny-llama", "prompts": 7}
    report |= {"corpus": {"data": "Salesforce/wikitext"}, "prompts_asked": 1000}
    # a fit that has converged ends before the number that was asked for
    assert beside(tmp_path, CONFIG).report == report
    unfinished = {**report, "unfinished": "unfinished: the mean of 7 of 615 prompts"}
    assert beside(tmp_path, CONFIG.replace("prompts_fitted: 7", "prompts_fitted: 615")).report == unfinished
    running = CONFIG.partition("results")[0]
    assert beside(tmp_path, running).report["unfinished"] == "unfinished: the mean of 7 of 1000 prompts"
    # of two files in a folder the config describes one
    other = CONFIG.replace("prompts_fitted: 7", "prompts_fitted: 615") + "lens:\n  file: other.pt\n"
    assert "unfinished" not in beside(tmp_path, other).report
    for text in ("- a list\n", "fit: 3\nresults: [1]\n", ""):
        assert "prompts_asked" not in beside(tmp_path, text).report


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("someone/tiny-llama", "google/gemma-2-2b"), "was fitted for 'google/gemma-2-2b', and tiny-llama is another"),
        (("target_layer: null", "target_layer: 2"), "maps to block 2; tiny-llama is read after block 3"),
        (("fit:", "fit: {"), r"config\.yaml: is no YAML"),
        (("fit:", "other: &a [x]\nmore: *a\nfit:"), "are not read"),
    ],
)
def test_a_config_of_something_else_is_refused(change, message, tmp_path):
    jacobian_file(tmp_path / "lens.pt")
    with pytest.raises(ls.LenscopeError, match=message) as told:
        beside(tmp_path, CONFIG.replace(*change))
    assert "\n" not in str(told.value)


def test_a_fit_that_has_not_ended_is_its_mean_so_far(lm64, tmp_path):
    sums = jacobian_file(tmp_path / "lens.pt")
    content = {"jacobian_sum": {k: 4 * j.float() for k, j in sums.items()}, "n_done": 4, "next_idx": 5}
    torch.save({**content, "source_layers": [0, 1, 2], "target_layer": 3}, tmp_path / "lens.pt")
    lens = load_lens(tmp_path / "lens.pt", lm64)
    assert all(lens.weights[k + 1, LAYERS][0].equal(j.float()) for k, j in sums.items())
    assert lens.report["prompts"] == 4
    assert lens.report["unfinished"] == "unfinished: a checkpoint of a fit after 4 prompts"
    (tmp_path / "config.yaml").write_text(CONFIG.replace("prompts_fitted: 7", "prompts_fitted: 615"))
    assert load_lens(tmp_path / "lens.pt", lm64).report["unfinished"] == "unfinished: the mean of 4 of 615 prompts"


def test_the_last_block_s_identity_is_left_out(lm64, tmp_path):
    js = jacobian_file(tmp_path / "lens.pt")
    jacobian_file(tmp_path / "lens.pt", range(LAYERS), J={**js, LAYERS - 1: torch.eye(D).half()})
    assert load_lens(tmp_path / "lens.pt", lm64).layers(LAYERS) == (1, 2, 3, 4)
    assert (LAYERS, LAYERS) not in load_lens(tmp_path / "lens.pt", lm64).weights


# -- parallel streams: DeepSeek-V4's states are four streams, which a norm reads as one


@pytest.fixture(scope="module")
def streamed():
    return ls.LM(tiny.model("deepseek_v4"), None, "tiny-v4")


def wide_file(path, d=32, source=128, **changes):
    draw = torch.Generator().manual_seed(4)
    js = {k: (torch.randn(d, source, generator=draw) / 5).half() for k in range(3)}
    content = {"J": js, "n_prompts": 7, "source_layers": [0, 1, 2], "d_model": d, "d_source": source}
    torch.save({**content, **changes}, path)
    return js


def merged_logits(lm, states):
    """What the model makes of the one state that its streams are merged into."""
    with torch.no_grad():
        return lm.model.lm_head(lm.model.model.norm(states))


def test_a_rectangular_lens_reads_all_streams(streamed, tmp_path):
    js = wide_file(tmp_path / "lens.pt")
    lens = load_lens(tmp_path / "lens.pt", streamed)
    assert lens.report["streams"] == 4
    states = streamed.read(IDS)
    for k, j in js.items():
        own = ls.Lens(streamed, lens).logits(states[k + 1, :], k + 1)
        expected = merged_logits(streamed, states[k + 1, :] @ j.float().T)
        # the sum of four weights in place of 1, of which eps takes a little: 1e-4 of the logits' spread
        torch.testing.assert_close(own, expected, atol=1e-4 * float(expected.std()), rtol=1e-4)
    export_jacobian_lens(lens, tmp_path / "again.pt")
    again = torch.load(tmp_path / "again.pt", weights_only=True)
    assert (again["d_model"], again["d_source"]) == (32, 128)
    assert all(again["J"][k].equal(j) for k, j in js.items())


@pytest.mark.parametrize(
    ("merged", "shares"),
    [
        ({"stream_reduce": "mean"}, [0.25] * 4),
        ({"stream_reduce": "sum"}, [0.25] * 4),
        ({"stream_reduce": "select", "stream_index": 2}, [0, 0, 1, 0]),
    ],
)
def test_a_lens_of_merged_streams_says_how_they_were(merged, shares, streamed, tmp_path):
    js = wide_file(tmp_path / "lens.pt", source=32, provenance={"capture_point": "block_output", **merged})
    lens = load_lens(tmp_path / "lens.pt", streamed)
    states = streamed.read(IDS)[2, :]
    one = torch.einsum("tnd,n->td", states.unflatten(-1, (4, 32)), torch.tensor(shares, dtype=states.dtype))
    own = ls.Lens(streamed, lens).logits(states, 2)
    expected = merged_logits(streamed, one @ js[1].float().T)
    torch.testing.assert_close(own, expected, atol=1e-4 * float(expected.std()), rtol=1e-4)


def test_a_lens_that_streams_do_not_fit_is_refused(streamed, tmp_path):
    gemma = ls.LM(tiny.model("gemma3n_text"), None, "tiny-gemma3n")
    llama = ls.LM(tiny.model("llama"), None, "tiny-llama")
    for lm, sizes, message in (
        (streamed, {"source": 32}, "reads one state of size 32; those of tiny-v4 are 4 streams of it, and the file"),
        (streamed, {"d": 64, "source": 64}, r"states of size 64; tiny-v4 has 128 \(4 streams of 32\)"),
        (streamed, {"d": 64}, "states of size 128, which it maps to 64; tiny-v4 has 128"),
        (gemma, {}, "tiny-gemma3n reads 4 equal streams as another state"),
        (llama, {}, "states of size 128, which it maps to 32; tiny-llama has 32"),
    ):
        wide_file(tmp_path / "lens.pt", **sizes)
        with pytest.raises(ls.LenscopeError, match=message) as told:
            load_lens(tmp_path / "lens.pt", lm)
        assert "\n" not in str(told.value)


# -- written


def jacobian_lens(lm, layers=range(LAYERS), **report):
    draw = torch.Generator().manual_seed(6)
    model = same_model.model_identity(lm)
    weights = {(n, LAYERS): (torch.eye(D) + torch.randn(D, D, generator=draw) / 9,) for n in layers}
    return ls.Affine(weights, model, model, {"lens": "Jacobian lens", "prompts": 100, **report})


def test_what_is_written_is_read_again(lm64, tmp_path):
    corpus = {"data": "texts.jsonl", "length": 128}
    lens = jacobian_lens(lm64, lens="R-lens", corpus=corpus, rule="relp", target_layer=LAYERS)
    file = tmp_path / name_of_jacobian_file(lens)
    assert file.name == "tiny-llama_jacobian_lens.pt"
    for _ in range(2):
        export_jacobian_lens(lens, file)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", file.name]
    # as the reference reads it: torch.load of weights alone, J[k] @ h of the output of block k
    content = torch.load(file, weights_only=True)
    assert content["source_layers"] == sorted(content["J"]) == [0, 1, 2]
    assert (content["n_prompts"], content["d_model"]) == (100, D)
    assert {j.dtype for j in content["J"].values()} == {torch.float16}
    back = load_lens(tmp_path, lm64)
    for key in ("lens", "prompts", "rule"):
        assert back.report[key] == lens.report[key]
    assert back.report["corpus"] == {"data": "texts.jsonl"}
    assert "unfinished" not in back.report
    states = lm64.read(IDS)
    for layer in (1, 2, 3):
        old, new = lens.weights[layer, LAYERS][0], back.weights[layer, LAYERS][0]
        torch.testing.assert_close(new, old, rtol=2**-11, atol=6e-8)  # what float16 rounds
        assert content["J"][layer - 1].float().equal(new)
        logits = [ls.Lens(lm64, f).logits(states[layer, :], layer) for f in (lens, back)]
        assert logits[0].argmax(-1).equal(logits[1].argmax(-1))
        torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=5e-3 * float(logits[0].std()))


def test_a_lens_that_has_not_ended_stays_so(lm64, tmp_path):
    jacobian_file(tmp_path / "lens.pt")
    (tmp_path / "config.yaml").write_text(CONFIG.replace("prompts_fitted: 7", "prompts_fitted: 615"))
    (tmp_path / "to").mkdir()
    export_jacobian_lens(load_lens(tmp_path / "lens.pt", lm64), tmp_path / "to" / "lens.pt")
    assert load_lens(tmp_path / "to", lm64).report["unfinished"] == "unfinished: the mean of 7 of 1000 prompts"


def test_what_is_no_jacobian_lens_is_not_written(lm64, tmp_path):
    biased = jacobian_lens(lm64)
    weights = {**biased.weights, (2, LAYERS): (torch.eye(D), torch.ones(D))}
    loud = {**biased.weights, (1, LAYERS): (torch.eye(D) * 1e5,)}
    model = biased.source
    other = {**model, "model": "other"}
    for lens, file, message in (
        (jacobian_lens(lm64, lens="tuned lens"), "a.pt", "is no Jacobian lens but tuned lens; fit one"),
        (
            ls.Affine(biased.weights, model, other, biased.report),
            "a.pt",
            "is no Jacobian lens but a mapping between two models",
        ),
        (ls.Affine(weights, model, model, biased.report), "a.pt", "layer 2 has a bias"),
        (ls.Affine(loud, model, model, biased.report), "a.pt", "layer 1 has 1e.05, and float16 ends at 65,504"),
        (jacobian_lens(lm64, [0, 1, 3]), "a.pt", "none from layer 2; the file holds every layer 1–3 to 4"),
        (jacobian_lens(lm64, target_layer=3), "a.pt", "its target is layer 3; the file's readers take 4, the last"),
        (biased, "a.safetensors", "give a file that ends in .pt"),
        (biased, "none/a.pt", "does not exist"),
    ):
        with pytest.raises(ls.LenscopeError, match=message) as told:
            export_jacobian_lens(lens, tmp_path / file)
        assert "\n" not in str(told.value)
    assert not list(tmp_path.iterdir())
