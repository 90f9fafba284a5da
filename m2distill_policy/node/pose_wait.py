"""Wait a short time for the pose at the time of the images, if poses usually arrive just after the images."""

from __future__ import annotations

from typing import Generic, TypeVar

from m2distill_policy.node.pose_source import PoseSource
from m2distill_policy.node.synchroniser import SynchronisedSet

T = TypeVar("T")

#: Longest wait, as a fraction of the contract's period.
LONGEST = 0.3
#: Seconds between two checks while waiting.
_POLL = 0.002
#: After ``_IN_VAIN`` useless waits in a row, and after each further one, the next ``_PAUSE`` cycles do not wait.
_IN_VAIN, _PAUSE = 3, 5


class PoseWait(Generic[T]):
    """Delays a set of images and joint states whose pose is about to arrive, by at most 0.3 periods.

    It waits only after a set was answered without its pose and the pose then arrived so soon that a wait would have
    helped. A set whose pose has arrived is never delayed.

    Args:
        poses: Source of poses.
        period: Seconds between two actions.
    """

    def __init__(self, poses: PoseSource, period: float) -> None:
        self._poses = poses
        self._longest = LONGEST * period
        self._waiting: tuple[SynchronisedSet[T], float] | None = None
        self._deadline = 0.0
        #: The newest set that was answered without its pose although that might still have arrived: its stamp, and
        #: when.
        self._lacked: tuple[int, float] | None = None
        self._helps = False
        self._in_vain = 0
        self._pause = 0

    @property
    def waiting(self) -> bool:
        """Whether a set is being delayed."""
        return self._waiting is not None

    def begin(self, found: SynchronisedSet[T], begin: float, now: float) -> bool:
        """Begin to delay a set if that may help, and return whether it is delayed.

        Args:
            found: The set.
            begin: ``start`` of :meth:`RealTimeLoop.run`.
            now: Current time, monotonic s.
        """
        if self._lacked is not None:
            stamp, moment = self._lacked
            self._helps = self._helps or self._poses.came_by(stamp, moment + self._longest)
            self._lacked = None
        if not self._poses.expected or self._poses.at(found.stamp) is not None:
            return False
        self._pause = max(0, self._pause - 1)
        if not self._poses.may_come(found.stamp):
            return False
        if not self._helps or self._pause:
            self._lacked = (found.stamp, now)
            return False
        self._waiting, self._deadline = (found, begin), now + self._longest
        return True

    def take(self, now: float) -> tuple[SynchronisedSet[T], float] | None:
        """Return the delayed set and its ``begin`` once its pose has arrived or the wait is over, else None."""
        if self._waiting is None:
            return None
        found, _ = self._waiting
        if self._poses.at(found.stamp) is None:
            if now < self._deadline and self._poses.may_come(found.stamp):
                return None
            self._in_vain += 1
            if self._in_vain >= _IN_VAIN:
                self._helps, self._pause = False, _PAUSE
        else:
            self._in_vain = 0
        waited, self._waiting = self._waiting, None
        return waited

    def wake(self, now: float) -> float:
        """Return when to check again: s, monotonic."""
        return min(self._deadline, now + _POLL)

    def clear(self) -> None:
        """Forget a delayed set."""
        self._waiting = self._lacked = None
