"""Files that are whole or not there, and a full disk, in one sentence, whatever the library that meets it says."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

from m2distill_policy.errors import StorageError

#: bytes: a disk with less cannot take a page of an HDF5 file.
_NOTHING = 2**16


def no_room(error: BaseException, path: Path | None = None) -> StorageError | None:
    """What to say where ``error`` came of a full disk or a used-up quota; None where it did not.

    path: what was being written. Libraries that write by themselves do not always say why they could not: where the
    disk under ``path`` has next to nothing left, that is why.
    """
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return StorageError(
            f"{path or error.filename or 'what was to be written'} would be larger than files may be here (see "
            "'ulimit -f'); what was finished before is kept: raise that limit and go on by the same command"
        )
    known = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if not known and not any(words in str(error) for words in ("No space left on device", "os error 28")):
        if path is None:
            return None
        left = os.statvfs(path.parent if path.parent.exists() else Path.cwd())
        if left.f_bavail * left.f_frsize >= _NOTHING:
            return None
    where = path or getattr(error, "filename", None) or "what was to be written"
    return StorageError(
        f"the disk has no room for {where}; what was finished before is kept: free some space and go on by the "
        "same command"
    )


def write_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` to a temporary name beside ``path`` and rename it: readers see the whole file or none."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # less what the umask takes
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        temporary.replace(path)
    finally:  # there only if something failed above
        temporary.unlink(missing_ok=True)


def write_new(files: Mapping[Path, tuple[bytes, int]]) -> None:
    """Create files that belong together, all of them or none.

    Args:
        files: path -> content, and rights as for ``chmod``, less what the umask takes. Nothing may be there yet.

    Raises:
        OSError: one is there already (:class:`FileExistsError`), or cannot be written. None of ``files`` is left.
    """
    made = []
    try:
        for path, (content, rights) in files.items():
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, rights)
            made.append(path)
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
    except BaseException as error:
        for path in made:
            with contextlib.suppress(OSError):
                path.unlink()
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a write does not say of which file
        raise


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` for a library to write to; the file gets its name at the end.

    Where what is done within fails, nothing is left and ``path`` is as it was. Raises :class:`StorageError` where the
    disk is full.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with writing(path):
            yield temporary
            settle(temporary, path)
    finally:  # there only if something failed above
        temporary.unlink(missing_ok=True)


def settle(temporary: Path, path: Path) -> None:
    """Give a finished file its name once the disk holds it: no name leads to half a file, not after a power cut.

    It gets the rights that the umask gives a new file; some libraries make theirs for the owner alone.
    """
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    if temporary.is_file():
        temporary.chmod(0o666 & ~_umask())
    temporary.replace(path)


def _umask() -> int:
    """The process's umask, without setting it for a moment as other threads make files."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """:class:`StorageError` where what is done within fails because the disk has no room for ``path``.

    Every other error is let through as it is.
    """
    try:
        yield
    except Exception as error:
        full = no_room(error, path)
        if full is None:
            raise
        raise full from error
