"""The policy loop in real time: cycles at the contract's rate, see :mod:`m2distill_policy.node.pacer`.

Each cycle answers the newest set of images and joint states once. In a cycle without a set the policy server waits; if
that lasts, it ramps to a halt.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.node import topics
from m2distill_policy.node.arrivals import Moment, Stream, check_arrivals, stale_set
from m2distill_policy.node.loop import PolicyLoop
from m2distill_policy.node.loop_options import LoopOptions
from m2distill_policy.node.missing_streams import Labels
from m2distill_policy.node.output import Output
from m2distill_policy.node.pose_source import POSE_PERIODS, PoseSource
from m2distill_policy.node.pose_wait import PoseWait
from m2distill_policy.node.stream import SLOWEST_CAMERA
from m2distill_policy.node.synchroniser import RATE_OVER
from m2distill_policy.observation import Observation
from m2distill_policy.runtime.decision import Decision
from m2distill_policy.runtime.folder_watcher import FolderWatcher
from m2distill_policy.runtime.safety import Motion
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.watchdog import Fault

T = TypeVar("T")


class RealTimeLoop(PolicyLoop[T]):
    """Answers observations at the contract's rate.

    Args:
        server, to_rgb, options, full_name, name, wall_clock, monotonic, poses, frame: See :class:`PolicyLoop`.
        watcher: Watches a folder for new bundles in its own thread, or None.
    """

    _always_sends_set_points = False

    def __init__(
        self,
        server: PolicyServer,
        to_rgb: Callable[[T], NDArray[np.uint8]],
        options: LoopOptions | None = None,
        *,
        watcher: FolderWatcher | None = None,
        full_name: Callable[[str], str] = topics.resolve,
        name: str = topics.POLICY_NODE,
        wall_clock: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
        poses: PoseSource | None = None,
        frame: str = "",
    ) -> None:
        options = options or LoopOptions()
        super().__init__(
            server,
            to_rgb,
            options,
            slop=round(options.slop * 1e9),
            longest_silence=POSE_PERIODS * server.contract.period,
            checks_jumps=True,
            watcher=watcher,
            full_name=full_name,
            name=name,
            wall_clock=wall_clock,
            monotonic=monotonic,
            poses=poses,
            frame=frame,
        )
        self._pose_wait: PoseWait[T] = PoseWait(self._poses, self._contract.period)
        self._labels = Labels(full_name)
        #: When the clocks were last read, see :meth:`_moment`.
        self._read = Moment(0, float("-inf"))

    # --- when a cycle runs -------------------------------------------------------------------------------------------

    def run(self, start: float) -> Output | None:
        """Run the next cycle if it is due, else return None. Call it when a message has arrived, or at :attr:`wake`.

        Args:
            start: When the work on the newest message began, by ``time.perf_counter``.
        """
        now = self._monotonic()
        if self._pose_wait.waiting:
            waited = self._pose_wait.take(now)
            return self._answer(*waited) if waited is not None else None
        found = self._stream.due(now)
        if found is not None:
            return None if self._pose_wait.begin(found, start, now) else self._answer(found, start)
        return self._without_observation(start) if self._stream.missed(now) else None

    @property
    def wake(self) -> float:
        """When to call :meth:`run` even if no message arrives: s, monotonic."""
        return self._pose_wait.wake(self._monotonic()) if self._pose_wait.waiting else self._stream.wake

    @property
    def lacks_joints(self) -> bool:
        """Whether only a joint state is missing for the next set.

        Otherwise joint states, which may arrive a thousand times a second, need not wake the loop.
        """
        return self._stream.waiting_for == ("joint_states",)

    def ramp(self) -> Output:
        """See :meth:`PolicyLoop.ramp`."""
        self._pose_wait.clear()
        return self._without_observation(time.perf_counter())

    def _without_observation(self, start: float) -> Output:
        self._report_jump()
        self._diagnostics.missed += self._server.motion is Motion.RUNNING
        decision = self._server.tick_without_observation(
            self._wall_clock() / 1e9,
            monotonic=self._monotonic(),
            newest=self._poses.at(0),
            fault=self._stream_fault(),
            why=lambda: self._stream.why_no_set(self._monotonic()),
        )
        return self._output(decision, 0, start)

    def _step(
        self, observation: Observation, stamp: int, pose: NDArray[np.float64] | None, no_pose: Fault | None
    ) -> Decision:
        # Checked in every cycle, because enabling ends a halt but does not make a camera faster.
        self._halt_for_slow_cameras()
        self._server.set_not_ready(self._unmeasured())
        return self._server.step(
            observation,
            self._wall_clock() / 1e9,
            monotonic=self._monotonic(),
            pose=pose,
            newest=self._poses.at(0),
            fault=self._stream_fault(stamp),
            no_pose=no_pose,
            pose_place=lambda: self._poses.place,
        )

    def _set_point_stamp(self, decision: Decision, stamp: int) -> int:
        # A set-point that was not computed from an image is relative to the arm's current pose, because the image's
        # stamp may be wrong.
        return stamp if decision.sample is not None else 0

    def _command_stamp(self, stamp: int) -> int:
        return self._wall_clock()

    # --- clocks and rates --------------------------------------------------------------------------------------------

    def _moment(self) -> Moment:
        """Return the current time of both clocks, but read the wall clock at most once a millisecond.

        Asking ROS for the time is slow, and joint states may arrive a thousand times a second.
        """
        monotonic = self._monotonic()
        passed = monotonic - self._read.monotonic
        if not 0 <= passed < 0.001:
            self._read = Moment(self._wall_clock(), monotonic)
            return self._read
        return Moment(self._read.wall + round(passed * 1e9), monotonic)

    def _stream_fault(self, stamp: int | None = None) -> Fault | None:
        """Return the fault of a stream, or None.

        It may be a stream's clock or rate, contradictory joint states, or the age of the set stamped ``stamp`` (ns).
        """
        streams = self._stream.streams()
        moment = self._moment()
        if self._poses is self._pose_buffer:
            streams.append(Stream(self._labels.pose, self._pose_arrival, optional=True))
        elif self._poses.newest_stamp > moment.wall:
            # The arrival time of a transform is unknown. But a stamp that is in the future now was in the future then
            # too.
            self._pose_arrival.note(self._poses.newest_stamp, moment, self._server.watch.future_tolerance)
            streams.append(Stream(self._poses.place, self._pose_arrival, optional=True))
        found = check_arrivals(streams, self._server.watch, self._monotonic())
        if found is None and stamp is not None:
            found = stale_set(streams, stamp, self._server.watch, self._wall_clock())
        return found or self._stream.joint_conflict(self._monotonic()) or self._stream.slow_joints()

    def add_image(self, view: str, stamp: int, frame: T) -> None:
        """See :meth:`PolicyLoop.add_image`. Halts if a camera is too slow."""
        super().add_image(view, stamp, frame)
        self._halt_for_slow_cameras()

    def _slow_cameras(self) -> dict[str, float]:
        """Return the views whose cameras are too slow, with the seconds between two images."""
        longest = SLOWEST_CAMERA * self._contract.period
        return {view: seconds for view, seconds in self._stream.intervals.items() if seconds > longest}

    def _halt_for_slow_cameras(self) -> None:
        for view, interval in self._slow_cameras().items():
            self._server.halt(
                f"camera '{view}' sends {1 / interval:.1f} images a second, but the policy needs "
                f"{self._contract.rate_hz:g}; choose a faster camera mode, then enable the policy (~/enable)"
            )

    def _measure_cameras(self) -> None:
        for view in self._slow_cameras():
            self._stream.measure_anew(view)
            self._server.set_not_ready(self._unmeasured())

    def _unmeasured(self) -> str | None:
        """Return the message that names the cameras whose rates are not known yet, or None."""
        unknown = [view for view in self._contract.camera_names if view not in self._stream.intervals]
        if not unknown:
            return None
        return f"Waiting for {RATE_OVER + 1} images of {', '.join(unknown)}, to measure their rate."
