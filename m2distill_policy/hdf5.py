"""Read HDF5 files from unknown sources in a separate process, with limits on time and memory.

Everything is read through :func:`_ask`, which sends a request to another process (:mod:`m2distill_policy.hdf5_reader`).
If a file makes the library hang, crash or use all memory, only that process ends, and a :class:`DemonstrationError` is
raised here. The file's structure is checked before any data is read: links, external storage and virtual datasets are
refused, because they refer to other files, and HDF5 returns zeros if such a file is missing.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import importlib.util
import json
import math
import os
import select
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.errors import DemonstrationError

#: Limit of processor time for the structure of a file (50 episodes need 0.1 s), s. Reading data has this limit plus the
#: time that BYTES_A_SECOND gives.
SECONDS = 5.0
#: Bytes of data for which reading gets one more second of processor time; gzip decompresses about 200 MB/s.
BYTES_A_SECOND = 5e6
#: Longest wait for an answer, s. After that the file is refused, even if only its disk is slow.
PATIENCE = 120.0
#: Largest size of a dataset in bytes: images of an hour at 128 px, or of a quarter of an hour at 256 px, at 20 Hz.
LARGEST_DATASET = 4 * 2**30

_READER = "m2distill_policy.hdf5_reader"
#: Longest time that the process may take to start, s. It imports h5py.
_START = 120.0
#: Number of files whose structure is cached.
_REMEMBERED = 64

Identity = tuple[int, int, int, int]


@dataclass(frozen=True)
class Dataset:
    """The declaration of a dataset. kind: NumPy's name of its type, such as ``<f8``, or a text if NumPy has none."""

    shape: tuple[int, ...]
    kind: str

    @property
    def dtype(self) -> np.dtype[Any] | None:
        """Type of the dataset's numbers in this machine's byte order; None if it does not contain numbers."""
        try:
            found = np.dtype(self.kind)
        except TypeError:
            return None
        return found.newbyteorder("=") if found.kind in "fiub" else None


@dataclass(frozen=True)
class Hdf5File:
    """A file whose structure has been checked. Groups and datasets have paths such as ``data/demo_0/actions``."""

    path: Path
    groups: frozenset[str]
    datasets: Mapping[str, Dataset]

    def attributes(self, group: str, names: Sequence[str]) -> dict[str, Any]:
        """Return the attributes ``names`` of ``group``, without missing ones: texts, numbers, or lists of numbers."""
        answer = _ask(self.path, {"do": "attributes", "group": group, "names": list(names)}, SECONDS)
        values: dict[str, Any] = answer["values"]
        return values

    def read(self, name: str) -> NDArray[Any]:
        """Read the numbers of the dataset ``name``; raise :class:`DemonstrationError` if that is impossible."""
        dataset = self.datasets[name]
        dtype = dataset.dtype
        if dtype is None:
            raise DemonstrationError(f"{self.path}: '{name}' is {dataset.kind}; numbers are needed")
        size = math.prod(dataset.shape) * dtype.itemsize
        if size > LARGEST_DATASET:
            raise DemonstrationError(
                f"{self.path}: '{name}' has shape {dataset.shape}, {size / 2**30:.3g} GiB; at most "
                f"{LARGEST_DATASET // 2**30} GiB are read: make the episodes shorter"
            )
        try:
            values = np.empty(dataset.shape, dtype=dtype)
        except (MemoryError, ValueError) as error:
            raise DemonstrationError(
                f"{self.path}: '{name}' needs {size / 2**20:.0f} MiB of memory, more than there is"
            ) from error
        into = values.reshape(-1).view(np.uint8).data
        _ask(self.path, {"do": "read", "name": name}, SECONDS + size / BYTES_A_SECOND, into)
        return values


def open_hdf5(path: str | Path) -> Hdf5File:
    """Read the structure of the file at ``path``.

    Raises:
        DemonstrationError: The file is missing, damaged, not HDF5, uses links or external data, or takes too long.
    """
    path = Path(path)
    identity = _identity(path)
    known = _described.get(path)
    if known is not None and known[0] == identity:
        return known[1]
    answer = _ask(path, {"do": "open"}, SECONDS)
    datasets = {name: Dataset(tuple(it["shape"]), it["kind"]) for name, it in answer["datasets"].items()}
    file = Hdf5File(path, frozenset(answer["groups"]), datasets)
    if len(_described) >= _REMEMBERED:
        _described.pop(next(iter(_described)), None)
    _described[path] = (identity, file)
    return file


_described: dict[Path, tuple[Identity, Hdf5File]] = {}


def _identity(path: Path) -> Identity:
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise DemonstrationError(f"{path} cannot be read: {error}") from error
    if not stat.S_ISREG(found.st_mode):
        raise DemonstrationError(f"{path} cannot be read as HDF5: it is not a regular file")
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


# --- the separate process --------------------------------------------------------------------------------------------


class _Silent(Exception):
    """The process did not answer in time."""


class _Ended(Exception):
    """The process ended without an answer."""


class _Reader:
    """Sends requests to the process of :mod:`m2distill_policy.hdf5_reader` and receives its answers."""

    def __init__(self) -> None:
        if importlib.util.find_spec("h5py") is None:
            raise ModuleNotFoundError("No module named 'h5py'", name="h5py")
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", _READER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        with contextlib.suppress(AttributeError, OSError):  # Linux, from Python 3.10
            fcntl.fcntl(self._out, fcntl.F_SETPIPE_SZ, 2**20)
        self._rest = b""
        self._line(_START)

    def ask(self, request: dict[str, Any], into: memoryview | None) -> dict[str, Any]:
        """Send a request, write the data of the answer to ``into``, and return the answer.

        Raises:
            _Silent: The process did not answer in time.
            _Ended: The process ended without an answer.
        """
        try:
            os.write(self._in, json.dumps(request).encode() + b"\n")
        except BrokenPipeError as error:
            raise _Ended from error
        done = 0
        while True:
            answer = self._line(PATIENCE)
            if "bytes" not in answer or into is None:
                break
            end = done + int(answer["bytes"])
            if end > len(into):
                raise DemonstrationError("its data changed while it was read")
            self._fill(into[done:end])
            done = end
        if "done" in answer and into is not None and done != len(into):
            raise DemonstrationError("its data changed while it was read")
        return answer

    def _receive(self, deadline: float) -> bytes:
        if not select.select([self._out], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise _Silent
        found = os.read(self._out, 2**20)
        if not found:
            raise _Ended
        return found

    def _line(self, patience: float) -> dict[str, Any]:
        deadline = time.monotonic() + patience
        while b"\n" not in self._rest:
            self._rest += self._receive(deadline)
        line, _, self._rest = self._rest.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _fill(self, into: memoryview) -> None:
        done = min(len(self._rest), len(into))
        into[:done] = self._rest[:done]
        self._rest = self._rest[done:]
        while done < len(into):
            if not select.select([self._out], [], [], PATIENCE)[0]:
                raise _Silent
            count = os.readv(self._out, [into[done:]])
            if not count:
                raise _Ended
            done += count

    def end(self) -> int:
        """Kill the process if it is still running, and return its exit code."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.1)
        self._process.kill()
        self._process.stdin.close()
        self._process.stdout.close()
        return self._process.wait()


_lock = threading.Lock()
_reader: _Reader | None = None


def _forget() -> None:
    """Make a forked process start a new reader, because two processes on one pipe would mix up the answers."""
    global _lock, _reader
    _lock, _reader = threading.Lock(), None


def _close() -> None:
    global _reader
    if _reader is not None:
        _reader.end()
        _reader = None


os.register_at_fork(after_in_child=_forget)
atexit.register(_close)


def _ask(path: Path, request: dict[str, Any], seconds: float, into: memoryview | None = None) -> dict[str, Any]:
    """Send one request about ``path``. All reading of HDF5 files goes through this function.

    Args:
        path: The file.
        request: The request, as :mod:`m2distill_policy.hdf5_reader` describes it.
        seconds: Limit of processor time for the request, s.
        into: Memory for the data of ``read``.

    Raises:
        DemonstrationError: The file cannot be read. The message names the file and the problem.
    """
    global _reader
    _identity(path)
    full_request = {**request, "path": str(path.absolute()), "seconds": seconds}
    with _lock:
        for again in (True, False):
            fresh = _reader is None
            reader = _reader = _reader or _Reader()
            try:
                answer = reader.ask(full_request, into)
                break
            except _Ended as error:
                code, _reader = reader.end(), None
                if again and not fresh and code == 0:
                    continue  # the process had ended because it was idle; try again
                raise _damaged(path, _why(code, seconds)) from error
            except _Silent as error:
                _close()
                raise _damaged(path, f"there was no answer within {PATIENCE:g} s") from error
            except BaseException as error:  # the rest of this answer must not be read as the next answer
                _close()
                if isinstance(error, DemonstrationError):
                    raise DemonstrationError(f"{path}: {error}") from error
                raise
    if "refused" in answer:
        raise DemonstrationError(f"{path}: {answer['refused']}; only plain datasets in the file itself are allowed")
    if "damaged" in answer:
        where = f"'{request['name']}' is damaged: " if "name" in request else ""
        raise _damaged(path, f"{where}{answer['damaged']}")
    return answer


def _why(code: int, seconds: float) -> str:
    if code == -signal.SIGPROF:
        return f"the HDF5 library did not finish within {seconds:.0f} s of processor time"
    return f"the HDF5 library ended by {signal.Signals(-code).name}" if code < 0 else f"its reader ended with {code}"


def _damaged(path: Path, what: str) -> DemonstrationError:
    return DemonstrationError(
        f"{path} cannot be read as HDF5: {what}; the file is damaged or not HDF5: copy it again, or create it again"
    )
