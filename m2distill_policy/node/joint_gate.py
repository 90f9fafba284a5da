"""Refuse joint positions that are impossible, because they contradict earlier ones or those of another publisher.

Two publishers of the same joints (such as a forgotten ``joint_state_publisher`` that publishes zeros) look like one
publisher whose joints jump.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from m2distill_policy.errors import ObservationError

#: Largest speed of a joint (per second), by unit. It is far above the speed of real arms, so that only impossible
#: motion is refused.
FASTEST = {"rad": 30.0, "m": 5.0}
#: The same limit between two publishers of one joint. It is lower, because both measure the same motion.
FASTEST_APART = {"rad": 5.0, "m": 1.0}
#: Difference of two positions that is always allowed.
SLACK = {"rad": 0.1, "m": 0.01}
#: Seconds. No joint moves by more than the slack and back within this time, but the positions of two alternating
#: publishers do.
THERE_AND_BACK = 0.12
#: After a jump, positions must agree with each other for this number of seconds and of messages to be accepted.
SETTLED, SETTLED_MESSAGES = 0.5, 5
#: Seconds without a message after which a publisher's last message is not compared any more.
FORGOTTEN = 0.5
#: Seconds for which a refused message is reported. The time is long, because a wrong publisher may be much slower than
#: the arm's.
REFUSED_FOR = 1.0
#: Seconds by which the arrivals of two messages may be closer to each other than their stamps.
_DELAY = 0.05
#: Largest number of whole turns by which a driver's count of turns may be wrong.
_TURNS = 100


@dataclass(frozen=True)
class JointLimit:
    """How far two positions of a joint may differ, in the joint's own unit.

    Attributes:
        fastest: Largest change per second, for one publisher.
        fastest_apart: Largest difference between two publishers per second between their stamps.
        slack: Difference that is always allowed.
        turn: One whole turn; None for a joint that does not turn.
    """

    fastest: float = FASTEST["rad"]
    fastest_apart: float = FASTEST_APART["rad"]
    slack: float = SLACK["rad"]
    turn: float | None = 2 * math.pi

    @staticmethod
    def of(unit: str, scale: float) -> JointLimit:
        """Return the limit of a joint whose position times ``scale`` is in ``unit`` ("rad" or "m")."""
        factor = 1 / abs(scale)
        turn = 2 * math.pi * factor if unit == "rad" else None
        return JointLimit(FASTEST[unit] * factor, FASTEST_APART[unit] * factor, SLACK[unit] * factor, turn)

    def turns(self, step: float) -> int:
        """Return how many whole turns the difference ``step`` of two positions is; 0 if it is not a whole number."""
        if self.turn is None or abs(step) > _TURNS * self.turn:
            return 0
        count = round(step / self.turn)
        return count if abs(step - count * self.turn) <= self.slack else 0


class JointConflictError(ObservationError):
    """A joint's position contradicts another one.

    Attributes:
        joint: Name of the joint.
        value, topic: The refused position and its topic.
        other, other_topic: The position that it contradicts, and the topic of this position.
        apart: Seconds between the stamps of the two positions.
        most: Largest allowed difference; 0 if the joint went there and back.
        turns: Number of whole turns between the two positions.
        one_source: Whether both positions are from one publisher.
    """

    def __init__(
        self,
        joint: str,
        value: float,
        topic: str,
        other: float,
        other_topic: str,
        *,
        apart: float,
        most: float = 0.0,
        turns: int = 0,
        one_source: bool = False,
    ) -> None:
        self.joint, self.value, self.topic = joint, value, topic
        self.other, self.other_topic = other, other_topic
        self.apart, self.most, self.turns, self.one_source = apart, most, turns, one_source
        super().__init__(self.describe(lambda name: f"'{name}'"))

    def describe(self, full_name: Callable[[str], str]) -> str:
        """Return the message, without a full stop. full_name: Converts a topic to its full name."""
        topic, other = full_name(self.topic), full_name(self.other_topic)
        what = f"{self.joint} goes from {self.other:.4g} to {self.value:.4g} in {self.apart:.3f} s on {topic}"
        if not self.one_source:
            what = (
                f"{self.joint} is {self.value:.4g} on {topic} and {self.other:.4g} on {other}, "
                f"{self.apart:.3f} s apart; they may differ by {self.most:.3g}"
            )
        elif self.turns:
            return (
                f"{what}, which is {abs(self.turns)} x 2 pi: the driver restarted its count of turns. Positions are "
                "not used until the count is right again or the driver is restarted"
            )
        elif self.most:
            what += f"; at most {self.most:.3g} is possible, and not in one step"
        else:
            what += ", just after it went the other way, which is impossible"
        return f"{what}: check whether two nodes publish this joint, and stop one"


@dataclass
class _Track:
    """Messages that agree with each other but not with the last accepted one.

    Attributes:
        began, newest: When the first and the newest message arrived: s, monotonic.
        stamp, row: Stamp (ns) and positions of the newest message.
        count: Number of messages.
    """

    began: float
    newest: float
    stamp: int
    row: Sequence[float]
    count: int = 0


@dataclass
class JointGate:
    """Checks the messages of one publisher, which is known by its topic and joint names.

    A message whose positions jump is refused. If the following messages agree with it for :data:`SETTLED` seconds, and
    none agrees with the old positions, messages are accepted again, because the arm was moved while no message arrived.
    After a jump by whole turns they stay refused.

    Args:
        places: Index of a needed joint -> its index in a message.
        limits: Limits of the needed joints, by index.
    """

    places: Mapping[int, int]
    limits: Sequence[JointLimit]
    #: Joint -> its newest step beyond the slack: the stamp (ns) before the step, and the size of the step.
    _steps: dict[int, tuple[int, float]] = field(default_factory=dict)
    _other: _Track | None = None
    #: Whether the newest message was accepted after a jump.
    settles: bool = False

    def __post_init__(self) -> None:
        #: A message whose positions have at most this Euclidean distance from those before needs no closer check.
        self.unnoticed = min((self.limits[i].slack for i in self.places), default=math.inf)

    def agreed(self) -> None:
        """Record that a message agreed with the one before it, so that messages refused earlier no longer count."""
        self._other = None

    def reset(self) -> None:
        """Forget the earlier messages."""
        self._other = None
        self._steps.clear()

    def check(
        self, last: tuple[int, Sequence[float]], now: tuple[int, Sequence[float]], waited: float, monotonic: float
    ) -> tuple[int, float, int] | None:
        """Check a message against the last accepted one.

        Args:
            last, now: Stamp (ns) and positions of the last accepted and of the new message.
            waited: Seconds between the arrivals of the two messages.
            monotonic: When the new message arrived, s.

        Returns:
            None if the message is accepted. Otherwise the index of the joint with the largest error, the largest
            allowed step (0 if the joint went there and back), and the number of whole turns in the jump.
        """
        (last_stamp, before), (stamp, row) = last, now
        time = min(abs(stamp - last_stamp) / 1e9, waited + _DELAY)
        self.settles = False
        steps: dict[int, tuple[int, float]] = {}
        worst: tuple[float, int, float] | None = None
        for i, place in self.places.items():
            limit, step = self.limits[i], row[place] - before[place]
            if (
                not limit.slack < abs(step) < math.inf
            ):  # the check of the observation reports values that are not finite
                continue
            steps[i] = last_stamp, step
            most = limit.slack + limit.fastest * time
            share = abs(step) / most
            earlier = self._steps.get(i)
            if share <= 1:
                if earlier is None or earlier[1] * step > 0 or abs(stamp - earlier[0]) > THERE_AND_BACK * 1e9:
                    continue
                most = 0.0
            if worst is None or share > worst[0]:
                worst = share, i, most
        if worst is None:
            if not steps or not self._is_other(stamp, row, monotonic):
                self._steps.update(steps)
                self._other = None
                return None
            # After a long time any step is possible, unless the refused messages in between show that it was one jump.
            i = max(steps, key=lambda i: abs(steps[i][1]) / self.limits[i].slack)
            worst = 1.0, i, self.limits[i].slack + self.limits[i].fastest * time
        _, joint, most = worst
        turns = self.limits[joint].turns(steps[joint][1])
        if not self._is_other(stamp, row, monotonic):
            self._other = _Track(monotonic, monotonic, stamp, row)
        other = self._other
        assert other is not None
        other.newest, other.stamp, other.row, other.count = monotonic, stamp, row, other.count + 1
        if not turns and other.count >= SETTLED_MESSAGES and monotonic - other.began >= SETTLED:
            self.reset()
            self.settles = True
            return None
        return joint, most, turns

    def _is_other(self, stamp: int, row: Sequence[float], monotonic: float) -> bool:
        """Return whether a message agrees with the messages that were refused just before it."""
        other = self._other
        if other is None or monotonic - other.newest > FORGOTTEN:
            return False
        time = abs(stamp - other.stamp) / 1e9
        return all(
            not abs(row[place] - other.row[place]) > self.limits[i].slack + self.limits[i].fastest * time
            for i, place in self.places.items()
        )
