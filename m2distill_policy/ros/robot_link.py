"""Connect the simulated robot to the policy by ROS 2."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from control_msgs.msg import GripperCommand
from geometry_msgs.msg import PoseStamped, TransformStamped, TwistStamped
from m2distill_msgs.msg import Episode, PolicyAction, PolicyStatus
from numpy.typing import NDArray
from rclpy.executors import Executor
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import String
from tf2_ros import TransformBroadcaster

from m2distill_policy.contract import Contract
from m2distill_policy.errors import TransportError
from m2distill_policy.node import topics
from m2distill_policy.node.messages import action_of, nanoseconds_of, optical_frame, pose_of, twist_of
from m2distill_policy.observation import Observation
from m2distill_policy.ros import qos
from m2distill_policy.ros.messages import MESSAGES
from m2distill_policy.sim_robot.link import FOLLOWED, Command, Follow, Link, StatusSnapshot

#: Longest single sleep, because signals are handled between two sleeps.
_LONGEST_SLEEP = 0.25
#: Name of the end effector's frame in /tf.
END_EFFECTOR_FRAME = "end_effector"

_COMMANDS: dict[Follow, type] = {"action": PolicyAction, "target_pose": PoseStamped, "twist": TwistStamped}


class MessageQueue:
    """Messages of a topic that were not taken yet, with their arrival times (s, monotonic)."""

    def __init__(self, node: Node, kind: Any, topic: str, profile: QoSProfile) -> None:
        self.topic = topic
        self._kind = kind
        self._come: list[tuple[Any, float]] = []
        self._subscription: Subscription = node.create_subscription(kind, topic, self._add, profile)

    def _add(self, message: Any) -> None:
        self._come.append((message, time.monotonic()))

    def take(self) -> list[tuple[Any, float]]:
        """Return everything that has arrived, the oldest first, including what the executor has not handled yet."""
        with self._subscription.handle:
            while (found := self._subscription.handle.take_message(self._kind, False)) is not None:
                self._add(found[0])
        come, self._come = self._come, []
        return come


class RosLink(Link):
    """Publishers and subscriptions of a robot that follows the stream of commands ``follow``.

    The caller closes node and executor. In real time, the end effector's pose is also published on /tf, as on a real
    robot.
    """

    def __init__(self, node: Node, executor: Executor, contract: Contract, *, follow: Follow, lockstep: bool) -> None:
        self.where = "on ROS 2"
        self.wants_pose = follow == "target_pose" or not lockstep
        self._node, self._executor = node, executor
        self._contract = contract
        self._lockstep = lockstep
        self._joint_names = [entry for group in contract.proprioception for entry in group.entries]
        profile = qos.lockstep() if lockstep else qos.reliable(10)
        here = topics.relative
        # ~/episode is the last publisher and ~/status the last subscription, for the same reason as in
        # :class:`DdsLink`.
        self._pose: Publisher | None = None
        if follow == "target_pose":
            self._pose = node.create_publisher(PoseStamped, here(topics.END_EFFECTOR_POSE), profile)
        self._transforms = None if lockstep else TransformBroadcaster(node)
        self._views: dict[str, Publisher] = {
            camera.name: node.create_publisher(Image, here(topics.camera_topic(camera.name)), profile)
            for camera in contract.cameras
        }
        self._infos: dict[str, Publisher] = {
            camera.name: node.create_publisher(CameraInfo, here(topics.camera_info_topic(camera.name)), qos.reliable(1))
            for camera in contract.cameras
        }
        self._joints = node.create_publisher(JointState, here(topics.JOINT_STATES), profile)
        self._instructions = node.create_publisher(String, here(topics.INSTRUCTION), qos.latched())
        self._episodes = node.create_publisher(Episode, here(topics.EPISODE), qos.latched())
        self._command = MessageQueue(node, _COMMANDS[follow], here(FOLLOWED[follow]), profile)
        self._gripper = (
            MessageQueue(node, GripperCommand, here(topics.GRIPPER_COMMAND), profile) if follow != "action" else None
        )
        handshake = qos.latched() if lockstep else qos.reliable(10)
        self._status = MessageQueue(node, PolicyStatus, here(topics.STATUS), handshake)

    def wait_for_policy(self, timeout: float, stop: Callable[[], bool]) -> None:
        publishers = [*self._views.values(), self._joints]
        publishers += [self._pose] if self._pose is not None else []
        publishers += [self._episodes] if self._lockstep else []
        heaps = [self._status, self._command, *([self._gripper] if self._gripper is not None else [])]
        deadline = time.monotonic() + timeout
        while not stop():
            missing = [p.topic_name for p in publishers if not p.get_subscription_count()]
            missing += [self.full_name(heap.topic) for heap in heaps if not self._publishers_of(heap.topic)]
            if not missing:
                return
            left = deadline - time.monotonic()
            if left <= 0:
                lockstep = " with the parameter lockstep" if self._lockstep else ""
                raise TransportError(
                    f"no peer on {', '.join(missing)} within {timeout:g} s on ROS 2; start the policy node"
                    f"{lockstep}, and activate it"
                )
            self.wait(min(left, 0.05))

    def _publishers_of(self, topic: str) -> int:
        return int(self._node.count_publishers(self.full_name(topic)))

    @property
    def policy_is_there(self) -> bool:
        return bool(self._publishers_of(self._status.topic))

    def observe(self, observation: Observation, pose: NDArray[np.float64] | None, stamp: int) -> None:
        frame = self._contract.action.frame
        if self._pose is not None and pose is not None:
            self._pose.publish(MESSAGES.pose(pose, stamp, frame))
        if self._transforms is not None and pose is not None:
            self._transforms.sendTransform(_transform(pose, stamp, frame))
        for camera in self._contract.cameras:
            pixels = np.ascontiguousarray(observation.images[camera.name])
            height, width = pixels.shape[:2]
            self._infos[camera.name].publish(MESSAGES.camera_info(camera, height, width, stamp))
            image = Image(header=MESSAGES.header(stamp, optical_frame(camera.name)), encoding="rgb8")
            image.height, image.width, image.step = height, width, 3 * width
            image.data.frombytes(pixels.data.cast("B"))
            self._views[camera.name].publish(image)
        positions = [
            float(value) for group in self._contract.proprioception for value in observation.proprioception[group.name]
        ]
        self._joints.publish(MESSAGES.joints(self._joint_names, positions, stamp, frame))

    def send_instruction(self, instruction: str) -> None:
        self._instructions.publish(String(data=instruction))

    def begin_episode(self, number: int, instruction: str, seed: int, random_stream: int, stamp: int) -> None:
        frame = self._contract.action.frame
        self._episodes.publish(
            MESSAGES.episode(number, instruction, seed=seed, random_stream=random_stream, stamp=stamp, frame=frame)
        )

    def statuses(self) -> list[StatusSnapshot]:
        return [StatusSnapshot.of(status) for status, _ in self._status.take()]

    def commands(self) -> list[Command]:
        found = []
        for message, arrived in self._command.take():
            value = self._value(message)
            # Commands of a ramp to a halt that answer no observation have the stamp zero; they count as stamped now.
            stamp = nanoseconds_of(message) or (0 if self._lockstep else time.time_ns())
            if value is not None:
                found.append(Command(value, stamp, arrived))
        return found

    def _value(self, message: Any) -> NDArray[np.float64] | None:
        if isinstance(message, TwistStamped):
            return twist_of(message)
        if isinstance(message, PolicyAction):
            return action_of(message, self._contract.action.size)
        return pose_of(message)

    def gripper_commands(self) -> list[float]:
        return [] if self._gripper is None else [grip.position for grip, _ in self._gripper.take()]

    def wait(self, timeout: float) -> None:
        self._executor.spin_once(timeout_sec=max(0.0, min(timeout, _LONGEST_SLEEP)))

    def sleep(self, timeout: float) -> None:
        time.sleep(max(0.0, min(timeout, _LONGEST_SLEEP)))

    def full_name(self, topic: str) -> str:
        here = topics.relative(topic) if topic.startswith(("/", "~/")) else topic
        return str(self._node.resolve_topic_name(here))

    def problem(self, topic: str) -> str:
        return ""


def _transform(pose: NDArray[np.float64], stamp: int, frame: str) -> TransformStamped:
    message = MESSAGES.pose(pose, stamp, frame)
    found = TransformStamped(header=message.header, child_frame_id=END_EFFECTOR_FRAME)
    found.transform.translation = MESSAGES.vector(pose[:3])
    found.transform.rotation = message.pose.orientation
    return found
