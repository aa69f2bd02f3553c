"""Cotangents of a row go down the stages in little more room than they take, and a killed run finds what is done."""

import pytest
import torch

from lenscope.errors import LenscopeError
from lenscope.fitting.row_on_disk import RowInMemory, RowOnDisk

CHUNKS, LAYERS, SHAPE = (3, 3, 2), 4, (5, 6)


def opened(folder, about="a"):
    return RowOnDisk(folder, {"row": about}, CHUNKS, LAYERS, SHAPE, torch.bfloat16, torch.float32)


def numbers(stage, chunk, *shape):
    return torch.full(shape, float(10 * stage + chunk + 1))


def work(room, steps):
    """The next steps: what is read is what the stage before wrote."""
    for number in range(room.done, room.done + steps):
        stage, chunk = divmod(number, len(CHUNKS))
        count = CHUNKS[chunk]
        if stage:
            assert torch.equal(room.read(stage, chunk).float(), numbers(stage - 1, chunk, count, *SHAPE))
        gradients = numbers(stage, chunk, count, *SHAPE) if stage + 1 < LAYERS else None
        room.write(stage, chunk, numbers(stage, chunk, count, SHAPE[1]), gradients)


def expected():
    """Layers from the last one down, dimensions chunk by chunk."""
    rows = [
        [10 * stage + chunk + 1.0 for chunk, count in enumerate(CHUNKS) for _ in range(count)]
        for stage in range(LAYERS)
    ]
    return torch.tensor(rows[::-1])[..., None].expand(-1, -1, SHAPE[1])


@pytest.mark.parametrize("at", range(LAYERS * len(CHUNKS) + 1))
def test_a_row_goes_on_wherever_it_was_left(tmp_path, at):
    work(opened(tmp_path), at)
    room = opened(tmp_path)
    assert room.done == at
    work(room, LAYERS * len(CHUNKS) - at)
    assert opened(tmp_path).finished
    assert torch.equal(opened(tmp_path).jacobians, expected())


def test_a_chunk_that_was_half_written_is_not_done(tmp_path):
    work(opened(tmp_path), 5)
    room = opened(tmp_path)
    room._cotangents[room._slot(1, 2)] = torch.nan
    assert opened(tmp_path).done == 5
    work(opened(tmp_path), 7)
    assert torch.equal(opened(tmp_path).jacobians, expected())


def test_there_is_room_for_one_chunk_more_than_there_are(tmp_path):
    opened(tmp_path)
    assert (tmp_path / "cotangents").stat().st_size == (len(CHUNKS) + 1) * 3 * 5 * 6 * 2


# of the Jacobians those of the last layer are known first
@pytest.mark.parametrize(
    ("name", "place"), [("cotangents", -1), ("jacobians", -4), ("done", 7), ("cotangents.sha256", -1)]
)
def test_damage_is_seen_and_the_row_begun_anew(tmp_path, name, place):
    work(opened(tmp_path), 4)
    content = bytearray((tmp_path / name).read_bytes())
    content[place] ^= 64
    (tmp_path / name).write_bytes(content)
    room = opened(tmp_path)
    assert room.done == 0
    work(room, LAYERS * len(CHUNKS))
    assert torch.equal(room.jacobians, expected())


def test_another_row_begins_anew_and_a_full_disk_is_told(tmp_path, monkeypatch):
    work(opened(tmp_path), 4)
    assert opened(tmp_path, "b").done == 0
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(LenscopeError, match="the gradients of a row and its Jacobians take"):
        opened(tmp_path, "c")


def test_in_memory_it_is_the_same():
    room = RowInMemory(CHUNKS, LAYERS, SHAPE[1], torch.float32)
    work(room, LAYERS * len(CHUNKS))
    assert torch.equal(room.jacobians, expected())
