"""From separate streams of images and joint states to sets that belong together. Pure: stamps and data are handed in.

A set is one frame of every view, all within a slop of each other, and one position of every joint, see
:mod:`m2distill_policy.node.joint_states`. Stamps are whole nanoseconds, so that an answer can bear exactly the stamp of
what it answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from m2distill_policy.node.arrivals import Arrival, Moment
from m2distill_policy.node.joint_states import JointStates

T = TypeVar("T")
#: Joint names and their positions.
Joints = tuple[Sequence[str], Sequence[float]]

#: Frames kept of each view: enough to find a match for the slowest of several cameras.
FRAMES_KEPT = 8
#: Stamps over which a camera's rate is measured.
RATE_OVER = 20


@dataclass(frozen=True)
class SynchronisedSet(Generic[T]):
    """What was seen and felt at about one instant.

    stamp: ns; the oldest view's. views: name -> frame, joints: names and positions, both as they were handed in.
    """

    stamp: int
    views: Mapping[str, T]
    joints: Joints


class Synchroniser(Generic[T]):
    """Collects the streams and gives out the newest set, each frame at most once.

    What counts as new is what has arrived since the last set, not what bears a later stamp: a camera that repeats
    itself, or a clock that was set back, makes sets too, and the watchdog says what is wrong with them.

    Args:
        views: their names; the first one's frames are what the others are matched with.
        joints: the joints' positions; it says how far off they may be.
        slop: ns by which the views of a set may differ; 0 wants equal stamps, as in lockstep.
        tolerance: s by which a view's stamp may be ahead of its arrival, see :class:`Arrival`; None for any.
    """

    def __init__(self, views: Sequence[str], joints: JointStates, slop: int, *, tolerance: float | None = None) -> None:
        self.slop = slop
        self.joints = joints
        #: When each view's newest frame came, and how its stamp compares.
        self.arrivals: dict[str, Arrival] = {}
        self._tolerance = tolerance
        self._views: dict[str, deque[tuple[int, T]]] = {n: deque(maxlen=FRAMES_KEPT) for n in views}
        self._newest: dict[str, int] = {}
        self._intervals: dict[str, deque[int]] = {n: deque(maxlen=RATE_OVER) for n in views}

    def clear(self) -> None:
        """Forget everything, for a new episode."""
        for frames in self._views.values():
            frames.clear()
        for intervals in self._intervals.values():
            intervals.clear()
        self.joints.clear()
        self._newest.clear()
        self.arrivals.clear()

    def add_view(self, name: str, stamp: int, frame: T, moment: Moment | None = None) -> None:
        """Take in a frame of the view ``name``, stamped ``stamp`` ns. moment: when it came, where there is a clock."""
        if moment is not None:
            self.arrivals.setdefault(name, Arrival()).note(stamp, moment, self._tolerance)
        previous = self._newest.get(name)
        if previous is not None and stamp > previous:
            self._intervals[name].append(stamp - previous)
        self._newest[name] = stamp
        self._views[name].append((stamp, frame))

    def take(self) -> SynchronisedSet[T] | None:
        """The newest set; what came before its members is forgotten. None while there is none."""
        reference, *others = self._views
        for index in range(len(self._views[reference]) - 1, -1, -1):
            stamp = self._views[reference][index][0]
            found = {reference: index}
            for name in others:
                match = _nearest(self._views[name], stamp, self.slop)
                if match is not None:
                    found[name] = match
            if len(found) < 1 + len(others):
                continue
            positions = self.joints.at(stamp)
            if positions is not None:
                return self._use(found, (self.joints.wanted, positions))
        return None

    def waiting_for(self) -> tuple[str, ...]:
        """The views, and ``joint_states``, without which the newest of what has arrived makes no set."""
        arrived = [entries[-1][0] for entries in self._views.values() if entries]
        if not arrived:
            return (*self._views, "joint_states")
        newest = max(arrived)
        absent = [n for n, entries in self._views.items() if _nearest(entries, newest, self.slop) is None]
        return (*absent, *(() if self.joints.at(newest) is not None else ("joint_states",)))

    def stamps(self, name: str) -> list[int]:
        """Stamps (ns) of the frames of the view ``name`` that are in no set yet; of its newest one where none is."""
        waiting = [stamp for stamp, _ in self._views[name]]
        return waiting or ([self._newest[name]] if name in self._newest else [])

    def interval(self, name: str) -> float | None:
        """Median seconds between two frames of the view ``name``; None until enough of them have come."""
        intervals = self._intervals[name]
        # Asked with each frame, and for so few values NumPy's median takes over ten times as long.
        return _median(intervals) / 1e9 if len(intervals) == RATE_OVER else None

    def forget_interval(self, name: str) -> None:
        """Measure the view ``name``'s interval anew."""
        self._intervals[name].clear()

    def _use(self, found: Mapping[str, int], joints: Joints) -> SynchronisedSet[T]:
        stamps, views = [], {}
        for name, index in found.items():
            frames = self._views[name]
            stamp, views[name] = frames[index]
            stamps.append(stamp)
            for _ in range(index + 1):
                frames.popleft()
        return SynchronisedSet(min(stamps), views, joints)


def _nearest(entries: Sequence[tuple[int, object]], stamp: int, slop: int) -> int | None:
    """Index of the entry whose stamp is nearest to ``stamp``, the newest of equals; None if it is beyond ``slop``."""
    best = min(range(len(entries)), key=lambda i: (abs(entries[i][0] - stamp), -i), default=None)
    return best if best is not None and abs(entries[best][0] - stamp) <= slop else None


def _median(values: Iterable[int]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return (ordered[middle] + ordered[~middle]) / 2
