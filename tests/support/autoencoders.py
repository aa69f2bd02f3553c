"""Halves of natural language autoencoders in folders, as they are published, on tiny random models.

Knows: nla_meta.yaml, where weights, tokenizer and the reconstructor's matrix lie. Does not know: lenscope.
"""

import asking
import safetensors.torch
import torch
import yaml

ASKS = "Explain it.\n\nHere is the vector:\n\n<concept>{injection_char}</concept>\n\nPlease {{explain}}."
READS = "Summary: <text>{explanation}</text> <summary>"


def meta(tokenizer, role="av", width=32, layer=2, **changes):
    """What nla_meta.yaml holds, with neighbours found as the authors find them; `changes` are by dotted name."""
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": ASKS.format(injection_char=asking.MARK)}],
        add_generation_prompt=True,
        return_dict=False,
    )
    (mark,) = tokenizer.encode(asking.MARK, add_special_tokens=False)
    place = ids.index(mark)
    suffix = tokenizer("</text> <summary>", add_special_tokens=False)["input_ids"][1:]
    said = {
        "kind": "nla_model",
        "schema_version": 2,
        "role": role,
        "d_model": width,
        "extraction_layer_index": layer,
        "extraction": {"injection_scale": 7.5 if role == "av" else None, "mse_scale": width**0.5},
        "tokens": {
            "injection_char": asking.MARK,
            "injection_token_id": mark,
            "injection_left_neighbor_id": ids[place - 1],
            "injection_right_neighbor_id": ids[place + 1],
            "critic_suffix_ids": suffix if role == "ar" else None,
        },
        "prompt_templates": {"av": ASKS, "ar": READS},
    }
    for name, value in changes.items():
        *path, last = name.split("__")
        part = said
        for step in path:
            part = part[step]
        if value is ...:
            del part[last]
        else:
            part[last] = value
    return said


def write_meta(folder, said):
    """nla_meta.yaml in a folder."""
    folder.mkdir(exist_ok=True)
    (folder / "nla_meta.yaml").write_text(yaml.safe_dump(said, allow_unicode=True), encoding="utf-8")
    return folder


def save_verbaliser(folder, **changes):
    """A verbaliser's folder."""
    tokenizer = asking.tokenizer()
    write_meta(folder, meta(tokenizer, **changes))
    asking.model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_reconstructor(folder, layer=2, without=("lm_head.weight", "model.norm.weight"), **changes):
    """A reconstructor's folder: `layer` + 1 blocks, and no weights behind them; gives the model and the matrix, too."""
    tokenizer = asking.tokenizer()
    write_meta(folder, meta(tokenizer, "ar", layer=layer, **changes))
    model = asking.model(layers=layer + 1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "model.safetensors"
    weights = {name: w for name, w in safetensors.torch.load_file(path).items() if name not in without}
    safetensors.torch.save_file(weights, path, metadata={"format": "pt"})
    head = torch.randn(32, 32, generator=torch.Generator().manual_seed(5))
    safetensors.torch.save_file({"weight": head}, folder / "value_head.safetensors")
    return folder, model, head
