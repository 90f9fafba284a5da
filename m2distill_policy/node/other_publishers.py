"""Whether somebody else commands the same arm: what is heard on the topics of the commands beside our own messages.

That another publisher is there is a warning: a standby node, a joystick nobody touches. Its first command halts the
arm, and the halt lasts until that publisher is gone, or until somebody enables the policy while it says nothing. A node
that hears another one before its own first command does not begin, so the one that was first goes on undisturbed. A
gripper that is driven by its action is not watched. Pure: time is handed in.
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
    """names: of the other publishers that are there. heard: when one of them last sent a command, monotonic s, None
    for never. holds: whether the arm is halted for it."""

    names: tuple[str, ...] = ()
    heard: float | None = None
    holds: bool = False

    def is_quiet(self, now: float) -> bool:
        return self.heard is None or now - self.heard > QUIET


class OtherPublishers:
    """Other publishers of the commands, by the full names of the topics."""

    def __init__(self) -> None:
        self._topics: dict[str, _Topic] = {}

    def there(self, topic: str, names: Sequence[str]) -> None:
        """``names`` are the publishers of ``topic`` beside our own, each time somebody has looked."""
        if not names:
            self._topics.pop(topic, None)
            return
        self._topics.setdefault(topic, _Topic()).names = tuple(names)

    def heard(self, topic: str, now: float) -> None:
        """Another publisher has sent a command on ``topic``."""
        found = self._topics.setdefault(topic, _Topic())
        found.heard, found.holds = now, True

    def forgive(self, now: float) -> None:
        """End the halt for those that have said nothing for a while: they are there, and leave the arm to us."""
        for topic in self._topics.values():
            topic.holds = topic.holds and not topic.is_quiet(now)

    @property
    def fault(self) -> str | None:
        """Why the arm must not be driven, or None."""
        found = [self._described(name, topic) for name, topic in self._topics.items() if topic.holds]
        if not found:
            return None
        return (
            f"Another publisher sends commands on {', '.join(found)}: two would drive one arm. Stop one of them; if "
            "the other one only falls silent, enable the policy (~/enable) to go on."
        )

    @property
    def warning(self) -> str | None:
        """Who is there and sends nothing, or None."""
        found = [
            self._described(name, topic) for name, topic in self._topics.items() if topic.names and not topic.holds
        ]
        if not found:
            return None
        return f"There is another publisher of {', '.join(found)}; if it sends a command, the arm halts."

    @staticmethod
    def _described(name: str, topic: _Topic) -> str:
        return f"'{name}'" + (f" ({', '.join(topic.names)})" if topic.names else "")
