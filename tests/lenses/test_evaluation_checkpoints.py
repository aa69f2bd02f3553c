"""Evaluations that were killed and go on equal those that were not; what is of another run, or damaged, is told."""

import json
import threading
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import tiny
import torch
from evaluated import affine, contents, rows_of

import lenscope as ls
from lenscope.distributed.processes import Group
from lenscope.files.weights_folder import read_folder, write_folder
from lenscope.lenses import evaluation_checkpoints as checkpoints
from lenscope.lenses.evaluate import EvaluationInterrupted, evaluate, transfer
from lenscope.text import predictions


@pytest.fixture(autouse=True)
def a_row_at_a_time(monkeypatch):
    monkeypatch.setattr("lenscope.models.batches.TOKENS_PER_RUN", 8)
    # units come again
    monkeypatch.setattr(predictions, "UNITS", 5)


def after_every_batch(monkeypatch):
    monkeypatch.setattr(checkpoints, "PAUSE", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE", float("inf"))


LENGTHS = (9, 5, 12, 3, 7, 7, 4)


class Killed(BaseException):
    """What nobody handles."""


def killed_at(row, error=Killed):
    def progress(done, _):
        if done == row:
            raise error

    return progress


def measures(lm):
    """The two that go on: an evaluation with a lens of some layers, and a transfer matrix."""
    tuned = affine(lm, [1, 2])
    return [
        lambda rows, **how: evaluate(lm, rows, {"logit": None, "tuned": tuned}, **how),
        lambda rows, **how: transfer(lm, rows, tuned, **how),
    ]


@pytest.mark.parametrize("which", [0, 1])
def test_killed_and_resumed_equals_uninterrupted(lm, tmp_path, monkeypatch, which):
    after_every_batch(monkeypatch)
    rows, run = rows_of(lm, LENGTHS), measures(lm)[which]
    whole, told = run(rows), []
    for row in (1, 3, 6):
        with pytest.raises(Killed):
            run(rows, folder=tmp_path, progress=killed_at(row))
        place, _ = read_folder(tmp_path / "checkpoint", "sums")
        assert place["rows"] == row
    again = run(rows, folder=tmp_path, progress=lambda done, _: told.append(done))
    assert told == [7]
    assert contents(again) == contents(whole)
    read, told = run(rows, folder=tmp_path, progress=lambda done, _: told.append(done)), []
    assert told == []
    assert read == again
    checkpoints.remove_checkpoint(tmp_path)
    assert not tmp_path.exists()


def test_an_interruption_keeps_all_that_was_read(lm, tmp_path):
    rows = rows_of(lm, LENGTHS)
    with pytest.raises(EvaluationInterrupted) as stopped:
        evaluate(lm, rows, folder=tmp_path, progress=killed_at(4, KeyboardInterrupt))
    assert stopped.value.result.rows == read_folder(tmp_path / "checkpoint", "sums")[0]["rows"] == 4
    told = []
    again = evaluate(lm, rows, folder=tmp_path, progress=lambda done, _: told.append(done))
    assert told == [5, 6, 7]
    assert contents(again) == contents(evaluate(lm, rows))


def test_nothing_is_left_of_a_run_that_failed_at_once(lm, tmp_path):
    with pytest.raises(ls.LenscopeError, match="no prediction counts"):
        evaluate(lm, [], folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_more_text_goes_on_and_less_or_other_text_is_refused(lm, tmp_path, monkeypatch):
    after_every_batch(monkeypatch)
    rows, other = rows_of(lm, LENGTHS), rows_of(lm, LENGTHS, seed=50)
    with pytest.raises(Killed):
        evaluate(lm, rows[:4], folder=tmp_path, progress=killed_at(4))
    message = f"^{tmp_path}/checkpoint: is of another run, whose text was another; remove it to begin anew$"
    for unlike in (rows[:2], [rows[0], *other[1:]], [*rows[:2], *rows[3:]]):
        with pytest.raises(ls.LenscopeError, match=message):
            evaluate(lm, unlike, folder=tmp_path)
    assert contents(evaluate(lm, rows, folder=tmp_path)) == contents(evaluate(lm, rows))
    for unlike in (rows[:6], [*rows, other[0]]):
        with pytest.raises(ls.LenscopeError, match=message):
            evaluate(lm, unlike, folder=tmp_path)


def test_the_same_ids_in_other_documents_are_other_text(lm, tmp_path, monkeypatch):
    after_every_batch(monkeypatch)
    texts = [[n + 10 for n in range(40)], [n + 90 for n in range(40)]]
    corpus = ls.Corpus.open(lm, texts, length=16)
    with pytest.raises(Killed):
        evaluate(lm, corpus.batches(64, 1), folder=tmp_path, progress=killed_at(4))
    rows = [batch.ids[0].tolist() for batch in corpus.batches(64, 1)]
    with pytest.raises(ls.LenscopeError, match="whose text was another"):
        evaluate(lm, rows, folder=tmp_path)
    again = evaluate(lm, corpus.batches(64, 1), folder=tmp_path)
    assert contents(again) == contents(evaluate(lm, corpus.batches(64, 1)))


def test_other_settings_are_refused_in_one_line(lm, tmp_path):
    rows, tuned = rows_of(lm, LENGTHS), affine(lm, [1, 2])
    with pytest.raises(EvaluationInterrupted):
        evaluate(lm, rows, {"a": tuned}, folder=tmp_path, progress=killed_at(2, KeyboardInterrupt))
    other = ls.LM(tiny.model("llama", seed=1), tiny.tokenizer(), "llama")
    scaled = replace(tuned, weights={pair: (a * 2, b) for pair, (a, b) in tuned.weights.items()})
    for name, call in {
        "model": lambda: evaluate(other, rows, {"a": affine(other, [1, 2])}, folder=tmp_path),
        "lenses": lambda: evaluate(lm, rows, {"a": scaled}, folder=tmp_path),
        "layers": lambda: evaluate(lm, rows, {"a": tuned}, [1], folder=tmp_path),
        "seed": lambda: evaluate(lm, rows, {"a": tuned}, seed=1, folder=tmp_path),
        "kind": lambda: transfer(lm, rows, tuned, folder=tmp_path),
    }.items():
        with pytest.raises(ls.LenscopeError, match=f"is of another run, with other {name}; remove it to begin anew$"):
            call()
    with pytest.raises(ls.LenscopeError, match="lens f: is a function, which a checkpoint cannot tell from another"):
        evaluate(lm, rows, {"f": lambda h: h}, folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_processes_that_measure_together_refuse_a_folder(lm, tmp_path, monkeypatch):
    """What they would leave, each with sums of its own, could not be gone on from."""
    monkeypatch.setitem(evaluate.__globals__, "joined", lambda device: nullcontext(Group(0, 2)))
    for measure in (evaluate, lambda *rows, folder: transfer(*rows, affine(lm, [1, 2]), folder=folder)):
        with pytest.raises(ls.LenscopeError, match="2 processes that measure together leave no checkpoints"):
            measure(lm, rows_of(lm, LENGTHS), folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_second_run_in_the_folder_is_told(lm, tmp_path):
    """From within the first one's progress, where another thread begins."""
    rows, errors = rows_of(lm, LENGTHS), []

    def second():
        try:
            evaluate(lm, rows, folder=tmp_path)
        except ls.LenscopeError as error:
            errors.append(str(error))

    def progress(done, _):
        if done == 2:
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()

    first = evaluate(lm, rows, folder=tmp_path, progress=progress)
    assert errors == [f"{tmp_path}: another run is writing to it; wait for its end, or give another folder"]
    assert contents(first) == contents(evaluate(lm, rows))


def damage(folder, how):
    """Change one thing about the checkpoint, with its digests made right again where the change is no damage."""
    config = folder / "config.json"
    (weights,) = folder.glob("sums-*.safetensors")
    if how == "flip":
        data = bytearray(weights.read_bytes())
        data[-9] ^= 4
        weights.write_bytes(data)
    elif how == "truncate":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "delete":
        weights.unlink()
    elif how == "config":
        config.write_text(config.read_text()[:-20])
    elif how == "rows":
        config.write_text(config.read_text().replace('"rows": 3', '"rows": 2'))
    else:
        place, tensors = read_folder(folder, "sums")
        place = {name: value for name, value in place.items() if name not in ("weights", "sha256")}
        if how == "format":
            place["format"] = 9
        elif how == "shape":
            tensors["sums"] = tensors["sums"][:, :1].contiguous()
        elif how == "nan":
            tensors["sums"][0, 0, 0] = torch.nan
        elif how == "negative":
            tensors["means.0"][0, 0] = -1
        elif how == "mass":
            tensors["means.0"][1] *= 2
        elif how == "agreement":
            tensors["sums"][0, 0, 2] = 100
        elif how == "twice":
            tensors["groups"][:] = 0
        elif how == "tokens":
            place["tokens"] += 1
        elif how == "more":
            tensors["more"] = torch.zeros(1)
        else:
            del tensors[how]
        write_folder(folder, "sums", place, tensors)


@pytest.mark.parametrize(
    "how",
    ["flip", "truncate", "delete", "config", "rows", "format", "shape", "nan", "negative", "mass", "agreement",
     "twice", "tokens", "more", "sums", "counts", "groups", "means.1"],
)  # fmt: skip
def test_a_damaged_checkpoint_is_refused_with_the_remedy(lm, tmp_path, how):
    rows = rows_of(lm, LENGTHS)
    with pytest.raises(EvaluationInterrupted):
        evaluate(lm, rows, folder=tmp_path, progress=killed_at(3, KeyboardInterrupt))
    damage(tmp_path / "checkpoint", how)
    with pytest.raises(
        ls.LenscopeError, match=r"/checkpoint: is no checkpoint that can be read .*; remove it$"
    ) as error:
        evaluate(lm, rows, folder=tmp_path)
    assert "\n" not in str(error.value)


def test_without_sizes_of_texts_none_are_known_afterwards(lm, tmp_path, monkeypatch):
    after_every_batch(monkeypatch)
    texts = ["The cat sat on the mat.", "Paris is it, and a test", "This is a test."]
    with pytest.raises(Killed):
        evaluate(lm, texts, folder=tmp_path, progress=killed_at(2))
    again = evaluate(lm, texts, folder=tmp_path)
    assert again.bytes is not None
    assert contents(again) == contents(evaluate(lm, texts))


def test_writing_takes_a_small_part_of_the_time(lm, tmp_path, monkeypatch):
    """By a clock of our own: a batch takes 1 s, a checkpoint 4 s, and the first one is believed to take 3 s."""
    now, written = [0.0], []

    class Sums:
        rows, tokens, sha256 = 0, 0, ""

        def tensors(self):
            return {"sums": torch.zeros(int(3 * checkpoints.SPEED / 8), dtype=torch.float64, device="meta")}

    def write(*_):
        written.append(now[0])
        now[0] += 4

    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(checkpoints, "write_folder", write)
    checkpoint, sums = checkpoints.EvaluationCheckpoint(tmp_path, {}), Sums()
    for batch in range(1000):
        now[0] += 1
        sums.rows = batch + 1
        checkpoint.save_if_due(sums)
    assert written == [150.0, *np.arange(354, 1000 + 4 * len(written), 204)]
    assert 4 * len(written) / now[0] <= checkpoints.SHARE


def test_nothing_is_written_without_a_folder(lm, tmp_path, monkeypatch):
    after_every_batch(monkeypatch)
    monkeypatch.setattr(checkpoints, "write_folder", lambda *_: pytest.fail("written"))
    evaluate(lm, rows_of(lm, (5, 4)))


def test_the_file_holds_float64_sums_as_they_are(lm, tmp_path):
    rows = rows_of(lm, LENGTHS)
    with pytest.raises(EvaluationInterrupted):
        evaluate(lm, rows, folder=tmp_path, progress=killed_at(5, KeyboardInterrupt))
    config = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    tensors = safetensors.torch.load_file(tmp_path / "checkpoint" / config["weights"])
    assert {t.dtype for name, t in tensors.items() if name != "groups"} == {torch.float64}
    assert len(tensors["groups"]) == 5
    assert sorted(name for name in tensors if name.startswith("means")) == [f"means.{n}" for n in range(5)]
