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

from m2distill_policy.bundle import open_bundle
from m2distill_policy.dds import m2distill_msgs, types
from m2distill_policy.dds.image import Image
from m2distill_policy.dds.messages import MESSAGES
from m2distill_policy.dds.participant import Reader
from m2distill_policy.dds.policy_node import PolicyNode
from m2distill_policy.node import topics
from m2distill_policy.node.cycle import LONGEST_RAMP, PolicyCycle
from m2distill_policy.runtime import server as server_module
from m2distill_policy.runtime.engine import Engine
from m2distill_policy.runtime.server import PolicyServer
from tests.bundles import INSTRUCTIONS, write_toy
from tests.fuzz.choice import Choice
from tests.fuzz.door import Door
from tests.fuzz.invariant import require
from tests.fuzz.messages_door import (
    CONTRACT,
    GOOD,
    MOST_CYCLES,
    TOPICS,
    Clock,
    Good,
    Observation,
    Options,
    Published,
    Script,
    unpacked,
)


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
        return [self._kind.deserialize(found) if isinstance(found, bytes) else found]


class _Reader(Reader[Any]):
    def __init__(self, topic: str, kind: Any) -> None:
        self.topic = topic
        self.broken = []
        self.bytes = _Bytes(kind)
        self._reader: Any = self.bytes

    @property
    def matched(self) -> bool:
        return True

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


class _Participant:
    """The part of a :class:`Participant` that a node uses, without a network."""

    domain = 0

    def __init__(self, published: Published) -> None:
        self._published = published
        self.readers: dict[str, list[_Reader]] = {}

    def full_name(self, topic: str) -> str:
        """Not remapped."""
        return topics.resolve(topic)

    def reader(self, topic: str, kind: Any, *args: Any, **kwargs: Any) -> _Reader:
        """A reader of bytes from here."""
        reader = _Reader(topic, kind)
        self.readers.setdefault(topic, []).append(reader)
        return reader

    def writer(self, topic: str, kind: Any, *args: Any, **kwargs: Any) -> _Writer:
        """A writer whose messages are looked at."""
        return _Writer(topic, kind, self._published)


class DdsDoor(Door):
    """See the module's text."""

    name = "dds"
    seconds = 10.0
    mebibytes = 512

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self._bundle = open_bundle(write_toy(Path(folder) / "toy", contract=CONTRACT))
        # The same network for every input: making one takes longer than everything else.
        engine = Engine(self._bundle)
        setattr(server_module, "Engine", lambda *args, **kwargs: engine)  # noqa: B010
        self._script = Script(Types, lambda message: message.serialize(), MESSAGES)

    def seeds(self) -> list[bytes]:
        """See :class:`Door`."""
        return self._script.seeds()

    def change(self, choice: Choice, data: bytes) -> bytes:
        """See :class:`Door`."""
        return self._script.change(choice, data)

    def run(self, data: bytes) -> None:
        """See :class:`Door`."""
        raw, events = unpacked(data)
        session = _Session(self._bundle, Options.of(raw))
        try:
            for event in events:
                session.pause(event.pause / 1e6)
                if event.kind == GOOD:
                    session.good(Good.of(event.payload))
                elif event.kind < len(TOPICS):
                    session.deliver(TOPICS[event.kind], event.payload)
                    session.turn()
                if session.node.cycles > MOST_CYCLES:
                    break
            session.leave()
        finally:
            session.server.close()


class _Session:
    """A node, its clocks, and what it has published."""

    def __init__(self, bundle: Any, options: Options) -> None:
        self.clock = Clock()
        self.published = Published(options)
        self._participant = _Participant(self.published)
        self._lockstep = options.lockstep
        self._number = 0
        self.server = PolicyServer(
            bundle, limits=options.limits, watch=options.watch, enabled=options.enabled, resume=options.resume,
            sampling=options.sampling, clock=self.clock.steady,
        )  # fmt: skip
        self.server.set_instruction(INSTRUCTIONS[0])
        participant: Any = self._participant
        self.node = PolicyNode(participant, self.server, lockstep=options.lockstep)
        self.cycle: PolicyCycle[Image] = PolicyCycle(
            self.server, Image.to_rgb, lockstep=options.lockstep, full_name=participant.full_name,
            wall=self.clock.wall, steady=self.clock.steady,
        )  # fmt: skip
        self.node._cycle = self.cycle

    def deliver(self, topic: str, data: Any) -> None:
        """Bytes arrive, or a message that is whole; what has no encapsulation header, a middleware hands not on."""
        if not isinstance(data, bytes) or len(data) >= 4:
            for reader in self._participant.readers.get(topic, ()):
                reader.bytes.arrived.append(data)

    def turn(self) -> None:
        """What the node's loop does once."""
        node, begin = self.node, time.perf_counter()
        node._take_orders()
        if self._lockstep:
            node._take_episodes()
            node._take_inputs()
            output = self.cycle.run_lockstep(begin)
        else:
            node._take_inputs()
            output = self.cycle.run(begin)
        if output is not None:
            node._publish(output)

    def pause(self, seconds: float) -> None:
        """Time passes: the cycles that are due run."""
        until = self.clock.steady() + seconds
        while not self._lockstep and self.cycle.wake < until and self.node.cycles <= MOST_CYCLES:
            before = self.node.cycles
            self.clock.to(self.cycle.wake)
            self.turn()
            if self.node.cycles == before and self.cycle.wake <= self.clock.steady():
                break
        self.clock.to(until)

    def good(self, good: Good) -> None:
        """A robot that works, some of whose streams are shifted."""
        for _ in range(good.count):
            if self.node.cycles > MOST_CYCLES:
                return
            self._number += 1
            stamp = self.clock.wall()
            self.pause(0.01)
            for kind, message in Observation(self._number, stamp).messages(good, Types, MESSAGES):
                self.deliver(TOPICS[kind], message)
            self.turn()
            self.pause(CONTRACT.period - 0.01)

    def leave(self) -> None:
        """The ramp to a halt ends in time, whatever came before."""
        self.cycle.leave("the fuzzer wants it")
        began = self.clock.steady()
        while not self.cycle.left:
            self.node._publish(self.cycle.ramp())
            self.clock.to(self.clock.steady() + CONTRACT.period)
            require(self.clock.steady() - began < LONGEST_RAMP + 1, "the node does not leave")
        require(self.published.statuses > 0, "no status was published")


def make() -> Door:
    """The door."""
    return DdsDoor()
