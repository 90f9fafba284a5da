"""A clock at the contract's rate that keeps step with the cameras. Pure: time is handed in.

A free-running clock beside cameras of the same rate drifts past them: now and then one cycle finds no new set and the
next one finds two. So a cycle runs when its time has come *and* a set is there, and the clock follows the sets as long
as they come a little early or late. Only when a set is half a period late does a cycle run without one.
"""

from __future__ import annotations

#: How much earlier than the clock a set may be used, in periods: more than a camera's jitter, and little enough that
#: a camera of 25 Hz does not drive a policy of 20 Hz at 25.
EARLY = 0.15
#: How long a cycle waits for its set, in periods.
LATE = 0.5


class Pacer:
    """Says when the next cycle may run. Times are monotonic seconds; ``period`` is in s."""

    def __init__(self, period: float, now: float) -> None:
        self._period = period
        self._next = now
        #: From here on a set is welcome.
        self.due = now
        #: Here the cycle runs without a set.
        self.latest = now + LATE * period

    def used(self, now: float) -> None:
        """A cycle ran with a set at ``now``."""
        # Late: keep to the clock, so that a camera of 30 Hz gives 20 sets a second and not 15. Early: follow the set.
        self._set(
            max(self._next + self._period, now + LATE * self._period) if now >= self._next else now + self._period
        )

    def missed(self, now: float) -> None:
        """A cycle ran without a set at ``now``; whatever comes next is used at once."""
        self._set(max(self._next + self._period, now + LATE * self._period))
        self.due = now

    def _set(self, following: float) -> None:
        self._next = following
        self.due = following - EARLY * self._period
        self.latest = following + LATE * self._period
