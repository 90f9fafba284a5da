"""Combine separate streams of images and joint states into sets of about the same time.

A set is one frame of every view, stamped within ``slop`` of the first view's frame, and one position of every joint,
see :mod:`m2distill_policy.node.joint_states`. Stamps are whole nanoseconds, so that an answer has exactly the stamp of
the set that it answers.
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

#: Number of frames that are kept of each view: enough to match the slowest of several cameras.
FRAMES_KEPT = 8
#: Number of intervals between frames over which a camera's rate is measured.
RATE_OVER = 20


@dataclass(frozen=True)
class SynchronisedSet(Generic[T]):
    """Frames and joint positions of about the same time.

    Attributes:
        stamp: Stamp of the oldest frame, ns.
        views: Name -> frame, as it was added.
        joints: Names and positions, as they were added.
    """

    stamp: int
    views: Mapping[str, T]
    joints: Joints


class Synchroniser(Generic[T]):
    """Collects the streams and returns the newest set. Each frame is used at most once.

    A frame is new if it arrived after the last set, whatever its stamp. So a camera that repeats a frame, or whose
    clock was set back, is also used for sets, and the watchdog reports what is wrong with them.

    Args:
        views: Names of the views. Frames of the other views are matched with frames of the first view.
        joints: Joint positions, and how far their stamps may be from those of the frames.
        slop: Largest difference in ns between the stamp of the first view and that of another view in a set; 0 needs
            equal stamps, as in lockstep.
        tolerance: Seconds by which a view's stamp may be ahead of the clock, see :class:`Arrival`; None allows any.
    """

    def __init__(self, views: Sequence[str], joints: JointStates, slop: int, *, tolerance: float | None = None) -> None:
        self.slop = slop
        self.joints = joints
        #: For each view, the stamp and the arrival of its newest frame.
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
        """Add a frame of the view ``name``, stamped ``stamp`` ns. moment: when it arrived; None without a clock."""
        if moment is not None:
            self.arrivals.setdefault(name, Arrival()).note(stamp, moment, self._tolerance)
        previous = self._newest.get(name)
        if previous is not None and stamp > previous:
            self._intervals[name].append(stamp - previous)
        self._newest[name] = stamp
        self._views[name].append((stamp, frame))

    def take(self) -> SynchronisedSet[T] | None:
        """Return the newest set of frames and joint positions, or None. Frames that are older than it are dropped."""
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
        """Return what is missing for the next set: names of views, and ``joint_states``."""
        arrived = [entries[-1][0] for entries in self._views.values() if entries]
        if not arrived:
            return (*self._views, "joint_states")
        newest = max(arrived)
        absent = [n for n, entries in self._views.items() if _nearest(entries, newest, self.slop) is None]
        return (*absent, *(() if self.joints.at(newest) is not None else ("joint_states",)))

    def stamps(self, name: str) -> list[int]:
        """Return the stamps (ns) of the unused frames of the view ``name``, or that of its newest frame if all are
        used."""
        waiting = [stamp for stamp, _ in self._views[name]]
        return waiting or ([self._newest[name]] if name in self._newest else [])

    def interval(self, name: str) -> float | None:
        """Return the median seconds between two frames of the view ``name``; None until there are enough frames."""
        intervals = self._intervals[name]
        # Called for each frame; for so few values NumPy's median takes over ten times as long.
        return _median(intervals) / 1e9 if len(intervals) == RATE_OVER else None

    def forget_interval(self, name: str) -> None:
        """Measure the interval of the view ``name`` again."""
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
    """Return the index of the entry with the stamp nearest to ``stamp``; on a tie, that of the newest entry.

    Return None if that stamp is farther than ``slop`` (ns) from ``stamp``.
    """
    best = min(range(len(entries)), key=lambda i: (abs(entries[i][0] - stamp), -i), default=None)
    return best if best is not None and abs(entries[best][0] - stamp) <= slop else None


def _median(values: Iterable[int]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return (ordered[middle] + ordered[~middle]) / 2
