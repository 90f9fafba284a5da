"""Find the folder of a bundle and read its files within limits: number, size, only plain files; check the digest."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import os
import re
import stat
from pathlib import Path
from types import TracebackType

from m2distill_policy.errors import BundleError, shorten

MANIFEST = "bundle.json"
#: Contains the sha256 of the manifest, in the format of ``sha256sum``.
DIGEST = "bundle.json.sha256"
#: Contains the Ed25519 signature of the manifest, 64 bytes; may be absent.
SIGNATURE = "bundle.json.sig"
#: Files that the manifest does not list.
BESIDE = frozenset({MANIFEST, DIGEST, SIGNATURE})

#: Largest number of files of a bundle.
MOST_FILES = 64
#: Largest size of a file in bytes; LARGEST has smaller limits for some files.
LARGEST_FILE = 256 * 2**20
LARGEST: dict[str, int] = {MANIFEST: 2**20, DIGEST: 1024, SIGNATURE: 1024}
#: Largest size of all files of a bundle, bytes.
LARGEST_BUNDLE = 512 * 2**20

COPY_AGAIN = "copy the bundle again or export it again"

_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}\Z")
_CHUNK = 2**20


def is_plain_name(name: str) -> bool:
    """Return whether a bundle may contain a file ``name``: no folder, no leading dot, at most 128 characters."""
    return _PLAIN_NAME.match(name) is not None


def bundle_folder(path: Path) -> Path:
    """Return the folder of a bundle, given the folder of the bundle or of a run.

    Args:
        path: Folder of a bundle or of a run.

    Returns:
        The bundle of the run's last stage that has a bundle; ``path`` itself if it is not a run.

    Raises:
        BundleError: ``path`` is a run that has no bundle yet.
    """
    if (path / MANIFEST).exists() or not (path / "run.json").is_file():
        return path
    found = {
        int(folder.name.removeprefix("stage_")): folder
        for folder in path.glob("bundles/stage_*")
        if (folder / MANIFEST).is_file() and folder.name.removeprefix("stage_").isdecimal()
    }
    if not found:
        raise BundleError(
            f"the run {path} has no bundle yet; finish its first stage: m2distill train --resume --out {path}"
        )
    return found[max(found)]


def digest_line(manifest: bytes) -> bytes:
    """Return the content of ``bundle.json.sha256`` for a manifest, in the format of ``sha256sum -c``."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()


def check_digest(path: Path, manifest: bytes, digest: bytes) -> None:
    """Compare the manifest with the digest next to it.

    Args:
        path: Folder of the bundle, for messages.
        manifest: Content of ``bundle.json``.
        digest: Content of ``bundle.json.sha256``.

    Raises:
        BundleError: One of the two files was changed or damaged.
    """
    # Compared byte for byte, so that any changed bit of either file is detected.
    if not hmac.compare_digest(digest_line(manifest), digest):
        raise BundleError(
            f"'{path / MANIFEST}' or '{DIGEST}' was changed or damaged: the sha256 of one is not what the other says; "
            f"{COPY_AGAIN}"
        )


def check_sizes(path: Path, sizes: dict[str, int]) -> None:
    """Raise :class:`BundleError` if files (name -> size in bytes) exceed the limits on number or size."""
    if len(sizes) > MOST_FILES:
        raise BundleError(f"bundle '{path}' has {len(sizes)} files; at most {MOST_FILES} are allowed; {COPY_AGAIN}")
    for name, size in sizes.items():
        _check_size(path / name, size)
    _check_total(path, sum(sizes.values()))


class BundleFolder:
    """An open folder of a bundle, as a context manager. Every method raises :class:`BundleError` if it fails.

    Sizes are checked before reading. Pipes, devices, sockets and links are refused, so that no file can block the
    reader.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._total = 0
        shown = shorten(str(path))
        try:
            found = path.stat()
            if not stat.S_ISDIR(found.st_mode):
                raise BundleError(f"'{shown}' is not a folder; a bundle is a folder that holds '{MANIFEST}'")
            self._handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BundleError(
                f"there is no bundle at '{shown}'; give the folder that 'm2distill export' wrote"
            ) from error
        except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
            raise BundleError(f"bundle '{shown}' could not be read: {shorten(str(error))}; {COPY_AGAIN}") from error
        try:
            with os.scandir(self._handle) as entries:
                self.names = frozenset(entry.name for entry in itertools.islice(entries, MOST_FILES + 1))
        except OSError as error:
            self.__exit__(None, None, None)
            raise BundleError(f"bundle '{path}' could not be read: {error}; {COPY_AGAIN}") from error
        if len(self.names) > MOST_FILES:
            self.__exit__(None, None, None)
            raise BundleError(f"bundle '{path}' has more than {MOST_FILES} files; give the folder of one bundle")

    def __enter__(self) -> BundleFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._handle)

    def read(self, name: str) -> bytes:
        """Return the content of the plain file ``name``."""
        where = self.path / name
        plain = BundleError(f"'{where}' is not a plain file; a bundle holds plain files only, so {COPY_AGAIN}")
        try:
            # The type is checked before opening, because opening a device can have effects. It is checked again after
            # opening, because the file may have been replaced.
            if not stat.S_ISREG(os.stat(name, dir_fd=self._handle, follow_symlinks=False).st_mode):
                raise plain
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(name, flags, dir_fd=self._handle), "rb", buffering=0) as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode):
                    raise plain
                _check_size(where, found.st_size)
                _check_total(self.path, self._total + found.st_size)
                parts, left = [], found.st_size
                while left and (part := file.read(min(left, _CHUNK))):
                    parts.append(part)
                    left -= len(part)
                if left or file.read(1):
                    raise BundleError(f"'{where}' changed while it was read; wait until it is copied, or {COPY_AGAIN}")
        except OSError as error:
            raise BundleError(f"bundle '{self.path}' could not be read: {error}; {COPY_AGAIN}") from error
        self._total += found.st_size
        return b"".join(parts)


def _check_size(where: Path, size: int) -> None:
    most = LARGEST.get(where.name, LARGEST_FILE)
    if size > most:
        raise BundleError(f"'{where}' has {size} bytes; at most {most} are allowed; {COPY_AGAIN}")


def _check_total(path: Path, total: int) -> None:
    if total > LARGEST_BUNDLE:
        raise BundleError(
            f"the files of bundle '{path}' have {total} bytes or more together; "
            f"at most {LARGEST_BUNDLE} are allowed; {COPY_AGAIN}"
        )
