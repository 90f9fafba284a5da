"""Write files completely or not at all, and raise StorageError if the disk is full, whichever library writes."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

from m2distill_policy.errors import StorageError

#: Free space in bytes below which a disk counts as full; less cannot store a page of an HDF5 file.
_NOTHING = 2**16


def disk_full_error(error: BaseException, path: Path | None = None) -> StorageError | None:
    """Return the error to raise if ``error`` was caused by a full disk or quota, else None.

    Args:
        error: The original error.
        path: The file that was being written. If ``error`` does not state its cause, as in some libraries, a disk with
            almost no free space is taken as the cause.
    """
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return StorageError(
            f"{path or error.filename or 'the file'} would be larger than the limit for files (see 'ulimit -f'); "
            "finished work is kept: increase the limit and run the same command again"
        )
    known = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if not known and not any(words in str(error) for words in ("No space left on device", "os error 28")):
        if path is None:
            return None
        left = os.statvfs(path.parent if path.parent.exists() else Path.cwd())
        if left.f_bavail * left.f_frsize >= _NOTHING:
            return None
    where = path or getattr(error, "filename", None) or "the file"
    return StorageError(
        f"the disk is full, so {where} cannot be written; finished work is kept: free some space and run the same "
        "command again"
    )


def write_atomic(path: Path, content: bytes) -> None:
    """Write ``content`` to a temporary file and rename it to ``path``: readers see the complete file or none."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # the system subtracts the umask
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        temporary.replace(path)
    finally:  # exists only if something failed above
        temporary.unlink(missing_ok=True)


def write_new(files: Mapping[Path, tuple[bytes, int]]) -> None:
    """Create files that belong together, all of them or none.

    Args:
        files: Path -> (content, permissions). Permissions are as for ``chmod``; the umask is subtracted. The files must
            not exist.

    Raises:
        OSError: A file exists already (:class:`FileExistsError`) or cannot be written. No new file remains.
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
            error.filename = str(path)  # an error of write has no file name
        raise


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path for a library to write to, as a context; at its end, rename the file to ``path``.

    If an error occurs inside the context, the temporary file is removed and ``path`` is unchanged.

    Raises:
        StorageError: The disk is full.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with writing(path):
            yield temporary
            sync_and_rename(temporary, path)
    finally:  # exists only if something failed above
        temporary.unlink(missing_ok=True)


def sync_and_rename(temporary: Path, path: Path) -> None:
    """Flush a finished file to disk and rename it, so that ``path`` is never incomplete, even after a power cut.

    The file gets the default permissions of a new file, because some libraries make files that only the owner can read.
    """
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    if temporary.is_file():
        temporary.chmod(0o666 & ~_umask())
    temporary.replace(path)


def _umask() -> int:
    """Return the process's umask. On Linux it is read without a change, because other threads may create files."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert an error inside this context to :class:`StorageError` if the disk is full. Raise others unchanged.

    Args:
        path: The file that is being written.
    """
    try:
        yield
    except Exception as error:
        full = disk_full_error(error, path)
        if full is None:
            raise
        raise full from error
