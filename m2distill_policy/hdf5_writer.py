"""Write HDF5 files so that a full disk is an error in Python and not a crash of the library.

If a write fails, HDF5 cannot close the file: it tries again when the process ends, and crashes with SIGSEGV. Therefore
:class:`_Sink` hides a failed write from HDF5. It stores the first error and keeps all later data in memory. The next
:meth:`Hdf5Output.check`, or the end of :func:`create_hdf5`, raises the error.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import h5py


class _Sink(io.RawIOBase):
    """A file object for HDF5 whose writes never raise an error."""

    def __init__(self, handle: int) -> None:
        self._handle, self._at, self._size = handle, 0, 0
        self.error: OSError | None = None
        self._kept: list[tuple[int, bytes]] = []

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def truncate(self, size: int | None = None) -> int:
        self._size = self._at if size is None else size
        if self.error is None:
            try:
                os.ftruncate(self._handle, self._size)
            except OSError as error:
                self.error = error
        return self._size

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        content = memoryview(data).cast("B")
        done = 0
        if self.error is None:
            try:
                while done < len(content):
                    done += os.pwrite(self._handle, content[done:], self._at + done)
            except OSError as error:
                self.error = error
        if done < len(content):
            self._kept.append((self._at + done, bytes(content[done:])))
        self._at += len(content)
        self._size = max(self._size, self._at)
        return len(content)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        into = memoryview(buffer).cast("B")
        found = os.pread(self._handle, len(into), self._at)
        into[: len(found)] = found
        into[len(found) :] = bytes(len(into) - len(found))
        for at, content in self._kept:
            first, last = max(at, self._at), min(at + len(content), self._at + len(into))
            if first < last:
                into[first - self._at : last - self._at] = content[first - at : last - at]
        self._at += len(into)
        return len(into)


class Hdf5Output:
    """A file that is being written. ``file`` is h5py's object."""

    def __init__(self, file: h5py.File, sink: _Sink) -> None:
        self.file, self._sink = file, sink

    def check(self) -> None:
        """Raise the first error since the file was opened, if there was one.

        Call it regularly, because after an error all data is kept in memory.
        """
        if self._sink.error is not None:
            raise self._sink.error


@contextlib.contextmanager
def create_hdf5(path: Path) -> Iterator[Hdf5Output]:
    """Create or replace the file ``path``. It is complete, and flushed to disk, when the context ends.

    Raises:
        OSError: The file cannot be written. What was written must not be used.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        sink = _Sink(handle)
        with h5py.File(sink, "w") as file:
            output = Hdf5Output(file, sink)
            yield output
            file.flush()
        output.check()
        os.fsync(handle)
    finally:
        os.close(handle)
