"""Tiny random causal LMs of every architecture in transformers, for tests: built in milliseconds, without downloads.

Knows: small configurations per model type, and how to randomise weights so that wrong code shows: signal through every
layer, norms that are not 1, multipliers and soft caps that bite. Does not know: lenscope, nor which models it can read.
"""

import math
from copy import deepcopy
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB = 320
# a size that no name below reaches can still make gigabytes
LARGEST = 3_000_000

_SMALL: dict[str, Any] = {
    "vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size": VOCAB,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_hidden_layers num_layers n_layers n_layer decoder_layers encoder_layers num_decoder_layers": 4,
    "num_encoder_layers": 4,
    "hidden_size d_model n_embd emb_dim lru_width": 32,
    "embedding_size input_embedding_size output_embedding_size": 32,
    "word_embed_proj_dim": 16,
    "intermediate_size ffn_dim ffn_hidden_size feed_forward_size dim_ff dff d_inner mlp_dim mamba_d_ssm": 64,
    "decoder_ffn_dim encoder_ffn_dim intermediate_size_mlp dense_intermediate_size": 64,
    "num_attention_heads num_heads n_heads n_head decoder_attention_heads encoder_attention_heads": 4,
    "num_decoder_attention_heads num_encoder_attention_heads index_n_heads indexer_n_heads": 4,
    "linear_num_heads linear_num_key_heads linear_num_value_heads": 4,
    "mamba_n_heads mamba_num_heads n_mamba_heads": 4,
    "num_key_value_heads swa_num_key_value_heads": 2,
    "head_dim v_head_dim qk_nope_head_dim qk_rope_head_dim swa_head_dim attention_head_dim indexer_head_dim": 8,
    "linear_head_dim linear_key_head_dim linear_value_head_dim dim_head kv_channels rotary_dim": 8,
    "index_head_dim mamba_head_dim mamba_headdim mamba_d_head": 16,
    "q_lora_rank kv_lora_rank o_lora_rank router_hidden_size": 16,
    "adapter_rank laurel_rank gated_norm_rank hc_lowrank mamba_dt_rank hidden_size_per_layer_input": 8,
    "pronunciation_embed_dim shape_embed_dim": 8,
    "pronunciation_vocab_size shape_vocab_size": 20,
    "state_size ssm_state_size mamba_d_state": 8,
    "chunk_size mamba_chunk_size": 16,
    "max_position_embeddings n_positions n_ctx max_seq_len": 64,
    "sliding_window sliding_window_size window_size attention_window_size rel_extent": 32,
    "num_experts num_local_experts n_routed_experts moe_num_experts": 4,
    "num_experts_per_tok num_experts_per_token moe_topk moe_k": 2,
    "n_shared_experts num_shared_experts moe_num_shared_experts": 1,
    "n_group num_expert_group topk_group first_k_dense_replace": 1,
    "moe_intermediate_size expert_ffn_hidden_size shared_intermediate_size": 32,
    "shared_expert_intermediate_size shared_experts_intermediate_size moe_shared_expert_intermediate_size": 32,
    "image_size": 28,
    "patch_size": 14,
    # BERT and its kin are causal only then
    "is_decoder": True,
    "add_cross_attention": False,
    # usual values, often 1 or large, would hide a scale or a cap that is left out
    "embedding_multiplier residual_multiplier lm_head_multiplier logit_scale": 0.5,
    "attention_multiplier": 0.3,
    "embedding_scale scale_emb logits_mup_width_multiplier": 2.0,
    "logits_scaling": 4.0,
    "final_logit_softcapping logits_soft_cap output_logit_soft_cap attn_logit_softcapping": 5.0,
    "query_pre_attn_scalar": 8,
    "mup_enabled": True,
}
# Set wherever a configuration has a field of this name.
SMALL = {name: value for names, value in _SMALL.items() for name in names.split()}

_ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"] * 2}
_LINEAR = {"layer_types": ["linear_attention", "full_attention"] * 2}
_CONV = {"layer_types": ["conv", "full_attention"] * 2}
_INKLING = {"layer_types": ["hybrid_sliding", "hybrid"] * 2}
_ZAMBA = {"layers_block_type": ["mamba", "hybrid"] * 2}
_GEMMA4 = {**_ALTERNATING, "num_kv_shared_layers": 2, "global_head_dim": 16}
_DOTS3 = {"per_layer_config": {}, "head_dim": 16}
_QWEN4 = {
    "indexer_kv_heads": 1,
    "indexer_budget": 64,
    "indexer_compress_ratio": 4,
    "ngram_vocab_size_base": 64,
    "split_ngram_parts": 2,
}
_BLT = {"hidden_size_global": 32}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

# What the generic sizes leave inconsistent, large or all of one kind.
OVERRIDES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": _LINEAR,
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 64, "encoder_config": _BLT, "decoder_config": _BLT},
    # as released, to have one scale that is very small
    "cohere": {"logit_scale": 0.0625},
    "cohere_compass_text": {
        **_ALTERNATING,
        "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE},
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v4": {
        "num_key_value_heads": 1,
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
    },
    "dots3_note": {
        "text_config": _DOTS3,
        "vision_config": {"per_layer_config": {}, "adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    },
    "dots3_note_text": _DOTS3,
    "gemma3": {"text_config": _ALTERNATING},
    "gemma3_text": _ALTERNATING,
    "gemma3n_text": {
        **_ALTERNATING,
        "num_kv_shared_layers": 2,
        "intermediate_size": 64,
        "activation_sparsity_pattern": [0.5, 0.5, 0.0, 0.0],
    },
    "gemma4": {"text_config": _GEMMA4},
    "gemma4_text": _GEMMA4,
    "gemma4_unified": {"text_config": _GEMMA4},
    "gemma4_unified_text": _GEMMA4,
    "got_ocr2": {"vision_config": {"output_channels": 16}},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "inkling2_text": _INKLING,
    "inkling_text": _INKLING,
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": _LINEAR,
    "kolibri1": _ALTERNATING,
    "lfm2": _CONV,
    "lfm2_moe": _CONV,
    "longcat_flash": {"head_dim": 8, "zero_expert_num": 2},
    "mamba2": {"head_dim": 16, "n_groups": 1},
    "nemotron_h": {"n_groups": 2},
    "phi4_multimodal": {"audio_config": {"ext_pw_out_channel": 32, "nemo_conv_channels": 32, "num_blocks": 2}},
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local"] * 4},
    "xlm": {"causal": True},
    # its cache has the sizes of its layers only where these are multiples of 64
    "xlstm": {"hidden_size": 128},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {**_ZAMBA, "attention_hidden_size": 64, "attention_head_dim": 16},
    "zamba2": _ZAMBA,
    "zaya": {"num_experts_per_tok": 1},
}

_DRAFT = "a draft head: it runs on the hidden states and the keys and values of another model, and refuses token ids"
_AUDIO = "writes audio codes, several per step, and AutoModelForCausalLM does not build it from its own config"
SKIP: dict[str, str] = {
    "gemma3n": "its vision tower needs timm and Pillow, which the tests do without; gemma3n_text is its language model",
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


def model(
    model_type: str, dtype: torch.dtype = torch.float32, seed: int = 0, *, layers: int | None = None
) -> PreTrainedModel:
    """A tiny random model in eval mode, the same for the same seed and, up to rounding, for every dtype.

    Every one runs in float32. inkling2_text runs in nothing else (its router must stay there), xglm not in float64,
    where a few others give their logits in float32.
    """
    cfg = config(model_type)
    if layers is not None:
        cfg = deepcopy(cfg)
        cfg.num_hidden_layers = layers
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(cfg).parameters())
    if size > LARGEST:
        raise ValueError(f"{model_type}: {size:,} parameters are not tiny")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = AutoModelForCausalLM.from_config(cfg, dtype=torch.float32).eval()
    _randomise(built, seed)
    if dtype == torch.float64:
        # the default, grouped matrix products, knows at most float32
        built.set_experts_implementation("eager")
    return built.to(dtype)


@torch.no_grad()
def _randomise(built: PreTrainedModel, seed: int) -> None:
    """Matrices keep variance, norms and biases leave 1 and 0, the head is loud enough for soft caps to show."""
    draw = torch.Generator().manual_seed(seed)
    # parameters that are shared come once, under the module that owns them first
    owners = {id(p): module for module in reversed(list(built.modules())) for p in module.parameters(recurse=False)}
    for name, p in built.named_parameters():
        noise = torch.randn(p.shape, generator=draw)
        if name.endswith(("A_log", "dt_bias")):
            # they enter through exponentials
            p.add_(noise * 0.1)
        elif p.ndim < 2:
            p.add_(noise * 0.25)
        else:
            p.copy_(noise if isinstance(owners[id(p)], nn.Embedding) else noise / math.sqrt(p.shape[-1]))
    head = built.get_output_embeddings()
    if head is not None and isinstance(getattr(head, "weight", None), Tensor):
        head.weight.copy_(torch.randn(head.weight.shape, generator=draw) * 4 / math.sqrt(head.weight.shape[1]))
        # logits that a multiplier has made small would hide everything else
        spread = built(input_ids=ids(built, 1, 8), use_cache=False).logits.float().std()
        if spread < 1.5:
            head.weight.mul_(4 / spread)


def ids(built: PreTrainedModel, batch: int, length: int, seed: int = 0) -> Tensor:
    """Token ids (batch, length) without special ones."""
    # not the rows of the embedding: some models have more of them than tokens
    n_tokens = min(VOCAB, built.get_input_embeddings().weight.shape[0])
    return torch.randint(10, n_tokens - 10, (batch, length), generator=torch.Generator().manual_seed(seed + 1))


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of its own for each caller: any text goes in and comes out again."""
    return deepcopy(_trained_tokenizer())


@cache
def _trained_tokenizer() -> PreTrainedTokenizerFast:
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
