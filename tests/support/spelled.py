"""Small tokenizers of every kind: what each does at the start of a text, between words, and with bytes.

Does not know: lenscope, models.
"""

import string
from functools import cache

import tiny
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "The cat sat on the mat.",
    "The capital of France is Paris.",
    "This is a test of the tokenizer. 日本",
    "a 0 1",
] * 4
MERGES = ["▁ P", "▁P a", "▁Pa r", "▁Par i", "▁Pari s", "▁ i", "▁i s", "▁ I", "▁I t"]


def _template(text: str, *marks: tuple[str, int]) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single=text, pair=f"{text} $B", special_tokens=list(marks))


@cache
def llama2(letters: int = 0) -> PreTrainedTokenizerFast:
    """Llama-2, Mistral, TinyLlama, Phi-3: a space before every text, bytes for what the vocabulary lacks."""
    known = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(0 if letters else 256)), "▁"]
    known += [*string.punctuation, *string.digits, *string.ascii_letters, *(["\n"] if letters else [])]
    vocab = {token: n for n, token in enumerate([*known, *(pair.replace(" ", "") for pair in MERGES)])}
    merges = [tuple(pair.split(" ")) for pair in MERGES]
    raw = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)
    raw.decoder = decoders.Sequence(list(steps))
    raw.post_processor = _template("<s> $A", ("<s>", 1))
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@cache
def wordpiece() -> PreTrainedTokenizerFast:
    """BERT: lower case, ## within words, marks around a text."""
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    raw.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    )
    raw.post_processor = _template("[CLS] $A [SEP]", ("[CLS]", 2), ("[SEP]", 3))
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **names)


@cache
def unigram(scheme: str = "always") -> PreTrainedTokenizerFast:
    """T5, XLM-R: a unigram model, ▁ before words, a mark behind a text."""
    raw = Tokenizer(models.Unigram())
    raw.normalizer, raw.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace(prepend_scheme=scheme)
    raw.decoder = decoders.Metaspace(prepend_scheme=scheme)
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", special_tokens=special, show_progress=False)
    raw.train_from_iterator(TEXTS, trainer)
    raw.post_processor = _template("$A </s>", ("</s>", 1))
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="</s>", pad_token="<pad>")


@cache
def letters(unknown: bool = False) -> PreTrainedTokenizerFast:
    """An alphabet of four letters; what is none of them is dropped, or unknown."""
    names = [*(["<unk>"] if unknown else []), "<pad>", "<s>", "</s>", *"ACGT"]
    vocab = {token: n for n, token in enumerate(names)}
    raw = Tokenizer(models.WordLevel(vocab=vocab, unk_token="<unk>") if unknown else models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Split(Regex("."), "isolated"), decoders.Fuse()
    raw.post_processor = _template("$A </s>", ("</s>", 3)) if unknown else _template("<s> $A", ("<s>", 1))
    more = {"unk_token": "<unk>"} if unknown else {}
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", **more)


@cache
def sparse() -> PreTrainedTokenizerFast:
    """Bytes, and two tokens whose ids lie far above the number of tokens."""
    vocab = {c: n for n, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))} | {"ab": 300, "abc": 310}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b"), ("ab", "c")]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw)


TOKENIZERS = {
    "llama2": llama2,
    "wordpiece": wordpiece,
    "unigram": unigram,
    "unigram_first": lambda: unigram("first"),
    "bytelevel": tiny.tokenizer,
    "letters": letters,
    "letters_unknown": lambda: letters(True),
    "sparse": sparse,
}
