"""Detects other nodes that command the same arm, from their messages on the topics of the commands.

Another publisher that sends nothing is a warning: it may be a standby node or an unused joystick. Its first command
halts the arm. The halt lasts until that publisher is gone, or until the policy is enabled while it sends nothing. A
node that receives a command of another one before its own first command does not start, so the first one goes on
undisturbed. A gripper that is driven by its action is not checked. Pure: time is an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: s without a command after which another publisher counts as silent.
QUIET = 1.0
#: s between two looks at who publishes.
LOOK_EVERY = 1.0


@dataclass
class _Topic:
    """The other publishers of one topic.

    Attributes:
        names: of the publishers that exist.
        last_command: when one of them last sent a command: s, monotonic; None for never.
        is_blocking: whether the arm is halted because of them.
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
        """Set the publishers of ``topic`` other than this node; call it after each look at the graph."""
        if not names:
            self._topics.pop(topic, None)
            return
        self._topics.setdefault(topic, _Topic()).names = tuple(names)

    def add_command(self, topic: str, now: float) -> None:
        """Another publisher has sent a command on ``topic``."""
        found = self._topics.setdefault(topic, _Topic())
        found.last_command, found.is_blocking = now, True

    def release_quiet(self, now: float) -> None:
        """End the halt for publishers that have sent nothing for a while."""
        for topic in self._topics.values():
            topic.is_blocking = topic.is_blocking and not topic.is_quiet(now)

    @property
    def fault(self) -> str | None:
        """Why the arm must not be driven; None where it may."""
        found = [self._described(name, topic) for name, topic in self._topics.items() if topic.is_blocking]
        if not found:
            return None
        return (
            f"Another publisher sends commands on {', '.join(found)}: two nodes would drive one arm. Stop one of them. "
            "If the other one stays and sends nothing, enable the policy (~/enable) to go on."
        )

    @property
    def warning(self) -> str | None:
        """A warning about publishers that send nothing; None for none."""
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
