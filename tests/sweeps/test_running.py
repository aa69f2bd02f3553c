"""Sweeps, run: each row once, equal to Patchscopes by hand, whoever runs them and however often they are killed."""

import dataclasses
import json
import multiprocessing
import random
import shutil
import signal
import time

import affine_lens
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
import torch

import lenscope as ls
from lenscope.files.writing import folder_lock
from lenscope.patchscopes.methods import TARGETS
from lenscope.sweeps import part_files, running
from lenscope.sweeps.sweep_folder import open_sweep

SPEC = {
    "model": "tiny",
    "sources": {
        "prompts": [
            {"text": "the cat sat", "answer": " mat"},
            {"text": "a dog", "layers": [1, 2], "positions": ["dog", 0]},
            "on the mat",
            "the cat sat on",
            {"text": "the cat sat", "answer": " mat"},
        ],
    },
    "targets": ["identity", {"text": "a b x", "at": "x", "below": "source", "layers": [0, 3]}],
    "methods": ["predict", {"generate": 3}, "lens"],
    "mappings": ["identity", {"scale": 0.5}],
    "controls": ["unpatched", "random", "other-source"],
    "rows_per_part": 40,
}

# as many parts, of fewer rows, for what is run over and over
SMALL = {
    **SPEC,
    "targets": "identity",
    "methods": ["predict", {"generate": 2}],
    "mappings": "identity",
    "controls": "random",
    "rows_per_part": 5,
}


@pytest.fixture(scope="module")
def small(lm, tmp_path_factory):
    return ls.sweep(SMALL, tmp_path_factory.mktemp("sweep") / "small", models={"tiny": lm})


@pytest.fixture(scope="module")
def whole(lm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "whole"
    return ls.sweep(SPEC, folder, models={"tiny": lm})


def parts_of(sweep):
    return {path.name: path.read_bytes() for path in (sweep.folder / "parts").iterdir()}


def test_every_row_is_there_once(whole):
    rows = whole.dataset().to_table()
    assert len(rows) == whole.rows == len(set(rows["id"].to_pylist()))
    assert whole.status().complete
    # 4 prompts at 5 layers, but one with 2 layers at 2 positions, which goes to itself; 2 mappings
    own = ds.field("control") == ""
    assert rows.filter(own & (ds.field("target") == "identity")).num_rows == (3 * 5 + 2 * 2) * 2 * 2
    assert rows.filter(own & (ds.field("target") == "a b x")).num_rows == (3 * 5 + 2 * 2) * 2 * 2 * 2
    assert rows.filter(ds.field("control") == "unpatched").num_rows == 2 * 2 * 2
    frame = whole.to_dataframe()
    assert len(frame) == len(rows)
    assert "predict" in str(list(whole.table().columns[0].cells))


def test_rows_are_what_a_patchscope_says_of_each_state_alone(lm, whole):
    rows = whole.dataset().to_table(filter=ds.field("control") == "").to_pylist()
    draw = np.random.default_rng(0)
    checked = set()
    for n in draw.permutation(len(rows))[:60]:
        row = rows[n]
        named = row["target"] == "identity"
        f = None if row["mapping"] == "identity" else lambda h: h * 0.5
        states = lm.read(row["prompt"], positions=row["position"])
        if row["method"] == "lens":
            h = states[row["layer"], row["position"]]
            top = lm.unembed(h if f is None else f(h)).log_softmax(-1)
            assert row["ids"][0] == int(top.argmax())
            assert row["log_probs"][0] == pytest.approx(float(top.max()), abs=1e-4)
        else:
            target = TARGETS["identity"] if named else ls.Target("a b x", at="x", below="source")
            scope = ls.Patchscope(lm, target, f)
            pairs = [(row["layer"], row["target_layer"])]
            if row["method"] == "generate":
                assert scope.generate(states, pairs, max_new_tokens=3)[0].text == row["text"]
            else:
                cell = scope.predict(states, pairs, answers=[row["answer"]] if row["answer"] else ())[0]
                assert list(cell.ids) == row["ids"]
                assert list(cell.log_probs) == pytest.approx(row["log_probs"], abs=1e-4)
                for name in ("kl", "entropy", "surprisal", "precision"):
                    assert row[name] == pytest.approx(cell.measures[name], abs=1e-4), name
                if row["answer"]:
                    assert row["answer_log_prob"] == pytest.approx(cell.measures["log_prob: mat"], abs=1e-4)
                    assert row["answer_pmi"] == pytest.approx(cell.measures["pmi: mat"], abs=1e-4)
        checked.add((row["method"], row["target"], row["mapping"]))
    assert len(checked) == 10


def test_controls_are_other_states_at_the_same_places(lm, whole):
    rows = whole.dataset().to_table().to_pylist()
    key = ("method", "prompt", "position", "layer", "target", "target_layer", "mapping", "answer")
    own = {tuple(row[k] for k in key): row for row in rows if row["control"] == ""}
    for control in ("random", "other-source"):
        mine = [row for row in rows if row["control"] == control]
        assert len(mine) == len(own)
        assert {tuple(row[k] for k in key) for row in mine} == set(own)
    other = next(r for r in rows if r["control"] == "other-source" and r["method"] == "lens" and r["layer"] == 2)
    assert other["other_prompt"] != other["prompt"]
    h = lm.read(other["other_prompt"], 2, other["other_position"])[2, other["other_position"]]
    top = lm.unembed(h * (1 if other["mapping"] == "identity" else 0.5)).log_softmax(-1)
    assert other["log_probs"][0] == pytest.approx(float(top.max()), abs=1e-4)
    unpatched = next(r for r in rows if r["control"] == "unpatched" and r["target"] == "a b x" and r["answer"])
    assert unpatched["kl"] == pytest.approx(0, abs=1e-5)
    log_probs = lm.unembed(lm.read("a b x", lm.n_layers, -1)[lm.n_layers, -1]).log_softmax(-1)
    assert unpatched["log_probs"] == pytest.approx(log_probs.topk(5).values.tolist(), abs=1e-4)


def test_a_run_in_pieces_writes_the_same_bytes(lm, small, tmp_path):
    """Ended by a limit, then killed in the middle of a part, then completed: as if it never ended."""
    first = ls.sweep(SMALL, tmp_path, models={"tiny": lm}, limit=30)
    reached = first.status()
    assert 30 <= reached.rows_done < small.rows

    class Killed(BaseException):
        pass

    seen = []

    def kill(done, total):
        seen.append((done, total))
        if len(seen) == 4:
            raise Killed

    with pytest.raises(Killed):
        ls.sweep(SMALL, tmp_path, models={"tiny": lm}, progress=kill)
    assert seen[0] == (reached.rows_done, small.rows)
    last = ls.sweep(SMALL, tmp_path, models={"tiny": lm})
    assert parts_of(last) == parts_of(small)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    again = ls.sweep(SMALL, tmp_path, models={"tiny": lm})
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()} == before
    assert again.damaged == ()


def _run(lm, folder):
    ls.sweep(SMALL, folder, models={"tiny": lm})


def test_killed_at_random_moments_it_is_the_unbroken_sweep(lm, small, tmp_path):
    """kill -9, wherever the process is; tests/support/killed_sweeps.py does the same to the command."""
    draw, killed = random.Random(0), 0
    for parts in (0, 1, 5, 8, 11):
        process = multiprocessing.get_context("fork").Process(target=_run, args=(lm, tmp_path))
        process.start()
        while process.is_alive() and len([*tmp_path.glob("parts/*.parquet")]) < parts:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.1))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    assert killed >= 4
    assert parts_of(ls.sweep(SMALL, tmp_path, models={"tiny": lm})) == parts_of(small)


@pytest.mark.parametrize("how", ["bit", "cut", "exchanged", "empty"])
def test_a_damaged_part_is_seen_and_run_again(lm, small, tmp_path, how):
    folder = tmp_path / "copy"
    shutil.copytree(small.folder, folder)
    names = [part.name for part in small.parts]
    path = folder / "parts" / names[2]
    content = bytearray(path.read_bytes())
    if how == "bit":
        content[len(content) // 3] ^= 1
    elif how == "cut":
        content = content[:-9]
    elif how == "exchanged":
        content = bytearray((folder / "parts" / names[3]).read_bytes())
    else:
        content = bytearray()
    path.write_bytes(content)
    damaged = open_sweep(folder, SMALL)
    assert damaged.status().damaged == (f"parts/{names[2]}",)
    left = small.dataset().to_table().num_rows - small.parts[2].rows
    assert len(damaged.to_dataframe()) == damaged.dataset().count_rows() == left
    assert damaged.table().row_count > 0
    mended = ls.sweep(SMALL, folder, models={"tiny": lm})
    assert mended.damaged == (f"parts/{names[2]}",)
    assert parts_of(mended) == parts_of(small)


def test_a_disk_that_is_full_is_one_line_and_leaves_what_was_written(lm, small, tmp_path, monkeypatch):
    """The third part does not fit; no temporary file is left, and the next run goes on."""
    written = []

    def full(path):
        written.append(path)
        if len(written) == 3:
            raise ls.LenscopeError(f"{path}: cannot be written (No space left on device)")
        return whole_file(path)

    whole_file = part_files.whole_file
    monkeypatch.setattr(part_files, "whole_file", full)
    with pytest.raises(ls.LenscopeError, match="No space left on device"):
        ls.sweep(SMALL, tmp_path, models={"tiny": lm})
    monkeypatch.undo()
    assert len([*(tmp_path / "parts").iterdir()]) == open_sweep(tmp_path).status().parts_done == 2
    assert parts_of(ls.sweep(SMALL, tmp_path, models={"tiny": lm})) == parts_of(small)


def _hold(folder, held, done):
    with folder_lock(folder):
        held.set()
        done.wait(60)


def test_a_second_run_on_a_folder_is_told(lm, tmp_path):
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, held, done))
    other.start()
    try:
        assert held.wait(60)
        with pytest.raises(ls.LenscopeError, match="another run is writing to it"):
            ls.sweep(SPEC, tmp_path, models={"tiny": lm})
    finally:
        done.set()
        other.join(60)


def test_a_folder_of_another_sweep_is_refused(lm, lm64, whole, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(whole.folder, folder)
    with pytest.raises(ls.LenscopeError, match=r"another spec \(seed, top_k differ\); give another folder"):
        ls.sweep({**SPEC, "top_k": 3, "seed": 1}, folder, models={"tiny": lm})
    with pytest.raises(ls.LenscopeError, match="another model tiny, with other contents"):
        ls.sweep(SPEC, folder, models={"tiny": lm64})
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(ls.LenscopeError, match="is no manifest of a sweep"):
        ls.sweep(SPEC, folder, models={"tiny": lm})


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"sources": {"prompts": ["the cat"], "layers": [9]}},
            r"sources.prompts\[0\] .*layer 9: tiny-llama has layers 0–4",
        ),
        (
            {"sources": {"prompts": ["the cat", "a"], "positions": "cat"}},
            r"prompts\[1\] \('a'\): position 'cat': not in",
        ),
        ({"target_layers": [5]}, "target_layers: layer 5: tiny-llama has layers 0–4"),
        ({"targets": [{"text": "a b", "at": "x"}]}, r"targets\[0\]: position 'x': not in the prompt"),
        ({"targets": [{"text": "a b", "layers": [7]}]}, r"targets\[0\].layers: layer 7"),
        ({"methods": [{"generate": 60}]}, r"methods\[0\]: targets\[0\]: .* reads at most 64"),
        (
            {"sources": {"prompts": [{"text": "a", "answer": "cat " * 40}]}, "controls": []},
            "answer 'cat cat .* are more than tiny-llama reads",
        ),
        ({"mappings": ["no/such/place"]}, r"mappings\[0\]: no/such/place"),
        ({"sources": {"prompts": ["the cat"]}, "controls": ["other-source"]}, "other-source needs other prompts"),
        ({"sources": {"file": "nothing.txt"}}, "sources.file: nothing.txt: no such file"),
    ],
)
def test_a_row_that_cannot_be_run_is_named_before_any_is_run(lm, tmp_path, monkeypatch, change, line):
    monkeypatch.setattr(running, "run_parts", lambda *_: pytest.fail("a row was run"))
    with pytest.raises(ls.LenscopeError, match=line) as raised:
        ls.sweep({**SPEC, **change}, tmp_path, models={"tiny": lm})
    assert "\n" not in str(raised.value)


def test_a_mapping_with_a_gap_names_the_layers_that_it_has(lm, tmp_path):
    f = affine_lens.affine(lm)
    gap = dataclasses.replace(f, weights={pair: w for pair, w in f.weights.items() if pair[0] != 1})
    gap.save(tmp_path / "gap")
    spec = {**SPEC, "sources": {"prompts": ["the cat"], "layers": [1]}, "mappings": [str(tmp_path / "gap")]}
    with pytest.raises(ls.LenscopeError, match=r"not fitted from layer 1 to layer 4.* \(to layer 4: layers 0, 2–4\)"):
        ls.sweep({**spec, "targets": {"name": "identity", "layers": [4]}}, tmp_path / "out", models={"tiny": lm})


def test_a_target_that_stands_twice_has_the_layers_of_both(lm, tmp_path):
    targets = [{"name": "identity", "layers": layers} for layers in ([1], [3], [1, 0])]
    spec = {**SMALL, "targets": targets, "methods": "predict", "controls": ["random", "unpatched"]}
    spec["sources"] = {"prompts": ["the cat"], "layers": [2, 4]}
    rows = ls.sweep(spec, tmp_path, models={"tiny": lm}).to_dataframe()
    rows = rows[rows.control == ""]
    pairs = [(layer, to) for layer in (2, 4) for to in (0, 1, 3)]
    assert [*zip(rows.layer, rows.target_layer, strict=True)] == pairs
    cells = ls.Patchscope(lm, TARGETS["identity"]).predict(lm.read("the cat", positions=-1), pairs)
    assert [cell.measures["entropy"] for cell in cells] == pytest.approx([*rows.entropy], abs=1e-4)


def test_models_of_one_name_are_called_as_they_are_loaded(model, tmp_path):
    spec = {**SMALL, "model": model, "methods": "predict", "controls": []}
    spec["explained_by"] = [model, {"name": model, "dtype": "float64"}]
    rows = ls.sweep(spec, tmp_path).to_dataframe()
    assert {*rows.explained_by} == {model, f"{model} dtype=float64"}


def test_a_layer_out_of_range_in_row_40000_of_a_file(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "run_parts", lambda *_: pytest.fail("a row was run"))
    path = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"text": f"cat {n % 7}", "layers": n % 4}) for n in range(40_000)]
    lines[39_999] = json.dumps({"text": "the cat", "layers": 99})
    path.write_text("\n".join(lines))
    with pytest.raises(ls.LenscopeError, match=r"prompts.jsonl, line 40000 .*layer 99: tiny-llama has layers 0–4"):
        ls.sweep({**SPEC, "sources": {"file": str(path)}}, tmp_path / "out", models={"tiny": lm})


def test_a_file_of_prompts_has_columns_for_what_is_their_own(lm, tmp_path):
    rows = [{"text": "the cat", "layers": [1, 2], "positions": 0, "answer": "a"}, {"text": "on the mat", "answer": "b"}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "p.csv").write_text('text,layers,positions,answer\nthe cat,"1,2",0,a\non the mat,,,b\n')
    table = pa.table(
        {"text": [r["text"] for r in rows], "answer": ["a", "b"], "layers": [[1, 2], None], "positions": [0, None]}
    )
    import pyarrow.parquet as pq

    pq.write_table(table, tmp_path / "p.parquet")
    spec = {**SPEC, "targets": "identity", "methods": "predict", "controls": [], "mappings": "identity"}
    seen = []
    for name in ("p.jsonl", "p.csv", "p.parquet"):
        done = ls.sweep(
            {**spec, "sources": {"file": str(tmp_path / name), "layers": 3}}, tmp_path / name[2:], models={"tiny": lm}
        )
        seen.append(done.dataset().to_table())
    assert seen[0].select(["prompt", "position", "layer", "answer"]).to_pylist() == [
        {"prompt": "the cat", "position": 0, "layer": 1, "answer": "a"},
        {"prompt": "the cat", "position": 0, "layer": 2, "answer": "a"},
        {"prompt": "on the mat", "position": len(lm.prompt("on the mat")) - 1, "layer": 3, "answer": "b"},
    ]
    assert seen[0].equals(seen[1])
    assert seen[0].equals(seen[2])


def test_random_directions_are_those_of_a_place_and_a_seed_alone(lm, tmp_path):
    spec = {**SPEC, "targets": "identity", "methods": "predict", "controls": "random", "mappings": "identity"}
    few = ls.sweep({**spec, "sources": {"prompts": ["a dog"], "layers": [2]}}, tmp_path / "few", models={"tiny": lm})
    many = ls.sweep({**spec, "sources": {"prompts": ["cats", "a dog"]}}, tmp_path / "many", models={"tiny": lm})
    here = (ds.field("control") == "random") & (ds.field("prompt") == "a dog") & (ds.field("layer") == 2)
    (one,), (same,) = (s.dataset().to_table(filter=here).to_pylist() for s in (few, many))
    assert one["id"] == same["id"]
    assert torch.allclose(torch.tensor(one["log_probs"]), torch.tensor(same["log_probs"]), atol=1e-4)
