"""A clock at the contract's rate that keeps step with the cameras. Pure: time is handed in.

A free-running clock beside cameras of the same rate drifts past them: now and then one cycle finds no new set and the
next one finds two. So with cameras of about the contract's rate the cycle follows them: every set is used when it
comes. With faster cameras a clock picks from what they send: a set waits for its time, a newer one takes its place,
and one that comes just before its time is used at once. Either way a cycle runs without a set when none has come half
a period after its time.
"""

from __future__ import annotations

#: Cameras are followed if their period is at least this share of the contract's; 25 Hz for a policy of 20 is too fast.
FOLLOWED = 0.85
#: Two cycles of a followed camera are at least this far apart, in periods: after a hiccup two sets come at once, and
#: both are used.
CLOSEST = 0.5
#: How early a set may be used by the clock, in periods.
EARLY = 0.15
#: How long a cycle waits for its set, in periods.
LATE = 0.5
#: Share of a set's lateness by which the clock is put back.
BACK = 0.25


class Pacer:
    """Says when the next cycle may run. Times are monotonic seconds; ``period`` is in s."""

    def __init__(self, period: float, now: float) -> None:
        self._period = period
        self._next = now
        self._last = now - period
        self._starved = True
        self._follow = False

    def cameras(self, interval: float | None) -> None:
        """The slowest camera sends an image every ``interval`` s; None while that is not known."""
        self._follow = interval is not None and interval >= FOLLOWED * self._period

    @property
    def next(self) -> float:
        """When the next cycle runs with a set that is there already."""
        return self._last + CLOSEST * self._period if self._follow else self._next

    @property
    def latest(self) -> float:
        """When the next cycle runs without a set."""
        return self._next + LATE * self._period

    def ready(self, now: float, arrived: float) -> bool:
        """Whether the cycle may run now with a set that was complete at ``arrived``."""
        just_before = not self._follow and arrived >= self._next - EARLY * self._period
        return self._starved or just_before or now >= self.next

    def used(self, now: float) -> None:
        """A cycle ran with a set at ``now``."""
        late = now - self._next
        if self._follow or self._starved or late < 0 or late > self._period:
            self._next = now + self._period
        else:
            self._next += self._period + BACK * late
        self._last = now
        self._starved = False

    def missed(self, now: float) -> None:
        """A cycle ran without a set at ``now``; whatever comes next is used at once."""
        # The wait for the set is part of the period that has passed.
        self._next = max(self._next + self._period, now + (1 - LATE) * self._period)
        self._starved = True
