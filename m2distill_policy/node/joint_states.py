"""The newest joint positions by name, from any number of JointState messages and topics. Pure.

An arm's and a gripper's joints often come in separate messages, on one topic or on two, each at its own rate. For a set
of pictures each joint's value is the one whose stamp is nearest to theirs, and it must be near enough:

* joints of the arm: within ``slop``, as between two views;
* joints of the gripper (the contract's ``gripper_states``): within ``held``, because gripper drivers are slower.
"""

from __future__ import annotations

import bisect
import itertools
import statistics
from collections.abc import Iterable, Sequence

from m2distill_policy.errors import ObservationError
from m2distill_policy.node.arrivals import Arrival, Moment

#: Joint states kept of each publisher: a quarter of a second of a 1 kHz stream.
JOINTS_KEPT = 256
#: Most publishers kept apart, by topic and joint names.
_PUBLISHERS_KEPT = 16
#: ns by which a stamp may be before the newest; beyond, a clock was set back and what came before says nothing.
_SET_BACK = 1_000_000_000
#: Joint states over which a publisher's rate is measured.
JOINTS_RATE_OVER = 10


class JointPublisher:
    """Everything that came on one topic with the same names."""

    def __init__(self, topic: str, names: Sequence[str], wanted: Sequence[str]) -> None:
        self.topic = topic
        self.names = list(names)
        self.arrival = Arrival()
        places: dict[str, list[int]] = {}
        for index, name in enumerate(names):
            places.setdefault(name, []).append(index)
        #: Index of a wanted joint -> where it stands in a message.
        self.places = {i: places[name][0] for i, name in enumerate(wanted) if name in places}
        self.wanted = tuple(wanted[i] for i in self.places)
        self.twice = [(name, found) for name, found in places.items() if len(found) > 1]
        self.stamps: list[int] = []
        self.rows: list[Sequence[float]] = []

    def add(self, stamp: int, positions: Sequence[float]) -> None:
        """Keep a message in order of its stamp."""
        stamps = self.stamps
        if not stamps or stamp >= stamps[-1]:
            stamps.append(stamp)
            self.rows.append(positions)
            if len(stamps) > 2 * JOINTS_KEPT:
                del stamps[:JOINTS_KEPT], self.rows[:JOINTS_KEPT]
        elif stamps[-1] - stamp > _SET_BACK:
            self.stamps, self.rows = [stamp], [positions]
        else:
            at = bisect.bisect_right(stamps, stamp)
            stamps.insert(at, stamp)
            self.rows.insert(at, positions)

    def nearest(self, stamp: int) -> int:
        """Index of the message whose stamp is nearest to ``stamp``, the newest of equals."""
        stamps = self.stamps
        after = bisect.bisect_right(stamps, stamp)
        if after == 0:
            return bisect.bisect_right(stamps, stamps[0]) - 1
        if after == len(stamps) or stamp - stamps[after - 1] < stamps[after] - stamp:
            return after - 1
        return bisect.bisect_right(stamps, stamps[after]) - 1

    @property
    def interval(self) -> float | None:
        """Median s between two stamps; None until enough of them have come."""
        recent = self.stamps[-JOINTS_RATE_OVER - 1 :]
        if len(recent) <= JOINTS_RATE_OVER:
            return None
        # Asked once a cycle, and for so few values NumPy's median takes over ten times as long.
        return statistics.median(after - before for before, after in itertools.pairwise(recent)) / 1e9


class JointStates:
    """Keep what joint states say, by name.

    Args:
        wanted: names of the joints that are needed, without repetition.
        gripper: those of them that are held for ``held``.
        slop, held: ns by which a value may differ from the stamp that it is asked for; None for any.
    """

    def __init__(self, wanted: Sequence[str], gripper: Iterable[str] = (), *, slop: int, held: int | None) -> None:
        self.wanted = tuple(wanted)
        found = frozenset(gripper)
        self.is_gripper = tuple(name in found for name in self.wanted)
        #: ns by which each wanted joint's value may be off.
        self.allowed = tuple(held if slow else slop for slow in self.is_gripper)
        self._sources: dict[tuple[str, tuple[str, ...]], JointPublisher] = {}
        #: Topic -> who sent its newest message.
        self._newest: dict[str, JointPublisher] = {}
        #: Topic -> the names in its newest message, and whether that held positions.
        self.named: dict[str, tuple[tuple[str, ...], bool]] = {}

    def clear(self) -> None:
        """Forget everything, for a new episode."""
        self._sources.clear()
        self.named.clear()
        self._newest.clear()

    def add(
        self, topic: str, stamp: int, names: Sequence[str], positions: Sequence[float], moment: Moment | None,
        tolerance: float | None = None,
    ) -> None:  # fmt: skip
        """Take in a message. One without positions (velocities or efforts alone) changes nothing.

        Args:
            topic: where it came from.
            stamp: ns.
            names, positions: of the joints; rad or m.
            moment: when it arrived, None where there is no clock.
            tolerance: see :meth:`Arrival.note`.

        Raises:
            ObservationError: names and positions are not of one length, or a name has two different positions.
        """
        count = len(positions)
        newest = self._newest.get(topic)
        if newest is not None and newest.names == names and count == len(newest.names) and not newest.twice:
            # The same publisher again, perhaps a thousand times a second.
            if moment is not None:
                newest.arrival.note(stamp, moment, tolerance)
            newest.add(stamp, positions)
            return
        key = topic, tuple(names)
        if not count:
            if topic not in self.named:
                self.named[topic] = key[1], False
            return
        if len(key[1]) != count:
            raise ObservationError(
                f"a joint state names {len(key[1])} joints and holds {count} positions; one each is needed"
            )
        source = self._sources.get(key)
        if source is None:
            source = JointPublisher(topic, key[1], self.wanted)
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
        if key not in self._sources:
            if len(self._sources) >= _PUBLISHERS_KEPT:
                self._newest.clear()
                del self._sources[min(self._sources, key=lambda k: self._sources[k].arrival.steady)]
            self._sources[key] = source
        if moment is not None:
            source.arrival.note(stamp, moment, tolerance)
        source.add(stamp, positions)
        self._newest[topic] = source

    def at(self, stamp: int) -> list[float] | None:
        """Positions of the wanted joints at ``stamp`` (ns), or None where one is missing or too far off."""
        values: list[float] = []
        for found, allowed in zip(self._nearest(stamp), self.allowed, strict=True):
            if found is None or (allowed is not None and found[0] > allowed):
                return None
            values.append(found[1])
        return values

    def distances(self, stamp: int) -> list[int | None]:
        """For each wanted joint the ns between ``stamp`` and its nearest value; None where none has come."""
        return [None if found is None else found[0] for found in self._nearest(stamp)]

    def current(self) -> list[tuple[JointPublisher, tuple[str, ...]]]:
        """Each source with the wanted joints of which it sent the newest value, oldest source first."""
        if len(self._sources) == 1:
            (source,) = self._sources.values()
            return [(source, source.wanted)]
        owner: dict[int, JointPublisher] = {}
        sources = sorted(self._sources.values(), key=lambda s: s.arrival.steady)
        for source in sources:
            owner.update(dict.fromkeys(source.places, source))
        return [(source, tuple(self.wanted[i] for i, owned in owner.items() if owned is source)) for source in sources]

    def _nearest(self, stamp: int) -> list[tuple[int, float] | None]:
        """(distance in ns, position) of each wanted joint; of equal ones the later stamp, then the later arrival."""
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
            rank = -distance, found, source.arrival.steady
            for i, place in source.places.items():
                if best[i] is None or rank > ranks[i]:
                    best[i], ranks[i] = (distance, row[place]), rank
        return best
