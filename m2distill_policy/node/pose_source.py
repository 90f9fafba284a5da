"""Sources of the end effector's pose: a topic of poses; on ROS 2 also tf2."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.node.joint_states import JOINTS_KEPT
from m2distill_policy.node.pose_gate import Measured, PoseGate, between

#: A pose that is older than this many periods does not show where the arm is now.
POSE_PERIODS = 4
#: Seconds for which the status reports a refused pose.
_SAID = 1.0


class PoseSource(ABC):
    """Poses (6,) of the end effector: position in m and rotation vector in rad, in the frame of the actions.

    Args:
        gate: Checks every pose before it is used.
        monotonic: Monotonic clock, s.
    """

    def __init__(self, gate: PoseGate, monotonic: Callable[[], float]) -> None:
        self._gate = gate
        self._monotonic = monotonic
        self._refusal: str | None = None
        self._refused_at = 0.0
        #: Stamp (ns) of the newest pose, for sources that are polled and get no messages; else 0.
        self.newest_stamp = 0

    @property
    @abstractmethod
    def expected(self) -> bool:
        """Whether poses are expected, so that a cycle without one is reported."""

    @property
    @abstractmethod
    def place(self) -> str:
        """Where poses come from, for messages."""

    @abstractmethod
    def at(self, stamp: int) -> NDArray[np.float64] | None:
        """Return the pose (6,) for ``stamp`` (ns), or the newest pose if ``stamp`` is 0.

        Returns:
            The pose; None if no pose is near enough or recent enough. An old pose is not used, because the arm may have
            been moved since, and a set-point relative to that pose would send it back.
        """

    @abstractmethod
    def absence(self, stamp: int) -> str:
        """Return, as part of a message, why there is no pose for ``stamp`` (ns), or no current pose if it is 0."""

    @abstractmethod
    def may_come(self, stamp: int) -> bool:
        """Return whether the pose for ``stamp`` (ns) may still arrive: poses are published, but only older ones so
        far."""

    @abstractmethod
    def came_by(self, stamp: int, moment: float) -> bool:
        """Return whether the pose for ``stamp`` (ns) has arrived, by ``moment`` (monotonic s) if its arrival is
        known."""

    def clear(self) -> None:
        """Forget earlier poses, for a new episode."""
        self._gate.clear()
        self._refusal = None

    def refuse(self, why: str) -> None:
        """Report a pose that is not used. The report stays for a second, so that some status contains it."""
        self._refusal, self._refused_at = (
            f"A pose on {self.place} was refused: {why}. Check who publishes it.",
            self._monotonic(),
        )

    @property
    def refused(self) -> str | None:
        """The message about a pose that was refused within the last second, or None."""
        if self._refusal is not None and self._monotonic() - self._refused_at > _SAID:
            self._refusal = None
        return self._refusal

    def take_jump(self) -> str | None:
        """See :meth:`PoseGate.take_jump`."""
        return self._gate.take_jump()

    def _admitted(self, pose: Measured) -> bool:
        why = self._gate.problem(pose)
        if why is not None:
            self.refuse(why)
        return why is None


class PoseBuffer(PoseSource):
    """Poses that are added when they arrive.

    Between two poses it interpolates. Where that is not possible, the nearest pose within the slop is used as it is.

    Args:
        place: Returns where poses come from, for messages.
        slop: Largest difference in ns between a pose and the requested stamp; 0 needs equal stamps, as in lockstep.
        longest_silence: Seconds after which the newest pose is no longer used, and largest time in seconds between two
            poses for an interpolation between them; None for no limit and no interpolation.
        gate, monotonic: See :class:`PoseSource`.
    """

    def __init__(
        self,
        place: Callable[[], str],
        *,
        slop: int,
        longest_silence: float | None,
        gate: PoseGate,
        monotonic: Callable[[], float],
    ) -> None:
        super().__init__(gate, monotonic)
        self._place = place
        self._slop = slop
        self._longest_silence = longest_silence
        self._poses: deque[Measured] = deque(maxlen=JOINTS_KEPT)
        #: The newest interpolated pose, kept because a cycle needs it more than once.
        self._between: tuple[int, Measured, NDArray[np.float64]] | None = None

    def add(self, stamp: int, pose: NDArray[np.float64], frame: str = "") -> None:
        """Add a pose (6,), stamped ``stamp`` ns, in the frame that is named ``frame``."""
        measured = Measured(stamp, self._monotonic(), pose, frame)
        if not self._admitted(measured):
            return
        # Poses are kept in the order of their stamps. After a clock was set back, poses with later stamps are useless.
        while self._poses and self._poses[-1].stamp >= stamp:
            self._poses.pop()
        self._poses.append(measured)

    @property
    def expected(self) -> bool:
        return bool(self._poses) or self.refused is not None

    @property
    def place(self) -> str:
        return self._place()

    @property
    def _silent(self) -> float | None:
        """Seconds since the newest pose arrived if they are too many, else None."""
        since = self._monotonic() - self._poses[-1].arrived
        return since if self._longest_silence is not None and since > self._longest_silence else None

    def at(self, stamp: int) -> NDArray[np.float64] | None:
        if not self._poses or self._silent is not None:
            return None
        if not stamp:
            return self._poses[-1].value
        before, after = self._around(stamp)
        if before is not None and before.stamp == stamp:
            return before.value
        longest = self._longest_silence
        if (
            before is not None
            and after is not None
            and longest is not None
            and after.stamp - before.stamp <= longest * 1e9
        ):
            if self._between is None or self._between[0] != stamp or self._between[1] is not after:
                self._between = stamp, after, between(before, after, stamp)
            return self._between[2]
        nearest = min((p for p in (before, after) if p is not None), key=lambda p: abs(p.stamp - stamp))
        return nearest.value if abs(nearest.stamp - stamp) <= self._slop else None

    def absence(self, stamp: int) -> str:
        if not self._poses:
            return "none has arrived"
        silent = self._silent
        if silent is not None:
            return f"the last one arrived {silent:.2f} s ago"
        if not stamp:
            return "none has arrived lately"
        off = min((p.stamp - stamp for p in self._around(stamp) if p is not None), key=abs)
        return (
            f"the nearest one is {abs(off) / 1e6:.1f} ms {'before' if off < 0 else 'after'} its images, but 'slop' "
            f"allows {self._slop / 1e6:g} ms"
        )

    def may_come(self, stamp: int) -> bool:
        return bool(self._poses) and self._silent is None and self._poses[-1].stamp < stamp

    def came_by(self, stamp: int, moment: float) -> bool:
        if not self._poses or self.at(stamp) is None:
            return False
        first = next((p for p in self._poses if p.stamp >= stamp - self._slop), None)
        return first is not None and first.arrived <= moment

    def clear(self) -> None:
        super().clear()
        self._poses.clear()

    def _around(self, stamp: int) -> tuple[Measured | None, Measured | None]:
        """Return the newest pose not after ``stamp``, and the one that follows it."""
        after = None
        for pose in reversed(self._poses):
            if pose.stamp <= stamp:
                return pose, after
            after = pose
        return None, after
