"""Can the joint be there? A position that contradicts those before it, or another publisher's, is not used. Pure.

Two publishers of the same joints (a stray ``joint_state_publisher`` that says zeros) look like one whose joints jump.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from m2distill_policy.errors import ObservationError

#: Most that a joint moves in a second, by its unit: far above what arms do, so that only what is impossible is refused.
FASTEST = {"rad": 30.0, "m": 5.0}
#: The same for two publishers of one joint. They measure the same motion, so less is enough.
FASTEST_APART = {"rad": 5.0, "m": 1.0}
#: By which two positions may differ whatever the time between them.
SLACK = {"rad": 0.1, "m": 0.01}
#: s within which no joint moves by more than the slack and then back: two publishers in turn do.
THERE_AND_BACK = 0.12
#: s, and messages, for which positions must agree with each other before they count in spite of a jump.
SETTLED, SETTLED_MESSAGES = 0.5, 5
#: s of silence after which a publisher's last message is compared with nothing.
FORGOTTEN = 0.5
#: s for which one refused message counts: a stray publisher may be much slower than the arm's.
REFUSED_FOR = 1.0
#: s by which messages may arrive closer to each other than they were stamped.
_DELAY = 0.05
#: Most turns by which a count may be off.
_TURNS = 100


@dataclass(frozen=True)
class JointLimit:
    """How far two positions of a joint may differ, in its own unit.

    fastest, fastest_apart: a second, for one publisher and for two; slack: whatever the time. turn: one whole turn,
    None where it does not turn.
    """

    fastest: float = FASTEST["rad"]
    fastest_apart: float = FASTEST_APART["rad"]
    slack: float = SLACK["rad"]
    turn: float | None = 2 * math.pi

    @staticmethod
    def of(unit: str, scale: float) -> JointLimit:
        """Of a joint whose position times ``scale`` is in ``unit`` ("rad" or "m")."""
        factor = 1 / abs(scale)
        turn = 2 * math.pi * factor if unit == "rad" else None
        return JointLimit(FASTEST[unit] * factor, FASTEST_APART[unit] * factor, SLACK[unit] * factor, turn)

    def turns(self, step: float) -> int:
        """The whole turns that a step of ``step`` is; 0 for none."""
        if self.turn is None or abs(step) > _TURNS * self.turn:
            return 0
        count = round(step / self.turn)
        return count if abs(step - count * self.turn) <= self.slack else 0


class JointConflictError(ObservationError):
    """A joint's position contradicts another one.

    joint: its name. value, topic: what was refused. other, other_topic: what it contradicts. apart: s between the two
    stamps. most: what the two may differ by, 0 where the joint went there and back. turns: whole turns between the two.
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
        """Say it, without a full stop. full_name: from a topic to its name for people."""
        topic, other = full_name(self.topic), full_name(self.other_topic)
        what = f"{self.joint} goes from {self.other:.4g} to {self.value:.4g} in {self.apart:.3f} s on {topic}"
        if not self.one_source:
            what = (
                f"{self.joint} is {self.value:.4g} on {topic} and {self.other:.4g} on {other}, "
                f"{self.apart:.3f} s apart; they may differ by {self.most:.3g}"
            )
        elif self.turns:
            return (
                f"{what}, which is {abs(self.turns)} x 2 pi: the driver counts turns anew. The position is not used "
                "until it is back or the driver has been restarted"
            )
        elif self.most:
            what += f"; at most {self.most:.3g} is possible, and not all at once"
        else:
            what += ", and had just gone the other way; no joint does that"
        return f"{what}: see whether two nodes publish this joint, and stop one"


@dataclass
class _Track:
    """Positions that agree with each other and not with the last accepted ones. began, newest: s, monotonic."""

    began: float
    newest: float
    stamp: int
    row: Sequence[float]
    count: int = 0


@dataclass
class JointGate:
    """Judges the messages of one publisher (one topic, the same names).

    A message that jumps is refused. Messages that jump, and then agree with each other for :data:`SETTLED` s without
    one that agrees with what was before, count again: the arm moved while nothing came. A jump by whole turns does not.

    Args:
        places: index of a wanted joint -> where it stands in a message.
        limits: of the wanted joints, by index.
    """

    places: Mapping[int, int]
    limits: Sequence[JointLimit]
    #: Joint -> stamp (ns) before its newest step beyond the slack, and the size of that.
    _steps: dict[int, tuple[int, float]] = field(default_factory=dict)
    _other: _Track | None = None
    #: Whether the newest message that was judged settles a jump.
    settles: bool = False

    def __post_init__(self) -> None:
        #: Messages that differ by less, all positions together, need no closer look.
        self.unnoticed = min((self.limits[i].slack for i in self.places), default=math.inf)

    def agreed(self) -> None:
        """A message agreed with the one before it: whatever contradicted it did not settle."""
        self._other = None

    def reset(self) -> None:
        """Compare the next message with nothing."""
        self._other = None
        self._steps.clear()

    def check(
        self, last: tuple[int, Sequence[float]], now: tuple[int, Sequence[float]], waited: float, monotonic: float
    ) -> tuple[int, float, int] | None:
        """Judge a message by one that was accepted.

        Args:
            last, now: stamp (ns) and positions.
            waited: s between their arrivals.
            monotonic: s, when the message came.

        Returns:
            None where it is accepted; else the joint that is furthest off, what is possible (0 for there and back), and
            the whole turns in the jump.
        """
        (last_stamp, before), (stamp, row) = last, now
        time = min(abs(stamp - last_stamp) / 1e9, waited + _DELAY)
        self.settles = False
        steps: dict[int, tuple[int, float]] = {}
        worst: tuple[float, int, float] | None = None
        for i, place in self.places.items():
            limit, step = self.limits[i], row[place] - before[place]
            if not limit.slack < abs(step) < math.inf:  # not finite: whoever checks the observation says it
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
            # With time any jump could have been made; not one that the messages in between say was made at once.
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
        """Whether a message agrees with those that were refused before it."""
        other = self._other
        if other is None or monotonic - other.newest > FORGOTTEN:
            return False
        time = abs(stamp - other.stamp) / 1e9
        return all(
            not abs(row[place] - other.row[place]) > self.limits[i].slack + self.limits[i].fastest * time
            for i, place in self.places.items()
        )
