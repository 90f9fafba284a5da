"""Detect other publishers of the commands: check the graph once a second, and subscribe to what they publish.

rclpy does not give the sender of a message, and also delivers the node's own messages. So a message counts as another
node's if this node has not just sent the same one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from rclpy.lifecycle import LifecycleNode
from rclpy.subscription import Subscription

from m2distill_policy.node import topics
from m2distill_policy.ros import qos

#: Largest number of messages that this node has sent and that have not been delivered back to it yet.
_UNDER_WAY = 64


class CommandWatch:
    """Watches the command topics.

    Args:
        kinds: Topic, as this node names it -> type of its messages. This node has one publisher of each.
        publishers_changed: Called with the other publishers of a topic, at every check.
        command_received: Called when another node has sent a command on a topic.
    """

    def __init__(
        self,
        node: LifecycleNode,
        kinds: Mapping[str, type],
        *,
        publishers_changed: Callable[[str, list[str]], None],
        command_received: Callable[[str], None],
    ) -> None:
        self._node = node
        self._kinds = dict(kinds)
        self._names = {topic: str(node.resolve_topic_name(topics.relative(topic, own=True))) for topic in kinds}
        self._publishers_changed, self._command_received = publishers_changed, command_received
        self._listening: dict[str, Subscription] = {}
        self._sent: dict[str, deque[Any]] = {}

    def close(self) -> None:
        """End the subscriptions."""
        for topic in list(self._listening):
            self._ignore(topic)

    def sent(self, topic: str, message: Any) -> None:
        """Record that ``message`` is about to be published on ``topic``."""
        if topic in self._sent:
            self._sent[topic].append(message)

    def check(self) -> None:
        """Check the graph. Call it once a second."""
        for topic, name in self._names.items():
            others: list[str] = []
            if self._node.count_publishers(name) > 1:
                others = self._others(name)
            if others and topic not in self._listening:
                self._listen(topic)
            elif not others and topic in self._listening:
                self._ignore(topic)
            self._publishers_changed(topic, others)

    def _others(self, name: str) -> list[str]:
        """Return full names of the other nodes that publish ``name``. A second node may have this node's name."""
        found = self._node.get_publishers_info_by_topic(name)
        names = sorted(f"{info.node_namespace.rstrip('/')}/{info.node_name}" for info in found)
        ours = self._node.get_fully_qualified_name()
        if ours in names:
            names.remove(ours)
        return names

    def _listen(self, topic: str) -> None:
        sent = self._sent[topic] = deque(maxlen=_UNDER_WAY)

        def callback(message: Any) -> None:
            try:
                sent.remove(message)
            except ValueError:
                self._command_received(topic)

        here = topics.relative(topic, own=True)
        self._listening[topic] = self._node.create_subscription(self._kinds[topic], here, callback, qos.sensor(10))

    def _ignore(self, topic: str) -> None:
        self._node.destroy_subscription(self._listening.pop(topic))
        del self._sent[topic]
