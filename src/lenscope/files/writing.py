"""Files that are written whole or not at all, and folders that one run at a time writes to.

Knows: temporary files that nobody else can have, locks that end with their process, what killed writers left behind.
Does not know: what is written.
"""

import errno
import os
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lenscope.errors import LenscopeError

LOCK = ".lenscope.lock"
_PREFIX, _SUFFIX, _FILES = ".lenscope-", ".part", ".parts"
_WINDOWS = sys.platform == "win32"
# what file systems without locks answer
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0)


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A new, empty file to write in place of `path`, which gets its name only when the block ends well.

    It lies in the same folder, under a name that no other writer has. Raises LenscopeError where the folder does not
    exist or cannot be written to, and for whatever the system says against writing in the block; anything else that the
    block raises passes unchanged, and `path` is then as it was.
    """
    path = Path(path)
    try:
        if not path.parent.is_dir():
            raise LenscopeError(f"{path}: the folder {path.parent} does not exist")
        if path.exists() and not path.is_file():
            raise LenscopeError(f"{path}: is no regular file; give another name")
        with temporary(path.parent) as making:
            yield making.path
            making.becomes(path)
    except OSError as error:
        raise LenscopeError(f"{path}: cannot be written ({error.strerror or error})") from error


@contextmanager
def temporary(folder: Path) -> "Iterator[Temporary]":
    """A new, empty file in a folder, under a name that no other writer has; gone at the end unless it got another."""
    _clear(folder)
    making = Temporary(folder)
    try:
        yield making
    finally:
        making.remove()


@contextmanager
def whole_files(folder: str | os.PathLike[str], last: Sequence[str] = ()) -> Iterator[Path]:
    """An empty folder whose files go into `folder`, all when the block ends well and none when it does not.

    Those named in `last` are the last to go there. Nobody else of lenscope writes to the folder meanwhile. Raises
    LenscopeError for a folder that does not exist or cannot be written to.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise LenscopeError(f"{folder}: is no folder; make it first")
    try:
        with folder_lock(folder, wait=10.0):
            clear_left_folders(folder)
            with temporary_folder(folder) as making:
                yield making
                names = sorted((p.name for p in making.iterdir()), key=lambda name: (name in last, name))
                for name in names:
                    if (folder / name).exists() and not (folder / name).is_file():
                        raise LenscopeError(f"{folder / name}: is no regular file; take it away")
                for name in names:
                    (making / name).replace(folder / name)
    except OSError as error:
        raise LenscopeError(f"{folder}: cannot be written to ({error.strerror or error})") from error


@contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """A new, empty folder in another one, under a name that no other writer has; gone at the end with all in it."""
    making = folder / f"{_PREFIX}{secrets.token_hex(8)}{_FILES}"
    making.mkdir()
    try:
        yield making
    finally:
        shutil.rmtree(making, ignore_errors=True)


def clear_left_folders(folder: Path) -> None:
    """Remove the temporary folders that killed writers left; for who holds the folder's lock, so that all are left."""
    for left in folder.glob(f"{_PREFIX}*{_FILES}"):
        shutil.rmtree(left, ignore_errors=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with whole_file(path) as making:
        making.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def folder_lock(folder: str | os.PathLike[str], wait: float = 0.0) -> Iterator[None]:
    """Only this thread writes to a folder within the block; the folder is made where it does not exist.

    Others, of this process or another, are refused after `wait` seconds with a LenscopeError. The lock ends with the
    block or with the process, however that ends. Blocks of one thread may be nested.
    """
    folder = Path(folder)
    until = time.monotonic() + wait
    try:
        folder.mkdir(parents=True, exist_ok=True)
        key = str(folder.resolve())
        while not _enter(key, folder / LOCK):
            if time.monotonic() >= until:
                raise LenscopeError(f"{folder}: another run is writing to it; wait for its end, or give another folder")
            time.sleep(0.02)
    except OSError as error:
        raise LenscopeError(f"{folder}: cannot be written to ({error.strerror or error})") from error
    try:
        yield
    finally:
        _leave(key, folder / LOCK)


@dataclass
class _Hold:
    """A folder that a thread of this process writes to, in `depth` nested blocks, and the lock's open file."""

    thread: int
    handle: int
    depth: int = 1


_holds: dict[str, _Hold] = {}
_changing = threading.Lock()


def _enter(key: str, path: Path) -> bool:
    """Hold a folder, once more if this thread does already; False where somebody else does."""
    me = threading.get_ident()
    with _changing:
        known = _holds.get(key)
        if known is not None:
            known.depth += known.thread == me
            return known.thread == me
        try:
            _holds[key] = _Hold(me, _locked(path))
        except BlockingIOError:
            return False
        return True


def _leave(key: str, path: Path) -> None:
    with _changing:
        known = _holds.get(key)
        # None in a child process that was forked within the block
        if known is not None:
            known.depth -= 1
            if not known.depth:
                del _holds[key]
                _remove(path, known.handle)


def _let_go_after_fork() -> None:
    """A child process holds nothing, and does not keep its parent's locks when the parent is gone."""
    global _changing
    _changing = threading.Lock()
    for hold in _holds.values():
        _close(hold.handle)
    _holds.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_after_fork)


class Temporary:
    """A new file under a name that was not there before; open and locked while it lives, so that nobody clears it."""

    def __init__(self, folder: Path) -> None:
        while True:
            self.path = folder / f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}"
            # as tempfile.mkstemp opens it, but with the permissions of any new file
            self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINKS, 0o666)
            try:
                # a lock of Windows would keep out those who open the file by its name
                if _WINDOWS or (_try_lock(self.handle) and _same(self.path, self.handle)):
                    return
            except BaseException:
                self.remove()
                raise
            # somebody who clears folders was faster
            self.close()

    def becomes(self, path: Path) -> None:
        """Give the file its name, in place of what had it."""
        # Windows renames no open file
        if _WINDOWS:
            self.close()
        self.path.replace(path)

    def close(self) -> None:
        """Let go of the file, which stays."""
        handle, self.handle = self.handle, -1
        _close(handle)

    def remove(self) -> None:
        """Remove the file, if it still has its first name."""
        handle, self.handle = self.handle, -1
        _remove(self.path, handle)


def _locked(path: Path) -> int:
    """A file, made where it does not exist, open and locked. Raises BlockingIOError where somebody else has it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINKS, 0o666)
        try:
            if not _try_lock(handle):
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            # who had it before may have removed it
            if _same(path, handle):
                return handle
        except BaseException:
            _close(handle)
            raise
        _close(handle)


def _try_lock(handle: int) -> bool:
    """Lock an open file without waiting; True too where the file system knows no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _same(path: Path, handle: int) -> bool:
    """Whether a path leads to the file that is open."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(handle))
    except OSError:
        return False


def _clear(folder: Path) -> None:
    """Remove what killed writers left in a folder: temporary files that no living process has locked."""
    if _WINDOWS:
        return
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.name.startswith(_PREFIX) and entry.name.endswith(_SUFFIX):
                with suppress(OSError):
                    handle = os.open(entry.path, os.O_RDWR | os.O_NONBLOCK | _NO_LINKS)
                    try:
                        if _try_lock(handle) and _same(Path(entry.path), handle):
                            os.unlink(entry.path)
                    finally:
                        os.close(handle)


def _close(handle: int) -> None:
    if handle >= 0:
        with suppress(OSError):
            os.close(handle)


def _remove(path: Path, handle: int) -> None:
    """Remove a file and close it; what the system says against it does not hide an earlier error."""
    if _WINDOWS:
        _close(handle)
    with suppress(OSError):
        path.unlink(missing_ok=True)
    if not _WINDOWS:
        _close(handle)
