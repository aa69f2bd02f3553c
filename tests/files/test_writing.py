"""Files are written whole or not at all; one run at a time writes to a folder."""

import multiprocessing
import os
import signal
import threading

import pytest

from lenscope.errors import LenscopeError
from lenscope.files.writing import LOCK, folder_lock, whole_file, whole_files, write_text


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_file_has_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    with whole_file(path) as making:
        making.write_text("new")
        assert making.parent == tmp_path
        assert not path.exists()
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyError, match="mine"), whole_file(path) as making:
        {}[making.write_text("half") and "mine"]
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_clearing_up_does_not_hide_the_error(tmp_path, monkeypatch):
    def unlink(*_, **__):
        raise PermissionError("no")

    monkeypatch.setattr("pathlib.Path.unlink", unlink)
    with pytest.raises(KeyError, match="mine"), whole_file(tmp_path / "a"):
        raise KeyError("mine")


def test_names_as_long_as_the_file_system_allows(tmp_path):
    write_text(tmp_path / ("n" * 255), "text")
    assert names(tmp_path) == ["n" * 255]
    with pytest.raises(LenscopeError, match="cannot be written") as error:
        write_text(tmp_path / ("n" * 256), "text")
    assert "\n" not in str(error.value)


def test_devices_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/null", tmp_path):
        with pytest.raises(LenscopeError, match="no regular file"):
            write_text(path, "text")


def test_new_files_have_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "any").write_text("")
    write_text(tmp_path / "mine", "")
    assert (tmp_path / "any").stat().st_mode == (tmp_path / "mine").stat().st_mode


def test_a_waiting_link_is_not_followed(tmp_path):
    """A link under the name that temporary files of 0.1.0 had, and one in place of the file itself."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in (f".a.txt.{os.getpid()}", "a.txt"):
        (tmp_path / name).symlink_to(victim)
    write_text(tmp_path / "a.txt", "text")
    assert victim.read_text() == "precious"
    assert (tmp_path / "a.txt").read_text() == "text"
    assert not (tmp_path / "a.txt").is_symlink()


def test_threads_do_not_tear_each_others_files(tmp_path):
    path, errors = tmp_path / "a.txt", []
    texts = [str(n) * 200_000 for n in range(4)]

    def writes(text):
        for _ in range(10):
            try:
                write_text(path, text)
                assert path.read_text() in texts
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=writes, args=(t,)) for t in texts]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors
    assert names(tmp_path) == ["a.txt"]


def _killed(path, ready):
    with whole_file(path) as making:
        making.write_text("half")
        ready.set()
        signal.pause()


def _holds(folder, ready):
    with folder_lock(folder):
        ready.set()
        signal.pause()


@pytest.fixture
def other():
    """Starts a function in another process and waits until it is ready."""
    spawn, started = multiprocessing.get_context("fork"), []

    def start(function, path):
        ready = spawn.Event()
        process = spawn.Process(target=function, args=(path, ready))
        process.start()
        started.append(process)
        assert ready.wait(60)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def test_what_a_killed_writer_left_is_cleared_and_a_living_ones_is_not(tmp_path, other):
    process = other(_killed, tmp_path / "b")
    write_text(tmp_path / "a", "text")
    assert len(names(tmp_path)) == 2
    process.kill()
    process.join()
    write_text(tmp_path / "a", "text")
    assert names(tmp_path) == ["a"]


def test_others_are_refused_while_a_run_writes_to_a_folder(tmp_path, other):
    process = other(_holds, tmp_path / "made" / "here")
    with pytest.raises(LenscopeError, match="another run is writing to it"), folder_lock(tmp_path / "made" / "here"):
        pass
    process.kill()
    process.join()
    with folder_lock(tmp_path / "made" / "here"):
        assert names(tmp_path / "made" / "here") == [LOCK]
    assert names(tmp_path / "made" / "here") == []


def test_a_thread_holds_a_folder_as_often_as_it_wants_and_no_other_thread_does(tmp_path):
    refused = []

    def tries():
        try:
            with folder_lock(tmp_path):
                pass
        except LenscopeError as error:
            refused.append(error)

    with folder_lock(tmp_path):
        with folder_lock(tmp_path / "..", wait=0), folder_lock(tmp_path):
            pass
        thread = threading.Thread(target=tries)
        thread.start()
        thread.join()
        assert len(refused) == 1
    tries()
    assert len(refused) == 1


def test_waiting_for_a_folder(tmp_path):
    inside, order = threading.Event(), []

    def first():
        with folder_lock(tmp_path):
            inside.set()
            waiting.wait(60)
            order.append("first")

    waiting = threading.Event()
    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(60)
    waiting.set()
    with folder_lock(tmp_path, wait=60):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_a_lock_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LenscopeError, match="cannot be written to"), folder_lock(tmp_path / "file"):
        pass
    (tmp_path / LOCK).symlink_to(tmp_path / "file")
    with pytest.raises(LenscopeError, match="cannot be written to"), folder_lock(tmp_path):
        pass


def test_files_of_a_folder_are_there_together_or_not_at_all(tmp_path):
    (tmp_path / "b").write_text("old")

    def writes(fails):
        with whole_files(tmp_path, last=("a",)) as making:
            for name in ("a", "b"):
                (making / name).write_text("new")
            if fails:
                raise fails

    for fails, told in ((KeyError("mine"), KeyError), (OSError(28, "No space left on device"), LenscopeError)):
        with pytest.raises(told):
            writes(fails)
        assert names(tmp_path) == ["b"]
        assert (tmp_path / "b").read_text() == "old"
    # what a killed writer left
    (tmp_path / ".lenscope-0.parts").mkdir()
    writes(None)
    assert names(tmp_path) == ["a", "b"]
    assert (tmp_path / "b").read_text() == "new"
    (tmp_path / "a").unlink()
    (tmp_path / "a").mkdir()
    with pytest.raises(LenscopeError, match="no regular file"):
        writes(None)
    with pytest.raises(LenscopeError, match="is no folder; make it first"), whole_files(tmp_path / "none"):
        pass
