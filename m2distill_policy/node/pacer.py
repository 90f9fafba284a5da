"""A clock at the contract's rate that stays in phase with the cameras. Time is an argument.

A free-running clock drifts against cameras of the same rate: sometimes a cycle finds no new set and the next finds two.
Therefore, cameras of about the contract's rate set the pace: each set of images and joint states is used when it
arrives. With faster cameras, the clock sets the pace: a set waits for the time of the next cycle, a newer set replaces
it, and a set that arrives just before that time is used at once. In both cases, a cycle runs without a set if none has
arrived half a period after the cycle's time.
"""

from __future__ import annotations

#: Cameras are followed if their period is at least this fraction of the contract's. 25 Hz is too fast for a 20 Hz
#: policy.
FOLLOWED = 0.85
#: Smallest distance between two cycles that follow a camera, in periods. After a delay two sets arrive at once, and
#: both are used.
CLOSEST = 0.5
#: How early the clock may use a set, in periods.
EARLY = 0.15
#: How long a cycle waits for its set, in periods.
LATE = 0.5
#: Fraction of a set's lateness by which the clock is delayed.
BACK = 0.25


class Pacer:
    """Decides when the next cycle runs. Times are monotonic seconds. period: the contract's period, s."""

    def __init__(self, period: float, now: float) -> None:
        self._period = period
        self._next = now
        self._last = now - period
        self._starved = True
        self._follow = False

    def cameras(self, interval: float | None) -> None:
        """Set the seconds between two images of the slowest camera; None while they are not known."""
        self._follow = interval is not None and interval >= FOLLOWED * self._period

    @property
    def next(self) -> float:
        """When the next cycle runs if a set has arrived already."""
        return self._last + CLOSEST * self._period if self._follow else self._next

    @property
    def latest(self) -> float:
        """When the next cycle runs if no set arrives."""
        return self._next + LATE * self._period

    def ready(self, now: float, arrived: float) -> bool:
        """Return whether the cycle may run now with a set that was complete at ``arrived``."""
        just_before = not self._follow and arrived >= self._next - EARLY * self._period
        return self._starved or just_before or now >= self.next

    def used(self, now: float) -> None:
        """Record a cycle with a set at ``now``."""
        late = now - self._next
        if self._follow or self._starved or late < 0 or late > self._period:
            self._next = now + self._period
        else:
            self._next += self._period + BACK * late
        self._last = now
        self._starved = False

    def missed(self, now: float) -> None:
        """Record a cycle without a set at ``now``. The next set is used at once."""
        # The time spent waiting for the set is part of the period that has passed.
        self._next = max(self._next + self._period, now + (1 - LATE) * self._period)
        self._starved = True
