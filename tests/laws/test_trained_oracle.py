"""A tiny Activation Oracle, trained here with peft: it says what the state alone can tell it, and controls do not."""

import asking
import numpy as np
import peft
import pytest
import tiny
import torch

from lenscope.engine import sweep
from lenscope.patchscopes import random_vectors, shuffled_sources
from lenscope.verbalisers import activation_oracle

LETTERS = "abcd"
LAYER, QUESTION = 2, "Which?"


def texts(count, seed):
    """A letter behind eight random ones, and which it is: the question's prompt holds neither."""
    draw = np.random.default_rng(seed)
    answers = np.arange(count) % len(LETTERS)
    fillers = ["".join(draw.choice(list("fghjklmn"), 8)) for _ in range(count)]
    return [f"{filler} {LETTERS[n]}" for filler, n in zip(fillers, answers, strict=True)], answers


def steered(model, ids, places, vectors):
    """Logits (B, V) of a peft model with vectors (B, K, D) added as the authors' hook adds them."""

    def hook(module, args, out):
        at = out[:, places]
        along = torch.nn.functional.normalize(vectors, dim=-1) * at.norm(dim=-1, keepdim=True)
        return torch.cat([out[:, : places[0]], at + along, out[:, places[-1] + 1 :]], 1)

    handle = model.get_base_model().model.layers[1].register_forward_hook(hook)
    try:
        return model(input_ids=torch.tensor([ids]).expand(len(vectors), -1), use_cache=False).logits[:, -1]
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of the adapter, and the model's states are read without it."""
    lm = asking.asked(dtype=torch.float32)
    scope = activation_oracle(lm, QUESTION, LAYER)
    prompt, places = scope.resolved[0]
    prompts, answers = texts(96, 0)
    states = lm.read(prompts, LAYER, -1)[LAYER, :]
    targets = torch.tensor([lm.encoder.ids(letter)[0] for letter in LETTERS])[answers]
    torch.manual_seed(0)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"])
    model = peft.get_peft_model(asking.model(), config)
    steps = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    for step in range(80):
        mine = torch.randperm(len(states), generator=torch.Generator().manual_seed(step))[:32]
        loss = torch.nn.functional.cross_entropy(steered(model, list(prompt.ids), places, states[mine]), targets[mine])
        steps.zero_grad()
        loss.backward()
        steps.step()
    folder = tmp_path_factory.mktemp("oracle")
    model.save_pretrained(folder)
    return folder


def share_right(lm, grid, answers):
    ids = [lm.encoder.ids(letter)[0] for letter in LETTERS]
    return np.mean([grid.ids[n, 0] == ids[answer] for n, answer in enumerate(answers)])


def test_it_answers_from_states_that_it_has_not_seen_and_not_without_them(trained):
    lm = asking.asked(dtype=torch.float32)
    prompts, answers = texts(40, 1)
    states = lm.read(prompts, LAYER, -1)
    scope = activation_oracle(lm, QUESTION, LAYER, adapter=trained)
    right = share_right(lm, scope.predict(states), answers)
    ((_, last),) = list(sweep.predict(scope.lm, scope.without_patch()))
    nothing = int(scope.lm.unembed(last[0, 0]).argmax())
    controls = {
        "no state": np.mean([nothing == lm.encoder.ids(LETTERS[answer])[0] for answer in answers]),
        "random vector": share_right(lm, scope.predict(random_vectors(states)), answers),
        "another's state": share_right(lm, scope.predict(shuffled_sources(states, answers.tolist())), answers),
        "no adapter": share_right(lm, activation_oracle(lm, QUESTION, LAYER).predict(states), answers),
    }
    assert right > 0.9
    # a constant answer is right a quarter of the time
    assert max(controls.values()) < 0.5, controls
    assert controls["another's state"] == 0
    # sources are read without the adapter, before and after
    assert torch.equal(lm.read(prompts, LAYER, -1).tensor, states.tensor)


def test_one_step_is_that_of_peft_itself(trained):
    lm = asking.asked()
    scope = activation_oracle(lm, QUESTION, LAYER, 2, adapter=trained)
    prompt, places = scope.resolved[0]
    v = torch.randn(3, 2, lm.hidden_size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    model = peft.PeftModel.from_pretrained(asking.model(dtype=torch.float64), trained).double().eval()
    with torch.no_grad():
        expected = steered(model, list(prompt.ids), places, v).log_softmax(-1)
    rows = scope.plan(v).rows
    found = torch.cat([scope.lm.unembed(h[:, 0]) for _, h in sweep.predict(scope.lm, rows)]).log_softmax(-1)
    assert (found - expected).abs().max() < 1e-10
    grid = scope.predict(v, top_k=tiny.VOCAB)
    assert np.abs(np.sort(grid.log_probs)[:, ::-1] - np.sort(expected.numpy())[:, ::-1]).max() < 1e-6
