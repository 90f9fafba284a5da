"""The policy loop in lockstep with a simulated robot, without a clock.

Each set of images and joint states with equal stamps is answered with exactly one :class:`Output`. If a set is sent
again, it gets the same output again. The message that begins an episode has the instruction and the random seed. It is
answered with one :class:`Output` of the same stamp before any observation is sent. This answer is needed, because
messages on different topics have no common order: without it, the robot does not know that the policy has received the
episode.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.node import topics
from m2distill_policy.node.loop import PolicyLoop
from m2distill_policy.node.loop_options import LoopOptions
from m2distill_policy.node.output import Output
from m2distill_policy.node.pose_source import PoseSource
from m2distill_policy.node.synchroniser import SynchronisedSet
from m2distill_policy.observation import Observation
from m2distill_policy.runtime.decision import Decision
from m2distill_policy.runtime.folder_watcher import FolderWatcher
from m2distill_policy.runtime.hotswap import SwapError
from m2distill_policy.runtime.safety import Motion
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.watchdog import Fault

T = TypeVar("T")


class LockstepLoop(PolicyLoop[T]):
    """Answers observations one by one.

    Args:
        server, to_rgb, options, full_name, name, wall_clock, monotonic, poses, frame: See :class:`PolicyLoop`.
        watcher: Watches a folder for new bundles, or None. It is polled between two observations. The next observation
            waits until a hot swap is ready or refused, so that a run is reproducible.
    """

    _always_sends_set_points = True

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
        super().__init__(
            server,
            to_rgb,
            options,
            slop=0,
            longest_silence=None,
            checks_jumps=False,  # a simulated robot moves its arm when it is reset
            watcher=watcher,
            full_name=full_name,
            name=name,
            wall_clock=wall_clock,
            monotonic=monotonic,
            poses=poses,
            frame=frame,
        )
        #: Whether the robot publishes its pose. If so, a set is answered only once the pose with its stamp has arrived.
        self.expects_pose = False
        self._episode_stamp = -1
        #: The set that waits for the pose with its stamp, and the newest answer.
        self._pending: SynchronisedSet[T] | None = None
        self._answered: Output | None = None

    def begin_episode(self, number: int, instruction: str, *, seed: int, random_stream: int, stamp: int) -> Output:
        """Begin an episode and return its answer.

        Args:
            number: Number of the episode.
            instruction: Instruction for the policy.
            seed: Random seed.
            random_stream: Number of the random stream of ``seed``.
            stamp: Stamp of the episode, ns; all its observations have later stamps.
        """
        start = time.perf_counter()
        self._stream.clear()
        self._pending = self._answered = None
        self._poses.clear()
        self._commands.begin_episode()
        self._episode, self._episode_stamp = number, stamp
        self._poll_watcher()
        if self._exit_at is None:
            self._server.release_halt()
        self.operator.set_instruction(instruction)
        self._server.reset("a new episode", seed=seed, episode=random_stream, is_stationary=True)
        if self._server.swap_pending:
            # With swap_when "idle", a waiting bundle must be used from here on, not from some later cycle on.
            self._wait_for_swap()
        return self._output(self._server.tick_without_observation(stamp / 1e9), stamp, start, is_answer=False)

    def run(self, start: float) -> Output | None:
        """Answer the next set of images and joint states, or return None. Sets from before the episode are dropped.

        A robot that has waited long sends its observation again and gets the same answer again, because even on a
        reliable topic the first message between two processes can be lost.

        Args:
            start: When the work on the newest message began, by ``time.perf_counter``.
        """
        pending = self._pending or self._stream.take()
        self._pending = None
        if pending is None or pending.stamp <= self._episode_stamp:
            return None
        if self.expects_pose and self._poses.at(pending.stamp) is None:
            # A robot that publishes its pose uses set-points, and a set-point needs the pose at exactly this stamp.
            self._pending = pending
            return None
        if self._answered is not None and self._answered.stamp == pending.stamp:
            return self._answered
        self._poll_watcher()
        self._answered = self._answer(pending, start)
        return self._answered

    @property
    def missing_topics(self) -> tuple[str, ...]:
        """Full names of the topics that are missing for the next set."""
        if self._pending is not None:
            return (self._full_name(topics.END_EFFECTOR_POSE),)
        wanted = self._stream.waiting_for
        names = [topics.JOINT_STATES if name == "joint_states" else topics.camera_topic(name) for name in wanted]
        return tuple(self._full_name(name) for name in names)

    def ramp(self) -> Output:
        """See :meth:`PolicyLoop.ramp`."""
        start = time.perf_counter()
        self._report_jump()
        self._diagnostics.missed += self._server.motion is Motion.RUNNING
        decision = self._server.tick_without_observation(
            self._wall_clock() / 1e9,
            monotonic=self._monotonic(),
            newest=self._poses.at(0),
            why=lambda: self._stream.why_no_set(self._monotonic()),
        )
        return self._output(decision, 0, start)

    def _step(
        self, observation: Observation, stamp: int, pose: NDArray[np.float64] | None, no_pose: Fault | None
    ) -> Decision:
        return self._server.step(observation, observation.stamp, pose=pose, newest=pose, no_pose=no_pose)

    def _set_point_stamp(self, decision: Decision, stamp: int) -> int:
        return stamp

    def _command_stamp(self, stamp: int) -> int:
        return stamp  # in lockstep there is no other clock

    def _moment(self) -> None:
        return None

    def _measure_cameras(self) -> None:
        """Do nothing, because cameras have no rate in lockstep."""

    def _poll_watcher(self) -> None:
        if self._watcher is None:
            return
        try:
            found = self._watcher.poll()
        except (OSError, SwapError) as error:  # the bundle in use continues
            self.problems.set("hot swap", f"A new bundle could not be loaded: {error}.")
            return
        self.problems.set("hot swap", None)
        if found is not None:
            self._wait_for_swap()

    def _wait_for_swap(self) -> None:
        try:
            self._server.wait_for_swap(self.options.timeout)
        except SwapError as error:
            self.problems.set("hot swap", f"A new bundle could not be loaded: {error}.")
