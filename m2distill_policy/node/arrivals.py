"""Compare each stream's stamps with the clock at their arrival. Pure: stamps and both clocks are handed in.

Every stream (each view, each publisher of joint states, the pose) is checked alone and when it arrives. A set of
messages that fit each other says nothing about their clocks: images from a camera whose clock is 0.3 s ahead are
matched with joint states that come 0.3 s later.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from m2distill_policy.runtime.status import StatusCode
from m2distill_policy.runtime.watchdog import Fault, WatchLimits

#: s for which one message that was ahead counts. Transport delays vary, and two publishers may share a topic: a stream
#: that is ahead by about the tolerance must not start and stop the arm with every message.
HOLD = 0.5
#: s without a message after which the pose, which is optional, no longer counts.
OPTIONAL_SILENCE = 1.0
#: ns. A stamp within a day of the clock's origin was never set, or comes from a machine whose clock was never set.
_UNSET = 86_400 * 1_000_000_000


class Moment(NamedTuple):
    """When a message arrived. wall: ns, in the clock of the stamps. monotonic: s."""

    wall: int
    monotonic: float


class Arrival:
    """Keep how far the newest message of one stream was ahead of its arrival. Constant work for each message.

    stamp: ns. lead: ns, its stamp minus its arrival; negative for an old one. monotonic: s, when it arrived. repeated:
    whether the message before it bore the same stamp.
    """

    __slots__ = ("ahead", "ahead_at", "lead", "monotonic", "repeated", "stamp")

    def __init__(self) -> None:
        self.stamp = self.lead = self.ahead = 0
        self.monotonic = self.ahead_at = float("-inf")
        self.repeated = False

    def note(self, stamp: int, moment: Moment, tolerance: float | None) -> None:
        """Take in a message stamped ``stamp`` (ns). tolerance: s by which it may be ahead, None for any."""
        self.repeated = stamp == self.stamp and self.monotonic > float("-inf")
        self.stamp, self.lead, self.monotonic = stamp, stamp - moment.wall, moment.monotonic
        if tolerance is not None and self.lead > tolerance * 1e9:
            self.ahead, self.ahead_at = self.lead, moment.monotonic


class Stream(NamedTuple):
    """One stream to check.

    label: for messages. current: whether its newest message is still in use; one that others have replaced counts for
    :data:`HOLD` alone. optional: whether the policy drives without it.
    """

    label: str
    arrival: Arrival
    current: bool = True
    optional: bool = False


def check_arrivals(streams: Sequence[Stream], limits: WatchLimits, monotonic: float) -> Fault | None:
    """Return the fault of the stream whose clock is furthest off, or None.

    Args:
        streams: those that have sent something.
        limits: ``future_tolerance`` and ``stale_after`` apply to each stream; None switches a check off.
        monotonic: s, now.
    """
    known = [s for s in streams if not s.optional or monotonic - s.arrival.monotonic <= OPTIONAL_SILENCE]
    ahead = [s for s in known if _is_ahead(s, monotonic)] if limits.future_tolerance is not None else []
    if ahead:
        worst = max(ahead, key=lambda s: s.arrival.ahead)
        return Fault(
            StatusCode.FUTURE_STAMP,
            f"The stamp of {worst.label} is {_seconds(worst.arrival.ahead)} in the future when it arrives; at most "
            f"{limits.future_tolerance:g} s is allowed (watch.future_tolerance){_compared(worst, known)}: compare the "
            "clocks of the machines.",
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
            f"Messages of {worst.label} carry the same stamp again, {age} old by now (watch.stale_after is "
            f"{limits.stale_after:g} s){_compared(worst, known)}: the driver repeats itself; restart it.",
        )
    what = (
        f"The stamp of {worst.label} is {worst.arrival.stamp / 1e9:.3f} s, which is no time of day: it is {age} old"
        if 0 <= worst.arrival.stamp < _UNSET <= worst.arrival.stamp - worst.arrival.lead
        else f"The stamp of {worst.label} is {age} old"
    )
    return Fault(
        StatusCode.STALE_OBSERVATION,
        f"{what} when it arrives; at most {limits.stale_after:g} s is allowed (watch.stale_after)"
        f"{_compared(worst, known)}: compare the clocks of the machines, and see whether the connection is slow.",
    )


def stale_set(streams: Sequence[Stream], stamp: int, limits: WatchLimits, wall: int) -> Fault | None:
    """Return the fault of a set stamped ``stamp`` (ns) that is too old at ``wall`` (ns), naming the oldest stream."""
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
    """The stream whose clock is nearest to this one's, for comparison."""
    others = [s for s in streams if s is not worst]
    if not others:
        return ""
    best = min(others, key=lambda s: abs(s.arrival.lead))
    lead = best.arrival.lead
    return f"; that of {best.label} is {_seconds(abs(lead))} {'in the future' if lead > 0 else 'old'}"


def _seconds(nanoseconds: int) -> str:
    return f"{nanoseconds / 1e9:.3f} s"
