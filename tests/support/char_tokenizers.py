"""A tokenizer that splits texts otherwise than the tiny models' own."""

import tiny
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import lenscope as ls


def char_tokenizer():
    """One token per byte, behind a BOS token."""
    vocabulary = {letter: n for n, letter in enumerate(["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>")


def char_model():
    """A model of another architecture, hidden size, depth and tokenizer than `lm`."""
    config = tiny.config("gpt2")
    config.n_embd, config.n_layer = 48, 3
    torch.manual_seed(1)
    built = AutoModelForCausalLM.from_config(config).eval()
    tiny._randomise(built, 1)
    return ls.LM(built.double(), char_tokenizer(), "tiny-gpt2")
