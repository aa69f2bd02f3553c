"""What the three methods share: a list is each prompt alone, and mistakes are one clear line."""

import numpy as np
import pytest
import torch
from cells_by_hand import OTHER, PROMPT, TWO

import lenscope as ls
from lenscope.interventions.activation_patching import activation_patching
from lenscope.interventions.attention_knockout import attention_knockout
from lenscope.interventions.causal_tracing import causal_tracing


def test_a_list_is_each_prompt_alone(lm64):
    prompts, subjects = [PROMPT, "This is a test of the tokenizer"], ["cat", "test"]
    many = causal_tracing(lm64, prompts, subjects, ["o", TWO], samples=2)
    hidden = attention_knockout(lm64, prompts, subjects)
    for n, (prompt, subject, answer) in enumerate(zip(prompts, subjects, ["o", TWO], strict=True)):
        alone = causal_tracing(lm64, prompt, subject, answer, samples=2)
        assert np.allclose(many.cells("effect", n), alone.cells(), atol=1e-7)
        assert many.totals["clean"][n] == pytest.approx(alone.totals["clean"][0], abs=1e-7)
        assert np.allclose(hidden.cells("effect", n), attention_knockout(lm64, prompt, subject).cells(), atol=1e-7)
    lengths = [len(lm64.prompt(p)) for p in prompts]
    cells = [(r, layer, p) for r in (0, 1) for layer in range(5) for p in range(lengths[r])]
    assert list(zip(many.run.tolist(), many.layer.tolist(), many.place.tolist(), strict=True)) == cells
    swapped = activation_patching(lm64, [PROMPT, PROMPT], [PROMPT[:4], PROMPT], "o", positions=[(0, 0)])
    assert len(swapped.runs) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lm: causal_tracing(lm, PROMPT, "dog"), "'dog': not in the prompt"),
        (lambda lm: causal_tracing(lm, PROMPT, []), "the list is empty"),
        (lambda lm: causal_tracing(lm, PROMPT, "cat", samples=0), "samples 0: give at least 1"),
        (lambda lm: causal_tracing(lm, PROMPT, "cat", noise=-1.0), "noise -1.0: give a positive"),
        (lambda lm: causal_tracing(lm, PROMPT, "cat", window=0), "window 0"),
        (lambda lm: causal_tracing(lm, PROMPT, "cat", layers=[9]), "layer 9: tiny-llama has layers 0–4"),
        (
            lambda lm: causal_tracing(lm, PROMPT, "cat", restore=torch.zeros(2, 3)),
            r"restore of shape \(2, 3\)",
        ),
        (lambda lm: causal_tracing(lm, [PROMPT, OTHER], ["cat"]), "1 given for 2 prompts"),
        (lambda lm: activation_patching(lm, [PROMPT], [PROMPT, OTHER]), "1 clean and 2 corrupted"),
        (lambda lm: attention_knockout(lm, PROMPT, "cat", layers=[0, 1]), "layer 0: no block"),
        (lambda lm: attention_knockout(lm, PROMPT, -1, queries=0), "which never see them"),
        (lambda lm: attention_knockout(lm, PROMPT, 0, queries=0), "position 0 would see nothing"),
        (lambda lm: attention_knockout(lm, PROMPT, [-2, -1]), "would see neither itself nor position"),
        (lambda lm: attention_knockout(lm, PROMPT, queries=0), "position 0 would see nothing"),
        (
            lambda lm: attention_knockout(lm, PROMPT, "cat").cells("kl"),
            "measure 'kl': these effects have",
        ),
        (lambda lm: attention_knockout(lm, PROMPT, "cat").cells(run=3), "run 3: there are runs 0–0"),
        (
            lambda lm: attention_knockout(lm, PROMPT, "cat").save("x.txt"),
            "saved as .parquet or .json",
        ),
    ],
)
def test_mistakes_are_one_clear_line(lm64, call, message):
    with pytest.raises(ls.LenscopeError, match=message) as error:
        call(lm64)
    assert "\n" not in str(error.value)
