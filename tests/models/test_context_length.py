"""How many tokens a model reads: that many it does, and one more is refused, on every architecture."""

import pytest
import tiny
import torch
from transformers import (
    AutoModelForCausalLM,
    MptConfig,
    OPTConfig,
    RobertaConfig,
    RobertaForCausalLM,
    XLMRobertaConfig,
)

import lenscope as ls

# architectures whose context is not the 64 tokens that tiny.py gives them: what their first rows are kept for ...
ROBERTAS = ("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod")
FEWER = dict.fromkeys(ROBERTAS, 63)
# ... and those that nothing limits
UNLIMITED = {"bloom", "falcon_mamba", "mamba", "mamba2", "recurrent_gemma", "rwkv", "xlstm", "zamba", "zamba2"}


@pytest.mark.parametrize("architecture", tiny.architectures())
def test_a_model_reads_its_context_and_not_one_token_more(architecture):
    try:
        lm = ls.LM(tiny.model(architecture), None, architecture)
    except ls.LenscopeError:
        pytest.skip("refused for another reason, see test_architectures.py")
    if lm.context is None:
        assert architecture in UNLIMITED
        return
    if lm.context > 128:
        pytest.skip(f"reads {lm.context} tokens, which tiny.py has no field for")
    assert lm.context == FEWER.get(architecture, 64)
    ids = tiny.ids(lm.model, 1, lm.context + 1)[0].tolist()
    assert lm.read(ids[:-1]).tensor.isfinite().all()
    with pytest.raises(ls.LenscopeError, match=f"reads at most {lm.context}"):
        lm.read(ids)
    with pytest.raises(ls.LenscopeError, match=f"at most {lm.context}"):
        lm.generate(ids[:-1], 1)


@pytest.mark.parametrize("pad", [0, 1, 5])
def test_the_rows_before_the_first_token_are_not_positions(pad):
    """RoBERTa's first token has position padding_idx + 1."""
    for kind in (RobertaConfig, XLMRobertaConfig):
        config = kind(
            vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            max_position_embeddings=34, is_decoder=True, pad_token_id=pad,
        )  # fmt: skip
        lm = ls.LM(AutoModelForCausalLM.from_config(config).eval(), None, "m")
        assert lm.context == 34 - pad - 1
        lm.read(list(range(10, 10 + lm.context)))
        with pytest.raises(ls.LenscopeError, match="reads at most"):
            lm.read(list(range(10, 11 + lm.context)))


def test_a_table_that_was_cut_limits_what_is_read():
    """Whatever the configuration says."""
    model = tiny.model("gpt2")
    model.transformer.wpe.weight = torch.nn.Parameter(model.transformer.wpe.weight[:20].detach())
    lm = ls.LM(model, None, "m")
    assert lm.context == 20
    lm.read(list(range(10, 30)))
    with pytest.raises(ls.LenscopeError, match="reads at most 20"):
        lm.read(list(range(10, 31)))


def test_the_context_has_many_names():
    small = {"vocab_size": 320, "hidden_size": 32, "d_model": 32, "num_attention_heads": 4, "n_heads": 4, "ffn_dim": 64}
    opt = OPTConfig(**small, num_hidden_layers=2, max_position_embeddings=40, word_embed_proj_dim=32)
    assert ls.LM(AutoModelForCausalLM.from_config(opt).eval(), None, "m").context == 40
    mpt = MptConfig(vocab_size=320, d_model=32, n_heads=4, n_layers=2, expansion_ratio=2, max_seq_len=48)
    lm = ls.LM(AutoModelForCausalLM.from_config(mpt).eval(), None, "m")
    assert lm.context == 48
    with pytest.raises(ls.LenscopeError, match="reads at most 48"):
        lm.read(list(range(10, 59)))


def test_the_tokens_of_the_probe_are_no_positions():
    """A vocabulary that the model was given in order, and tokens in order in the text."""
    config = RobertaConfig(
        vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        max_position_embeddings=600, is_decoder=True,
    )  # fmt: skip
    assert ls.LM(RobertaForCausalLM(config).eval(), None, "m").context == 598
