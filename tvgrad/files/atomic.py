"""Files that are whole or not there: written under a temporary name, flushed, renamed; and their checksums."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar, overload

from tvgrad.files.regular import open_regular, why_irregular
from tvgrad.files.writable import writing
from tvgrad.system import flush, replace

Result = TypeVar("Result")


@overload
def write_atomically(path: Path, write: Callable[[Path], object], *, option: str = ...) -> None: ...
@overload
def write_atomically(
    path: Path, write: Callable[[Path], object], meanwhile: Callable[[Path], Result], *, option: str = ...
) -> Result: ...
def write_atomically(
    path: Path,
    write: Callable[[Path], object],
    meanwhile: Callable[[Path], object] | None = None,
    *,
    option: str = "--out",
) -> object:
    """Call `write(temporary_path)`, flush the result to the disk and rename it to `path`.

    What stands there is replaced: a file, or a link (what it leads to stays as it is), and nothing else.

    Args:
        path: the final name.
        write: a function that creates the file it is given.
        meanwhile: a function that reads the finished temporary file, `sha256_of` say. It runs in a thread while the
            disk is flushed, which takes no processor time: a checksum then costs no time of its own.
        option: by which the user chose the path, for messages.

    Returns:
        What `meanwhile` returns.

    Raises:
        DiskFull: the disk, or a quota on it, has no room.
        Unwritable: the file cannot be written for another reason.
    """  # noqa: DOC501, DOC502 - the OSError does not leave; these are raised by writing
    # A name that nobody can foresee, so that no link can wait there for what is written.
    temporary = path.with_name(f".{path.name[:200]}.{secrets.randbelow(10**12)}.tmp")
    with writing(path, option, meanwhile=temporary):
        try:
            why = None if path.is_symlink() else why_irregular(path)
            if why is not None:
                raise OSError(errno.EEXIST, why, str(path))
            write(temporary)
            found = None
            if meanwhile is None:
                flush(temporary)
            else:
                found = _flush_and_read(temporary, meanwhile)
            os.chmod(temporary, 0o666 & ~UMASK)
            replace(temporary, path)
            flush(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                temporary.unlink(missing_ok=True)
            raise
    return found


def write_text_atomically(path: Path, text: str, *, option: str = "--out") -> None:
    """Write text in UTF-8, as `write_atomically` writes a file.

    Args:
        path: the final name.
        text: what the file holds.
        option: by which the user chose the path, for messages.

    Raises:
        DiskFull: the disk, or a quota on it, has no room.
        Unwritable: the file cannot be written for another reason.
    """  # noqa: DOC502 - raised by write_atomically
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), option=option)


def _flush_and_read(path: Path, read: Callable[[Path], Result]) -> Result:
    found: Future[Result] = Future()

    def work() -> None:
        try:
            found.set_result(read(path))
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            found.set_exception(error)

    reading = threading.Thread(target=work, daemon=True)  # a pool would refuse work while the interpreter ends
    try:
        reading.start()
    except RuntimeError:  # no new threads: the interpreter is ending, or the system has no room for one
        flush(path)
        return read(path)
    try:
        flush(path)
    finally:
        reading.join()
    return found.result()


def _umask() -> int:
    """The process's file mode mask (it can only be read by setting it)."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


UMASK = _umask()  # read once, before any thread could create a file meanwhile


def sha256_of(path: str | os.PathLike[str], under: Path | None = None) -> str:
    """Checksum of a regular file, as `sha256sum` prints it.

    Args:
        path: the file.
        under: a directory below which nothing may be a link; None follows links.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    buffer = bytearray(1 << 20)
    with open_regular(Path(path), under) as handle:
        while got := handle.readinto(buffer):  # type: ignore[attr-defined]
            digest.update(memoryview(buffer)[:got])
    return digest.hexdigest()
