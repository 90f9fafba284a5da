"""The policy loop without its messages: inputs go in, an :class:`Output` to publish comes out.

:class:`PolicyLoop` has what both loops share. Its subclasses in :mod:`m2distill_policy.node.real_time` and
:mod:`m2distill_policy.node.lockstep` decide when a cycle runs. Use a loop from one thread only. The server prepares hot
swaps in its own thread, and the watcher may watch its folder in another.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.errors import ObservationError
from m2distill_policy.images.preprocess import check_field_of_view
from m2distill_policy.node import topics
from m2distill_policy.node.arrivals import Arrival, Moment
from m2distill_policy.node.command import CommandMaker
from m2distill_policy.node.diagnostics import Diagnostics
from m2distill_policy.node.joint_gate import JointConflictError
from m2distill_policy.node.loop_options import LoopOptions
from m2distill_policy.node.operator_inputs import OperatorInputs
from m2distill_policy.node.output import Output
from m2distill_policy.node.pose_gate import PoseGate
from m2distill_policy.node.pose_source import PoseBuffer, PoseSource
from m2distill_policy.node.problems import Problems
from m2distill_policy.node.stream import ObservationStream
from m2distill_policy.node.synchroniser import SynchronisedSet
from m2distill_policy.observation import Observation
from m2distill_policy.runtime.decision import Decision
from m2distill_policy.runtime.folder_watcher import FolderWatcher
from m2distill_policy.runtime.safety import Motion
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.status import StatusCode
from m2distill_policy.runtime.watchdog import Fault

T = TypeVar("T")

#: Seconds that the final ramp to a halt may take before the node exits anyway. The longest ``safety.halt_time`` is 5 s.
LONGEST_RAMP = 6.0
#: Seconds after the first signal during which a second signal does not end the ramp: the time to ramp and to close.
UNINTERRUPTED = LONGEST_RAMP + 2.0


class PolicyLoop(ABC, Generic[T]):
    """Connects a :class:`PolicyServer` to streams of messages, for any transport.

    Args:
        server: Answers observations.
        to_rgb: Converts a frame to (H, W, 3) uint8 RGB; may raise :class:`ObservationError`.
        options: See :class:`LoopOptions`.
        slop: Largest difference in ns between two stamps in a set, and between the stamps of a pose and its set; 0
            needs equal stamps.
        longest_silence: Seconds without a pose after which the newest pose is no longer used; None for no limit.
        checks_jumps: Whether a pose that jumps is refused.
        watcher: Watches a folder for new bundles and calls ``server.load``; None for no folder.
        full_name: Converts a topic of :mod:`m2distill_policy.node.topics` to its name after remapping, for messages.
            Everywhere else, topics have the names of that module.
        name: Name of this node with its namespace, in /diagnostics.
        wall_clock: Clock of the observations' stamps, ns.
        monotonic: Monotonic clock, s.
        poses: Another source of the end effector's poses; None uses the poses of :meth:`add_pose`.
        frame: Required frame of the poses of :meth:`add_pose`; if empty, the frame must only stay the same.
    """

    def __init__(
        self,
        server: PolicyServer,
        to_rgb: Callable[[T], NDArray[np.uint8]],
        options: LoopOptions | None,
        *,
        slop: int,
        longest_silence: float | None,
        checks_jumps: bool,
        watcher: FolderWatcher | None,
        full_name: Callable[[str], str],
        name: str,
        wall_clock: Callable[[], int],
        monotonic: Callable[[], float],
        poses: PoseSource | None,
        frame: str,
    ) -> None:
        self.options = options or LoopOptions()
        self.problems = Problems()
        self._server = server
        self._contract = server.contract
        self._watcher = watcher
        self._full_name = full_name
        self._wall_clock, self._monotonic = wall_clock, monotonic
        self._episode = 0
        self._pose_buffer = PoseBuffer(
            lambda: f"'{full_name(topics.END_EFFECTOR_POSE)}'",
            slop=slop,
            longest_silence=longest_silence,
            gate=PoseGate(server.speeds, jumps=checks_jumps, frame=frame),
            monotonic=monotonic,
        )
        self._pose_arrival = Arrival()
        self._poses: PoseSource = self._pose_buffer if poses is None else poses
        self._stream: ObservationStream[T] = ObservationStream(
            self._contract,
            to_rgb,
            slop=slop,
            joints=self.options.joints,
            now=monotonic(),
            limits=server.watch,
            full_name=full_name,
        )
        self._commands = CommandMaker(server, self.options.gripper, self._poses, self.problems)
        self._diagnostics = Diagnostics(server, monotonic(), name.strip("/"))
        self.operator = OperatorInputs(
            server,
            self.problems,
            allow_other_publishers=self.options.allow_other_publishers,
            full_name=full_name,
            monotonic=monotonic,
            measure_cameras=self._measure_cameras,
        )
        #: When the node exits even if the arm is not halted yet: s, monotonic; None while it is not shutting down.
        self._exit_at: float | None = None

    @property
    def cycle_count(self) -> int:
        """Number of cycles so far; each has published a status."""
        return self._diagnostics.cycle_count

    # --- inputs ------------------------------------------------------------------------------------------------------

    def add_image(self, view: str, stamp: int, frame: T) -> None:
        """Add a frame of the camera ``view``, stamped ``stamp`` ns."""
        self._stream.add_view(view, stamp, frame, self._moment())

    def add_joints(
        self, stamp: int, names: Sequence[str], positions: Sequence[float], topic: str = topics.JOINT_STATES
    ) -> None:
        """Add a joint state from ``topic``.

        A joint state that contradicts itself or other joint states is dropped and reported in the status.
        """
        try:
            self._stream.add_joints(stamp, names, positions, self._moment(), topic)
        except JointConflictError:
            pass  # reported by the stream, see RealTimeLoop._stream_fault
        except ObservationError as error:
            self.problems.set(topic, str(error))

    def add_pose(self, stamp: int, pose: NDArray[np.float64], frame: str = "") -> None:
        """Add the end effector's pose (6,) in the contract's frame; ``frame`` is the ``frame_id`` of its message."""
        moment = self._moment()
        if moment is not None:
            self._pose_arrival.note(stamp, moment, self._server.watch.future_tolerance)
        self._pose_buffer.add(stamp, pose, frame)

    def refuse_pose(self, why: str) -> None:
        """Report a message on ``/end_effector_pose`` that is not a pose."""
        self._pose_buffer.refuse(why)

    def add_camera_info(self, view: str, focal: float, height: int, width: int) -> None:
        """Add the intrinsics of a camera: vertical focal length and size in pixels. A wrong lens gives a warning."""
        problem = check_field_of_view(self._contract.camera(view), focal, height, width)
        self.problems.set(topics.camera_info_topic(view), problem)

    def count_messages(self, topic: str, count: int, broken: Sequence[str] = ()) -> None:
        """Count messages on ``topic``, before they are added.

        Args:
            topic: Topic of the messages.
            count: Number of readable messages.
            broken: The error of each unreadable message.
        """
        self._diagnostics.count_messages(self._full_name(topic), count, len(broken))
        if broken:
            self.problems.set(topic, broken[-1])
        elif count:
            self.problems.set(topic, None)

    def reset_gripper(self) -> None:
        """Send the next gripper command even if it equals the last one, because the gripper did not accept that one."""
        self._commands.reset_gripper()

    @abstractmethod
    def _moment(self) -> Moment | None:
        """Return the current time, at which a message arrives; None if arrival times do not matter."""

    @abstractmethod
    def _measure_cameras(self) -> None:
        """Measure the rates of slow cameras again, see :class:`OperatorInputs`."""

    # --- shutting down -----------------------------------------------------------------------------------------------

    def shut_down(self, reason: str) -> None:
        """Begin the final ramp to a halt. ``reason`` is reported in the status."""
        if self._exit_at is None:
            self._server.halt(reason)
            self._exit_at = self._monotonic() + LONGEST_RAMP
            self.operator.close()

    @property
    def may_exit(self) -> bool:
        """Whether the ramp that :meth:`shut_down` began is over."""
        if self._exit_at is None:
            return False
        return self._server.motion is Motion.HALTED or self._monotonic() >= self._exit_at

    @abstractmethod
    def ramp(self) -> Output:
        """Run the next cycle of the ramp after :meth:`shut_down`, without observations. Call it once a period."""

    # --- one cycle ---------------------------------------------------------------------------------------------------

    def note_published(self, output: Output) -> None:
        """Record that ``output`` has been published, for the latencies in /diagnostics."""
        if output.stamp and output.publishes_action:
            whole = time.perf_counter() - output.report.start
            self._diagnostics.add_latency(output.decision.status.latency, whole)

    def _answer(self, found: SynchronisedSet[T], start: float) -> Output:
        """Answer a set of images and joint states. start: see :class:`CycleReport`."""
        observation, problems = self._stream.observe(found)
        self.problems.set("observation", " ".join(problems) or None)
        self._report_jump()
        pose = self._poses.at(found.stamp)
        no_pose = self._no_pose(found.stamp) if pose is None and self._server.limits.needs_pose else None
        return self._output(self._step(observation, found.stamp, pose, no_pose), found.stamp, start)

    @abstractmethod
    def _step(
        self, observation: Observation, stamp: int, pose: NDArray[np.float64] | None, no_pose: Fault | None
    ) -> Decision:
        """Answer ``observation``, stamped ``stamp`` ns. pose, no_pose: see :meth:`PolicyServer.step`."""

    def _no_pose(self, stamp: int) -> Fault:
        """Return the fault of a limited workspace without a pose for ``stamp`` (ns).

        The message of the fault says why there is no pose.
        """
        refused = self._poses.refused
        if refused is not None:
            return Fault(
                StatusCode.BAD_POSE, f"{refused} The workspace is limited, so the arm needs the pose to drive."
            )
        return Fault(
            StatusCode.NO_POSE,
            f"The workspace is limited, but no pose on {self._poses.place} belongs to this observation: "
            f"{self._poses.absence(stamp)}.",
        )

    def _report_jump(self) -> None:
        jump = self._poses.take_jump()
        if jump is not None:
            self._commands.note_jump()
            self._server.report_pose_jump(
                f"The pose on {self._poses.place} jumped ({jump}) and stayed there: the arm was moved, or the "
                "measurement is wrong. Check which, then enable the policy to go on from there."
            )

    @abstractmethod
    def _set_point_stamp(self, decision: Decision, stamp: int) -> int:
        """Return the stamp (ns) of the pose to which the set-point for ``stamp`` is relative; 0 for the newest pose."""

    @abstractmethod
    def _command_stamp(self, stamp: int) -> int:
        """Return the stamp (ns) of the commands of a cycle that answers ``stamp``."""

    #: Whether a set-point is also sent while the arm stays halted.
    _always_sends_set_points: bool

    def _output(self, decision: Decision, stamp: int, start: float, *, is_answer: bool = True) -> Output:
        """Make the output of a cycle. is_answer: False for the reply to a new episode, which sends no commands."""
        pose = self._poses.at(stamp) if is_answer else None
        is_sent = decision.command and is_answer
        publishes_action = is_answer and (decision.command or bool(stamp))
        pose_stamp = self._set_point_stamp(decision, stamp)
        set_point_pose = None
        if is_sent:
            set_point_pose = pose if pose_stamp == stamp else self._poses.at(pose_stamp)
        decision, command = self._commands.make(
            decision,
            is_sent=is_sent,
            pose=set_point_pose,
            pose_stamp=pose_stamp,
            always_set_point=self._always_sends_set_points,
        )
        warnings = list(self.problems.messages)
        if self._watcher is not None and self._watcher.problem:
            warnings.append(self._watcher.problem)
        report = self._diagnostics.report(
            decision.status, self._monotonic(), warnings=warnings, episode=self._episode, start=start
        )
        return Output(decision, stamp, self._command_stamp(stamp), publishes_action, command, pose, report)
