"""A process in a DDS domain: its writers, its readers, and how it waits. The only module that calls Cyclone DDS.

Nothing here polls: :meth:`Waiter.wait` sleeps until there is a message, a peer has come or left, or time has passed.
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

#: Longest single sleep. Signals are handled between two sleeps, so this limits how late they are noticed.
_LONGEST_SLEEP = 0.25

#: Errors of the generic deserialiser for bytes that are not the expected message.
_BROKEN = (struct.error, UnicodeDecodeError, ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError)


class Writer(Generic[M]):
    """Publishes on one topic."""

    def __init__(self, participant: Participant, topic: str, kind: type[M], profile: Profile, depth: int) -> None:
        self.topic = topic
        qos = Qos(*profile.qos(depth), Policy.EntityName(participant.name))
        self._writer: DataWriter[M] = DataWriter(participant.entity, participant.dds_topic(topic, kind), qos)
        self._writer.set_status_mask(DDSStatus.PublicationMatched)

    def write(self, message: M) -> None:
        """Publish ``message``.

        Raises:
            TransportError: A reliable reader did not keep up in time.
        """
        try:
            self._writer.write(message)
        except DDSException as error:
            raise TransportError(f"cannot publish on {self.topic}: {error}") from error

    @property
    def matched(self) -> bool:
        """Whether there is a reader."""
        return bool(self._writer.get_matched_subscriptions())

    @property
    def entity(self) -> DataWriter[M]:
        """The Cyclone DDS writer, for a wait set."""
        return self._writer


class Reader(Generic[M]):
    """Receives the messages of one topic.

    Attributes:
        broken: An error for each unreadable message, the oldest first; the caller clears the list.
        others_only: Whether to leave out what this participant publishes itself.
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
        """Return every message that has arrived, the oldest first. Unreadable ones are reported in :attr:`broken`."""
        messages: list[M] = []
        while True:
            # One at a time, because the binding reads a batch as a whole, and an unreadable message would lose the
            # others.
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
            if not isinstance(batch[0], InvalidSample):  # a writer that has left sends a sample without a message
                messages.append(batch[0])

    def _report(self, message: str) -> None:
        self.broken = [*self.broken[-15:], f"{self.topic}: {message}"]

    @property
    def matched(self) -> bool:
        """Whether there is a writer."""
        return bool(self._reader.get_matched_publications())

    @property
    def publishing_programs(self) -> int:
        """Number of participants that publish. Each is a program, which may have several writers."""
        found = map(self._reader.get_matched_publication_data, self._reader.get_matched_publications())
        return len({str(endpoint.participant_key) for endpoint in found if endpoint is not None})

    @property
    def publishers(self) -> list[str]:
        """Names of the publishing participants; the DDS identity of a participant without a name."""
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
        """Condition for a wait set: there is an unread message."""
        return self._unread


class Participant:
    """One process in a DDS domain. Use it as a context manager.

    Leaving the context tells the other processes at once. If a process just ends, they notice after its lease of 10 s.

    Args:
        domain: Number of the domain, see :func:`m2distill_policy.dds.domain.domain_id`.
        remap: Full topic name -> the name to use instead.
        namespace: Namespace of all topics but /diagnostics, "" or of the form "/a".
        name: Name of this process in the messages of others; the process id is appended.
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
        #: Full names, before remapping, of the topics in use.
        self._asked: set[str] = set()
        self._writers: list[Writer[Any]] = []
        self._readers: list[Reader[Any]] = []

    def dds_topic(self, topic: str, kind: type[M]) -> Topic[M]:
        """Return the DDS topic ``rt/x/y`` of ``/x/y``."""
        existing = self._topics.get(topic)
        if existing is None:
            existing = self._topics[topic] = Topic(self.entity, f"rt{topic}", kind)
        elif existing.data_type is not kind:
            raise TransportError(f"{topic} carries {existing.data_type.__name__}, not {kind.__name__}")
        return existing

    def full_name(self, topic: str) -> str:
        """Return the full name of ``topic`` (``/x/y`` or ``~/y``) after remapping."""
        return resolve(topic, self._remap, self.namespace)

    def require_remapped(self) -> None:
        """Raise :class:`ConfigError` if a remapped topic is not used in this process, because it may be misspelt."""
        for name in self._remap:
            if name not in self._asked:
                raise ConfigError(
                    f"--remap renames '{name}', which is not used; the topics are {', '.join(sorted(self._asked))}"
                    + closest(name, self._asked)
                )

    def writer(self, topic: str, kind: type[M], profile: Profile = Profile.RELIABLE, depth: int = 10) -> Writer[M]:
        """Make a publisher of ``topic`` (``/x/y`` or ``~/y``)."""
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
        """Make a subscription to ``topic`` (``/x/y`` or ``~/y``). others_only: without messages of this participant."""
        self._asked.add(resolve(topic, namespace=self.namespace))
        reader = Reader(self, self.full_name(topic), kind, profile, depth, others_only=others_only)
        self._readers.append(reader)
        return reader

    def waiter(self, readers: Iterable[Reader[Any]] = (), matches: Iterable[Reader[Any] | Writer[Any]] = ()) -> Waiter:
        """Make a waiter that sleeps until a reader has a message, or one of ``matches`` gains or loses a peer."""
        return Waiter(self, readers, matches)

    def wait_for_peers(
        self,
        endpoints: Sequence[Reader[Any] | Writer[Any]],
        timeout: float,
        hint: str,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Wait until every endpoint has a peer. ``stop`` ends the wait early.

        Raises:
            TransportError: An endpoint has no peer after ``timeout`` s. The message names the topics and ends with
                ``hint``.
        """
        waiter = self.waiter(matches=endpoints)
        deadline = time.monotonic() + timeout
        while missing := [e.topic for e in endpoints if not e.matched]:
            if stop():
                return
            left = deadline - time.monotonic()
            if left <= 0:
                raise TransportError(
                    f"no peer on {', '.join(missing)} within {timeout:g} s in DDS domain {self.domain}; {hint}"
                )
            waiter.wait(left)

    def close(self) -> None:
        """Wait at most 1 s until reliable readers have received everything, then leave the domain."""
        deadline = time.monotonic() + 1.0
        for writer in self._writers:
            left = max(0.0, deadline - time.monotonic())
            # A reader that has just died cannot acknowledge, and leaving must not fail because of it. On a timeout the
            # binding (11.0.1) should return False, but raises an error because of a misspelt name in its code.
            with contextlib.suppress(DDSException, AttributeError):
                writer.entity.wait_for_acks(int(left * 1e9))
        self._writers.clear()
        self._readers.clear()
        self._topics.clear()
        # This also deletes every writer and reader, and the domain after the last participant. It is not left to the
        # garbage collector, because the peers would notice late. At the end of the interpreter it would block, because
        # the binding's background thread waits for the interpreter's lock, and the interpreter for that thread.
        self.entity.__del__()
        self._domain = None

    def __enter__(self) -> Participant:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Waiter:
    """Sleeps until something happens. Keep and reuse it, because making one takes time."""

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
        """Sleep for at most ``timeout`` s and at most 0.25 s, so that signals are handled.

        Returns:
            Whether something happened.
        """
        happened = self._set.wait(int(max(0.0, min(timeout, _LONGEST_SLEEP)) * 1e9)) > 0
        for endpoint in self._matches:
            endpoint.entity.take_status()  # otherwise this change of peers would end the next wait too
        return happened
