"""DDS messages: bytes through the real deserialiser of each input topic, and odd sequences of messages with time.

The policy node is the real one; its readers take bytes from here instead of from Cyclone DDS, and its clocks are moved
by hand. Everything that it publishes is serialised, read again and looked at.
"""

from __future__ import annotations

import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

from m2distill_policy.bundle import Bundle, open_bundle
from m2distill_policy.dds import m2distill_msgs, types
from m2distill_policy.dds.images import Image
from m2distill_policy.dds.messages import MESSAGES
from m2distill_policy.dds.participant import Participant, Reader
from m2distill_policy.dds.policy_node import PolicyNode
from m2distill_policy.node import topics
from m2distill_policy.node.output import Output
from tests.bundles import write_toy
from tests.fuzz.choice import Choice
from tests.fuzz.door import Door
from tests.fuzz.messages_door import CONTRACT, Options, Published, Script, Session, play, use_one_engine


class Types:
    """The message classes by name."""

    Image = Image
    Episode = m2distill_msgs.Episode
    String, Bool = types.String, types.Bool


class _Bytes:
    """What a Cyclone DDS reader is to :class:`Reader`: bytes that came, read one by one by the real deserialiser."""

    def __init__(self, kind: Any) -> None:
        self._kind = kind
        self.arrived: deque[Any] = deque()

    def take(self, count: int) -> list[Any]:
        """The next message; raises what the deserialiser raises."""
        if not self.arrived:
            return []
        found = self.arrived.popleft()
        return [self.decoded(found) if isinstance(found, bytes) else found]

    def decoded(self, data: bytes) -> Any:
        """The message that ``data`` is; raises what the deserialiser raises."""
        return self._kind.deserialize(data)


class _Reader(Reader[Any]):
    def __init__(self, topic: str, kind: Any, programs: int) -> None:
        self.topic = topic
        self.broken = []
        self._count = programs
        self.bytes = _Bytes(kind)
        self._reader: Any = self.bytes

    @property
    def matched(self) -> bool:
        return True

    @property
    def publishing_programs(self) -> int:
        return self._count

    @property
    def publishers(self) -> list[str]:
        return []


class _Writer:
    matched = True

    def __init__(self, topic: str, kind: Any, published: Published) -> None:
        self.topic, self._kind, self._published = topic, kind, published

    def write(self, message: Any) -> None:
        """Look at what a subscriber would read; every so often through the bytes, which takes longer than a step."""
        if self._published.count % 16 == 0:
            message = self._kind.deserialize(message.serialize())
        self._published.see(self.topic, message)


class _Participant(Participant):
    """A participant without a network."""

    def __init__(self, published: Published) -> None:
        self.domain, self.namespace = 0, ""
        self._published = published
        self.readers: dict[str, list[_Reader]] = {}

    def full_name(self, topic: str) -> str:
        """Not remapped."""
        return topics.resolve(topic)

    def reader(self, topic: str, kind: Any, *args: Any, **kwargs: Any) -> Any:
        """A reader of bytes from here."""
        reader = _Reader(topic, kind, self._published.publishers_of(topic))
        self.readers.setdefault(topic, []).append(reader)
        return reader

    def writer(self, topic: str, kind: Any, *args: Any, **kwargs: Any) -> Any:
        """A writer whose messages are looked at."""
        return _Writer(topic, kind, self._published)


class DdsDoor(Door):
    """See the module's text."""

    name = "dds"
    seconds = 10.0
    mebibytes = 512
    refuses = False

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self._bundle = open_bundle(write_toy(Path(folder) / "toy", contract=CONTRACT))
        use_one_engine(self._bundle)
        self._script = Script(Types, lambda message: message.serialize(), MESSAGES)

    def seeds(self) -> list[bytes]:
        """See :class:`Door`."""
        return self._script.seeds()

    def change(self, choice: Choice, data: bytes) -> bytes:
        """See :class:`Door`."""
        return self._script.change(choice, data)

    def run(self, data: bytes) -> None:
        """See :class:`Door`."""
        play(data, lambda options: _Session(self._bundle, options))


class _Session(Session):
    """The policy node on DDS."""

    def __init__(self, bundle: Bundle, options: Options) -> None:
        super().__init__(bundle, options, Image.to_rgb, Types, MESSAGES)
        participant = _Participant(self.published)
        self._readers = participant.readers
        self._node = PolicyNode(participant, self.server, lockstep=options.lockstep)
        self._node._loop = self.cycle

    def deliver(self, topic: str, data: Any) -> None:
        """See :class:`Session`."""
        for reader in self._readers.get(topic, ()):
            reader.bytes.arrived.append(data)

    def decoded(self, topic: str, data: bytes) -> Any:
        """See :class:`Session`."""
        return self._readers[topic][0].bytes.decoded(data)

    def turn(self) -> None:
        """What the node's loop does once."""
        node, begin = self._node, time.perf_counter()
        node._take_operator_inputs()
        if self.options.lockstep:
            node._take_episodes(self.cycle)
        node._take_inputs()
        output = self.cycle.run(begin)
        if output is not None:
            node._publish(output)

    def publish(self, output: Output) -> None:
        """See :class:`Session`."""
        self._node._publish(output)


def make() -> Door:
    """The door."""
    return DdsDoor()
