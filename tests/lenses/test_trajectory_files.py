"""Trajectories are written as they come, whatever their number."""

import lenscope as ls
from lenscope.lenses.trajectory_files import TrajectoryFile


def test_prompts_are_written_as_they_come(lm, tmp_path, monkeypatch):
    """What waits to be written does not grow with the number of prompts, and the file is the one that `save` writes."""
    monkeypatch.setattr("lenscope.lenses.trajectory_files.GROUP", 40)
    many = [ls.Lens(lm).trajectory(f"prompt {n}") for n in range(12)]
    for name in ("r.parquet", "r.json"):
        kept = TrajectoryFile.open(tmp_path / name)
        for t in many:
            kept.add(t)
            assert sum(map(len, getattr(kept, "_waiting", ()))) < 80
        assert not (tmp_path / name).exists()
        assert kept.end()
        ls.save(many, tmp_path / f"whole-{name}")
        ours, whole = (ls.load_results(tmp_path / n) for n in (name, f"whole-{name}"))
        assert [t.to_json() for t in ours] == [t.to_json() for t in whole]
    nothing = TrajectoryFile.open(tmp_path / "none.json")
    assert not nothing.end()
    assert not (tmp_path / "none.json").exists()
