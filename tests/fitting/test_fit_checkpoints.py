"""A checkpoint is replaced whole or not at all: what was there is gone on from, whenever writing the next one ends."""

import pytest
from safetensors.torch import load_file
from small_fits import SMALL, fitted, same, stop_at

import lenscope as ls
from lenscope.fitting import fit_checkpoints
from lenscope.fitting.optimizers import Nesterov
from lenscope.fitting.recipes import Recipe


@pytest.mark.parametrize("killed", [False, True], ids=["disk full", "killed"])
def test_a_checkpoint_that_is_half_written_leaves_the_former_one(tmp_path, lm, monkeypatch, killed):
    own = fit_checkpoints.write_tensors
    written = []

    def write(folder, tensors, files, group):
        digests = own(folder, tensors, files, group)
        written.append(folder)
        if len(written) == 2:
            # of two files, one half of one is there
            last, *others = sorted(folder.iterdir(), reverse=True)
            last.write_bytes(last.read_bytes()[:100])
            for path in others:
                path.unlink()
            if killed:
                raise KeyboardInterrupt
            raise ls.LenscopeError(f"{folder}: cannot be written (No space left on device)")
        return digests

    monkeypatch.setattr(fit_checkpoints, "write_tensors", write)
    with pytest.raises(KeyboardInterrupt if killed else ls.LenscopeError):
        fitted(lm, recipe=SMALL, folder=tmp_path)
    assert {p.name for p in (tmp_path / "checkpoint").iterdir()} == {"config.json", *(p.name for p in written)}
    seen = []
    lens = fitted(lm, recipe=SMALL, folder=tmp_path, progress=lambda *at: seen.append(at[0]))
    # after the first block that ended a step, not from the beginning
    assert seen[0] > int(written[0].name.removeprefix("after-")) * lens.report["schedule"]["block"] * 32
    assert same(lens, fitted(lm, recipe=SMALL))


def test_one_checkpoint_is_kept_and_holds_no_more_than_it_needs(tmp_path, lm):
    kinds = {
        "ridge": ("ridge", ["start"]),
        "muon": (SMALL, ["start", "state", "weights"]),
        "identity": (Recipe("identity", Nesterov, tokens_per_step=256, columns=None), ["state", "weights"]),
    }
    for name, (recipe, wanted) in kinds.items():
        with pytest.raises(KeyboardInterrupt):
            fitted(lm, recipe=recipe, folder=tmp_path / name, progress=stop_at(3500))
        (place,) = (tmp_path / name / "checkpoint").glob("after-*")
        tensors = [key for path in place.iterdir() for key in load_file(path)]
        assert sorted({t.partition(".")[0] for t in tensors} - {"mean"}) == wanted
