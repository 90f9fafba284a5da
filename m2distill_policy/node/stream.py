"""Make observations from images and joint states as they arrive, at most one a period; live or from a recording."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Contract
from m2distill_policy.errors import ObservationError
from m2distill_policy.images.preprocess import preprocess
from m2distill_policy.node import topics
from m2distill_policy.node.arrivals import Moment, Stream
from m2distill_policy.node.joint_states import JointStates
from m2distill_policy.node.joints import JointMap, JointSource
from m2distill_policy.node.missing_streams import SLOWEST, Labels, explain, slow_joints, streams_of
from m2distill_policy.node.pacer import Pacer
from m2distill_policy.node.synchroniser import SynchronisedSet, Synchroniser
from m2distill_policy.observation import Observation
from m2distill_policy.runtime.status import StatusCode
from m2distill_policy.runtime.watchdog import Fault, WatchLimits

T = TypeVar("T")

#: Factor by which a camera's period may exceed the contract's.
SLOWEST_CAMERA = SLOWEST


class ObservationStream(Generic[T]):
    """Decides which images and joint states become the next observation of the policy, and when.

    Time is an argument (s, monotonic).

    Args:
        contract: Gives views, joints and rate.
        to_rgb: Converts a frame to (H, W, 3) uint8 RGB; may raise :class:`ObservationError`.
        slop: Largest difference in ns between the stamps of the views and of the arm's joints in a set; 0 needs equal
            stamps, as in lockstep.
        joints: Joints whose name, sign or zero differs from the contract's.
        now: When the stream begins, s.
        limits: Limits of a stream: how far its stamps may be in the future, how old they may be, and how long it may
            send nothing. The stamps of the gripper's joints may differ from the views' by ``stale_after``.
        full_name: Converts a topic to its name after remapping, for messages.
    """

    def __init__(
        self,
        contract: Contract,
        to_rgb: Callable[[T], NDArray[np.uint8]],
        *,
        slop: int,
        joints: Sequence[JointSource] = (),
        now: float = 0.0,
        limits: WatchLimits | None = None,
        full_name: Callable[[str], str] = topics.resolve,
    ) -> None:
        self._contract = contract
        self._to_rgb = to_rgb
        self._limits = limits or WatchLimits()
        self._labels = Labels(full_name)
        self._joints = JointMap(contract, joints)
        longest = self._limits.stale_after
        held = 0 if slop == 0 else None if longest is None else max(slop, round(longest * 1e9))
        self._tolerance = self._limits.future_tolerance
        states = JointStates(
            self._joints.wanted, self._joints.gripper, slop=slop, held=held, limits=self._joints.limits
        )
        self._sets: Synchroniser[T] = Synchroniser(contract.camera_names, states, slop, tolerance=self._tolerance)
        self._pacer = Pacer(contract.period, now)
        #: Seconds between two images of each view, once known.
        self.intervals: dict[str, float] = {}
        self._pending: SynchronisedSet[T] | None = None
        self._pending_since = 0.0

    def clear(self) -> None:
        """Forget what has arrived, for a new episode."""
        self._sets.clear()
        self._pending = None

    def restart(self, now: float) -> None:
        """Forget everything, including the cameras' rates, and begin again at ``now`` (s)."""
        self.clear()
        self.intervals.clear()
        self._pacer = Pacer(self._contract.period, now)

    def add_view(self, name: str, stamp: int, frame: T, moment: Moment | None = None) -> float | None:
        """Add a frame of the view ``name``, stamped ``stamp`` ns, that arrived at ``moment``.

        Returns:
            Seconds between two frames of the view; None until that is known.
        """
        self._sets.add_view(name, stamp, frame, moment)
        interval = self._sets.interval(name)
        if interval is not None:
            self.intervals[name] = interval
            if len(self.intervals) == len(self._contract.camera_names):
                self._pacer.cameras(max(self.intervals.values()))
        return interval

    def measure_anew(self, name: str) -> None:
        """Measure the rate of the view ``name`` again."""
        self._sets.forget_interval(name)
        self.intervals.pop(name, None)

    def add_joints(
        self,
        stamp: int,
        names: Sequence[str],
        positions: Sequence[float],
        moment: Moment | None = None,
        topic: str = topics.JOINT_STATES,
    ) -> None:
        """Add a joint state that arrived on ``topic`` at ``moment``. Raises the errors of :meth:`JointStates.add`."""
        self._sets.joints.add(topic, stamp, names, positions, moment, self._tolerance)

    def describe_joints(self, topic: str, names: Sequence[str]) -> tuple[str, bool]:
        """Describe the publisher of a joint state.

        Returns:
            Name of the publisher for messages, or "" if it has no needed joint; and whether it has a joint of the arm.
        """
        wanted = [name for name in self._joints.wanted if name in names]
        where = self._labels.joints(topic, () if len(wanted) == len(self._joints.wanted) else wanted)
        return where if wanted else "", bool(set(wanted) - self._joints.gripper)

    def streams(self) -> list[Stream]:
        """Return every view and every publisher of joint states, with the arrival of its newest message."""
        return streams_of(self._sets, self._labels)

    def joint_conflict(self, monotonic: float) -> Fault | None:
        """Return the fault of joint positions that contradicted each other within the last second, or None."""
        found = self._sets.joints.conflict(monotonic)
        if found is None:
            return None
        message = found.describe(self._labels.joints)
        return Fault(StatusCode.BAD_OBSERVATION, f"The joint states contradict each other: {message}.")

    def slow_joints(self) -> Fault | None:
        """Return the fault of a publisher of the arm's joints that is slower than the contract's rate, or None.

        It is None until the rates of all cameras are known and high enough.
        """
        fast = [interval <= SLOWEST * self._contract.period for interval in self.intervals.values()]
        if len(fast) < len(self._contract.camera_names) or not all(fast):
            return None
        return slow_joints(self._sets, self._contract, self._labels)

    def why_no_set(self, monotonic: float) -> Fault | None:
        """Return why no observation can be made at ``monotonic`` (s), or None if nothing is wrong with the streams."""
        return explain(self._sets, self._limits, self._labels, monotonic, self._contract.camera_names)

    def take(self) -> SynchronisedSet[T] | None:
        """Return the newest set of images and joint states without waiting for its time, as in lockstep, or None."""
        return self._sets.take()

    def due(self, now: float) -> SynchronisedSet[T] | None:
        """Return the images and joint states that must be answered at time ``now``; None if there are none."""
        found = self._sets.take()
        if found is not None:
            self._pending, self._pending_since = found, now
        if self._pending is None or not self._pacer.ready(now, self._pending_since):
            return None
        found, self._pending = self._pending, None
        self._pacer.used(now)
        return found

    def missed(self, now: float) -> bool:
        """Return whether a cycle must run at ``now`` without images and joint states, because these have not
        arrived."""
        if now < self._pacer.latest:
            return False
        self._pacer.missed(now)
        return True

    @property
    def wake(self) -> float:
        """When there is something to do even if nothing arrives: s, monotonic."""
        return self._pacer.latest if self._pending is None else self._pacer.next

    @property
    def waiting_for(self) -> tuple[str, ...]:
        """Names of the views that are missing for the next set, and ``joint_states`` if these are missing."""
        return () if self._pending is not None else self._sets.waiting_for()

    def observe(self, found: SynchronisedSet[T]) -> tuple[Observation, list[str]]:
        """Return the observation of a set at the contract's resolution, and a message for each unusable part.

        An unusable image is left out, so that the check of the observation refuses it.
        """
        images: dict[str, NDArray[np.uint8]] = {}
        problems = []
        for camera in self._contract.cameras:
            try:
                images[camera.name] = preprocess(self._to_rgb(found.views[camera.name]), camera)
            except ObservationError as error:
                problems.append(f"view '{camera.name}': {error}")
        proprioception, absent = self._joints.proprioception(*found.joints)
        if absent:
            problems.append(f"the joint state does not name {', '.join(absent)}")
        return Observation(images, proprioception, found.stamp / 1e9), problems
