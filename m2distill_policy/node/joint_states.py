"""Keep the newest joint positions by name, from any number of JointState messages and topics.

An arm's and a gripper's joints often come in separate messages, on one topic or on two, each at its own rate. For a set
of images, the value of each joint is the one with the nearest stamp. That stamp must be near enough:

* joints of the arm: within ``slop``, as between two views;
* joints of the gripper (the contract's ``gripper_states``): within ``held``, because gripper drivers are slower.

Positions that contradict each other, of one publisher or of two, are refused, see
:mod:`m2distill_policy.node.joint_gate`.
"""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
from collections.abc import Iterable, Sequence

from m2distill_policy.errors import ObservationError
from m2distill_policy.node.arrivals import Arrival, Moment
from m2distill_policy.node.joint_gate import (
    FORGOTTEN,
    REFUSED_FOR,
    JointConflictError,
    JointGate,
    JointLimit,
)

#: Number of joint states that are kept of each publisher: a quarter of a second of a 1 kHz stream.
JOINTS_KEPT = 256
#: Largest number of publishers, by topic and joint names, that are tracked.
_PUBLISHERS_KEPT = 16
#: Nanoseconds by which a stamp may be before the newest one. If it is farther back, a clock was set back, and earlier
#: messages are dropped.
_SET_BACK = 1_000_000_000
#: Largest delay of a message, in nanoseconds and in intervals of its publisher; the longer one applies, see
#: :meth:`JointPublisher._add_behind`.
_OVERTAKEN, _OVERTAKEN_INTERVALS = 50_000_000, 2
#: Nanoseconds by which the wall clock and the monotonic clock may seem to differ, because they are not read at the same
#: moment.
_CLOCK_NOISE = 5_000_000
#: Number of joint states over which a publisher's rate is measured.
JOINTS_RATE_OVER = 10


class JointPublisher:
    """The messages of one publisher: those on one topic with the same joint names."""

    def __init__(
        self, topic: str, names: Sequence[str], wanted: Sequence[str], limits: Sequence[JointLimit] | None = None
    ) -> None:
        self.topic = topic
        self.names = list(names)
        self.arrival = Arrival()
        places: dict[str, list[int]] = {}
        for index, name in enumerate(names):
            places.setdefault(name, []).append(index)
        #: Index of a needed joint -> its index in a message.
        self.places = {i: places[name][0] for i, name in enumerate(wanted) if name in places}
        self.wanted = tuple(wanted[i] for i in self.places)
        self.twice = [(name, found) for name, found in places.items() if len(found) > 1]
        self.stamps: list[int] = []
        self.rows: list[Sequence[float]] = []
        #: Other publishers with some of the same joints. For each shared joint: its index, its index in messages of
        #: this publisher, and its index in messages of the other one.
        self.rivals: list[tuple[JointPublisher, list[tuple[int, int, int]]]] = []
        self._gate = None if limits is None else JointGate(self.places, limits)
        #: The last message whose stamp was far back: the newest stamp when it arrived, its own stamp, and its
        #: positions.
        self._behind: tuple[int, int, Sequence[float]] | None = None

    def add(
        self, stamp: int, positions: Sequence[float], moment: Moment | None = None, tolerance: float | None = None
    ) -> bool:
        """Keep a message in the order of stamps, and record its arrival.

        Args:
            stamp: Stamp of the message, ns.
            positions: Joint positions, rad or m.
            moment: When the message arrived; None in lockstep, without a clock. Then nothing is compared, because a
                simulated arm may be reset.
            tolerance: See :meth:`Arrival.note`.

        Returns:
            Whether positions that were refused after a jump are accepted from now on.

        Raises:
            JointConflictError: The message contradicts an earlier one.
        """
        stamps = self.stamps
        row = tuple(positions)
        settles = False
        if moment is None:
            self._keep(stamp, row)
            return settles
        try:
            if stamps and self._gate is not None:
                if stamp < stamps[-1]:
                    return self._add_behind(stamp, row, moment)
                # This runs up to a thousand times a second, so one call compares all joints. NaN gets the closer check
                # too.
                if math.dist(row, self.rows[-1]) <= self._gate.unnoticed:
                    self._gate.agreed()
                else:
                    settles = self._compare(-1, stamp, row, moment)
            self._keep(stamp, row)
        finally:
            self.arrival.note(stamp, moment, tolerance)
        return settles

    def _keep(self, stamp: int, row: Sequence[float]) -> None:
        stamps = self.stamps
        if not stamps or stamp >= stamps[-1]:
            stamps.append(stamp)
            self.rows.append(row)
            if len(stamps) > 2 * JOINTS_KEPT:
                del stamps[:JOINTS_KEPT], self.rows[:JOINTS_KEPT]
        elif stamps[-1] - stamp > _SET_BACK:
            self._begin_anew(stamp, row)
        else:
            at = bisect.bisect_right(stamps, stamp)
            stamps.insert(at, stamp)
            self.rows.insert(at, row)

    def _begin_anew(self, stamp: int, row: Sequence[float]) -> None:
        self.stamps, self.rows, self._behind = [stamp], [row], None

    def _add_behind(self, stamp: int, row: Sequence[float], moment: Moment) -> bool:
        """Keep a message whose stamp is before the newest stamp.

        If it is only a few ms before, the message was delayed on its way and is sorted in. Otherwise, either a clock
        was set back, so that all earlier messages are useless, or this one message was delayed for long.

        If the wall clock of this machine has advanced less than the monotonic clock since the last message, it was set
        back, and the sender's clock with it. If only the sender's clock was set back, the message looks delayed, but so
        does the next one, which decides.
        """
        stamps = self.stamps
        back = stamps[-1] - stamp
        passed = round((moment.monotonic - self.arrival.monotonic) * 1e9)
        set_back = self.arrival.stamp - self.arrival.lead + passed - moment.wall
        if back > _SET_BACK or set_back > max(back / 2, _CLOCK_NOISE):
            settles = self._compare(-1, stamp, row, moment)
            self._begin_anew(stamp, row)
            return settles
        if back <= max(_OVERTAKEN, _OVERTAKEN_INTERVALS * round((self.interval or 0.0) * 1e9)):
            settles = self._compare(self.nearest(stamp), stamp, row, moment)
            self._keep(stamp, row)
            return settles
        settles = self._compare(-1, stamp, row, moment)
        behind, self._behind = self._behind, (stamps[-1], stamp, row)
        if behind is not None and behind[0] == stamps[-1] and behind[1] <= stamp:
            self._begin_anew(*behind[1:])
            self._keep(stamp, row)
        return settles

    def _compare(self, index: int, stamp: int, row: Sequence[float], moment: Moment) -> bool:
        """Check a message against the kept message at ``index``. Return and raise as :meth:`add` does."""
        waited = moment.monotonic - self.arrival.monotonic
        if self._gate is None:
            return False
        if waited > FORGOTTEN:
            self._gate.reset()
            return False
        last = self.stamps[index], self.rows[index]
        found = self._gate.check(last, (stamp, row), waited, moment.monotonic)
        if found is None:
            return self._gate.settles
        joint, most, turns = found
        place = self.places[joint]
        raise JointConflictError(
            self.names[place], row[place], self.topic, last[1][place], self.topic,
            apart=abs(stamp - last[0]) / 1e9, most=most, turns=turns, one_source=True,
        )  # fmt: skip

    def check_rivals(
        self, stamp: int, positions: Sequence[float], moment: Moment, limits: Sequence[JointLimit]
    ) -> None:
        """Raise :class:`JointConflictError` if another active publisher has contradicting positions."""
        for other, shared in self.rivals:
            if moment.monotonic - other.arrival.monotonic > FORGOTTEN:
                continue
            index = other.nearest(stamp)
            time = abs(other.stamps[index] - stamp) / 1e9
            if time > FORGOTTEN:  # their clocks differ, which the check of arrivals reports
                continue
            row = other.rows[index]
            for i, here, there in shared:
                most = limits[i].slack + limits[i].fastest_apart * time
                if most < abs(positions[here] - row[there]) < math.inf:
                    raise JointConflictError(
                        self.names[here], positions[here], self.topic, row[there], other.topic, apart=time, most=most
                    )

    def nearest(self, stamp: int) -> int:
        """Return the index of the message with the stamp nearest to ``stamp``; on a tie, that of the later message."""
        stamps = self.stamps
        after = bisect.bisect_right(stamps, stamp)
        if after == 0:
            return bisect.bisect_right(stamps, stamps[0]) - 1
        if after == len(stamps) or stamp - stamps[after - 1] < stamps[after] - stamp:
            return after - 1
        return bisect.bisect_right(stamps, stamps[after]) - 1

    @property
    def interval(self) -> float | None:
        """Median time between two stamps, s; None until there are enough stamps."""
        recent = self.stamps[-JOINTS_RATE_OVER - 1 :]
        if len(recent) <= JOINTS_RATE_OVER:
            return None
        # Called once a cycle; for so few values NumPy's median takes over ten times as long.
        return statistics.median(after - before for before, after in itertools.pairwise(recent)) / 1e9


class JointStates:
    """Keeps joint positions by name.

    Args:
        wanted: Names of the needed joints, each once.
        gripper: Names of the needed joints to which ``held`` applies instead of ``slop``.
        slop, held: Largest difference in ns between a value's stamp and the requested stamp; None for no limit.
        limits: For each needed joint, how far two positions may differ; None switches the comparison off.
    """

    def __init__(
        self,
        wanted: Sequence[str],
        gripper: Iterable[str] = (),
        *,
        slop: int,
        held: int | None,
        limits: Sequence[JointLimit] | None = None,
    ) -> None:
        self.wanted = tuple(wanted)
        self._limits = limits
        #: The newest contradiction, and when it came (s, monotonic).
        self._conflict: tuple[JointConflictError, float] | None = None
        found = frozenset(gripper)
        self.is_gripper = tuple(name in found for name in self.wanted)
        #: For each needed joint, the largest difference in ns between its stamp and the requested one.
        self.allowed = tuple(held if slow else slop for slow in self.is_gripper)
        self._sources: dict[tuple[str, tuple[str, ...]], JointPublisher] = {}
        #: Topic -> the publisher of its newest message.
        self._newest: dict[str, JointPublisher] = {}
        #: Topic -> the names in its newest message, and whether it had positions.
        self.named: dict[str, tuple[tuple[str, ...], bool]] = {}

    def clear(self) -> None:
        """Forget everything, for a new episode."""
        self._sources.clear()
        self.named.clear()
        self._newest.clear()
        self._conflict = None

    def conflict(self, monotonic: float) -> JointConflictError | None:
        """Return the contradiction for which a message was refused in the second before ``monotonic`` (s), or None."""
        if self._conflict is None or monotonic - self._conflict[1] > REFUSED_FOR:
            return None
        return self._conflict[0]

    def add(
        self, topic: str, stamp: int, names: Sequence[str], positions: Sequence[float], moment: Moment | None,
        tolerance: float | None = None,
    ) -> None:  # fmt: skip
        """Add a message. A message without positions (only velocities or efforts) changes no position.

        Args:
            topic: Topic of the message.
            stamp: Stamp of the message, ns.
            names, positions: Names and positions (rad or m) of the joints.
            moment: When the message arrived; None in lockstep, without a clock.
            tolerance: See :meth:`Arrival.note`.

        Raises:
            ObservationError: There are not as many positions as names, or a name has two different positions.
            JointConflictError: A position contradicts earlier positions or those of another publisher.
        """
        count = len(positions)
        newest = self._newest.get(topic)
        if newest is not None and newest.names == names and count == len(newest.names) and not newest.twice:
            # The usual case: the same publisher again, up to a thousand times a second.
            self._take(newest, stamp, positions, moment, tolerance)
            return
        key = topic, tuple(names)
        if not count:
            if topic not in self.named:
                self.named[topic] = key[1], False
            return
        if len(key[1]) != count:
            raise ObservationError(
                f"a joint state names {len(key[1])} joints but has {count} positions; one for each name is needed"
            )
        source = self._sources.get(key)
        if source is None:
            source = JointPublisher(topic, key[1], self.wanted, self._limits)
            source.rivals = [(other, shared) for other in self._sources.values() if (shared := _shared(source, other))]
        for name, places in source.twice:
            values = {float(positions[place]) for place in places}
            if len(values) > 1:
                raise ObservationError(
                    f"a joint state on '{topic}' names {name} {len(places)} times, with positions "
                    f"{', '.join(f'{float(positions[place]):g}' for place in places)}; one position is needed"
                )
        self.named[topic] = key[1], True
        if not source.places:
            return
        self._take(source, stamp, positions, moment, tolerance)
        if key not in self._sources:  # only now, because a publisher whose first message is refused does not count
            if len(self._sources) >= _PUBLISHERS_KEPT:
                self._newest.clear()
                oldest = self._sources.pop(min(self._sources, key=lambda k: self._sources[k].arrival.monotonic))
                for other in (*self._sources.values(), source):
                    other.rivals = [rival for rival in other.rivals if rival[0] is not oldest]
            self._sources[key] = source
            for other, shared in source.rivals:
                other.rivals.append((source, [(i, there, here) for i, here, there in shared]))
        self._newest[topic] = source

    def _take(
        self, source: JointPublisher, stamp: int, positions: Sequence[float], moment: Moment | None,
        tolerance: float | None,
    ) -> None:  # fmt: skip
        try:
            if source.rivals and moment is not None and self._limits is not None:
                source.check_rivals(stamp, positions, moment, self._limits)
            if source.add(stamp, positions, moment, tolerance):
                self._conflict = None
        except JointConflictError as error:
            assert moment is not None
            self._conflict = error, moment.monotonic
            raise

    def at(self, stamp: int) -> list[float] | None:
        """Return the needed joints' positions at ``stamp`` (ns), or None.

        It is None if a joint has no position, or if the nearest one is too far from ``stamp``.
        """
        values: list[float] = []
        for found, allowed in zip(self._nearest(stamp), self.allowed, strict=True):
            if found is None or (allowed is not None and found[0] > allowed):
                return None
            values.append(found[1])
        return values

    def distances(self, stamp: int) -> list[int | None]:
        """Return the ns from ``stamp`` to the nearest value of each needed joint; None for a joint without values."""
        return [None if found is None else found[0] for found in self._nearest(stamp)]

    def current(self) -> list[tuple[JointPublisher, tuple[str, ...]]]:
        """Return each publisher with the needed joints whose newest value it sent.

        The publishers are in the order in which their newest messages arrived.
        """
        if len(self._sources) == 1:
            (source,) = self._sources.values()
            return [(source, source.wanted)]
        owner: dict[int, JointPublisher] = {}
        sources = sorted(self._sources.values(), key=lambda s: s.arrival.monotonic)
        for source in sources:
            owner.update(dict.fromkeys(source.places, source))
        return [(source, tuple(self.wanted[i] for i, owned in owner.items() if owned is source)) for source in sources]

    def _nearest(self, stamp: int) -> list[tuple[int, float] | None]:
        """Return (distance in ns, position) of each needed joint's value nearest to ``stamp``; None without a value.

        On a tie, the later stamp is used, then the later arrival.
        """
        if len(self._sources) == 1:
            (only,) = self._sources.values()
            index = only.nearest(stamp)
            distance, row, places = abs(only.stamps[index] - stamp), only.rows[index], only.places
            return [(distance, row[places[i]]) if i in places else None for i in range(len(self.wanted))]
        best: list[tuple[int, float] | None] = [None] * len(self.wanted)
        ranks = [(0, 0, 0.0)] * len(self.wanted)
        for source in self._sources.values():
            index = source.nearest(stamp)
            found = source.stamps[index]
            distance, row = abs(found - stamp), source.rows[index]
            rank = -distance, found, source.arrival.monotonic
            for i, place in source.places.items():
                if best[i] is None or rank > ranks[i]:
                    best[i], ranks[i] = (distance, row[place]), rank
        return best


def _shared(one: JointPublisher, other: JointPublisher) -> list[tuple[int, int, int]]:
    """Return for each needed joint that two publishers share: its index, and its index in the messages of each."""
    return [(i, here, other.places[i]) for i, here in one.places.items() if i in other.places]
