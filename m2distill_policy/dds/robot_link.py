"""Connect the simulated robot to the policy by plain DDS."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.contract import Contract
from m2distill_policy.dds.images import Image
from m2distill_policy.dds.m2distill_msgs import Episode, PolicyAction, PolicyStatus
from m2distill_policy.dds.messages import MESSAGES
from m2distill_policy.dds.participant import Participant, Reader, Writer
from m2distill_policy.dds.qos import Profile
from m2distill_policy.dds.types import (
    CameraInfo,
    GripperCommand,
    JointState,
    PoseStamped,
    String,
    Time,
    TwistStamped,
)
from m2distill_policy.node import topics
from m2distill_policy.node.messages import action_of, optical_frame, pose_of, twist_of
from m2distill_policy.observation import Observation
from m2distill_policy.sim_robot.link import FOLLOWED, Command, Follow, Link, StatusSnapshot

_COMMANDS: dict[Follow, type[PolicyAction] | type[PoseStamped] | type[TwistStamped]] = {
    "action": PolicyAction,
    "target_pose": PoseStamped,
    "twist": TwistStamped,
}


class DdsLink(Link):
    """Writers and readers of a robot that follows the commands ``follow``. The caller closes the participant."""

    def __init__(self, participant: Participant, contract: Contract, *, follow: Follow, lockstep: bool) -> None:
        self.where = f"in DDS domain {participant.domain}"
        self.wants_pose = follow == "target_pose"
        self._participant = participant
        self._contract = contract
        self._lockstep = lockstep
        self._joint_names = [entry for group in contract.proprioception for entry in group.entries]
        profile = Profile.LOCKSTEP if lockstep else Profile.RELIABLE
        self._pose: Writer[PoseStamped] | None = None
        # Two processes do not discover each other's endpoints at the same time, but each discovers the other's writers
        # in the order of their creation, and likewise the readers. So ~/episode is the last writer and ~/status the
        # last reader. Both keep their message for late readers; once these two are connected, all others are too.
        if follow == "target_pose":
            self._pose = participant.writer(topics.END_EFFECTOR_POSE, PoseStamped, profile)
        self._views: dict[str, Writer[Image]] = {
            camera.name: participant.writer(topics.camera_topic(camera.name), Image, profile, depth=5)
            for camera in contract.cameras
        }
        self._infos: dict[str, Writer[CameraInfo]] = {
            camera.name: participant.writer(topics.camera_info_topic(camera.name), CameraInfo, Profile.RELIABLE, 1)
            for camera in contract.cameras
        }
        self._joints = participant.writer(topics.JOINT_STATES, JointState, profile)
        self._instructions = participant.writer(topics.INSTRUCTION, String, Profile.LATCHED)
        self._episodes = participant.writer(topics.EPISODE, Episode, Profile.HANDSHAKE)
        self._command: Reader[Any] = participant.reader(FOLLOWED[follow], _COMMANDS[follow], profile)
        self._gripper: Reader[GripperCommand] | None = None
        if follow != "action":
            self._gripper = participant.reader(topics.GRIPPER_COMMAND, GripperCommand, profile)
        handshake = Profile.HANDSHAKE if lockstep else Profile.RELIABLE
        self._status = participant.reader(topics.STATUS, PolicyStatus, handshake)
        self._received: list[Reader[Any]] = [self._status, self._command]
        self._received += [self._gripper] if self._gripper is not None else []
        self._anything = participant.waiter(self._received, matches=[self._status])
        self._nothing = participant.waiter([])

    def wait_for_policy(self, timeout: float, stop: Callable[[], bool]) -> None:
        endpoints: list[Reader[Any] | Writer[Any]] = [*self._views.values(), self._joints]
        endpoints += [*self._received, self._episodes]
        if self._pose is not None:
            endpoints.append(self._pose)
        lockstep = " --lockstep" if self._lockstep else ""
        self._participant.wait_for_peers(endpoints, timeout, f"start 'm2distill serve BUNDLE{lockstep}' there", stop)

    @property
    def policy_is_there(self) -> bool:
        return bool(self._status.matched)

    def observe(self, observation: Observation, pose: NDArray[np.float64] | None, stamp: int) -> None:
        at = Time.from_nanoseconds(stamp)
        if self._pose is not None and pose is not None:
            self._pose.write(MESSAGES.pose(pose, stamp, self._contract.action.frame))
        for camera in self._contract.cameras:
            image = observation.images[camera.name]
            frame = optical_frame(camera.name)
            self._infos[camera.name].write(MESSAGES.camera_info(camera, image.shape[0], image.shape[1], stamp))
            self._views[camera.name].write(Image.from_rgb(image, at, frame))
        positions = [
            float(value) for group in self._contract.proprioception for value in observation.proprioception[group.name]
        ]
        self._joints.write(MESSAGES.joints(self._joint_names, positions, stamp, self._contract.action.frame))

    def send_instruction(self, instruction: str) -> None:
        self._instructions.write(String(instruction))

    def begin_episode(self, number: int, instruction: str, seed: int, random_stream: int, stamp: int) -> None:
        frame = self._contract.action.frame
        self._episodes.write(
            MESSAGES.episode(number, instruction, seed=seed, random_stream=random_stream, stamp=stamp, frame=frame)
        )

    def statuses(self) -> list[StatusSnapshot]:
        return [StatusSnapshot.of(status) for status in self._status.take()]

    def commands(self) -> list[Command]:
        now = time.monotonic()
        found = [(message.header.stamp.nanoseconds, self._value(message)) for message in self._command.take()]
        return [
            # Commands of a ramp to a halt that answer no observation have the stamp zero; they count as stamped now.
            Command(value, stamp or (0 if self._lockstep else time.time_ns()), now)
            for stamp, value in found
            if value is not None
        ]

    def _value(self, message: PolicyAction | PoseStamped | TwistStamped) -> NDArray[np.float64] | None:
        if isinstance(message, PoseStamped):
            return pose_of(message)
        if isinstance(message, TwistStamped):
            return twist_of(message)
        return action_of(message, self._contract.action.size)

    def gripper_commands(self) -> list[float]:
        return [] if self._gripper is None else [grip.position for grip in self._gripper.take()]

    def wait(self, timeout: float) -> None:
        self._anything.wait(timeout)

    def sleep(self, timeout: float) -> None:
        self._nothing.wait(timeout)

    def full_name(self, topic: str) -> str:
        return self._participant.full_name(topic)

    def problem(self, topic: str) -> str:
        name = self.full_name(topic)
        return next((reader.broken[-1] for reader in self._received if reader.topic == name and reader.broken), "")
