"""Explain why there is no observation yet: which stream is missing, or which two streams have stamps too far apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from m2distill_policy.contract import Contract
from m2distill_policy.node import topics
from m2distill_policy.node.arrivals import Stream
from m2distill_policy.node.joint_states import JointPublisher
from m2distill_policy.node.synchroniser import Synchroniser
from m2distill_policy.runtime.status import StatusCode
from m2distill_policy.runtime.watchdog import Fault, WatchLimits

#: Factor by which the period of a camera, and of the arm's joint states, may exceed the contract's.
SLOWEST = 1.1
#: Number of names that a message lists; of the others it gives only the number.
_LISTED = 6


@dataclass(frozen=True)
class Labels:
    """Names of streams for messages. full_name: Converts a topic of :mod:`m2distill_policy.node.topics` to its name."""

    full_name: Callable[[str], str] = topics.resolve
    #: Names made so far, because every stream is named in every cycle.
    _known: dict[tuple[str, ...], str] = field(default_factory=dict, compare=False, repr=False)

    def view(self, name: str) -> str:
        """Return the name of a camera's stream."""
        found = self._known.get((name,))
        if found is None:
            found = self._known[(name,)] = f"view '{name}' on {self.full_name(topics.camera_topic(name))}"
        return found

    def joints(self, topic: str, names: Sequence[str] = ()) -> str:
        """Return the name of a topic of joint states, or of some joints on it."""
        found = self._known.get(key := (topic, "joints", *names))
        if found is None:
            full = self.full_name(topic)
            found = self._known[key] = f"{listed(names)} on {full}" if names else full
        return found

    @property
    def pose(self) -> str:
        """Name of the stream of the end effector's poses."""
        return self.joints(topics.END_EFFECTOR_POSE)


def listed(names: Sequence[str]) -> str:
    """Join names for a message; long lists are shortened."""
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def streams_of(sets: Synchroniser[Any], labels: Labels) -> list[Stream]:
    """Return every view and every publisher of joint states that has sent something, for ``check_arrivals``."""
    found = [Stream(labels.view(name), arrival) for name, arrival in sets.arrivals.items()]
    for publisher, names in sets.joints.current():
        whole = len(publisher.places) == len(sets.joints.wanted)
        named = () if whole else names or tuple(sets.joints.wanted[i] for i in publisher.places)
        found.append(Stream(labels.joints(publisher.topic, named), publisher.arrival, current=bool(names)))
    return found


def slow_joints(sets: Synchroniser[Any], contract: Contract, labels: Labels) -> Fault | None:
    """Return the fault if a publisher of the arm's joints is slower than the contract's rate, or None."""
    gripper = {name for name, slow in zip(sets.joints.wanted, sets.joints.is_gripper, strict=True) if slow}
    for publisher, names in sets.joints.current():
        interval = publisher.interval
        if set(names) <= gripper or interval is None or interval <= SLOWEST * contract.period:
            continue
        whole = len(publisher.places) == len(sets.joints.wanted)
        return Fault(
            StatusCode.UNSYNCHRONISED,
            f"{labels.joints(publisher.topic, () if whole else names)} has {1 / interval:.1f} joint states a second, "
            f"but the policy needs {contract.rate_hz:g}; make the driver publish faster.",
        )
    return None


def explain(
    sets: Synchroniser[Any], limits: WatchLimits, labels: Labels, monotonic: float, views: Sequence[str]
) -> Fault | None:
    """Return why no observation can be made, or None if nothing is wrong with the streams.

    Args:
        sets: The synchroniser with the messages so far.
        limits: ``silent_after`` is the longest time without a message of a stream.
        labels: Names of the streams.
        monotonic: Current time, s.
        views: Names of the contract's views.
    """
    silent = [
        f"{labels.view(name)} ({_since(sets.arrivals[name].monotonic if name in sets.arrivals else None, monotonic)})"
        for name in views
        if name not in sets.arrivals or _is_silent(sets.arrivals[name].monotonic, limits, monotonic)
    ]
    joints = _absent_joints(sets, limits, labels, monotonic)
    if silent or (joints is not None and joints.code is StatusCode.MISSING_OBSERVATION):
        if joints is not None:
            silent.append(joints.message)
        return Fault(StatusCode.MISSING_OBSERVATION, f"no messages from {', '.join(silent)}; check their publishers.")
    return joints or _apart(sets, limits, labels, views)


def _is_silent(last: float, limits: WatchLimits, monotonic: float) -> bool:
    return limits.silent_after is not None and monotonic - last > limits.silent_after + 1e-9


def _since(last: float | None, monotonic: float) -> str:
    return "never" if last is None else f"for {monotonic - last:.3f} s"


def _absent_joints(sets: Synchroniser[Any], limits: WatchLimits, labels: Labels, monotonic: float) -> Fault | None:
    """Return MISSING_OBSERVATION if there are no joint states, BAD_OBSERVATION if they lack a joint, else None."""
    joints = sets.joints
    owners: dict[str, JointPublisher] = {name: found for found, names in joints.current() for name in names}
    topics_named = list(joints.named)
    if not topics_named:
        return Fault(StatusCode.MISSING_OBSERVATION, f"{labels.joints(topics.JOINT_STATES)} (never)")
    if not owners and not any(positions for _, positions in joints.named.values()):
        where = listed([labels.joints(topic) for topic in topics_named])
        return Fault(
            StatusCode.BAD_OBSERVATION,
            f"the joint states on {where} have no positions, only velocities or efforts; check the driver.",
        )
    held = max(limits.stale_after or 0.0, limits.silent_after or 0.0)
    absent: list[str] = []
    for name, slow in zip(joints.wanted, joints.is_gripper, strict=True):
        last = owners[name].arrival.monotonic if name in owners else None
        if last is None or (monotonic - last > held if slow else _is_silent(last, limits, monotonic)):
            absent.append(name)
    if not absent:
        return None
    newest = max((owner.arrival.monotonic for owner in owners.values()), default=float("-inf"))
    if _is_silent(newest, limits, monotonic) and len(owners) == len(joints.wanted):
        where = listed([labels.joints(topic) for topic in topics_named])
        return Fault(StatusCode.MISSING_OBSERVATION, f"{where} ({_since(newest, monotonic)})")
    where = " and ".join(labels.joints(topic) for topic in topics_named)
    names = list(dict.fromkeys(name for found, _ in joints.named.values() for name in found))
    old = [f"{name} ({_since(owners[name].arrival.monotonic, monotonic)})" for name in absent if name in owners]
    return Fault(
        StatusCode.BAD_OBSERVATION,
        f"the joint state does not name {', '.join(absent)} on {where}"
        + (f"; no longer published: {', '.join(old)}" if old else "")
        + f"; it names {listed(names) or 'nothing'}. Check the driver, or set joints.names to the names that it uses, "
        "or joint_topics to further topics.",
    )


def _apart(sets: Synchroniser[Any], limits: WatchLimits, labels: Labels, views: Sequence[str]) -> Fault | None:
    """Return the fault of two streams whose stamps are too far apart even in the best possible set, or None."""
    reference, *others = views
    best: tuple[float, str] | None = None
    for stamp in sets.stamps(reference):
        worst = 0.0
        message = ""
        for name in others:
            between = min((abs(found - stamp) for found in sets.stamps(name)), default=0)
            if between - sets.slop > worst:
                worst = between - sets.slop
                message = _describe(labels.view(reference), labels.view(name), between, sets.slop, "slop")
        for index, distance in enumerate(sets.joints.distances(stamp)):
            allowed = sets.joints.allowed[index]
            if distance is None or allowed is None or distance - allowed <= worst:
                continue
            worst = distance - allowed
            name = sets.joints.wanted[index]
            topic = next((p.topic for p, names in sets.joints.current() if name in names), topics.JOINT_STATES)
            setting = "watch.stale_after" if sets.joints.is_gripper[index] else "slop"
            where = labels.joints(topic, [name])
            message = _describe(labels.view(reference), where, distance, allowed, setting)
        if best is None or worst < best[0]:
            best = worst, message
    if best is None or not best[1]:
        return None
    return Fault(StatusCode.UNSYNCHRONISED, best[1])


def _describe(one: str, other: str, distance: int, allowed: int, setting: str) -> str:
    return (
        f"the stamps of {one} and {other} are {distance / 1e9:.3f} s apart; at most {allowed / 1e9:g} s is allowed "
        f"({setting}): synchronise them, or increase {setting}."
    )
