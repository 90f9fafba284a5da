"""Read the files of a rosbag2 with the rosbags library: one type of error, bounded memory and time.

The library and its dependencies (apsw, lz4, zstd, ruamel.yaml) raise errors without a common base class, trust the
sizes that a file declares, and decompress without limits. Therefore all calls to the library are made within
:func:`reading`, which converts the errors. Time and memory are limited by the size of a file: decompressed data are at
most :data:`MOST_EXPANDED` times as large as the file, and SQLite queries that give no result for too long are aborted.
"""

from __future__ import annotations

import contextlib
import heapq
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import apsw
from backports import zstd
from lz4.frame import LZ4FrameDecompressor  # type: ignore[import-untyped]
from rosbags.rosbag2 import storage_mcap, storage_sqlite3
from rosbags.rosbag2.storage_mcap import McapReader
from rosbags.rosbag2.storage_sqlite3 import Sqlite3Reader

from m2distill_policy.errors import M2DistillError, RecordingError
from m2distill_policy.storage import disk_full_error

Storage: TypeAlias = McapReader | Sqlite3Reader

#: Largest size of one decompressed chunk or message, bytes. rosbag2's chunks have 0.75 MiB.
LARGEST_CHUNK = 512 * 2**20
#: Largest total size of chunks that overlap in time, bytes. They are in memory at the same time.
MOST_AT_ONCE = 2 * 2**30
#: Largest ratio of decompressed to compressed size. 1 MiB more is always allowed.
MOST_EXPANDED = 1000
#: Longest time that an SQLite query may take without a result, s; and the number of bytes of the file for which one
#: second is added.
_PATIENCE, _BYTES_A_SECOND = 60.0, 10 * 2**20
#: Number of steps of SQLite's virtual machine after which SQLite asks whether to continue.
_STEPS = 200_000
_MAGIC = b"\x89MCAP0\r\n"
#: Largest number of characters of a library's error that a message repeats.
_SHOWN = 200
#: Largest number of characters of a path that a message repeats completely.
_LONGEST_PATH = 600


@contextlib.contextmanager
def reading(where: str, read: Path | None = None) -> Iterator[None]:
    """Convert every error inside this context to a :class:`RecordingError` that begins with ``where``.

    Errors of this project are raised unchanged. A full disk is reported as a full disk.

    Args:
        where: Name of the file in messages.
        read: The file that is really read, such as a decompressed copy. In messages, ``where`` replaces its name.
    """
    where = where if len(where) <= _LONGEST_PATH else f"{where[:_SHOWN]}..."
    try:
        yield
    except M2DistillError:
        raise
    except MemoryError as error:
        raise RecordingError(f"{where} is damaged: it announces more data than fit into memory") from error
    except RecursionError as error:
        raise RecordingError(f"{where} is damaged: its data are nested too deeply") from error
    # All errors are caught, because rosbags, apsw, zstd and Python raise errors without a common base class.
    except Exception as error:
        full = disk_full_error(error)
        if full is not None:
            raise full from error
        text = " ".join((str(error) if read is None else str(error).replace(str(read), where)).split())
        reason = f"{type(error).__name__}: {text[:_SHOWN]}" if text else type(error).__name__
        raise RecordingError(f"{where} is damaged, or no part of a rosbag2: {reason}") from error


def most_expanded(size: int) -> int:
    """Return the largest number of bytes that ``size`` compressed bytes may expand to."""
    return size * MOST_EXPANDED + 2**20


def decompress_zstd(data: bytes, largest: int = LARGEST_CHUNK) -> bytes:
    """Decompress zstd frames to at most ``largest`` bytes."""
    return _decompress(zstd.ZstdDecompressor, data, largest)


def _decompress(make: Any, data: bytes, largest: int) -> bytes:
    largest = min(largest, LARGEST_CHUNK, most_expanded(len(data)))
    parts, total, rest = [], 0, data
    while rest:  # each iteration decompresses one frame
        decompressor = make()
        while not decompressor.eof:
            part = decompressor.decompress(rest, max_length=largest - total + 1)
            rest = b""
            total += len(part)
            parts.append(part)
            if total > largest:
                raise ValueError(f"compressed data hold more than {largest} bytes")
            if not part and decompressor.needs_input:
                raise EOFError("compressed data are cut off")
        rest = decompressor.unused_data or b""
    return b"".join(parts)


def expand_file(path: Path, folder: Path) -> Path:
    """Decompress a zstd file into ``folder``, to at most :data:`MOST_EXPANDED` times its size.

    Returns:
        The new file.
    """
    target, most, total = folder / path.name.removesuffix(".zstd"), most_expanded(path.stat().st_size), 0
    with path.open("rb") as source, zstd.open(source, "rb") as expanded, target.open("wb") as output:
        while part := expanded.read(2**20):
            total += len(part)
            if total > most:
                raise ValueError(f"compressed data hold more than {most} bytes")
            output.write(part)
    return target


def temporary_folder() -> contextlib.AbstractContextManager[str]:
    """Make a folder for decompressed files, which is removed at the end."""
    return tempfile.TemporaryDirectory(prefix="m2distill_bag_")


# --- the library's readers --------------------------------------------------------------------------------------


class QueryTimeout:
    """Time limit for SQLite queries that give no result, because a damaged file can keep SQLite busy for ever."""

    def __init__(self, size: int) -> None:
        self._seconds = _PATIENCE + size / _BYTES_A_SECOND
        self.renew()

    def renew(self) -> None:
        """Start the time limit again, because the query gave a result."""
        self._until = time.monotonic() + self._seconds

    def has_passed(self) -> bool:
        """Return whether the time limit has passed, so that the query must be aborted."""
        return time.monotonic() > self._until


def open_storage(path: Path, storage: str, timeout: QueryTimeout, shown: Path) -> Storage:
    """Open one file. The caller must close it. Call this function within :func:`reading`.

    Args:
        path: The file to read.
        storage: Name of the storage plugin.
        timeout: Time limit of SQLite queries.
        shown: Name of the file in messages.
    """
    if storage == "sqlite3":
        return _open_sqlite(path, timeout)
    _check_end(path, shown)
    reader = McapReader(path)
    reader.open()
    try:
        _check_chunks(reader, path.stat().st_size)
    except BaseException:
        reader.close()
        raise
    return reader


def _open_sqlite(path: Path, timeout: QueryTimeout) -> Sqlite3Reader:
    for ending in ("-wal", "-journal"):
        rest = path.with_name(path.name + ending)
        if rest.exists() and rest.stat().st_size:
            raise RecordingError(
                f"{path} was not closed: {rest.name} holds a part of it; repair it with \"sqlite3 '{path}' 'VACUUM'\""
            )
    if set(str(path)) & set("?#%"):
        raise RecordingError(f"{path}: the name has ?, # or %, which SQLite does not open; rename it")

    def bound(connection: apsw.Connection) -> None:
        connection.limit(apsw.SQLITE_LIMIT_LENGTH, LARGEST_CHUNK)
        connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
        connection.set_progress_handler(timeout.has_passed, _STEPS)

    reader = Sqlite3Reader(path)
    apsw.connection_hooks.append(bound)
    try:
        reader.open()
    finally:
        apsw.connection_hooks.remove(bound)
    return reader


def _check_end(path: Path, shown: Path) -> None:
    """Check that an MCAP file ends with the bytes that a recorder writes when it closes the file."""
    with path.open("rb") as file:
        begins = file.read(len(_MAGIC)) == _MAGIC
        file.seek(max(0, path.stat().st_size - len(_MAGIC)))
        ends = file.read() == _MAGIC
    if begins and not ends:
        raise RecordingError(
            f"{shown} has no end: the recorder was killed before it closed the file, or a copy is incomplete; copy it "
            f"again, or recover it by 'mcap recover {shown} -o NEW.mcap' and then 'ros2 bag reindex' its folder"
        )


def _check_chunks(reader: McapReader, size: int) -> None:
    """Refuse an MCAP file whose index lists a chunk twice, or chunks that need too much memory."""
    if len({chunk.chunk_start_offset for chunk in reader.chunks}) != len(reader.chunks):
        raise ValueError("its index names a chunk twice")
    held, at_once = list[tuple[int, int]](), 0
    for chunk in sorted(reader.chunks, key=lambda chunk: chunk.message_start_time):
        if chunk.compressed_size > size or chunk.uncompressed_size > LARGEST_CHUNK:
            raise ValueError(f"its index announces a chunk of {chunk.uncompressed_size} bytes")
        while held and held[0][0] < chunk.message_start_time:
            at_once -= heapq.heappop(held)[1]
        heapq.heappush(held, (chunk.message_end_time, chunk.uncompressed_size))
        at_once += chunk.uncompressed_size
        if at_once > MOST_AT_ONCE:
            raise ValueError(f"chunks of more than {MOST_AT_ONCE} bytes overlap in time")
    if sum(chunk.uncompressed_size for chunk in reader.chunks) > most_expanded(size):
        raise ValueError(f"its chunks announce more than {MOST_EXPANDED} times the bytes of the file")


def _no_qos(_: object) -> list[Any]:
    """Return no QoS profiles. They are not needed, and reading them would parse YAML from an untrusted file."""
    return []


# The library has no options for limits on decompression or for skipping QoS. So its functions are replaced here.
storage_mcap.DECOMPRESSORS.update(
    zstd=decompress_zstd, lz4=lambda data, size: _decompress(LZ4FrameDecompressor, data, size)
)
storage_mcap.parse_qos = _no_qos  # type: ignore[assignment]
storage_sqlite3.parse_qos = _no_qos  # type: ignore[assignment]
