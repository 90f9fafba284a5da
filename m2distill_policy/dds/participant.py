"""A process on the bus: its writers, its readers, and how it waits. The only module that calls Cyclone DDS.

Nothing here polls: :meth:`Participant.wait` sleeps until a message or a match arrives, or the time is up.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, TypeVar

from cyclonedds.core import (
    DDSException,
    DDSStatus,
    InstanceState,
    Policy,
    Qos,
    ReadCondition,
    SampleState,
    ViewState,
    WaitSet,
)
from cyclonedds.domain import Domain, DomainParticipant
from cyclonedds.idl import IdlStruct
from cyclonedds.internal import InvalidSample
from cyclonedds.pub import DataWriter
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic

from m2distill_policy.dds import domain as domains
from m2distill_policy.dds.qos import Profile
from m2distill_policy.errors import ConfigError, TransportError, closest
from m2distill_policy.node.topics import resolve

M = TypeVar("M", bound=IdlStruct)

#: Longest sleep in one go. A signal is only looked at between two sleeps, so this bounds how late it is noticed.
_LONGEST_SLEEP = 0.25

#: What the generic deserialiser raises on bytes that are not the message they claim to be.
_BROKEN = (struct.error, UnicodeDecodeError, ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError)


class Writer(Generic[M]):
    """Publishes one topic."""

    def __init__(self, participant: Participant, topic: str, kind: type[M], profile: Profile, depth: int) -> None:
        self.topic = topic
        qos = Qos(*profile.qos(depth), Policy.EntityName(participant.name))
        self._writer: DataWriter[M] = DataWriter(participant.entity, participant.dds_topic(topic, kind), qos)
        self._writer.set_status_mask(DDSStatus.PublicationMatched)

    def write(self, message: M) -> None:
        """Hand ``message`` over; raises :class:`TransportError` if a reliable reader did not keep up in time."""
        try:
            self._writer.write(message)
        except DDSException as error:
            raise TransportError(f"cannot publish on {self.topic}: {error}") from error

    @property
    def matched(self) -> bool:
        """Whether anyone listens."""
        return bool(self._writer.get_matched_subscriptions())

    @property
    def entity(self) -> DataWriter[M]:
        """The Cyclone DDS writer, for a wait set."""
        return self._writer


class Reader(Generic[M]):
    """Takes one topic's messages.

    broken: messages about messages that could not be read, oldest first; whoever reads them empties the list.
    others_only: leave out what this participant itself publishes.
    """

    def __init__(
        self,
        participant: Participant,
        topic: str,
        kind: type[M],
        profile: Profile,
        depth: int,
        *,
        others_only: bool = False,
    ) -> None:
        self.topic = topic
        self.broken: list[str] = []
        local = Policy.IgnoreLocal.Participant if others_only else Policy.IgnoreLocal.Nothing
        self._reader: DataReader[M] = DataReader(
            participant.entity, participant.dds_topic(topic, kind), Qos(*profile.qos(depth), local)
        )
        self._reader.set_status_mask(DDSStatus.SubscriptionMatched)
        self._unread = ReadCondition(self._reader, SampleState.NotRead | ViewState.Any | InstanceState.Any)

    def take(self) -> list[M]:
        """Every message that has arrived, oldest first. A message that cannot be read is named in :attr:`broken`."""
        messages: list[M] = []
        while True:
            # One at a time: the binding reads all of a batch at once, and one broken message would lose the others.
            try:
                batch = self._reader.take(1)
            except TransportError as error:
                self._report(str(error))
                continue
            except _BROKEN as error:
                self._report(f"message cannot be read: {type(error).__name__}: {error}")
                continue
            if not batch:
                return messages
            if not isinstance(batch[0], InvalidSample):  # a writer that left announces itself without a message
                messages.append(batch[0])

    def _report(self, message: str) -> None:
        self.broken = [*self.broken[-15:], f"{self.topic}: {message}"]

    @property
    def matched(self) -> bool:
        """Whether anyone publishes."""
        return bool(self._reader.get_matched_publications())

    @property
    def publishing_programs(self) -> int:
        """How many participants publish; each is a program, which may have several writers."""
        found = map(self._reader.get_matched_publication_data, self._reader.get_matched_publications())
        return len({str(endpoint.participant_key) for endpoint in found if endpoint is not None})

    @property
    def publishers(self) -> list[str]:
        """Who publishes: the names that they give themselves, or their DDS identity."""
        found = (
            self._reader.get_matched_publication_data(handle) for handle in self._reader.get_matched_publications()
        )
        known = [endpoint for endpoint in found if endpoint is not None]
        return sorted(
            endpoint.qos[Policy.EntityName].name
            if Policy.EntityName in endpoint.qos
            else f"DDS participant {endpoint.participant_key}"
            for endpoint in known
        )

    @property
    def entity(self) -> DataReader[M]:
        """The Cyclone DDS reader, for a wait set."""
        return self._reader

    @property
    def unread(self) -> ReadCondition:
        """True while a message waits, for a wait set."""
        return self._unread


class Participant:
    """One process in a DDS domain.

    Args:
        domain: the domain's id, see :func:`m2distill_policy.dds.domain.domain_id`.
        remap: full topic name -> the one to use instead.
        namespace: of all topics but /diagnostics, "" or of the form "/a".
        name: what others call this process in their messages; the process id is added.

    Use it as a context manager: leaving it says goodbye to the other processes at once, where a process that just
    ends is missed only after its lease of 10 s.
    """

    def __init__(
        self, domain: int, remap: Mapping[str, str] | None = None, *, namespace: str = "", name: str = "m2distill"
    ) -> None:
        self.domain = domain
        self.namespace = namespace
        self.name = f"{name}, process {os.getpid()}"
        self._remap = dict(remap or {})
        try:
            self._domain: Domain | None = domains.configure(domain)
            self.entity = DomainParticipant(domain)
        except DDSException as error:
            raise TransportError(f"cannot join DDS domain {domain}: {error}") from error
        self._topics: dict[str, Topic[Any]] = {}
        #: Full names, before remapping, of what was asked for.
        self._asked: set[str] = set()
        self._writers: list[Writer[Any]] = []
        self._readers: list[Reader[Any]] = []

    def dds_topic(self, topic: str, kind: type[M]) -> Topic[M]:
        """The DDS topic ``rt/x/y`` of ``/x/y``."""
        existing = self._topics.get(topic)
        if existing is None:
            existing = self._topics[topic] = Topic(self.entity, f"rt{topic}", kind)
        elif existing.data_type is not kind:
            raise TransportError(f"{topic} carries {existing.data_type.__name__}, not {kind.__name__}")
        return existing

    def full_name(self, topic: str) -> str:
        """The name of ``topic`` (``/x/y`` or ``~/y``) here, after remapping."""
        return resolve(topic, self._remap, self.namespace)

    def require_remapped(self) -> None:
        """:class:`ConfigError` where a topic was to be renamed that nobody here reads or writes: a slip of the pen."""
        for name in self._remap:
            if name not in self._asked:
                raise ConfigError(
                    f"--remap renames '{name}', which is none of {', '.join(sorted(self._asked))}"
                    + closest(name, self._asked)
                )

    def writer(self, topic: str, kind: type[M], profile: Profile = Profile.RELIABLE, depth: int = 10) -> Writer[M]:
        """A publisher of ``topic`` (``/x/y`` or ``~/y``)."""
        self._asked.add(resolve(topic, namespace=self.namespace))
        writer = Writer(self, self.full_name(topic), kind, profile, depth)
        self._writers.append(writer)
        return writer

    def reader(
        self,
        topic: str,
        kind: type[M],
        profile: Profile = Profile.RELIABLE,
        depth: int = 10,
        *,
        others_only: bool = False,
    ) -> Reader[M]:
        """A subscription to ``topic`` (``/x/y`` or ``~/y``). others_only: not to what this participant publishes."""
        self._asked.add(resolve(topic, namespace=self.namespace))
        reader = Reader(self, self.full_name(topic), kind, profile, depth, others_only=others_only)
        self._readers.append(reader)
        return reader

    def waiter(self, readers: Iterable[Reader[Any]] = (), matches: Iterable[Reader[Any] | Writer[Any]] = ()) -> Waiter:
        """Something to sleep on until one of ``readers`` has a message or one of ``matches`` meets or loses a peer."""
        return Waiter(self, readers, matches)

    def wait_for_peers(
        self,
        endpoints: Sequence[Reader[Any] | Writer[Any]],
        timeout: float,
        hint: str,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Sleep until every endpoint has a peer, ``timeout`` seconds at most; ``stop`` ends the wait early.

        Raises:
            TransportError: nobody came; names the topics without a peer, and adds ``hint``.
        """
        waiter = self.waiter(matches=endpoints)
        deadline = time.monotonic() + timeout
        while missing := [e.topic for e in endpoints if not e.matched]:
            if stop():
                return
            left = deadline - time.monotonic()
            if left <= 0:
                raise TransportError(
                    f"nobody answered on {', '.join(missing)} within {timeout:g} s in DDS domain {self.domain}; {hint}"
                )
            waiter.wait(left)

    def close(self) -> None:
        """Wait at most 1 s until reliable readers have what was written, then leave the domain."""
        deadline = time.monotonic() + 1.0
        for writer in self._writers:
            left = max(0.0, deadline - time.monotonic())
            # A reader that has just died cannot acknowledge; leaving must not hang on it. The binding (11.0.1) means to
            # return False when the time is up, and trips over a misspelt name instead.
            with contextlib.suppress(DDSException, AttributeError):
                writer.entity.wait_for_acks(int(left * 1e9))
        self._writers.clear()
        self._readers.clear()
        self._topics.clear()
        # Deletes every writer and reader with it, and the domain after the last participant. Not left to the garbage
        # collector: the peers would be left guessing, and when the interpreter itself ends it is too late, because
        # then the binding's background thread waits for the interpreter's lock for ever, and we for that thread.
        self.entity.__del__()
        self._domain = None

    def __enter__(self) -> Participant:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Waiter:
    """Sleeps until something happens. Made once and used often: making one is not free."""

    def __init__(
        self,
        participant: Participant,
        readers: Iterable[Reader[Any]],
        matches: Iterable[Reader[Any] | Writer[Any]],
    ) -> None:
        self._matches = list(matches)
        self._set = WaitSet(participant.entity)
        for reader in readers:
            self._set.attach(reader.unread)
        for endpoint in self._matches:
            self._set.attach(endpoint.entity)

    def wait(self, timeout: float) -> bool:
        """Sleep ``timeout`` seconds at most, and never longer than a quarter of a second, so that signals are seen.

        Returns whether something happened.
        """
        happened = self._set.wait(int(max(0.0, min(timeout, _LONGEST_SLEEP)) * 1e9)) > 0
        for endpoint in self._matches:
            endpoint.entity.take_status()  # a match that is not taken note of would wake the next wait as well
        return happened
