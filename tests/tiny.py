"""Tiny random causal LMs of every architecture in transformers, for tests: built in milliseconds, without downloads.

Knows: small configurations per model type, and how to randomise weights so that wrong code shows: signal through every
layer, norms that are not 1, multipliers and soft caps that bite. Does not know: lenscope.
"""

import math
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB = 320

# Set wherever a configuration has a field of this name.
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "model_dim", "embedding_size", "word_embed_proj_dim"), 32
    ),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads",), 2),
    **dict.fromkeys(("head_dim", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "attention_head_dim"), 8),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size", "dim_ff", "shared_intermediate_size"), 64),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("decoder_layers", "encoder_layers", "num_decoder_layers", "num_encoder_layers"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_decoder_attention_heads", "num_encoder_attention_heads"), 4),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim"), 64),
    "is_decoder": True,  # BERT and its kin are causal only then
    "add_cross_attention": False,
    "use_cache": True,
    "rotary_dim": 8,
    "sliding_window": 32,
    "image_size": 28,
    "patch_size": 14,
    "vocab_size_per_layer_input": VOCAB,
    "hidden_size_per_layer_input": 8,
    **dict.fromkeys(("linear_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("linear_num_heads", "linear_num_key_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("num_expert_group",), 1),
    "first_k_dense_replace": 1,
}

_LINEAR = ["linear_attention", "full_attention"] * 2
_HYBRID = ["mamba", "attention", "mamba", "attention"]
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_GEMMA = {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 0}
_GEMMA4 = {**_GEMMA, "per_layer_config": {"01": {"head_dim": 16}, "03": {"head_dim": 16}}}
_DOTS3 = {"per_layer_config": {}, "head_dim": 16, "index_head_dim": 8, "index_n_heads": 4, "index_topk": 64}
_QWEN4 = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 64,
    "indexer_compress_ratio": 4,
    "ngram_vocab_size_base": 64,
    "split_ngram_parts": 2,
    "hc_lowrank": 8,
}
_ZAMBA = ["mamba", "hybrid", "mamba", "hybrid"]

# What the generic sizes leave inconsistent, and multipliers and caps whose default would hide a missing one.
OVERRIDES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_types": _LINEAR},
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16, "attn_layer_indices": [1, 3]},
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE},
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v4": {"head_dim": 8, "num_key_value_heads": 1},
    "dots3_note": {
        "text_config": _DOTS3,
        "vision_config": {"per_layer_config": {}, "adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    },
    "dots3_note_text": _DOTS3,
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_chunk_size": 16},
    "gemma2": {"final_logit_softcapping": 5.0},
    "gemma3": {"text_config": {"final_logit_softcapping": None}},
    "gemma3_text": {"final_logit_softcapping": 5.0},
    "gemma3n_text": {**_GEMMA, "intermediate_size": 64, "activation_sparsity_pattern": [0.0] * 4, "laurel_rank": 8},
    "gemma4": {"text_config": _GEMMA4},
    "gemma4_text": {**_GEMMA4, "final_logit_softcapping": 5.0},
    "gemma4_unified": {"text_config": _GEMMA4},
    "gemma4_unified_text": _GEMMA4,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5},
    "granitemoehybrid": {"mamba_n_heads": 4, "mamba_d_head": 16, "layer_types": _HYBRID, "logits_scaling": 4.0},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": _LINEAR},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {"head_dim": 8, "zero_expert_num": 2},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "opt": {"word_embed_proj_dim": 16},
    "phi4_multimodal": {"audio_config": {"ext_pw_out_channel": 32, "nemo_conv_channels": 32}},
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "roc_bert": {"pronunciation_vocab_size": 20, "shape_vocab_size": 20},
    "xlm": {"emb_dim": 32, "causal": True},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local"] * 4},
    "zamba": {"attention_hidden_size": 64, "attention_head_dim": 16, "mamba_dt_rank": 4, "layers_block_type": _ZAMBA},
    "zamba2": {"layers_block_type": _ZAMBA, "n_mamba_heads": 4, "mamba_headdim": 16, "mamba_d_state": 8},
    "zaya": {"num_experts_per_tok": 1},
}
_DRAFT = "a draft head: it runs on the hidden states and cache of another model, not on tokens alone"
_AUDIO = "writes audio codes, several per step, and AutoModelForCausalLM does not build it from its own config"
SKIP: dict[str, str] = {
    "blt": "three transformers in one: its main blocks see patches of bytes; 96M parameters at the least",
    "gemma3n": "its vision tower comes from timm, which is not installed; gemma3n_text is its language model",
    "gemma4_assistant": _DRAFT,
    "gemma4_unified_assistant": _DRAFT,
    "musicgen": _AUDIO,
    "musicgen_melody": _AUDIO,
}


@cache
def architectures() -> list[str]:
    """The model types that build small."""
    return sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(SKIP))


def _small(kind: type[PretrainedConfig], overrides: dict[str, Any]) -> PretrainedConfig:
    """A configuration with every size it has a name for made small."""
    known = kind()
    names = (set(vars(known)) | set(kind.attribute_map)) - set(kind.sub_configs)
    values = {name: value for name, value in SMALL.items() if name in names and name not in kind.attribute_map}
    if "kv_lora_rank" in names:
        # multi-head latent attention: as many key heads as heads, and a head size made of its parts
        values["num_key_value_heads"] = values["num_attention_heads"]
        values.pop("head_dim", None)
    for name in kind.sub_configs:
        part = getattr(known, name, None)
        if isinstance(part, PretrainedConfig):
            values[name] = _small(type(part), overrides.get(name, {}))
    return kind(**{**values, **{name: v for name, v in overrides.items() if name not in kind.sub_configs}})


def config(model_type: str) -> PretrainedConfig:
    """The small configuration of a model type."""
    return _small(CONFIG_MAPPING[model_type], OVERRIDES.get(model_type, {}))


def model(model_type: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> PreTrainedModel:
    """A tiny random model in eval mode, the same for the same seed."""
    cfg = config(model_type)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(cfg).parameters())
    if size > 3_000_000:
        raise ValueError(f"{model_type}: {size:,} parameters are not tiny")
    torch.manual_seed(seed)
    built = AutoModelForCausalLM.from_config(cfg, dtype=torch.float32).eval()
    _randomise(built, seed)
    return built.to(dtype)


@torch.no_grad()
def _randomise(built: PreTrainedModel, seed: int) -> None:
    """Matrices keep variance, norms and biases leave 1 and 0, the head is loud enough for soft caps to show."""
    draw = torch.Generator().manual_seed(seed)

    def noise(p: Tensor) -> Tensor:
        return torch.randn(p.shape, generator=draw)

    head = built.get_output_embeddings()
    for name, p in built.named_parameters():
        if p.ndim == 2 and min(p.shape) > 1 and not any(s in name for s in ("A_log", "conv", "router", "gate.weight")):
            scale = 1.0 if "embed" in name or p.shape[0] == VOCAB else 1 / math.sqrt(p.shape[1])
            p.copy_(noise(p) * scale)
        else:
            p.add_(noise(p) * 0.2 * p.abs().mean().clamp(0.05, 1.0))
    if head is not None and isinstance(getattr(head, "weight", None), Tensor):
        head.weight.copy_(noise(head.weight) * 4 / math.sqrt(head.weight.shape[1]))
        # multipliers of 1/16 and the like leave logits too small to show anything else
        spread = built(input_ids=ids(built, 1, 8), use_cache=False).logits.float().std()
        if spread < 2:
            head.weight.mul_(4 / spread)


def ids(built: PreTrainedModel, batch: int, length: int, seed: int = 0) -> Tensor:
    """Token ids (batch, length) without special ones."""
    rows = built.get_input_embeddings().weight.shape[0]
    return torch.randint(10, rows - 10, (batch, length), generator=torch.Generator().manual_seed(seed + 1))


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on a few sentences: any text goes in and comes out again."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    sentences = ["The cat sat on the mat.", "The capital of France is Paris.", "This is a test of the tokenizer."] * 4
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(sentences, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    wrapped.chat_template = (
        "<s>{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    return wrapped
