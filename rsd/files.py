"""Files of rows and text: written whole or not at all (`replacing`), or appended to while nobody else writes them
(`locked`). What a command may write is said in `outputs`."""

import hashlib
import json
import os
import re
import secrets
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from rsd.settings import called
from rsd.strictjson import dumps

# Characters that JSON allows in a string and `str.splitlines` takes for the end of a line.
LINE_ENDS = {i: f"\\u{i:04x}" for i in (0x85, 0x2028, 0x2029)}
STREAM = re.compile(r"-|/dev/(stdin|stdout|stderr|fd/.*)|/proc/(self|thread-self|\d+)/fd/.*", re.DOTALL)
TRIES, MOMENT = 6, 0.05  # seconds
TOO_LONG = 1 << 26  # bytes; no first line of ours, and none of another's that would have to be held in memory


def encode(line: Mapping[str, Any]) -> bytes:
    """One line of JSONL."""
    # A lone surrogate in an input is no UTF-8, but its escape is JSON.
    return (dumps(line).translate(LINE_ENDS) + "\n").encode("utf-8", "backslashreplace")


def write_rows(rows: Iterable[Mapping[str, Any]], out: str | Path) -> None:
    """Write a file of rows, as `replacing` does."""
    with replacing(out) as file:
        for row in rows:
            file.write(encode(row))


def write_text(out: str | Path, text: str) -> None:
    """Write a text as UTF-8, as `replacing` does; of a lone surrogate its escape."""
    with replacing(out) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


@contextmanager
def replacing(out: str | Path) -> Iterator[BinaryIO]:
    """A new file to write, which takes the place of `out` when it is whole and on the disk.

    If that fails, what was there stays as it was, and nothing is left beside it; what a process that was killed midway
    has left there is removed. A link stays, and what it names is replaced; so do the permissions of what was there.

    Raises:
        ValueError: `out` is no place for a file; see `place`.
        OSError: it cannot be written.
    """
    target = place(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target)
    with _ended_by_exception():
        try:
            file, temporary = _new(target)
        except OSError as e:
            raise OSError(e.errno, e.strerror, str(out)) from e
        try:
            with file:
                with suppress(FileNotFoundError):
                    os.chmod(temporary, os.stat(target).st_mode & 0o777)
                yield file
                synced(file)
                os.replace(temporary, target)  # while it is locked
        except BaseException as e:
            temporary.unlink(missing_ok=True)
            if isinstance(e, OSError) and e.filename in (None, str(temporary)):
                raise OSError(e.errno, e.strerror, str(out)) from e
            raise
    with suppress(OSError):  # not every system can sync a folder
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _new(target: Path) -> tuple[BinaryIO, Path]:
    """A file under a name that is nobody's and no longer than a name may be, locked against `sweep`."""
    while True:
        temporary = target.with_name(f"{_unfinished(target)}{secrets.token_hex(8)}.tmp")
        file = open(temporary, "xb")  # noqa: SIM115 (closed by who asked for it)
        free = _flock(file)
        # Where there are no locks nobody sweeps; elsewhere it may be swept before it is locked.
        if free is None or (free and temporary.exists()):
            return file, temporary
        file.close()
        temporary.unlink(missing_ok=True)


def sweep(target: Path) -> None:
    """Remove what processes that were killed have left half written beside a file (`replacing`)."""
    for left in target.parent.glob(f"{_unfinished(target)}*.tmp"):
        with suppress(OSError):
            if left.is_file():  # a pipe would be waited for
                with open(left, "rb") as file:
                    if _flock(file):
                        left.unlink()


def _unfinished(target: Path) -> str:
    """How the names of this file's half written ones begin."""
    return f".{hashlib.blake2b(os.fsencode(target.name), digest_size=8).hexdigest()}."


def synced(file: BinaryIO) -> None:
    """See to it that what was written is on the disk: it is now that a full one says so."""
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _ended_by_exception() -> Iterator[None]:
    """Meanwhile SIGTERM ends this process as an exception does, so that what is half written is removed."""
    free = threading.current_thread() is threading.main_thread()
    if not free or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def locked(file: Path) -> BinaryIO:
    """A file opened for appending, that nobody else writes meanwhile. The lock ends with the process, however it ends.

    Raises:
        ValueError: another process is writing it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = open(file, "ab")  # noqa: SIM115 (closed by who asked for it)
        try:
            lock(handle, file)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle.fileno()), os.stat(file)):
                    return handle
        except BaseException:
            handle.close()
            raise
        handle.close()  # its last writer has put another file into its place (`rewritten`)


def begun(out: Path, *, overwrite: bool) -> BinaryIO:
    """A file of rows, opened for appending; a copy by another name stays as it is."""
    file = locked(out)
    if overwrite and os.fstat(file.fileno()).st_nlink > 1:  # what goes by another name too, such as a copy, stays
        with replacing(out):
            file.close()
        file = locked(out)
    return file


def lock(handle: IO[bytes], file: Path) -> None:
    """Raises ValueError if another process holds the lock of this file, and not for a moment only (see `held`)."""
    for tries in reversed(range(TRIES)):
        if _flock(handle):
            return
        if tries:
            time.sleep(MOMENT)
    raise ValueError(f"{file} is being written by another process: wait for it, or use another {called('output')}")


def held(file: Path) -> bool:
    """Whether a process holds the lock of a file that is there. It is taken for a moment, to find that out."""
    with suppress(FileNotFoundError), open(file, "rb") as handle:
        return not _flock(handle)
    return False


def _flock(handle: IO[bytes]) -> bool | None:
    """Take the lock of an open file, if nobody has it; None where the disk has none to give.

    A platform without file locks does without this guard.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def rewritten(file: Path, parts: Iterable[bytes]) -> BinaryIO:
    """Put other contents into the place of a locked file; the new one, open behind them, locked before it is there."""
    with replacing(file) as new:
        lock(new, file)
        for part in parts:
            new.write(part)
        new.flush()
        return os.fdopen(os.dup(new.fileno()), "wb")  # another name of the same open file, so the lock is kept


def place(file: str | Path) -> Path:
    """Where a file is or will be, links followed.

    Raises:
        ValueError: what is there is no regular file, or none can be of that name.
    """
    name, instead = os.fspath(file), "give the output a file name"
    if STREAM.fullmatch(name):
        raise ValueError(f"{name}: an output is a file, and no stream: {instead}")
    if not name or "\0" in name:
        raise ValueError(f"{name!r} is no name of a file: {instead}")
    try:
        mode = os.stat(name).st_mode
    except FileNotFoundError:  # or a link to nothing yet
        if os.path.basename(name) in ("", ".", ".."):
            raise ValueError(f"{name} is a folder's name, and there is none: {instead}") from None
        return Path(os.path.realpath(name))
    except OSError as e:
        raise ValueError(f"{name}: {e.strerror}") from e
    if stat.S_ISDIR(mode):
        raise ValueError(f"{name} is a folder: {instead}, such as {os.path.join(name, 'out.jsonl')}")
    if not stat.S_ISREG(mode):
        raise ValueError(f"{name} is a device, a pipe or a socket: {instead}")
    return Path(os.path.realpath(name))


def read_json(file: Path) -> dict[str, Any] | None:
    """A JSON object that is all of a file; None if there is none."""
    with suppress(OSError, ValueError, RecursionError):
        made = json.loads(file.read_text(encoding="utf-8"))
        return made if isinstance(made, dict) else None
    return None


def first_row(file: Path) -> dict[str, Any]:
    """The first row of a file of JSONL; nothing, if that is no row."""
    with suppress(ValueError, RecursionError), open(file, "rb") as f:
        row = json.loads(f.readline(TOO_LONG))
        if isinstance(row, dict):
            return row
    return {}
