"""Detect other nodes that command the same arm, from their messages on the command topics.

Another publisher that sends nothing gives a warning: it may be a standby node or an unused joystick. Its first command
halts the arm. The halt lasts until that publisher is gone, or until the policy is enabled while that publisher sends
nothing. A node that receives another node's command before its own first command does not begin to send commands, so
the other node continues undisturbed. Commands to a gripper by an action are not checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Seconds without a command after which another publisher counts as quiet.
QUIET = 1.0
#: Seconds between two checks of the publishers.
LOOK_EVERY = 1.0


@dataclass
class _Topic:
    """The other publishers of one topic.

    Attributes:
        names: Names of the other publishers.
        last_command: When one of them last sent a command: s, monotonic; None for never.
        is_blocking: Whether the arm is halted because of them.
    """

    names: tuple[str, ...] = ()
    last_command: float | None = None
    is_blocking: bool = False

    def is_quiet(self, now: float) -> bool:
        return self.last_command is None or now - self.last_command > QUIET


class OtherPublishers:
    """Other publishers of the commands, by the full names of the topics."""

    def __init__(self) -> None:
        self._topics: dict[str, _Topic] = {}

    def set_publishers(self, topic: str, names: Sequence[str]) -> None:
        """Set the publishers of ``topic`` other than this node, as found by the newest check."""
        if not names:
            self._topics.pop(topic, None)
            return
        self._topics.setdefault(topic, _Topic()).names = tuple(names)

    def add_command(self, topic: str, now: float) -> None:
        """Record that another publisher has sent a command on ``topic``."""
        found = self._topics.setdefault(topic, _Topic())
        found.last_command, found.is_blocking = now, True

    def release_quiet(self, now: float) -> None:
        """End the halt because of publishers that have sent nothing for :data:`QUIET` seconds."""
        for topic in self._topics.values():
            topic.is_blocking = topic.is_blocking and not topic.is_quiet(now)

    @property
    def fault(self) -> str | None:
        """The message of the fault that prevents driving, or None."""
        found = [self._described(name, topic) for name, topic in self._topics.items() if topic.is_blocking]
        if not found:
            return None
        return (
            f"Another publisher sends commands on {', '.join(found)}: two nodes would drive one arm. Stop one of them. "
            "If the other one stays and sends nothing, enable the policy (~/enable) to go on."
        )

    @property
    def warning(self) -> str | None:
        """The warning about publishers that send nothing, or None."""
        found = [
            self._described(name, topic)
            for name, topic in self._topics.items()
            if topic.names and not topic.is_blocking
        ]
        if not found:
            return None
        return f"There is another publisher of {', '.join(found)}; if it sends a command, the arm halts."

    @staticmethod
    def _described(name: str, topic: _Topic) -> str:
        return f"'{name}'" + (f" ({', '.join(topic.names)})" if topic.names else "")
