"""A clock at the contract's rate that keeps step with the cameras. Pure: time is handed in.

A free-running clock beside cameras of the same rate drifts past them: now and then one cycle finds no new set and the
next one finds two. So a set that comes a little before or after its time is used when it comes, and the clock follows.
A set that came well before (of a faster camera) waits for its time, and a newer one may take its place. Only when
no set has come half a period after the time does a cycle run without one.
"""

from __future__ import annotations

#: How early a set may be used, in periods: more than a camera's jitter, and little enough that a camera of 25 Hz does
#: not drive a policy of 20 Hz at 25.
EARLY = 0.15
#: How long a cycle waits for its set, in periods.
LATE = 0.5
#: Share of a set's lateness by which the clock is put back: enough to follow a camera that is 10 % too slow.
FOLLOW = 0.25


class Pacer:
    """Says when the next cycle may run. Times are monotonic seconds; ``period`` is in s."""

    def __init__(self, period: float, now: float) -> None:
        self._period = period
        #: When the next cycle runs with whatever set is there.
        self.next = now
        self._starved = True

    @property
    def latest(self) -> float:
        """When the next cycle runs without a set."""
        return self.next + LATE * self._period

    def ready(self, now: float, arrived: float) -> bool:
        """Whether the cycle may run now with a set that was complete at ``arrived``."""
        return self._starved or now >= self.next or arrived >= self.next - EARLY * self._period

    def used(self, now: float) -> None:
        """A cycle ran with a set at ``now``."""
        late = now - self.next
        if self._starved or late < 0 or late > self._period:
            self.next = now + self._period
        else:
            self.next += self._period + FOLLOW * late
        self._starved = False

    def missed(self, now: float) -> None:
        """A cycle ran without a set at ``now``; whatever comes next is used at once."""
        # The wait for the set is part of the period that has passed.
        self.next = max(self.next + self._period, now + (1 - LATE) * self._period)
        self._starved = True
