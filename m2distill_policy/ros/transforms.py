"""The end effector's pose by tf2, which interpolates it at the pictures' stamp."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time
from tf2_ros import Buffer, TransformException, TransformListener

from m2distill_policy.errors import ObservationError
from m2distill_policy.node.messages import nanoseconds_of
from m2distill_policy.node.pose import pose_from
from m2distill_policy.node.pose_source import PoseSource

#: s of transforms that are kept.
_KEPT = 2.0


class TransformedPoses(PoseSource):
    """Poses of the frame ``end_effector`` in the frame ``base``.

    Args:
        slop: ns by which the newest transform may be older than the stamp it is asked for; a picture may come first.
        longest_silence: s of the node's clock after which the newest transform counts no more.
    """

    def __init__(self, node: Node, base: str, end_effector: str, *, slop: int, longest_silence: float) -> None:
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
            newest = self._buffer.lookup_transform(self._base, self._end_effector, Time())
            newest_stamp = nanoseconds_of(newest)
            if int(self._node.get_clock().now().nanoseconds) - newest_stamp > self._longest_silence:
                return None
            found = newest
            if stamp and stamp <= newest_stamp:
                found = self._buffer.lookup_transform(self._base, self._end_effector, Time(nanoseconds=stamp))
            elif stamp and stamp - newest_stamp > self._slop:
                return None
            translation, q = found.transform.translation, found.transform.rotation
            return pose_from((translation.x, translation.y, translation.z), (q.x, q.y, q.z, q.w))
        except (TransformException, ObservationError):
            # Whoever asked says that there is no pose; what is no pose must not end a cycle.
            return None

    def clear(self) -> None:
        self._buffer.clear()

    def close(self) -> None:
        """End the subscriptions."""
        self._listener.unregister()
