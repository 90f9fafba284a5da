"""A small stand-in for ``tf2_ros``, for tests on a ROS 2 without tf2 (the wheels of ``make test-ros``).

It sends and receives real ``tf2_msgs/TFMessage`` on ``/tf`` and ``/tf_static``, and implements what the product calls:
``lookup_transform`` from a frame to one below it, at a time (interpolated) or the newest. It is never on the path of a
robot, nor of a ROS 2 that has tf2.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

import numpy as np
from geometry_msgs.msg import TransformStamped
from numpy.typing import NDArray
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.time import Time
from tf2_msgs.msg import TFMessage

__all__ = ["Buffer", "TransformBroadcaster", "TransformException", "TransformListener"]

#: Translation in m, and a unit quaternion (x, y, z, w).
_Transform = tuple[NDArray[np.float64], NDArray[np.float64]]


class TransformException(Exception):
    """There is no such transform: an unknown frame, or a time outside of what was received."""


def _of(message: TransformStamped) -> _Transform:
    t, q = message.transform.translation, message.transform.rotation
    return np.array([t.x, t.y, t.z]), np.array([q.x, q.y, q.z, q.w])


def _times(q: NDArray[np.float64], r: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quaternion product, (x, y, z, w)."""
    return np.append(q[3] * r[:3] + r[3] * q[:3] + np.cross(q[:3], r[:3]), q[3] * r[3] - q[:3] @ r[:3])


def _turn(q: NDArray[np.float64], vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return vector + 2 * np.cross(q[:3], np.cross(q[:3], vector) + q[3] * vector)


def _between(a: _Transform, b: _Transform, share: float) -> _Transform:
    """Linear, and along the shorter arc; exact at both ends."""
    q = b[1] if a[1] @ b[1] >= 0 else -b[1]
    angle = float(np.arccos(np.clip(a[1] @ q, -1.0, 1.0)))
    if angle < 1e-9:
        mixed = (1 - share) * a[1] + share * q
    else:
        mixed = (np.sin((1 - share) * angle) * a[1] + np.sin(share * angle) * q) / np.sin(angle)
    return (1 - share) * a[0] + share * b[0], mixed


class Buffer:
    """Transforms of the last ``cache_time``, by their lower frame."""

    def __init__(self, cache_time: Duration | None = None, node: Node | None = None) -> None:
        self._kept = (cache_time or Duration(seconds=10)).nanoseconds
        self._edges: dict[str, tuple[str, list[tuple[int, _Transform]]]] = {}
        self._static: dict[str, tuple[str, _Transform]] = {}

    def set_transform(self, message: TransformStamped, authority: str) -> None:
        parent, moments = self._edges.setdefault(message.child_frame_id, (message.header.frame_id, []))
        if parent != message.header.frame_id:
            moments = []
            self._edges[message.child_frame_id] = (message.header.frame_id, moments)
        stamp = Time.from_msg(message.header.stamp).nanoseconds
        if moments and moments[-1][0] - stamp > self._kept:
            return
        bisect.insort(moments, (stamp, _of(message)), key=lambda moment: moment[0])
        while moments[-1][0] - moments[0][0] > self._kept:
            moments.pop(0)

    def set_transform_static(self, message: TransformStamped, authority: str) -> None:
        self._static[message.child_frame_id] = (message.header.frame_id, _of(message))

    def clear(self) -> None:
        self._edges.clear()

    def lookup_transform(self, target_frame: str, source_frame: str, time: Time) -> TransformStamped:
        """The pose of ``source_frame`` in ``target_frame``; time 0 is the newest that all of the chain has."""
        chain: list[str] = []
        frame = source_frame
        while frame != target_frame:
            if (frame not in self._static and frame not in self._edges) or len(chain) > 100:
                raise TransformException(f"'{source_frame}' is not below '{target_frame}'")
            chain.append(frame)
            frame = (self._static.get(frame) or self._edges[frame])[0]
        moving = [self._edges[frame][1] for frame in chain if frame not in self._static]
        stamp = time.nanoseconds or min((moments[-1][0] for moments in moving), default=0)
        translation, rotation = np.zeros(3), np.array([0.0, 0.0, 0.0, 1.0])
        for frame in chain:
            t, q = self._static[frame][1] if frame in self._static else _at(self._edges[frame][1], stamp, frame)
            translation, rotation = t + _turn(q, translation), _times(q, rotation)
        found = TransformStamped(child_frame_id=source_frame)
        found.header.frame_id, found.header.stamp = target_frame, Time(nanoseconds=stamp).to_msg()
        for name, value in zip("xyz", translation, strict=True):
            setattr(found.transform.translation, name, float(value))
        for name, value in zip("xyzw", rotation, strict=True):
            setattr(found.transform.rotation, name, float(value))
        return found


def _at(moments: list[tuple[int, _Transform]], stamp: int, frame: str) -> _Transform:
    if not moments[0][0] <= stamp <= moments[-1][0]:
        raise TransformException(f"the time {stamp} of '{frame}' is outside of {moments[0][0]} to {moments[-1][0]}")
    after = bisect.bisect_left(moments, stamp, key=lambda moment: moment[0])
    if moments[after][0] == stamp:
        return moments[after][1]
    (t0, a), (t1, b) = moments[after - 1], moments[after]
    return _between(a, b, (stamp - t0) / (t1 - t0))


class TransformListener:
    """Fills a buffer from ``/tf`` and ``/tf_static``."""

    def __init__(self, buffer: Buffer, node: Node, **unused: Any) -> None:
        self._node = node
        group = ReentrantCallbackGroup()
        latched = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)

        def moved(message: TFMessage) -> None:
            for transform in message.transforms:
                buffer.set_transform(transform, "")

        def fixed(message: TFMessage) -> None:
            for transform in message.transforms:
                buffer.set_transform_static(transform, "")

        self._subscriptions = [
            node.create_subscription(TFMessage, "/tf", moved, QoSProfile(depth=100), callback_group=group),
            node.create_subscription(TFMessage, "/tf_static", fixed, latched, callback_group=group),
        ]

    def unregister(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)


class TransformBroadcaster:
    """Sends transforms to ``/tf``."""

    def __init__(self, node: Node) -> None:
        self._publisher = node.create_publisher(TFMessage, "/tf", QoSProfile(depth=100))

    def sendTransform(self, transform: TransformStamped | Sequence[TransformStamped]) -> None:
        one = isinstance(transform, TransformStamped)
        self._publisher.publish(TFMessage(transforms=[transform] if one else list(transform)))
