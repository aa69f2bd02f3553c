"""Two processes do what one does: fits, resumed fits, and fits of a model whose blocks are split between them.

Run as a program, with the environment that torchrun sets, this is one of the processes: `test_sharding.py FOLDER`.
"""

import math
import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import tiny
import torch
from several_processes import exact, near, started
from small_fits import SMALL, documents, fitted, make, same, stop_at

import lenscope as ls
from lenscope.distributed.layer_owners import LayerOwners
from lenscope.distributed.processes import Group, joined
from lenscope.distributed.sharding import sharded, text_share
from lenscope.fitting import state_block
from lenscope.fitting import tuned_lens as tuning
from lenscope.fitting import tuned_lens_run as training
from lenscope.fitting.optimizers import Nesterov
from lenscope.fitting.recipes import Recipe
from lenscope.mappings.mapping import load_mapping
from lenscope.models.batches import Running, pad
from lenscope.models.readout import Replayed
from lenscope.text.corpus import Corpus

# name → what is fitted: several blocks with an uneven last one, a text of which a process has no row, the other recipes
# that sum something over layers or nothing, and layers that cannot be shared out evenly, or at all
CASES = {
    "plain": {"recipe": SMALL},
    "short": {"recipe": SMALL, "tokens": 32},
    "published": {"recipe": "published"},
    "ridge": {"recipe": "ridge", "moments_on": "cpu"},
    "clipped": {"recipe": Recipe("identity", Nesterov, tokens_per_step=256, columns=None, best=False)},
    "five": {"recipe": SMALL, "tokens": 1000, "layers": 5},
    "one": {"recipe": SMALL, "tokens": 1000, "layers": 1},
}
# those that are fitted once more with a model whose blocks are split
SPLIT = ("plain", "short", "published")


def fit_case(name, lm=None, **more):
    """One of the CASES, on its own model unless one is given."""
    changed = {**CASES[name], **more}
    layers = changed.pop("layers", None)
    return fitted(lm or ls.LM(tiny.model("llama", layers=layers), tiny.tokenizer(), "llama"), **changed)


def states(lm, rows):
    """The states of all layers, gathered as `Runner.capture` gives them."""
    prompts = [lm.prompt(row) for row in rows]
    kept = {}
    lm.runner.capture(
        Running(prompts, range(len(rows)), len(rows), pad(prompts, "right", lm.device)),
        range(lm.n_layers + 1),
        lambda layer, h: kept.update({layer: h.clone()}),
    )
    return torch.stack([kept[n] for n in range(lm.n_layers + 1)])


def work(folder: Path) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    exact()
    lm = make()
    kept = torch.zeros(2)
    own = training.TunedLensRun.choose

    def choose(run, *args):
        # of a run whose steps are done
        kept[:] = torch.tensor([sum(t.numel() for t in run.weights), len(run.start)])
        return own(run, *args)

    training.TunedLensRun.choose = choose
    for name in CASES:
        # joins the group and leaves it again
        lens = fit_case(name)
        lens.save(folder / f"{name}-{os.environ['RANK']}")
        if name in ("plain", "five", "one"):
            (folder / f"kept-{name}-{os.environ['RANK']}.txt").write_text(" ".join(map(str, kept.tolist())))
    # as where all run one model together, and read the same rows
    tuning.text_share = lambda lm, group: Group()
    fit_case("plain").save(folder / f"together-plain-{os.environ['RANK']}")
    tuning.text_share = text_share
    with joined(lm.device) as group:
        # a checkpoint of one process, and one for one process; what is saved is what all return
        lens = fitted(lm, recipe=SMALL, folder=folder / "of-one")
        assert same(lens, load_mapping(folder / "of-one"))
        with suppress(KeyboardInterrupt):
            stop(2500)
            fitted(lm, recipe=SMALL, folder=folder / "for-one")
        rows = tiny.ids(lm.model, 3, 16).tolist()
        whole = states(lm, rows)
        with sharded(lm):
            size = sum(p.to_local().numel() for p in lm.runner.anatomy.blocks[0].parameters())
            found = [states(lm, rows[: group.rank + 1]) for _ in range(3)]
            # a pass that ends early leaves the model sound
            lm.read(rows[0], layers=[2])
            lm.read(rows[0], layers=[0])
            found.append(states(lm, rows[: group.rank + 1]))
            gap = max(float((f - whole[:, : group.rank + 1]).abs().max()) for f in found)
            for name in SPLIT:
                fit_case(name, lm).save(folder / f"sharded-{name}-{group.rank}")
            with suppress(ls.LenscopeError):
                ls.fit(lm, None, tokens=600, length=32)
                raise AssertionError("it must not write")
        replayed = make("llama")
        replayed.runner.readout = Replayed(replayed.runner.anatomy)
        with suppress(ls.LenscopeError), sharded(replayed):
            raise AssertionError("it must be refused")
    (folder / f"sharded-{group.rank}.txt").write_text(f"{size} {gap}")


def stop(tokens):
    """Progress is told to the first process alone: all of them stop where they have read the same row."""
    own = state_block.StateBlock.read

    def read(self, batch, rows):
        own(self, batch, rows)
        if batch.next_row * 32 >= tokens:
            state_block.StateBlock.read = own
            raise KeyboardInterrupt

    state_block.StateBlock.read = read


def test_two_processes_do_what_one_does(tmp_path, monkeypatch):
    """One test, since starting processes takes longer than all that they do."""
    exact(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        fitted(make(), recipe=SMALL, folder=tmp_path / "of-one", progress=stop_at(2500))
    started(tmp_path, 2, [__file__])

    one = {name: fit_case(name) for name in CASES}
    for name, lens in one.items():
        for kind in ("", *["sharded-"] * (name in SPLIT), *["together-"] * (name == "plain")):
            made = [load_mapping(tmp_path / f"{kind}{name}-{n}") for n in range(2)]
            assert [m.report["processes"] for m in made] == [2, 2]
            assert same(*made)
            assert made[0].source == lens.source
            near(made[0], lens)

    # each has the weights of its layers alone
    shares = {
        name: [tuple(map(float, (tmp_path / f"kept-{name}-{n}.txt").read_text().split())) for n in range(2)]
        for name in ("plain", "five", "one")
    }
    assert shares == {
        "plain": [(2 * 33 * 32, 2)] * 2,
        "five": [(3 * 33 * 32, 3), (2 * 33 * 32, 2)],
        "one": [(33 * 32, 1), (0, 0)],
    }

    # another number of processes goes on
    near(load_mapping(tmp_path / "of-one"), one["plain"])
    assert (tmp_path / "for-one" / "checkpoint" / "config.json").exists()
    seen = []
    lens = fitted(make(), recipe=SMALL, folder=tmp_path / "for-one", progress=lambda *at: seen.append(at[0]))
    assert seen[0] > 1500
    near(lens, one["plain"])

    # a split model is split, and reads the same
    size = sum(p.numel() for p in make().runner.anatomy.blocks[0].parameters())
    for n in range(2):
        kept, gap = map(float, (tmp_path / f"sharded-{n}.txt").read_text().split())
        assert kept < 0.6 * size
        assert gap < 1e-5


@pytest.mark.parametrize("world", [3, 5, 16])
def test_any_number_of_processes_reads_every_row_of_every_block(lm, monkeypatch, world):
    """One process after the other, without messages: rows of blocks where processes read more or less than one has."""
    messages = []
    monkeypatch.setattr(Group, "exchange", lambda self, outgoing, incoming: messages.append((outgoing, incoming)))
    text = Corpus.open(lm, documents(60), length=32)
    plan = training.Schedule.of(lm, 1500, 32, room=1, per_step=256, ridge=True, low=None)
    assert plan.block == 8
    seen = [set() for _ in range(plan.blocks)]
    for rank in range(world):
        owners = LayerOwners(lm.n_layers, Group(rank, world), Group(rank, world))
        run = training.TunedLensRun(lm, text, Recipe(), plan, owners, seed=0, low=None, fast=None, progress=None)
        for number, block in enumerate(run.blocks()):
            rows = range(number * 8, number * 8 + plan.size(number))
            assert list(block.slot) == list(rows)
            assert len(block.slot) * 32 == len(block.last)
            mine = [row for row in rows if row % world == rank]
            assert block.last.view(len(rows), 32, -1)[[block.slot[row] for row in mine]].isfinite().all()
            assert not seen[number] & set(mine)
            seen[number] |= set(mine)
        assert number == plan.blocks - 1
    assert seen == [set(range(n * 8, min(n * 8 + 8, math.ceil(1500 / 32)))) for n in range(plan.blocks)]


def test_one_process_is_a_group_of_its_own(lm):
    with joined(lm.device) as group, sharded(lm):
        t = torch.ones(3)
        group.sum([t])
        group.barrier()
    assert (group.rank, group.world) == (0, 1)
    assert t.tolist() == [1, 1, 1]


def test_rows_are_divided_unless_all_processes_run_one_model_together(lm, monkeypatch):
    assert text_share(lm, Group(1, 2)) == Group(1, 2)
    monkeypatch.setattr(lm.model, "_tp_size", 2, raising=False)
    assert text_share(lm, Group(1, 2)) == Group(0, 1)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
