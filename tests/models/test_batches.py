"""Which prompts run together."""

import torch

import lenscope as ls
from lenscope.models import batches


def test_runs_hold_no_more_tokens_than_they_may(lm64, monkeypatch):
    """Padding counts, and the prompt that would be too much is the next run's first."""
    monkeypatch.setattr(batches, "TOKENS_PER_RUN", 12)
    prompts = [lm64.prompt([20] * n) for n in (4, 4, 4, 4, 1, 13)]
    groups = list(batches.length_groups(prompts, lambda short, long: True))
    assert sorted(i for group in groups for i in group) == list(range(6))
    assert all(len(g) == 1 or len(g) * max(len(prompts[i]) for i in g) <= 12 for g in groups)
    assert len(groups) == 3


def test_rows_stay_theirs_when_prompts_run_in_groups(lm64, monkeypatch):
    monkeypatch.setattr("lenscope.models.batches.TOKENS_PER_RUN", 8)
    prompts = ["a longer prompt here", "b", "c c c"]
    v = torch.ones(32, dtype=torch.float64)
    with lm64.edit(ls.Edit(1, 0, v, row=1)):
        states = lm64.read(prompts)
    assert [torch.equal(states[1, 0][row], v) for row in range(3)] == [False, True, False]
