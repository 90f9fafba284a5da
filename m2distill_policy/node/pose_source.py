"""Where the end effector's pose comes from: a topic of poses here; ROS 2 may ask its transforms instead."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.node.joint_states import JOINTS_KEPT
from m2distill_policy.node.pose_gate import Measured, PoseGate, between

#: A pose older than this many periods says nothing of where the arm is now.
POSE_PERIODS = 4
#: s for which the status names a refused pose.
_SAID = 1.0


class PoseSource(ABC):
    """Poses (6,) of the end effector: position in m and rotation vector in rad, in the frame of the actions.

    Args:
        gate: judges every pose before it is used.
        monotonic: a monotonic clock, s.
    """

    def __init__(self, gate: PoseGate, monotonic: Callable[[], float]) -> None:
        self._gate = gate
        self._monotonic = monotonic
        self._refusal: str | None = None
        self._refused_at = 0.0
        #: ns, of the newest pose that was seen where poses are asked for and do not arrive as messages; else 0.
        self.newest_stamp = 0

    @property
    @abstractmethod
    def expected(self) -> bool:
        """Whether poses are to be there: then a cycle without one is worth a message."""

    @property
    @abstractmethod
    def place(self) -> str:
        """Where poses come from, for messages."""

    @abstractmethod
    def at(self, stamp: int) -> NDArray[np.float64] | None:
        """The pose that belongs to ``stamp`` (ns), or the newest one for 0.

        None where no pose is near enough, or none has come lately: an arm that was moved by somebody else since must
        not be sent back to where it was.
        """

    @abstractmethod
    def absence(self, stamp: int) -> str:
        """Why there is no pose that belongs to ``stamp`` (ns), or to now for 0: a part of a message."""

    @abstractmethod
    def may_come(self, stamp: int) -> bool:
        """Whether poses come, and only those up to some time before ``stamp`` (ns) are there."""

    @abstractmethod
    def came_by(self, stamp: int, moment: float) -> bool:
        """Whether the pose for ``stamp`` (ns) is there and, as far as known, had arrived by ``moment`` (s)."""

    def clear(self) -> None:
        """Forget what has come, for a new episode."""
        self._gate.clear()
        self._refusal = None

    def refuse(self, why: str) -> None:
        """A pose that came is not used; said for a second, so that a single one is said in some status too."""
        self._refusal, self._refused_at = (
            f"A pose on {self.place} was refused: {why}. See who publishes it.",
            self._monotonic(),
        )

    @property
    def refused(self) -> str | None:
        """What was wrong with the pose that was refused last, where that was within the last second."""
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
    """Poses that are handed in as they arrive.

    Between two poses it is interpolated; where only one side has come, a pose within the slop is taken as it is.

    Args:
        place: for messages, asked for when one is made.
        slop: ns by which a pose may differ from the stamp it is asked for; 0 wants the very stamp, as in lockstep.
        longest_silence: s since the newest one arrived after which none counts any more, and between two poses that
            are interpolated; None for no limit, and no interpolation.
        gate, monotonic: see :class:`PoseSource`.
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
        #: The newest answer between two poses: a cycle asks for it more than once.
        self._between: tuple[int, Measured, NDArray[np.float64]] | None = None

    def add(self, stamp: int, pose: NDArray[np.float64], frame: str = "") -> None:
        """A pose (6,) that has come, stamped ``stamp`` ns, in the frame of that name."""
        measured = Measured(stamp, self._monotonic(), pose, frame)
        if not self._admitted(measured):
            return
        # In the order of their stamps: a clock that was set back makes what came before worthless.
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
        """s since the newest pose arrived, where that is too long ago; None where it is not."""
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
            return "none has come"
        silent = self._silent
        if silent is not None:
            return f"the last one came {silent:.2f} s ago"
        if not stamp:
            return "none has come lately"
        off = min((p.stamp - stamp for p in self._around(stamp) if p is not None), key=abs)
        return (
            f"the nearest one is {abs(off) / 1e6:.1f} ms {'before' if off < 0 else 'after'} its images, and 'slop' "
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
        """The newest pose not after ``stamp``, and the one that follows it."""
        after = None
        for pose in reversed(self._poses):
            if pose.stamp <= stamp:
                return pose, after
            after = pose
        return None, after
