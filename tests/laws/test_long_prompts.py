"""The laws past the lengths from which on a model may do something else: windows, chunks, RoPE switches, kept prefixes.

Every architecture has tiny ones here (tiny.py: windows of 32 tokens, chunks of 16). Prompts are longer than these, and
further apart than these; what is written crosses them.
"""

import copy

import numpy as np
import pytest
import tiny
import torch
from test_architectures import ARCHITECTURES, REFUSED, mixed_rows, prompts

import lenscope as ls
from lenscope.engine import sweep
from lenscope.engine.token_choice_and_end import TokenChooser
from lenscope.models.deviations import deviation
from lenscope.models.exactness import tolerance

# eager attention takes its softmax in float32 whatever the model's dtype
EXACT = {torch.float32: 1e-4, torch.float64: 5e-6}
READ = [a for a in ARCHITECTURES if a not in REFUSED]


def longrope(built, switch=16):
    """A copy whose rotary frequencies are others beyond `switch` tokens, as Phi-3's are; None where it has none."""
    config = copy.deepcopy(built.config)
    text = config.get_text_config()
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    text.rope_parameters = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "short_factor": [1.0] * (size // 2),
        "long_factor": [8.0] * (size // 2),
        "original_max_position_embeddings": switch,
    }
    if hasattr(text, "original_max_position_embeddings"):
        text.original_max_position_embeddings = switch  # Phi-3's own name for it, which wins
    switched = type(built)(config).eval().to(built.dtype)
    switched.load_state_dict(built.state_dict())
    return switched


def assert_rows_are_what_plain_hooks_give(lm, lengths, new):
    made = mixed_rows(lm, [lm.prompt(p) for p in prompts(lm, *lengths)])
    found, text = {}, {}
    for mode in (None, "plain"):
        h = torch.zeros(len(made), 2, lm.hidden_size, dtype=lm.dtype)
        for some, states in sweep.predict(lm, made, last=2, mode=mode):
            h[some] = states
        found[mode] = lm.unembed(h)
        writer = TokenChooser(lm, len(made), new, (), 0.0, 1.0, 0)
        text[mode] = {}
        for some, wrote in sweep.generate(lm, made, writer.choose, new, mode=mode):
            text[mode].update(zip(some.tolist(), wrote, strict=True))
    assert deviation(found[None], found["plain"]) <= EXACT[lm.dtype]
    for n in range(len(made)):
        assert text[None][n].ids == text["plain"][n].ids
        assert text[None][n].log_probs == pytest.approx(text["plain"][n].log_probs, abs=1e-3)


def assert_a_batch_is_what_its_rows_are_alone(lm, *lengths):
    many = prompts(lm, *lengths)
    for ids, states in zip(many, lm.read(many).split(), strict=True):
        assert torch.isfinite(states.tensor).all()
        assert deviation(states.tensor, lm.read(ids).tensor) <= EXACT[lm.dtype]


def assert_written_is_what_reading_anew_gives(lm, lengths, new):
    many = prompts(lm, *lengths)
    for ids, one in zip(many, lm.generate(many, new), strict=True):
        for n, token in enumerate(one.ids):
            state = lm.read([*ids, *one.ids[:n]], layers=lm.n_layers, positions=-1)[lm.n_layers, -1]
            logits = lm.unembed(state)
            assert logits.max() - logits[token] <= EXACT[lm.dtype] * logits.std()


@pytest.mark.parametrize("architecture", READ)
def test_past_a_models_own_windows_the_laws_hold(architecture):
    lm = ls.LM(tiny.model(architecture), None, architecture)
    short = lm.read(prompts(lm, 5)[0]).tensor
    assert_a_batch_is_what_its_rows_are_alone(lm, 46, 5, 37)
    assert torch.equal(lm.read(prompts(lm, 5)[0]).tensor, short), "a long run left its traces"
    if lm.runner.regimes.of(44):
        # each length that a run reaches is measured anew, which is most of the time that this takes
        assert_written_is_what_reading_anew_gives(lm, (31, 29), 4)
        assert_written_is_what_reading_anew_gives(lm, (46, 44), 2)
        assert_rows_are_what_plain_hooks_give(lm, (46, 44), 2)
        assert_rows_are_what_plain_hooks_give(lm, (31,), 3)
    else:
        # nothing is named that sets in at a length: what is written crosses it all the same
        assert_written_is_what_reading_anew_gives(lm, (31,), 3)
        assert_rows_are_what_plain_hooks_give(lm, (31,), 2)


# one of each kind of attention, window and recurrence
EAGER = [
    "cohere2", "deepseek_v3", "falcon", "gemma2", "gemma3_text", "gpt2", "gpt_neo", "gpt_neox", "gpt_oss", "llama",
    "llama4_text", "mistral", "olmo2", "opt", "phi3", "qwen2", "qwen3", "recurrent_gemma", "smollm3", "starcoder2",
]  # fmt: skip


@pytest.mark.parametrize("architecture", EAGER)
def test_in_float64_with_eager_attention_the_laws_hold_past_the_windows(architecture):
    """Rows that see nothing but padding are NaN there: with padding longer than a window, before they are looked at."""
    built = tiny.model(architecture, torch.float64)
    built.set_attn_implementation("eager")
    lm = ls.LM(built, None, architecture)
    assert_a_batch_is_what_its_rows_are_alone(lm, 46, 5, 12)
    assert_written_is_what_reading_anew_gives(lm, (46, 5), 2)
    assert_rows_are_what_plain_hooks_give(lm, (40,), 3)


@pytest.mark.parametrize("architecture", ["llama", "phi3", "mistral", "qwen2", "gemma", "olmo", "starcoder2"])
def test_where_rotary_frequencies_switch_with_length_the_laws_hold(architecture):
    lm = ls.LM(longrope(tiny.model(architecture)), None, architecture)
    assert 16 in lm.runner.regimes.thresholds
    alone = lm.read(prompts(lm, 10)[0])
    longer = lm.read([*prompts(lm, 10)[0], *prompts(lm, 14)[0]])
    assert deviation(longer[:, :10], alone[:, :]) > 1e-2, "the switch does nothing"
    assert_a_batch_is_what_its_rows_are_alone(lm, 24, 10, 16, 17, 15)
    assert_written_is_what_reading_anew_gives(lm, (10, 13, 20), 8)
    assert_rows_are_what_plain_hooks_give(lm, (13, 20), 6)


def test_dynamic_rotary_embeddings_do_not_remember_longer_runs():
    built = tiny.model("llama")
    config = copy.deepcopy(built.config)
    config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    config.max_position_embeddings = 16

    def fresh():
        made = type(built)(config).eval()
        made.load_state_dict(built.state_dict())
        lm = ls.LM(made, None, "dynamic")
        lm.encoder.context = None
        return lm

    lm, texts = fresh(), prompts(fresh(), 40, 20, 12)
    expected = [fresh().read(ids).tensor for ids in texts]
    for ids, states in [*zip(texts, expected, strict=True)] * 2:
        assert torch.equal(lm.read(ids).tensor, states)
    for one, states in zip(lm.read(texts).split(), expected, strict=True):
        assert torch.allclose(one.tensor, states, atol=1e-5)


def test_a_model_that_looks_ahead_beyond_a_length_is_refused_there():
    class Peeking(type(tiny.model("mistral"))):
        def forward(self, input_ids=None, **kwargs):
            if input_ids.shape[1] > 40:  # earlier positions see a token that comes later
                kwargs["inputs_embeds"] = self.get_input_embeddings()(input_ids) + self.get_input_embeddings()(
                    input_ids[:, -1:]
                )
                input_ids = None
            return super().forward(input_ids=input_ids, **kwargs)

    built = tiny.model("mistral")
    built.__class__ = Peeking
    built.config.sliding_window = 40
    lm = ls.LM(built, None, "peeking")
    assert lm.read(prompts(lm, 30)[0]).tensor.shape[2] == 30
    with pytest.raises(ls.LenscopeError, match=r"changing the last of 45 tokens .* not a causal"):
        lm.read(prompts(lm, 45)[0])


def test_a_few_prompts_beyond_a_window_still_run_together():
    """Grouping by length is for models whose numbers padding moves; others would lose a batch for nothing."""
    lm = ls.LM(tiny.model("mistral"), None, "mistral")
    lm.read(prompts(lm, 46, 5, 37))
    shapes = []
    with lm.runner.watching(0, lambda h: shapes.append(h.shape[0])):
        lm.read(prompts(lm, 46, 5, 37))
    assert shapes == [3]
    assert np.isfinite(tolerance(lm.runner))
