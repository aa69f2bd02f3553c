"""Lens files as other packages write them, and what those packages compute of them."""

import json
from collections import OrderedDict

import safetensors.torch
import torch

import lenscope as ls

D, LAYERS = 32, 4
IDS = [5, 17, 99, 4, 200, 31]


def old_state(seed=0):
    """A state dict as tuned-lens 0.2.0 saves it."""
    draw = torch.Generator().manual_seed(seed)
    state = OrderedDict()
    for layer in range(LAYERS):
        state[f"{layer}.weight"] = torch.randn(D, D, generator=draw) / 10
        state[f"{layer}.bias"] = torch.randn(D, generator=draw)
    return state


def old_config(**changes):
    config = {
        "base_model_name_or_path": "someone/tiny-llama",
        "d_model": D,
        "num_hidden_layers": LAYERS,
        "bias": True,
        "base_model_revision": None,
        "unembed_hash": None,
        "lens_type": "linear_tuned_lens",
    }
    return {k: v for k, v in {**config, **changes}.items() if v is not ...}


def put(folder, state, config, name="params.pt"):
    folder.mkdir(exist_ok=True, parents=True)
    if name.endswith(".pt"):
        torch.save(state, folder / name)
    else:
        safetensors.torch.save_file(dict(state), folder / name)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def own_logits(lm, translate):
    """Logits of every layer but the last, by plain transformers: norm and head of translate(h, layer)."""
    with torch.no_grad():
        hidden = lm.model(torch.tensor([IDS]), output_hidden_states=True).hidden_states[:-1]
        return [lm.model.lm_head(lm.model.model.norm(translate(h[0], layer))) for layer, h in enumerate(hidden)]


def tuned(state, lm):
    """What tuned-lens computes: h + W h + b, then the model's own norm and head."""
    return own_logits(lm, lambda h, n: h + h @ state[f"{n}.weight"].double().T + state[f"{n}.bias"].double())


def assert_reads(lens, lm, expected, layers=range(LAYERS)):
    states = lm.read(IDS)
    for layer in layers:
        got = ls.Lens(lm, lens).logits(states[layer, :], layer)
        torch.testing.assert_close(got, expected[layer], atol=2e-6, rtol=1e-6)
    with torch.no_grad():
        own = lm.model(torch.tensor([IDS])).logits[0]
    assert ls.Lens(lm, lens).logits(states[LAYERS, :], LAYERS).equal(lm.unembed(states[LAYERS, :]))
    torch.testing.assert_close(ls.Lens(lm, lens).logits(states[LAYERS, :], LAYERS), own, atol=1e-9, rtol=1e-9)


def jacobian_file(path, blocks=range(LAYERS - 1), **changes):
    draw = torch.Generator().manual_seed(3)
    js = {k: (torch.randn(D, D, generator=draw) / 5).half() for k in blocks}
    content = {"J": js, "n_prompts": 7, "source_layers": list(blocks), "d_model": D}
    torch.save({k: v for k, v in {**content, **changes}.items() if v is not ...}, path)
    return js
