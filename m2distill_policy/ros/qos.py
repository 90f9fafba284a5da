"""Quality of service of the node's topics. ``qos_overrides./topic.subscription.depth`` and so on override it."""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy


def sensor(depth: int) -> QoSProfile:
    """Return a profile for topics of which only the newest messages matter; losses are allowed.

    It is compatible with every publisher.
    """
    return QoSProfile(depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT)


def reliable(depth: int) -> QoSProfile:
    """Return a profile with which every message arrives, unless the queue is full."""
    return QoSProfile(depth=depth, reliability=ReliabilityPolicy.RELIABLE)


def latched() -> QoSProfile:
    """Return a profile with which late subscribers receive the last message."""
    return QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def lockstep() -> QoSProfile:
    """Return a profile with which every message arrives; a publisher waits for a slow subscriber."""
    return QoSProfile(history=HistoryPolicy.KEEP_ALL, reliability=ReliabilityPolicy.RELIABLE)
