"""Where the end effector's pose comes from: a topic of poses here; ROS 2 may ask its transforms instead."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.node.joint_states import JOINTS_KEPT

#: A pose older than this many periods says nothing of where the arm is now.
POSE_PERIODS = 4


class PoseSource(ABC):
    """Poses (6,) of the end effector: position in m and rotation vector in rad, in the frame of the actions."""

    @property
    @abstractmethod
    def expected(self) -> bool:
        """Whether poses are to be there: then a cycle without one is worth a sentence."""

    @property
    @abstractmethod
    def place(self) -> str:
        """Where poses come from, for sentences."""

    @abstractmethod
    def at(self, stamp: int) -> NDArray[np.float64] | None:
        """The pose that belongs to ``stamp`` (ns), or the newest one for 0.

        None where no pose is near enough, or none has come lately: an arm that was moved by somebody else since must
        not be sent back to where it was.
        """

    @abstractmethod
    def clear(self) -> None:
        """Forget what has come, for a new episode."""


@dataclass(frozen=True)
class _Pose:
    """A pose, its stamp in ns, and when it arrived (s, monotonic)."""

    stamp: int
    arrived: float
    value: NDArray[np.float64]


class PoseBuffer(PoseSource):
    """Poses that are handed in as they arrive.

    Args:
        place: for sentences, asked for when one is made.
        slop: ns by which a pose may differ from the stamp it is asked for.
        longest_silence: s since the newest one arrived after which none counts any more; None for no limit.
        steady: a monotonic clock, s.
    """

    def __init__(
        self, place: Callable[[], str], *, slop: int, longest_silence: float | None, steady: Callable[[], float]
    ) -> None:
        self._place = place
        self._slop = slop
        self._longest_silence = longest_silence
        self._steady = steady
        self._poses: deque[_Pose] = deque(maxlen=JOINTS_KEPT)

    def add(self, stamp: int, pose: NDArray[np.float64]) -> None:
        """A pose (6,) that has come, stamped ``stamp`` ns."""
        self._poses.append(_Pose(stamp, self._steady(), pose))

    @property
    def expected(self) -> bool:
        return bool(self._poses)

    @property
    def place(self) -> str:
        return self._place()

    def at(self, stamp: int) -> NDArray[np.float64] | None:
        if not self._poses:
            return None
        newest = self._poses[-1]
        if self._longest_silence is not None and self._steady() - newest.arrived > self._longest_silence:
            return None
        if not stamp:
            return newest.value
        nearest = min(self._poses, key=lambda pose: abs(pose.stamp - stamp))
        return nearest.value if abs(nearest.stamp - stamp) <= self._slop else None

    def clear(self) -> None:
        self._poses.clear()
