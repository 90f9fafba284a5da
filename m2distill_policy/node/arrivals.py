"""Compare the stamp of each message with the clock at its arrival. Stamps and times are arguments.

Every stream (each view, each publisher of joint states, the pose) is checked separately. Stamps that fit one another do
not prove that the clocks are right: images from a camera whose clock is 0.3 s ahead match joint states that arrive
0.3 s later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from m2distill_policy.runtime.status import StatusCode
from m2distill_policy.runtime.watchdog import Fault, WatchLimits

#: Seconds for which a message that was ahead of the clock counts. Transport delays vary, and two publishers may share a
#: topic. Without this time, a stream that is ahead by about the tolerance would start and stop the arm with every
#: message.
HOLD = 0.5
#: Seconds without a message after which the pose, which is optional, is no longer checked.
OPTIONAL_SILENCE = 1.0
#: One day in nanoseconds. A stamp less than a day after the clock's origin comes from a clock that was never set.
_UNSET = 86_400 * 1_000_000_000


class Moment(NamedTuple):
    """When a message arrived. wall: ns, in the clock of the stamps. monotonic: s."""

    wall: int
    monotonic: float


class Arrival:
    """The newest message of one stream, and how far its stamp was ahead of the clock when it arrived.

    Attributes:
        stamp: Stamp of the newest message, ns.
        lead: Stamp of the newest message minus its arrival time, ns; negative for an old message.
        monotonic: When the newest message arrived, s.
        repeated: Whether the message before it had the same stamp.
    """

    __slots__ = ("ahead", "ahead_at", "lead", "monotonic", "repeated", "stamp")

    def __init__(self) -> None:
        self.stamp = self.lead = self.ahead = 0
        self.monotonic = self.ahead_at = float("-inf")
        self.repeated = False

    def note(self, stamp: int, moment: Moment, tolerance: float | None) -> None:
        """Record a message in constant time.

        Args:
            stamp: Stamp of the message, ns.
            moment: When it arrived.
            tolerance: Largest allowed lead of the stamp over the clock, s; None allows any lead.
        """
        self.repeated = stamp == self.stamp and self.monotonic > float("-inf")
        self.stamp, self.lead, self.monotonic = stamp, stamp - moment.wall, moment.monotonic
        if tolerance is not None and self.lead > tolerance * 1e9:
            self.ahead, self.ahead_at = self.lead, moment.monotonic


class Stream(NamedTuple):
    """One stream to check.

    Attributes:
        label: Name for messages.
        arrival: Record of its newest message.
        current: Whether its newest message is still in use. Otherwise, only a message that was ahead of the clock
            counts, for :data:`HOLD` seconds.
        optional: Whether the policy can drive without this stream.
    """

    label: str
    arrival: Arrival
    current: bool = True
    optional: bool = False


def check_arrivals(streams: Sequence[Stream], limits: WatchLimits, monotonic: float) -> Fault | None:
    """Return the fault of the stream with the largest clock error, or None.

    Args:
        streams: Streams that have sent at least one message.
        limits: ``future_tolerance`` and ``stale_after`` apply to each stream; None switches a check off.
        monotonic: Current time, s.
    """
    known = [s for s in streams if not s.optional or monotonic - s.arrival.monotonic <= OPTIONAL_SILENCE]
    ahead = [s for s in known if _is_ahead(s, monotonic)] if limits.future_tolerance is not None else []
    if ahead:
        worst = max(ahead, key=lambda s: s.arrival.ahead)
        return Fault(
            StatusCode.FUTURE_STAMP,
            f"The stamp of {worst.label} is {_seconds(worst.arrival.ahead)} in the future when it arrives; at most "
            f"{limits.future_tolerance:g} s is allowed (watch.future_tolerance){_compared(worst, known)}: synchronise "
            "the clocks of the machines.",
        )
    if limits.stale_after is None:
        return None
    stale = [s for s in known if s.current and -s.arrival.lead > limits.stale_after * 1e9]
    if not stale:
        return None
    worst = min(stale, key=lambda s: s.arrival.lead)
    age = _seconds(-worst.arrival.lead)
    if worst.arrival.repeated:
        return Fault(
            StatusCode.REPEATED_STAMP,
            f"Messages of {worst.label} repeat the same stamp, which is {age} old (watch.stale_after is "
            f"{limits.stale_after:g} s){_compared(worst, known)}: the driver repeats old messages; restart it.",
        )
    what = (
        f"The stamp of {worst.label} is {worst.arrival.stamp / 1e9:.3f} s (from a clock that was never set), {age} old"
        if 0 <= worst.arrival.stamp < _UNSET <= worst.arrival.stamp - worst.arrival.lead
        else f"The stamp of {worst.label} is {age} old"
    )
    return Fault(
        StatusCode.STALE_OBSERVATION,
        f"{what} when it arrives; at most {limits.stale_after:g} s is allowed (watch.stale_after)"
        f"{_compared(worst, known)}: synchronise the clocks of the machines, and check whether the connection is slow.",
    )


def stale_set(streams: Sequence[Stream], stamp: int, limits: WatchLimits, wall: int) -> Fault | None:
    """Return the fault if an observation stamped ``stamp`` (ns) is too old at ``wall`` (ns), else None.

    The message of the fault names the oldest of ``streams``.
    """
    if limits.stale_after is None or not streams or wall - stamp <= limits.stale_after * 1e9:
        return None
    oldest = min(streams, key=lambda s: s.arrival.lead)
    return Fault(
        StatusCode.STALE_OBSERVATION,
        f"The observation is {_seconds(wall - stamp)} old; at most {limits.stale_after:g} s is allowed "
        f"(watch.stale_after). The stamp of {oldest.label} is {_seconds(-oldest.arrival.lead)} old when it "
        f"arrives{_compared(oldest, streams)}.",
    )


def _is_ahead(stream: Stream, monotonic: float) -> bool:
    arrival = stream.arrival
    return (stream.current and arrival.ahead_at == arrival.monotonic) or monotonic - arrival.ahead_at <= HOLD


def _compared(worst: Stream, streams: Sequence[Stream]) -> str:
    """Describe the stream with the smallest clock error, as the part of a message that compares it with ``worst``."""
    others = [s for s in streams if s is not worst]
    if not others:
        return ""
    best = min(others, key=lambda s: abs(s.arrival.lead))
    lead = best.arrival.lead
    return f"; that of {best.label} is {_seconds(abs(lead))} {'in the future' if lead > 0 else 'old'}"


def _seconds(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e9:.3f} s"
