"""The end effector's pose from tf2, which interpolates it at the images' stamp."""

from __future__ import annotations

import time

import numpy as np
from geometry_msgs.msg import TransformStamped
from numpy.typing import NDArray
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time
from tf2_ros import Buffer, TransformException, TransformListener

from m2distill_policy.errors import ObservationError
from m2distill_policy.node.messages import nanoseconds_of
from m2distill_policy.node.pose import pose_from
from m2distill_policy.node.pose_gate import Measured, PoseGate
from m2distill_policy.node.pose_source import PoseSource

#: Seconds for which transforms are kept.
_KEPT = 2.0


class TransformedPoses(PoseSource):
    """Poses of the frame ``end_effector`` in the frame ``base``.

    Args:
        slop: Nanoseconds by which the newest transform may be older than the requested stamp, because an image may
            arrive first.
        longest_silence: Seconds of the node's clock after which the newest transform is no longer used.
        gate: Checks every pose before it is used.
    """

    def __init__(
        self, node: Node, base: str, end_effector: str, *, slop: int, longest_silence: float, gate: PoseGate
    ) -> None:
        super().__init__(gate, time.monotonic)
        self._node = node
        self._base, self._end_effector = base, end_effector
        self._slop = slop
        self._longest_silence = round(longest_silence * 1e9)
        self._buffer = Buffer(cache_time=Duration(seconds=_KEPT))
        self._listener = TransformListener(self._buffer, node)

    @property
    def expected(self) -> bool:
        return True

    @property
    def place(self) -> str:
        return f"/tf from '{self._base}' to '{self._end_effector}'"

    def at(self, stamp: int) -> NDArray[np.float64] | None:
        try:
            newest = self._newest()
            newest_stamp = self.newest_stamp = nanoseconds_of(newest)
            if self._age(newest_stamp) > self._longest_silence:
                return None
            found = newest
            if stamp and stamp <= newest_stamp:
                found = self._buffer.lookup_transform(self._base, self._end_effector, Time(nanoseconds=stamp))
            elif stamp and stamp - newest_stamp > self._slop:
                return None
            translation, q = found.transform.translation, found.transform.rotation
            pose = pose_from((translation.x, translation.y, translation.z), (q.x, q.y, q.z, q.w))
        except TransformException:
            # The caller reports the missing pose. An invalid pose, below, must not end a cycle either.
            return None
        except ObservationError as error:
            self.refuse(str(error))
            return None
        return pose if self._admitted(Measured(nanoseconds_of(found), self._monotonic(), pose)) else None

    def absence(self, stamp: int) -> str:
        try:
            newest = nanoseconds_of(self._newest())
        except TransformException as error:
            return f"tf2 has none: {error}"
        if self._age(newest) > self._longest_silence:
            return f"the newest transform is {self._age(newest) / 1e9:.2f} s old"
        if stamp > newest:
            return (
                f"the newest transform is {(stamp - newest) / 1e6:.1f} ms before its images, but 'slop' allows "
                f"{self._slop / 1e6:g} ms"
            )
        return "tf2 no longer has one for its images"

    def may_come(self, stamp: int) -> bool:
        try:
            newest = nanoseconds_of(self._newest())
        except TransformException:
            return False
        return newest < stamp and self._age(newest) <= self._longest_silence

    def came_by(self, stamp: int, moment: float) -> bool:
        return self.at(stamp) is not None  # tf2 does not record when a transform arrived

    def _newest(self) -> TransformStamped:
        return self._buffer.lookup_transform(self._base, self._end_effector, Time())

    def _age(self, stamp: int) -> int:
        return int(self._node.get_clock().now().nanoseconds) - stamp

    def clear(self) -> None:
        super().clear()
        self._buffer.clear()

    def close(self) -> None:
        """End the subscriptions."""
        self._listener.unregister()
