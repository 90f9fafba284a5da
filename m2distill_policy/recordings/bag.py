"""Reading a rosbag2 (mcap or sqlite3) with the rosbags library, which needs no ROS.

The library makes Python code from message definitions. A recording may carry definitions of its own, and no code is
made from data here: messages are read as the types that the library itself brings, and as one more below.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rosbags.rosbag2 import Reader, ReaderError
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from m2distill_policy.errors import RecordingError, closest

#: control_msgs is not among the types that the library brings.
_GRIPPER_COMMAND = "float64 position\nfloat64 max_effort\n"


@dataclass(frozen=True)
class Message:
    """topic and type as the bag names them; received: ns, when it was recorded; content: attributes as in ROS."""

    topic: str
    kind: str
    received: int
    content: Any

    @property
    def stamp(self) -> int:
        """ns, of its header."""
        stamp = self.content.header.stamp
        return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


class Bag:
    """One recording, open for reading. Raises :class:`RecordingError` for what is no rosbag2."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise RecordingError(f"there is no recording at {self.path}; name the folder that 'ros2 bag record' wrote")
        self._types = get_typestore(Stores.ROS2_JAZZY)
        self._types.register(get_types_from_msg(_GRIPPER_COMMAND, "control_msgs/msg/GripperCommand"))
        try:
            self._reader = Reader(self.path)
            self._reader.open()
        except _BROKEN as error:
            raise RecordingError(f"{self.path} cannot be read as a rosbag2: {error}") from error

    @property
    def topics(self) -> dict[str, str]:
        """Topic -> type."""
        return {connection.topic: connection.msgtype for connection in self._reader.connections}

    @property
    def number(self) -> int:
        """What tells this recording from another one, of the same name too: from a hash of its metadata, in which
        stand its files, when it began to the nanosecond, how long it took and how many messages each topic has."""
        return int(hashlib.sha256((self.path / "metadata.yaml").read_bytes()).hexdigest()[:15], 16)

    def require(self, topic: str, kinds: Collection[str]) -> str:
        """The type of ``topic``; :class:`RecordingError` if it is not there or not of one of ``kinds``."""
        found = self.topics.get(topic)
        if found is None:
            there = ", ".join(sorted(self.topics))
            raise RecordingError(f"{self.path} has no topic '{topic}'{closest(topic, self.topics)}; it has {there}")
        if found not in kinds:
            raise RecordingError(f"{self.path}: '{topic}' is {found}; {' or '.join(kinds)} is needed")
        return found

    def messages(self, topics: Collection[str]) -> Iterator[Message]:
        """The messages of ``topics`` in the order in which they were recorded."""
        wanted = [connection for connection in self._reader.connections if connection.topic in topics]
        try:
            for connection, received, raw in self._reader.messages(connections=wanted):
                content = self._types.deserialize_cdr(raw, connection.msgtype)
                yield Message(connection.topic, connection.msgtype, received, content)
        except _BROKEN as error:
            raise RecordingError(f"{self.path} is damaged: {type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Close the files."""
        self._reader.close()

    def __enter__(self) -> Bag:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


#: What a file that is cut short or no bag at all makes the library raise.
_BROKEN = (ReaderError, OSError, ValueError, KeyError, AssertionError, IndexError)
