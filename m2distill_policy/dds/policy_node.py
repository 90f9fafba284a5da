"""The policy node on plain DDS. Thin: messages in, the policy server's answer, messages out.

Real time (:meth:`PolicyNode.spin`): cycles at the contract's rate, see :mod:`m2distill_policy.dds.pacer`. Each takes
the newest set of pictures and joints, once, and answers it; a cycle without a set is told to the policy server, which
ramps to a halt when that lasts.

Lockstep (:meth:`PolicyNode.spin_lockstep`): no clock. Every set whose stamps are equal is answered with exactly one
``~/action`` and one ``~/status``, in that order. A new episode is announced on ``~/episode`` with the seed of its
random numbers and its instruction, and answered with one ``~/status`` that bears its stamp, before any observation is
sent: topics are not ordered among each other, so only an answer can say that the policy has heard of it.

One thread does all of it. A hot swap prepares in the server's own thread and a folder is watched in the watcher's.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.dds import conversion, topics
from m2distill_policy.dds.diagnostics import Diagnostics
from m2distill_policy.dds.domain import receive_buffer_trouble
from m2distill_policy.dds.gripper import GripperProfile, GripperSwitch
from m2distill_policy.dds.image import Image
from m2distill_policy.dds.m2distill_msgs import Episode, PolicyAction, PolicyStatus
from m2distill_policy.dds.pacer import Pacer
from m2distill_policy.dds.participant import Participant, Reader
from m2distill_policy.dds.qos import Profile
from m2distill_policy.dds.synchroniser import JOINTS_KEPT, SynchronisedSet, Synchroniser
from m2distill_policy.dds.types import (
    CameraInfo,
    DiagnosticArray,
    GripperCommand,
    JointState,
    PoseStamped,
    String,
    TwistStamped,
)
from m2distill_policy.errors import ConfigError, ObservationError, TransportError, UnknownInstructionError
from m2distill_policy.runtime import drive
from m2distill_policy.runtime.engine import EngineError
from m2distill_policy.runtime.hotswap import SwapError
from m2distill_policy.runtime.safety import Motion
from m2distill_policy.runtime.server import Decision, PolicyServer
from m2distill_policy.runtime.status import SwapState
from m2distill_policy.runtime.watcher import FolderWatcher

logger = logging.getLogger(__name__)

#: s between two /diagnostics.
DIAGNOSTICS_EVERY = 1.0
#: s that a ramp to a halt may take before the node leaves all the same; the longest that the limits allow takes 5.
LONGEST_RAMP = 6.0
#: A camera may be this much slower than the contract's rate, as a factor on its period.
SLOWEST_CAMERA = 1.1
#: A pose older than this many periods says nothing of where the arm is now.
POSE_PERIODS = 4


@dataclass(frozen=True)
class NodeOptions:
    """How the node listens and speaks.

    slop: s by which the pictures and joints of one set may differ in real time. timeout: s without a sign of life
    before a lockstep gives up. reliable_input: ask cameras and joints for every message, where the default takes
    what comes. gripper: positions and hysteresis.
    """

    slop: float = 0.02
    timeout: float = 60.0
    reliable_input: bool = False
    gripper: GripperProfile = field(default_factory=GripperProfile)

    def __post_init__(self) -> None:
        for name in ("slop", "timeout"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)} s; a positive number of seconds is needed")


@dataclass(frozen=True)
class _Pose:
    """The end effector's pose: its stamp in ns, when it arrived (s, monotonic), and (6,) m and rad, base frame."""

    stamp: int
    arrived: float
    value: NDArray[np.float64]


class PolicyNode:
    """Connects a :class:`PolicyServer` to topics.

    Args:
        participant: where to publish and subscribe; the node does not close it.
        server: answers observations; the node does not close it.
        lockstep: which of the two ways of spinning will be used.
        watcher: watches a folder for new bundles and is already wired to ``server.load``; None watches nothing. In
            lockstep it is asked between two observations and the swap waited for, so that a run can be repeated.
    """

    def __init__(
        self,
        participant: Participant,
        server: PolicyServer,
        *,
        lockstep: bool = False,
        options: NodeOptions | None = None,
        watcher: FolderWatcher | None = None,
    ) -> None:
        self.options = options or NodeOptions()
        self._participant = participant
        self._server = server
        self._contract = server.contract
        self._lockstep = lockstep
        self._watcher = watcher
        self._stop = False
        self._stop_reason = ""
        self._cycle = 0
        self._episode = 0
        self._episode_stamp = -1
        self._gripper = GripperSwitch(self.options.gripper)
        self._gripper_commands = 0
        self._troubles: dict[str, str] = {}
        self._reported: set[str] = set()
        self._largest_picture = 0
        self._intervals: dict[str, float] = {}
        self._poses: deque[_Pose] = deque(maxlen=JOINTS_KEPT)
        self._slop = 0 if lockstep else round(self.options.slop * 1e9)
        self._pending: SynchronisedSet[Image] | None = None
        self._sets: Synchroniser[Image] = Synchroniser(self._contract, self._slop)
        self._diagnostics = Diagnostics(time.monotonic())
        self._diagnosed = time.monotonic()

        inputs = Profile.LOCKSTEP if lockstep else Profile.RELIABLE if self.options.reliable_input else Profile.SENSOR
        outputs = Profile.LOCKSTEP if lockstep else Profile.RELIABLE
        views = self._contract.camera_names
        self._views: dict[str, Reader[Image]] = {
            name: participant.reader(topics.camera_topic(name), Image, inputs, depth=8) for name in views
        }
        self._infos: dict[str, Reader[CameraInfo]] = {
            name: participant.reader(topics.camera_info_topic(name), CameraInfo, Profile.SENSOR, depth=1)
            for name in views
        }
        self._joints = participant.reader(topics.JOINT_STATES, JointState, inputs, depth=JOINTS_KEPT)
        self._pose = participant.reader(topics.END_EFFECTOR_POSE, PoseStamped, inputs, depth=JOINTS_KEPT)
        self._instructions = participant.reader(topics.INSTRUCTION, String, Profile.LATCHED)
        self._episodes = participant.reader(topics.EPISODE, Episode, Profile.HANDSHAKE)
        self._action = participant.writer(topics.ACTION, PolicyAction, outputs)
        self._twist = participant.writer(topics.TWIST, TwistStamped, outputs)
        self._target = participant.writer(topics.TARGET_POSE, PoseStamped, outputs)
        self._gripper_topic = participant.writer(topics.GRIPPER_COMMAND, GripperCommand, outputs)
        self._health = participant.writer(topics.DIAGNOSTICS, DiagnosticArray, Profile.RELIABLE)
        handshake = Profile.HANDSHAKE if lockstep else Profile.RELIABLE
        self._status = participant.writer(topics.STATUS, PolicyStatus, handshake)

    # --- from outside ------------------------------------------------------------------------------------------------

    def stop(self, reason: str = "the node was told to stop") -> None:
        """Ramp to a halt and return from spinning; safe to call from a signal handler."""
        self._stop_reason = reason
        self._stop = True

    @property
    def cycles(self) -> int:
        """Cycles so far, each with its ~/status."""
        return self._cycle

    # --- real time ---------------------------------------------------------------------------------------------------

    def spin(self) -> None:
        """Run cycles until :meth:`stop`, then until the ramp to a halt is over.

        An error that nothing here expects ramps to a halt too, before it is raised.
        """
        try:
            self._cycles()
        except Exception as error:
            try:
                self._ramp_out(f"the node failed ({type(error).__name__}: {error})")
            except Exception:
                # What went wrong first is what is raised; that the arm may not have been halted must be said as well.
                logger.exception("the ramp to a halt failed too")
            raise

    def _cycles(self) -> None:
        pacer = Pacer(self._contract.period, time.monotonic())
        views = self._participant.waiter([*self._views.values(), self._instructions])
        everything = self._participant.waiter([*self._views.values(), self._joints, self._instructions])
        arrived = 0.0
        leave_at: float | None = None
        while True:
            now = time.monotonic()
            if self._stop and leave_at is None:
                self._server.halt(self._stop_reason)
                leave_at = now + LONGEST_RAMP
            if leave_at is not None and (self._server.motion is Motion.HALTED or now >= leave_at):
                return
            begin = time.perf_counter()
            if leave_at is None:  # an instruction would undo the halt
                self._take_instructions()
            if self._take_inputs():
                pacer.cameras(self._slowest_camera())
            found = self._sets.take()
            if found is not None:
                self._pending, arrived = found, now
            if self._pending is not None and pacer.ready(now, arrived):
                found, self._pending = self._pending, None
                self._answer(found, begin)
                pacer.used(now)
            elif now >= pacer.latest:
                self._without_observation()
                pacer.missed(now)
            else:
                # Joints may come a thousand times a second: woken by them only if they are what the set lacks.
                lacks_joints = self._pending is None and self._sets.waiting_for() == ("joint_states",)
                until = pacer.latest if self._pending is None else pacer.next
                (everything if lacks_joints else views).wait(until - now)

    def _ramp_out(self, reason: str) -> None:
        """Halt without observations, at the contract's rate."""
        self._server.halt(reason)
        leave_at = time.monotonic() + LONGEST_RAMP
        while self._server.motion is not Motion.HALTED and time.monotonic() < leave_at:
            self._without_observation()
            time.sleep(self._contract.period)

    def _without_observation(self) -> None:
        self._diagnostics.missed += self._server.motion is Motion.RUNNING
        decision = self._server.tick_without_observation(time.time(), steady=time.monotonic())
        self._publish(decision, 0)

    # --- lockstep ----------------------------------------------------------------------------------------------------

    def spin_lockstep(self) -> None:
        """Answer sets one by one until :meth:`stop`, or until the robot has left and none came for ``timeout`` s.

        Raises:
            TransportError: nothing came for ``timeout`` s, or a set stayed incomplete; names the silent topics.
        """
        inputs: list[Reader[Any]] = [
            *self._views.values(),
            self._joints,
            self._pose,
            self._episodes,
            self._instructions,
        ]
        waiter = self._participant.waiter(inputs, matches=[*self._views.values(), self._joints])
        heard = time.monotonic()
        while not self._stop:
            now = time.monotonic()
            self._take_instructions()
            begin = time.perf_counter()
            arrived = self._take_episodes() + self._take_inputs()
            if arrived:
                heard = now
            found = self._take_lockstep_set()
            if found is not None:
                self._swap_in_lockstep()
                self._answer(found, begin)
                heard = time.monotonic()
            elif not arrived:
                left = heard + self.options.timeout - now
                if left > 0:
                    waiter.wait(left)
                elif self._cycle and not any(view.matched for view in self._views.values()):
                    logger.info("the robot has left and no other one came within %g s", self.options.timeout)
                    return
                else:
                    raise self._silence()
        # There is no clock to ramp by, and the robot waits: what is left of the ramp goes out at once.
        self._server.halt(self._stop_reason)
        leave_at = time.monotonic() + LONGEST_RAMP
        while self._server.motion is not Motion.HALTED and time.monotonic() < leave_at:
            self._without_observation()

    def _take_lockstep_set(self) -> SynchronisedSet[Image] | None:
        """The next set to answer; one from before the present episode is dropped."""
        pending = self._pending or self._sets.take()
        self._pending = None
        if pending is None or pending.stamp <= self._episode_stamp:
            return None
        if self._pose.matched and self._pose_at(pending.stamp) is None:
            # This robot publishes its pose, so it wants a set-point, and that needs the pose of this very stamp.
            self._pending = pending
            return None
        return pending

    def _swap_in_lockstep(self) -> None:
        if self._watcher is None:
            return
        try:
            found = self._watcher.poll()
        except (OSError, SwapError) as error:  # the policy that drives is not touched by this
            self._trouble("hot swap", f"A new bundle could not be taken: {error}.")
            return
        self._trouble("hot swap", None)
        if found is not None:
            self._wait_for_swap()

    def _wait_for_swap(self) -> None:
        try:
            self._server.wait_for_swap(self.options.timeout)
        except SwapError as error:
            self._trouble("hot swap", f"A new bundle could not be taken: {error}.")

    def _take_episodes(self) -> int:
        episodes = self._episodes.take()
        for episode in episodes:
            self._begin_episode(episode)
        return len(episodes)

    def _begin_episode(self, episode: Episode) -> None:
        self._sets.clear()
        self._pending = None
        self._poses.clear()
        self._gripper.forget()
        self._gripper_commands = 0
        self._episode, self._episode_stamp = episode.number, episode.header.stamp.nanoseconds
        self._swap_in_lockstep()
        self._instruct(episode.instruction)
        self._server.reset("a new episode", seed=episode.seed, episode=episode.draw, still=True)
        if self._server.swap.state in (SwapState.LOADING, SwapState.READY):
            # A bundle that waited for the arm to be idle takes over here, and not at some later cycle of this episode.
            self._wait_for_swap()
        seconds = episode.header.stamp.seconds
        self._publish(self._server.tick_without_observation(seconds), self._episode_stamp, answers=False)

    def _silence(self) -> TransportError:
        readers: dict[str, Reader[Any]] = {**self._views, "joint_states": self._joints}
        silent = [self._pose.topic] if self._pending else [readers[n].topic for n in self._sets.waiting_for()]
        broken = f" ({' '.join(self._troubles.values())})" if self._troubles else ""
        return TransportError(
            f"nothing came on {', '.join(silent)} for {self.options.timeout:g} s in DDS domain "
            f"{self._participant.domain}{broken}; is 'm2distill sim --lockstep' running there?"
        )

    # --- in ----------------------------------------------------------------------------------------------------------

    def _take_instructions(self) -> None:
        messages = self._instructions.take()
        self._note(self._instructions, len(messages))
        for message in messages:
            self._instruct(message.data)

    def _instruct(self, instruction: str) -> None:
        try:
            self._server.set_instruction(instruction)
        except (UnknownInstructionError, EngineError) as error:
            # The status says it every cycle, and the arm halts.
            logger.warning("%s", error)

    def _take_inputs(self) -> int:
        """Move what has arrived into the synchroniser; returns how many messages that were."""
        arrived = 0
        for name, reader in self._views.items():
            images = reader.take()
            arrived += self._note(reader, len(images))
            for image in images:
                self._sets.add_view(name, image.header.stamp.nanoseconds, image)
            if images and not self._lockstep:
                self._watch_rate(name)
                self._watch_buffer(images[-1].step * images[-1].height)
        joints = self._joints.take()
        arrived += self._note(self._joints, len(joints))
        for state in joints:
            try:
                self._sets.add_joints(state.header.stamp.nanoseconds, state.name, state.position)
            except ObservationError as error:
                self._trouble(self._joints.topic, str(error))
        poses = self._pose.take()
        self._note(self._pose, len(poses))
        for pose in poses:
            try:
                self._poses.append(_Pose(pose.header.stamp.nanoseconds, time.monotonic(), conversion.pose_of(pose)))
            except TransportError as error:
                self._trouble(self._pose.topic, str(error))
        for name, info_reader in self._infos.items():
            infos = info_reader.take()
            self._note(info_reader, len(infos))
            for info in infos:
                trouble = conversion.fov_trouble(info, self._contract.camera(name))
                self._trouble(info_reader.topic, trouble)
                # From here too: of pictures that are too large, none at all may arrive.
                self._watch_buffer(info.height * info.width * 3)
        return arrived

    def _note(self, reader: Reader[Any], count: int) -> int:
        self._diagnostics.arrived(reader.topic, count)
        if reader.broken:
            self._diagnostics.broken += len(reader.broken)
            self._trouble(reader.topic, reader.broken[-1])
            reader.broken.clear()
        elif count:
            self._trouble(reader.topic, None)
        return count

    def _trouble(self, topic: str, sentence: str | None) -> None:
        """Keep what is wrong with ``topic`` for the status until it is right again; each sentence is logged once."""
        if sentence is None:
            self._troubles.pop(topic, None)
            return
        self._troubles[topic] = sentence
        if sentence not in self._reported and len(self._reported) < 100:
            self._reported.add(sentence)
            logger.warning("%s", sentence)

    def _slowest_camera(self) -> float | None:
        """s between two pictures of the slowest camera; None until all are known."""
        known = [self._intervals.get(view) for view in self._views]
        return None if None in known else max(interval for interval in known if interval is not None)

    def _watch_rate(self, view: str) -> None:
        interval = self._sets.interval(view)
        if interval is None:
            return
        self._intervals[view] = interval
        if interval > SLOWEST_CAMERA * self._contract.period:
            # Every time: an instruction, which ends a halt, does not make the camera faster.
            self._server.halt(
                f"camera '{view}' sends {1 / interval:.1f} pictures a second and the policy needs "
                f"{self._contract.rate_hz:g}; choose a faster camera mode and give the instruction again"
            )

    def _watch_buffer(self, picture_bytes: int) -> None:
        """Say once if pictures of this size are too large for the machine's buffers; some may arrive all the same."""
        if not (self.options.reliable_input or self._lockstep) and picture_bytes > self._largest_picture:
            self._largest_picture = picture_bytes
            self._trouble("receive buffer", receive_buffer_trouble(picture_bytes))

    # --- out ---------------------------------------------------------------------------------------------------------

    def _answer(self, found: SynchronisedSet[Image], begin: float) -> None:
        observation, troubles = conversion.observation_of(found, self._contract)
        self._trouble("observation", " ".join(troubles) or None)
        if self._lockstep:
            decision = self._server.step(observation, observation.stamp)
        else:
            decision = self._server.step(observation, time.time(), steady=time.monotonic())
        self._publish(decision, found.stamp)
        self._diagnostics.cycle(decision.status.latency, time.perf_counter() - begin)

    def _publish(self, decision: Decision, stamp: int, *, answers: bool = True) -> None:
        """Everything that a cycle says, ``~/status`` last; ``answers`` is False where an episode only begins."""
        frame = self._contract.action.frame
        if decision.command and answers:
            # In lockstep there is no clock but the observations'.
            now = stamp if self._lockstep else time.time_ns()
            self._twist.write(conversion.twist_message(drive.twist(decision.action, self._server.contract), now, frame))
            pose = self._pose_at(stamp)
            if self._poses and pose is None:
                self._trouble(
                    "pose",
                    f"No pose on '{self._pose.topic}' belongs to this cycle, so ~/target_pose is not published; see "
                    "whether it still comes.",
                )
            else:
                self._trouble("pose", None)
            if pose is not None:
                target = drive.set_point(pose, decision.action, self._contract)
                self._target.write(conversion.pose_message(target, now, frame))
            position = self._gripper.update(drive.gripper(decision.action))
            if position is not None:
                self._gripper_commands += 1
                self._gripper_topic.write(GripperCommand(position, self.options.gripper.max_effort))
        if answers and (decision.command or stamp):
            self._action.write(conversion.action_message(decision, stamp, self._contract))
        self._cycle += 1
        warnings = list(self._troubles.values())
        if self._watcher is not None and self._watcher.trouble:
            warnings.append(self._watcher.trouble)
        self._status.write(
            conversion.status_message(
                decision.status,
                stamp,
                self._contract,
                cycle=self._cycle,
                episode=self._episode,
                command=decision.command and answers,
                gripper_commands=self._gripper_commands,
                warnings=warnings,
            )
        )
        self._diagnose(decision, warnings)

    def _pose_at(self, stamp: int) -> NDArray[np.float64] | None:
        """The end effector's pose nearest to ``stamp`` (ns); the newest one during a ramp without observations.

        None where no pose is near enough, or none has come lately: an arm that was moved by somebody else since must
        not be sent back to where it was.
        """
        if not self._poses:
            return None
        if not self._lockstep and time.monotonic() - self._poses[-1].arrived > POSE_PERIODS * self._contract.period:
            return None
        if not stamp:
            return self._poses[-1].value
        nearest = min(self._poses, key=lambda pose: abs(pose.stamp - stamp))
        return nearest.value if abs(nearest.stamp - stamp) <= self._slop else None

    def _diagnose(self, decision: Decision, warnings: list[str]) -> None:
        now = time.monotonic()
        if now - self._diagnosed < DIAGNOSTICS_EVERY:
            return
        self._diagnosed = now
        self._health.write(
            self._diagnostics.message(
                decision.status,
                now,
                time.time_ns(),
                provider=self._server.engine.active_provider,
                warnings=warnings,
                seed=self._server.episode,
            )
        )
