"""Tiny models that verbalisers which others trained can be used with: marks are single tokens, prompts may be long.

Knows: a tokenizer that has " ?" and "㈎" as tokens, and a chat template. Does not know: which verbaliser asks.
"""

import tiny
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import lenscope as ls

MARK = "㈎"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% if enable_thinking is false %}(no thoughts) {% endif %}{% endif %}"
)


def tokenizer(sentences=("Is it a cat ? ? ? ? ?", f"{MARK} {MARK} {MARK}"), bos=True):
    """A byte-level BPE tokenizer with a chat template, which puts <s> in front of plain texts."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=tiny.VOCAB,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(list(sentences) * 4, trainer)
    if bos:
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    wrapped.chat_template = TEMPLATE
    return wrapped


def model(kind="llama", dtype=torch.float32, layers=4, seed=0):
    """A tiny random model that reads up to 512 tokens."""
    config = tiny.config(kind)
    config.max_position_embeddings, config.num_hidden_layers = 512, layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    torch.manual_seed(seed)
    built = AutoModelForCausalLM.from_config(config).eval()
    tiny._randomise(built, seed)
    return built.to(dtype)


def asked(kind="llama", dtype=torch.float64, layers=4, **about):
    """The model with its tokenizer."""
    return ls.LM(model(kind, dtype, layers), tokenizer(**about), f"tiny-{kind}")
