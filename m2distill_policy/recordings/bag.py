"""Read a rosbag2 (mcap or sqlite3) with the rosbags library, without ROS.

The library makes Python code from message definitions, and a recording may contain its own definitions. For safety, the
definitions in a recording are not used. Messages are read with the types of the library and one more type below.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from m2distill_policy.errors import RecordingError, closest
from m2distill_policy.recordings.metadata import STORAGES, Metadata, read_metadata
from m2distill_policy.recordings.storages import (
    QueryTimeout,
    Storage,
    decompress_zstd,
    expand_file,
    open_storage,
    reading,
    temporary_folder,
)

#: Definition of control_msgs/msg/GripperCommand, which the library does not contain.
_GRIPPER_COMMAND = "float64 position\nfloat64 max_effort\n"
#: Largest number of topics or types that an error message lists, and largest number of characters of a topic or type.
_LISTED, _LONGEST_NAME = 30, 512


@dataclass(frozen=True)
class Message:
    """A recorded message.

    Attributes:
        topic: Topic in the recording.
        kind: Type of the message, such as ``sensor_msgs/msg/Image``.
        received: Time of recording, ns.
        content: The message, with its fields as attributes, as in ROS.
    """

    topic: str
    kind: str
    received: int
    content: Any

    @property
    def stamp(self) -> int:
        """Stamp in the header of the message, ns."""
        stamp = self.content.header.stamp
        return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


class Bag:
    """A recording that is open for reading: the folder of a rosbag2, or its only file.

    A damaged file does not need more time or memory than an intact file of the same size (see
    :mod:`m2distill_policy.recordings.storages`).

    Raises:
        RecordingError: The path is not a rosbag2, is damaged, or was not closed by the recorder. All methods raise it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._types = get_typestore(Stores.ROS2_JAZZY)
        self._types.register(get_types_from_msg(_GRIPPER_COMMAND, "control_msgs/msg/GripperCommand"))
        self._opened = contextlib.ExitStack()
        self._storages: list[_Opened] = []
        try:
            with reading(str(self.path)):
                self._metadata, files = _find(self.path)
            for file in files:
                self._open(file)
            self._declared = self._count()
        except BaseException:
            self.close()
            raise

    def _open(self, file: Path) -> None:
        read = file
        with reading(str(file)):
            timeout = QueryTimeout(file.stat().st_size)
            storage = self._metadata.storage if self._metadata else STORAGES[file.suffix]
            if self._metadata is not None and self._metadata.compression == "file":
                folder = self._opened.enter_context(temporary_folder())
                read = expand_file(file, Path(folder))
        with reading(str(file), read):
            reader = open_storage(read, storage, timeout, file)
            self._opened.callback(reader.close)
            for connection in reader.connections:
                _check_connection(connection)
            self._storages.append(_Opened(file, reader, timeout))
        # Files are sorted by time, because the metadata may list them in another order.
        self._storages.sort(key=lambda opened: opened.reader.metadata.start_time)

    def _count(self) -> dict[tuple[str, str], int]:
        """Return (topic, type) -> number of messages, as the files and the metadata declare it."""
        found: Counter[tuple[str, str]] = Counter()
        for opened in self._storages:
            for connection in opened.reader.connections:
                found[connection.topic, connection.msgtype] += max(0, connection.msgcount)
        listed = self._metadata.counts if self._metadata is not None else {}
        return {key: max(found[key], listed.get(key, 0)) for key in {*found, *listed}}

    @property
    def topics(self) -> dict[str, str]:
        """Topic -> type, for topics that have messages."""
        return {topic: kind for (topic, kind), count in sorted(self._declared.items()) if count}

    @property
    def counts(self) -> dict[str, int]:
        """Topic -> number of messages, for topics that have messages."""
        return {topic: count for (topic, _), count in sorted(self._declared.items()) if count}

    @property
    def number(self) -> int:
        """A number that identifies this recording, even among recordings of the same name.

        It is a hash of the metadata (files, start in ns, duration, number of messages of each topic). For a single file
        without metadata, it is a hash of the file's size, beginning and end.
        """
        with reading(str(self.path)):
            return int(hashlib.sha256(self._identity()).hexdigest()[:15], 16)

    def _identity(self) -> bytes:
        if self._metadata is not None:
            return (self._metadata.files[0].parent / "metadata.yaml").read_bytes()
        with self.path.open("rb") as file:
            size = self.path.stat().st_size
            first = file.read(2**20)
            file.seek(max(0, size - 2**20))
            return b"%d " % size + first + file.read(2**20)

    def require(self, topic: str, kinds: Collection[str]) -> str:
        """Return the type of ``topic``.

        Raises:
            RecordingError: The topic is missing, has no messages, was recorded with several types, or has a type that
                is not in ``kinds``.
        """
        found = sorted(kind for name, kind in self._declared if name == topic)
        if not found:
            there = ", ".join(sorted(self.topics)[:_LISTED]) or "no topic with messages"
            raise RecordingError(f"{self.path} has no topic '{topic}'; it has {there}{closest(topic, self.topics)}")
        if len(found) > 1:
            raise RecordingError(
                f"{self.path}: '{topic}' is recorded with two types, {' and '.join(found[:_LISTED])}; one publisher "
                f"has the wrong type: stop it and record again, or name the right topic with --remap"
            )
        if found[0] not in kinds:
            raise RecordingError(f"{self.path}: '{topic}' is {found[0]}; {' or '.join(kinds)} is needed")
        if not self._declared[topic, found[0]]:
            raise RecordingError(
                f"{self.path}: '{topic}' has no messages; check whether its publisher runs, and record again"
            )
        return found[0]

    def messages(self, topics: Collection[str]) -> Iterator[Message]:
        """Yield the messages of ``topics`` in the order in which they were recorded.

        Raises:
            RecordingError: A message cannot be read; or, at the end, there were fewer messages than declared.
        """
        got: Counter[tuple[str, str]] = Counter()
        for opened in self._storages:
            wanted = [connection for connection in opened.reader.connections if connection.topic in topics]
            if not wanted:
                continue
            with reading(str(opened.path)):
                rows = opened.reader.messages(wanted)
            while True:
                with reading(str(opened.path)):
                    opened.timeout.renew()
                    row = next(rows, None)
                    if row is None:
                        break
                    connection, received, raw = row
                    if type(received) is not int or not 0 <= received < 2**63:
                        raise ValueError(f"a message on '{connection.topic}' was received at {str(received)[:40]}")
                with reading(f"{opened.path}: the message on '{connection.topic}' at {received / 1e9:.3f} s"):
                    if self._metadata is not None and self._metadata.compression == "message":
                        raw = decompress_zstd(raw)
                    content = self._types.deserialize_cdr(raw, connection.msgtype)
                got[connection.topic, connection.msgtype] += 1
                yield Message(connection.topic, connection.msgtype, received, content)
        for (topic, kind), count in sorted(self._declared.items()):
            if topic in topics and got[topic, kind] < count:
                raise RecordingError(
                    f"{self.path} is damaged: it holds {got[topic, kind]} of {count} messages on '{topic}'; copy it "
                    f"again, or repair it with 'ros2 bag reindex {self.path}'"
                )

    def close(self) -> None:
        """Close the files, and remove temporary decompressed files."""
        self._storages.clear()
        with reading(str(self.path)):
            self._opened.close()

    def __enter__(self) -> Bag:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _Opened:
    """An open file of the recording. path: Name for messages; the file that is read may be a decompressed copy."""

    path: Path
    reader: Storage
    timeout: QueryTimeout


def _find(path: Path) -> tuple[Metadata | None, tuple[Path, ...]]:
    """Return the metadata of the recording at ``path``, and its files. A single file may have no metadata (None)."""
    if not path.exists():
        raise RecordingError(f"there is no recording at {path}; name the folder that 'ros2 bag record' wrote")
    if path.is_dir():
        if not (path / "metadata.yaml").is_file():
            raise RecordingError(_unfinished(path))
        metadata = read_metadata(path)
        return metadata, metadata.files
    if path.suffix == ".bag":
        raise RecordingError(f"{path} is a recording of ROS 1; convert it: rosbags-convert --src {path} --dst FOLDER")
    if path.suffix not in STORAGES or not path.is_file():
        raise RecordingError(
            f"{path} cannot be read as a rosbag2; name the folder that 'ros2 bag record' wrote, or an .mcap or .db3 "
            "file"
        )
    if (path.parent / "metadata.yaml").is_file():
        metadata = read_metadata(path.parent)
        if [file.name for file in metadata.files] == [path.name]:
            return metadata, metadata.files
        if path.name in [file.name for file in metadata.files]:
            raise RecordingError(f"{path} is one of {len(metadata.files)} files of a recording; name {path.parent}")
    return None, (path,)


def _unfinished(folder: Path) -> str:
    for ending, storage in STORAGES.items():
        found = sorted(file.name for file in folder.glob(f"*{ending}*"))
        if found:
            return (
                f"{folder} has {found[0]} and no metadata.yaml: the recorder was ended before it closed the recording; "
                f"repair it with 'ros2 bag reindex {folder} -s {storage}'"
            )
    return (
        f"{folder} cannot be read as a rosbag2: it has no metadata.yaml and no .mcap or .db3 file; name the folder "
        "that 'ros2 bag record' wrote"
    )


def _check_connection(connection: Any) -> None:
    for text in (connection.topic, connection.msgtype):
        if not isinstance(text, str) or not 0 < len(text) <= _LONGEST_NAME or not text.isprintable():
            raise ValueError(f"a topic or type is named {str(text)[:40]!r}")
    if type(connection.msgcount) is not int:
        raise ValueError(f"'{connection.topic}' has {str(connection.msgcount)[:40]!r} messages")
