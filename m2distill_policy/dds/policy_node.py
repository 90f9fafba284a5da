"""The policy node on plain DDS: messages in, a policy loop of :mod:`m2distill_policy.node`, messages out.

It uses one thread. In lockstep it answers ``~/episode`` with one ``~/status`` of its stamp, and every observation with
one ``~/action`` and one ``~/status``, in that order.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from m2distill_policy.dds.images import Image
from m2distill_policy.dds.m2distill_msgs import Episode, PolicyAction, PolicyStatus
from m2distill_policy.dds.messages import MESSAGES
from m2distill_policy.dds.participant import Participant, Reader
from m2distill_policy.dds.qos import Profile
from m2distill_policy.dds.types import (
    Bool,
    CameraInfo,
    DiagnosticArray,
    GripperCommand,
    JointState,
    PoseStamped,
    String,
    TwistStamped,
)
from m2distill_policy.errors import ObservationError, TransportError
from m2distill_policy.node import topics
from m2distill_policy.node.joint_states import JOINTS_KEPT
from m2distill_policy.node.lockstep import LockstepLoop
from m2distill_policy.node.loop_options import LoopOptions
from m2distill_policy.node.messages import pose_of
from m2distill_policy.node.other_publishers import LOOK_EVERY
from m2distill_policy.node.output import Output
from m2distill_policy.node.real_time import RealTimeLoop
from m2distill_policy.node.receive_buffer import ReceiveBuffer
from m2distill_policy.runtime.folder_watcher import FolderWatcher
from m2distill_policy.runtime.server import PolicyServer

logger = logging.getLogger(__name__)


class PolicyNode:
    """Connects a :class:`PolicyServer` to topics.

    Args:
        participant: Where to publish and subscribe. The caller closes it.
        server: Answers observations. The caller closes it.
        lockstep: Whether to answer a simulated robot step by step, without a clock.
        options, watcher: See :class:`PolicyLoop`.
        reliable_input: Whether cameras and joint states should send lost messages again.
        frame: Name of the actions' frame on this arm, used in twists and set-points; None uses the contract's name. In
            real time, poses in another frame are refused. With None, and in lockstep, the frame of poses must only stay
            the same.
    """

    def __init__(
        self,
        participant: Participant,
        server: PolicyServer,
        *,
        lockstep: bool = False,
        options: LoopOptions | None = None,
        watcher: FolderWatcher | None = None,
        reliable_input: bool = False,
        frame: str | None = None,
    ) -> None:
        self._participant = participant
        self._contract = server.contract
        self._frame = frame or self._contract.action.frame
        kind = LockstepLoop if lockstep else RealTimeLoop
        self._loop: LockstepLoop[Image] | RealTimeLoop[Image] = kind(
            server,
            Image.to_rgb,
            options,
            watcher=watcher,
            full_name=participant.full_name,
            name=f"{participant.namespace}/{topics.POLICY_NODE}",
            frame="" if lockstep or frame is None else frame,
        )
        self._stop = False
        self._stop_reason = ""
        #: With reliable_input lost images are sent again, so the buffer is not checked.
        self._buffer = (
            None
            if reliable_input or lockstep
            else ReceiveBuffer(len(self._contract.cameras), lambda why: self._loop.problems.set("receive buffer", why))
        )

        inputs = Profile.LOCKSTEP if lockstep else Profile.RELIABLE if reliable_input else Profile.SENSOR
        outputs = Profile.LOCKSTEP if lockstep else Profile.RELIABLE
        views = self._contract.camera_names
        self._views: dict[str, Reader[Image]] = {
            name: participant.reader(topics.camera_topic(name), Image, inputs, depth=8) for name in views
        }
        self._infos: dict[str, Reader[CameraInfo]] = {
            name: participant.reader(topics.camera_info_topic(name), CameraInfo, Profile.SENSOR, depth=1)
            for name in views
        }
        self._joints = {
            topic: participant.reader(topic, JointState, inputs, depth=JOINTS_KEPT)
            for topic in topics.joint_topics(self._loop.options.joint_topics)
        }
        self._pose = participant.reader(topics.END_EFFECTOR_POSE, PoseStamped, inputs, depth=JOINTS_KEPT)
        self._instructions = participant.reader(topics.INSTRUCTION, String, Profile.LATCHED)
        # There are two readers, because a state from before this node started is received only by a latched reader,
        # which in turn receives nothing from publishers that are not latched.
        self._emergency = [
            participant.reader(topics.EMERGENCY_STOP, Bool, profile) for profile in (Profile.RELIABLE, Profile.LATCHED)
        ]
        self._dead_man = participant.reader(topics.DEAD_MAN, Bool, Profile.RELIABLE)
        self._enable = participant.reader(topics.ENABLE, Bool, Profile.RELIABLE)
        self._episodes = participant.reader(topics.EPISODE, Episode, Profile.HANDSHAKE)
        self._action = participant.writer(topics.ACTION, PolicyAction, outputs)
        self._twist = participant.writer(topics.TWIST, TwistStamped, outputs)
        self._target = participant.writer(topics.TARGET_POSE, PoseStamped, outputs)
        self._gripper_topic = participant.writer(topics.GRIPPER_COMMAND, GripperCommand, outputs)
        #: Readers of the commands of other publishers; none in lockstep, where there is no arm.
        self._others: dict[str, Reader[Any]] = {}
        self._others_seen = -LOOK_EVERY
        if not lockstep and not self._loop.options.allow_other_publishers:
            kinds = {
                topics.TWIST: TwistStamped,
                topics.TARGET_POSE: PoseStamped,
                topics.GRIPPER_COMMAND: GripperCommand,
            }
            self._others = {
                topic: participant.reader(topic, kind, Profile.SENSOR, depth=1, others_only=True)
                for topic, kind in kinds.items()
            }
        self._health = participant.writer(topics.DIAGNOSTICS, DiagnosticArray, Profile.RELIABLE)
        handshake = Profile.HANDSHAKE if lockstep else Profile.RELIABLE
        self._status = participant.writer(topics.STATUS, PolicyStatus, handshake)

    def stop(self, reason: str = "the node was stopped") -> None:
        """Ramp to a halt and let :meth:`spin` return. May be called from a signal handler."""
        self._stop_reason = reason
        self._stop = True

    @property
    def cycle_count(self) -> int:
        """Number of cycles so far; each has published a ~/status."""
        return self._loop.cycle_count

    # --- real time ---------------------------------------------------------------------------------------------------

    def spin(self) -> None:
        """Run until :meth:`stop`, then until the ramp to a halt is over.

        In real time, an unexpected error first ramps to a halt and is then raised. In lockstep, the loop also ends when
        the robot has left and no other has come for ``timeout`` s.

        Raises:
            TransportError: In lockstep, no message arrived for ``timeout`` s, or an observation stayed incomplete. The
                message names the missing topics.
        """
        if isinstance(self._loop, LockstepLoop):
            self._spin_lockstep(self._loop)
            return
        try:
            self._spin_real_time(self._loop)
        except Exception as error:
            try:
                self._ramp_out(f"the node failed ({type(error).__name__}: {error})")
            except Exception as second:
                # The first error is raised; the second is logged, because the arm may not have been halted.
                logger.exception("the ramp to a halt failed too (%s: %s)", type(second).__name__, second)
            raise

    def _spin_real_time(self, loop: RealTimeLoop[Image]) -> None:
        views = self._participant.waiter([*self._views.values(), self._instructions])
        everything = self._participant.waiter([*self._views.values(), *self._joints.values(), self._instructions])
        while True:
            if self._stop:
                loop.shut_down(self._stop_reason)
            if loop.may_exit:
                return
            begin = time.perf_counter()
            self._take_operator_inputs()
            self._take_inputs()
            output = loop.run(begin)
            if output is not None:
                self._publish(output)
            else:
                wait = loop.wake - time.monotonic()
                (everything if loop.lacks_joints else views).wait(wait)

    def _ramp_out(self, reason: str) -> None:
        """Ramp to a halt without observations, at the contract's rate."""
        self._loop.shut_down(reason)
        mute = False
        while not self._loop.may_exit:
            output = self._loop.ramp()
            self._command(output)
            try:
                self._report(output)
            except Exception:  # the arm must be halted even if the status cannot be published
                if not mute:
                    logger.exception("the ramp to a halt continues, but its status cannot be published")
                mute = True
            time.sleep(self._contract.period)

    # --- lockstep ----------------------------------------------------------------------------------------------------

    def _spin_lockstep(self, loop: LockstepLoop[Image]) -> None:
        inputs: list[Reader[Any]] = [
            *self._views.values(),
            *self._joints.values(),
            self._pose,
            self._episodes,
            self._instructions,
        ]
        waiter = self._participant.waiter(inputs, matches=[*self._views.values(), *self._joints.values()])
        newest_message = time.monotonic()
        while not self._stop:
            now = time.monotonic()
            self._take_operator_inputs()
            begin = time.perf_counter()
            arrived = self._take_episodes(loop) + self._take_inputs()
            if arrived:
                newest_message = now
            loop.expects_pose = bool(self._pose.matched)
            output = loop.run(begin)
            if output is not None:
                self._publish(output)
                newest_message = time.monotonic()
            elif not arrived:
                left = newest_message + self._loop.options.timeout - now
                if left > 0:
                    waiter.wait(left)
                elif self.cycle_count and not any(view.matched for view in self._views.values()):
                    logger.info("the robot has left, and no other came within %g s", self._loop.options.timeout)
                    return
                else:
                    raise self._timeout_error(loop)
        # There is no clock, and the robot waits, so the rest of the ramp is sent at once.
        loop.shut_down(self._stop_reason)
        while not loop.may_exit:
            self._publish(loop.ramp())

    def _take_episodes(self, loop: LockstepLoop[Image]) -> int:
        episodes = self._episodes.take()
        for episode in episodes:
            self._publish(
                loop.begin_episode(
                    episode.number,
                    episode.instruction,
                    seed=episode.seed,
                    random_stream=episode.random_stream,
                    stamp=episode.header.stamp.nanoseconds,
                )
            )
        return len(episodes)

    def _timeout_error(self, loop: LockstepLoop[Image]) -> TransportError:
        broken = f" ({' '.join(loop.problems.messages)})" if loop.problems.messages else ""
        return TransportError(
            f"no message on {', '.join(loop.missing_topics)} for {self._loop.options.timeout:g} s in DDS domain "
            f"{self._participant.domain}{broken}; is 'm2distill sim --lockstep' running there?"
        )

    # --- in ----------------------------------------------------------------------------------------------------------

    def _take_operator_inputs(self) -> None:
        for button in self._emergency:
            for pressed in self._take(button, topics.EMERGENCY_STOP):
                publishers = max(reader.publishing_programs for reader in self._emergency)
                self._loop.operator.set_emergency_stop(pressed.data, publishers=publishers)
        for held in self._take(self._dead_man, topics.DEAD_MAN):
            self._loop.operator.set_dead_man(held.data, publishers=self._dead_man.publishing_programs)
        for wanted in self._take(self._enable, topics.ENABLE):
            self._loop.operator.enable_by_message(wanted.data)
        for message in self._take(self._instructions, topics.INSTRUCTION):
            self._loop.operator.set_instruction(message.data)

    def _take_inputs(self) -> int:
        """Add what has arrived to the loop. Return the number of images and joint states."""
        arrived = 0
        for name, reader in self._views.items():
            images = self._take(reader, topics.camera_topic(name))
            arrived += len(images)
            for image in images:
                self._loop.add_image(name, image.header.stamp.nanoseconds, image)
            if images and self._buffer is not None:
                self._buffer.expect(images[-1].step * images[-1].height, name)
        for topic, joint_reader in self._joints.items():
            joints = self._take(joint_reader, topic)
            arrived += len(joints)
            for state in joints:
                self._loop.add_joints(state.header.stamp.nanoseconds, state.name, state.position, topic)
        for pose in self._take(self._pose, topics.END_EFFECTOR_POSE):
            try:
                self._loop.add_pose(pose.header.stamp.nanoseconds, pose_of(pose), pose.header.frame_id)
            except ObservationError as error:
                self._loop.refuse_pose(str(error))
        for name, info_reader in self._infos.items():
            for info in self._take(info_reader, topics.camera_info_topic(name)):
                self._loop.add_camera_info(name, float(info.k[4]), info.height, info.width)
                # The size is also taken from the camera info, because images that are too large may never arrive.
                if self._buffer is not None:
                    self._buffer.announce(info.height * info.width * 3, name)
        return arrived

    def _take(self, reader: Reader[Any], topic: str) -> list[Any]:
        messages: list[Any] = reader.take()
        self._loop.count_messages(topic, len(messages), reader.broken)
        reader.broken.clear()
        return messages

    # --- out ---------------------------------------------------------------------------------------------------------

    def _publish(self, output: Output) -> None:
        """Publish everything of a cycle, ``~/status`` last."""
        self._command(output)
        self._report(output)

    def _command(self, output: Output) -> None:
        """Publish the commands for the arm."""
        command, stamp, frame = output.command, output.command_stamp, self._frame
        if command.twist is not None:
            self._twist.write(MESSAGES.twist(command.twist, stamp, frame))
        if command.target_pose is not None:
            self._target.write(MESSAGES.pose(command.target_pose, stamp, frame))
        if command.gripper is not None:
            effort = self._loop.options.gripper.max_effort
            self._gripper_topic.write(MESSAGES.gripper(command.gripper, effort))

    def _report(self, output: Output) -> None:
        """Publish what people and recorders need."""
        if output.publishes_action:
            self._action.write(MESSAGES.action(output, self._contract))
        self._status.write(MESSAGES.status(output, self._contract))
        self._loop.note_published(output)
        if output.report.health is not None:
            self._health.write(MESSAGES.diagnostics(output.report.health, time.time_ns()))
            if self._buffer is not None:
                self._buffer.forget_silent()
        self._watch_others()

    def _watch_others(self) -> None:
        """Check who else sends commands. Call it after our own commands are sent, so that it does not delay them."""
        now = time.monotonic()
        look, self._others_seen = (True, now) if now - self._others_seen >= LOOK_EVERY else (False, self._others_seen)
        for topic, reader in self._others.items():
            if look:
                self._loop.operator.set_other_publishers(topic, reader.publishers)
            if reader.take() or reader.broken:
                reader.broken.clear()
                self._loop.operator.other_command(topic)
