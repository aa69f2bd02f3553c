"""The sizes of a language model, read from its configuration alone: no weight is loaded, none is made.

Knows: models on torch's meta device, where parameters have shapes and no numbers; experts, of which a token meets few.
Does not know: what work costs (fit_costs.py and its neighbours), machines.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel
from transformers import logging as transformers_logging

from lenscope.errors import LenscopeError
from lenscope.models.loading import BUILT_IN, built_in_folder
from lenscope.models.refusals import near
from lenscope.models.residual_stream import block_lists, forward_kwargs, output_state

# the words of a shape that is written out, and what transformers calls them in a Llama's configuration
WORDS = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "kv": "num_key_value_heads",
    "inner": "intermediate_size",
    "vocab": "vocab_size",
}
# layers of a shape in words: each becomes a module
MOST_LAYERS = 1000
# how many experts a token meets, and how many there are, by the names that configurations have for them
_MET = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k", "top_k_experts")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
# tokens of the run on the meta device that says what a cache holds
_TRIAL = 8


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model that plans are counted from. `model_shape` makes it.

    Attributes:
        blocks: the parameters of all blocks.
        largest_block: those of the largest block.
        active: those that one token is multiplied with: all but the experts that it does not meet, norms and biases
            included.
        embedding: the parameters of the embedding.
        head: the parameters of the head, which is the same matrix where `tied`, and then counted as the head's.
        other: the rest (final norm, positions).
        cached: the keys and values that a token leaves in the cache, numbers of all layers.
        attention: the multiplications and additions, of all layers, of one token with one key.
        inner: the widest row inside a block.
        dtype: that of the weights.
    """

    name: str
    layers: int
    width: int
    vocab: int
    blocks: int
    largest_block: int
    active: int
    embedding: int
    head: int
    tied: bool
    other: int
    cached: int
    attention: int
    inner: int
    dtype: torch.dtype

    @property
    def parameters(self) -> int:
        """All parameters, those that are shared counted once."""
        return self.blocks + self.embedding + self.head + self.other

    @property
    def n_layers(self) -> int:
        """As an LM calls its layers."""
        return self.layers

    @property
    def hidden_size(self) -> int:
        """As an LM calls its width."""
        return self.width

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return self.parameters * self.dtype.itemsize

    @property
    def outside_blocks(self) -> int:
        """Parameters of embedding, head and the rest."""
        return self.embedding + self.head + self.other


def model_shape(model: str, dtype: torch.dtype | None = None) -> ModelShape:
    """Find the sizes of a model, from its configuration or from words.

    `model` is a built-in name, a folder with a config.json, a hub id, or words such as "layers=80,…". A shape in words
    is a Llama's: layers, width, heads, kv (default: heads), inner (default: 4 · width), vocab. `dtype` is the weights'
    own where None, bfloat16 where the configuration does not say. Raises LenscopeError where there is no such
    configuration, or transformers cannot build a causal language model from it.
    """
    if "=" in model:
        return shape_of_config(config_in_words(model), model, dtype)
    return shape_of_config(read_config(model), model, dtype)


def config_in_words(text: str) -> LlamaConfig:
    """The configuration of a Llama from words such as "layers=80,width=8192,heads=64,kv=8,inner=28672,vocab=128256"."""
    values: dict[str, int] = {}
    for part in text.split(","):
        word, _, value = (p.strip() for p in part.partition("="))
        if word not in WORDS or not re.fullmatch(r"[1-9]\d{0,9}", value):
            raise LenscopeError(
                f"shape {part.strip()!r}: give {', '.join(f'{w}=NUMBER' for w in WORDS)}, separated by commas"
                f"{'' if word in WORDS else near(word, WORDS)}"
            )
        values[word] = int(value)
        if word == "layers" and values[word] > MOST_LAYERS:
            raise LenscopeError(f"shape {text!r}: layers {value}: give 1 to {MOST_LAYERS:,}")
    missing = [word for word in ("layers", "width", "heads", "vocab") if word not in values]
    if missing:
        raise LenscopeError(f"shape {text!r}: {missing[0]} is missing; it takes layers, width, heads and vocab")
    heads, kv = values["heads"], values.setdefault("kv", values["heads"])
    values.setdefault("inner", 4 * values["width"])
    if values["width"] % heads or heads % kv:
        raise LenscopeError(
            f"shape {text!r}: width has to be a multiple of heads, and heads of kv ({values['width']}, {heads}, {kv})"
        )
    if values["width"] // heads % 2:
        raise LenscopeError(
            f"shape {text!r}: heads are {values['width'] // heads} wide (width / heads); rotary positions need an even "
            "number"
        )
    names: dict[str, Any] = {WORDS[word]: value for word, value in values.items()}
    return LlamaConfig(**names, tie_word_embeddings=False, dtype=torch.bfloat16)


def read_config(model: str) -> PreTrainedConfig:
    """The configuration of a built-in alias, a folder or a hub id; LenscopeError where there is none."""
    source = model
    if model in BUILT_IN:
        folder = built_in_folder(model)
        source = str(folder) if folder is not None else BUILT_IN[model].hub_id
    place = Path(source).expanduser()
    if place.is_file():
        raise LenscopeError(f"{model}: is a file; give a folder with a config.json, a hub id or a shape in words")
    if place.is_dir() and not (place / "config.json").is_file():
        raise LenscopeError(f"{model}: the folder has no config.json")
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise LenscopeError(
            f"{model}: no configuration of a model can be read there ({reason[:200]}); give a built-in alias "
            f"({', '.join(BUILT_IN)}), a folder with a config.json, a hub id, or a shape such as "
            "layers=80,width=8192,heads=64,kv=8,inner=28672,vocab=128256"
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def shape_of_config(config: PreTrainedConfig, name: str, dtype: torch.dtype | None = None) -> ModelShape:
    """The shape of the causal language model that a configuration describes; LenscopeError where it describes none."""
    text = config.get_text_config()
    own = getattr(config, "dtype", None) or getattr(text, "dtype", None)
    dtype = dtype or (own if isinstance(own, torch.dtype) else torch.bfloat16)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except Exception as error:  # whatever a model's own code raises
        reason = " ".join(str(error).split())[:200]
        raise LenscopeError(f"{name}: transformers builds no causal language model from it ({reason})") from error
    return shape_of_model(model.eval(), name, dtype)


def shape_of_model(model: PreTrainedModel, name: str, dtype: torch.dtype) -> ModelShape:
    """The shape of a model that is there, if only on the meta device."""
    lists = block_lists(model)
    if not lists:
        raise LenscopeError(f"{name}: {type(model).__name__} has no list of blocks to read between")
    _, blocks, _ = max(lists, key=lambda listed: listed[2])
    text = model.config.get_text_config()
    table: Any = model.get_input_embeddings()
    embedding, head = table.weight, model.get_output_embeddings()
    head_weight: Any = getattr(head, "weight", None)
    tied = head_weight is embedding or head_weight is None
    sizes = [sum(p.numel() for p in block.parameters()) for block in blocks]
    # parameters that blocks share count once
    inside = {id(p): p for block in blocks for p in block.parameters()}
    n_blocks = sum(p.numel() for p in inside.values())
    matrix = (embedding if tied else head_weight).numel()
    own_embedding = 0 if tied else embedding.numel()
    everything = sum(p.numel() for p in model.parameters())
    idle = sum(_idle(block, text) for block in blocks)
    seen = _trial_run(model, blocks[-1])
    width, cached = seen or (_whole_number(text, ("hidden_size",)) or int(embedding.shape[1]), None)
    return ModelShape(
        name=name,
        layers=len(blocks),
        width=width,
        vocab=int((embedding if tied else head_weight).shape[0]),
        blocks=n_blocks,
        largest_block=max(sizes),
        active=n_blocks - idle,
        embedding=own_embedding,
        head=matrix,
        tied=tied,
        other=everything - n_blocks - matrix - own_embedding,
        cached=cached if cached is not None else _cached_by_config(text, len(blocks)),
        attention=_attention(text, len(blocks), width),
        inner=max(_widest(block) for block in blocks),
        dtype=dtype,
    )


def _whole_number(text: Any, names: tuple[str, ...]) -> int | None:
    """The first whole number among a configuration's fields of these names."""
    for name in names:
        try:
            value = getattr(text, name, None)
        except Exception:  # transformers refuses a field whose values differ from layer to layer
            continue
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _idle(block: nn.Module, text: Any) -> int:
    """Parameters of the experts of a block that a token does not meet."""
    experts, met = _whole_number(text, _EXPERTS), _whole_number(text, _MET)
    if experts is None or met is None or met >= experts:
        return 0
    stacked = sum(p.numel() for p in block.parameters() if p.ndim == 3 and p.shape[0] == experts)
    for module in block.modules():
        if isinstance(module, nn.ModuleList) and len(module) == experts:
            stacked += sum(p.numel() for p in module.parameters() if p.ndim < 3)
    return stacked * (experts - met) // experts


def _widest(block: nn.Module) -> int:
    """The widest row that a product inside a block makes or takes."""
    return max((max(p.shape[-2:]) for p in block.parameters() if p.ndim >= 2), default=0)


def _attention(text: Any, layers: int, width: int) -> int:
    """Multiplications and additions of one token with one key, scores and values, in all layers."""
    heads = _whole_number(text, ("num_attention_heads", "n_head", "num_heads")) or 1
    each = _whole_number(text, ("head_dim", "qk_head_dim")) or width // heads
    types = getattr(text, "layer_types", None)
    full = sum("attention" in str(kind) and "linear" not in str(kind) for kind in types) if types else layers
    return 4 * heads * each * full


def _trial_run(model: PreTrainedModel, block: nn.Module) -> tuple[int, int] | None:
    """The size of a state, and the numbers that a token leaves in the cache: seen in a run without numbers.

    None where the model does not run without them (experts are chosen by numbers).
    """
    ids = torch.zeros(1, _TRIAL, dtype=torch.long, device="meta")
    states: list[int] = []
    hook = block.register_forward_hook(lambda _, args, output: states.append(output_state(output).numel() // _TRIAL))
    try:
        with torch.no_grad():
            out = model(input_ids=ids, **forward_kwargs(model, use_cache=True))
        cached = 0
        for layer in getattr(out.past_key_values, "layers", ()):
            held = (getattr(layer, "keys", None), getattr(layer, "values", None))
            cached += sum(t.shape[1] * t.shape[3] for t in held if t is not None and t.ndim == 4)
        return states[0], cached
    except Exception:  # whatever a model's own code raises
        return None
    finally:
        hook.remove()


def _cached_by_config(text: Any, layers: int) -> int:
    """The same as configurations have it."""
    heads = _whole_number(text, ("num_attention_heads", "n_head", "num_heads")) or 1
    kv = _whole_number(text, ("num_key_value_heads",)) or heads
    each = _whole_number(text, ("head_dim", "qk_head_dim")) or math.ceil(
        (_whole_number(text, ("hidden_size",)) or heads) / heads
    )
    return 2 * kv * each * layers
