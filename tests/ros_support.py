"""A robot in ROS 2 for tests of the policy node: it publishes what a robot does and keeps what it hears."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped, TwistStamped
from lifecycle_msgs.srv import ChangeState
from m2distill_msgs.msg import Episode, PolicyAction, PolicyStatus
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Bool, String

from m2distill_policy.contract import Contract
from m2distill_policy.node import topics
from m2distill_policy.node.messages import nanoseconds_of, optical_frame
from m2distill_policy.observation import Observation
from m2distill_policy.ros import qos
from m2distill_policy.ros.messages import MESSAGES
from m2distill_policy.ros.policy_node import PolicyNode

#: s that anything here may take before the test fails; generous, because the machine may be busy.
PATIENCE = 20.0


class Robot:
    """Speaks and listens as a robot does, in a context of its own."""

    def __init__(self, contract: Contract, *, lockstep: bool = False) -> None:
        self.contract = contract
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = Node("robot", context=self.context)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        profile = qos.lockstep() if lockstep else qos.reliable(10)
        name = self._policy
        self.views = {
            view: self.node.create_publisher(Image, topics.camera_topic(view), profile)
            for view in contract.camera_names
        }
        self.joints = self.node.create_publisher(JointState, topics.JOINT_STATES, profile)
        self.pose = self.node.create_publisher(PoseStamped, topics.END_EFFECTOR_POSE, 10) if not lockstep else None
        self.instruction = self.node.create_publisher(String, name(topics.INSTRUCTION), qos.latched())
        self.emergency = self.node.create_publisher(Bool, name(topics.EMERGENCY_STOP), 10)
        self.episodes = self.node.create_publisher(Episode, name(topics.EPISODE), qos.latched())
        self.heard: dict[str, list[Any]] = {}
        listened = ((PolicyAction, topics.ACTION), (TwistStamped, topics.TWIST), (PoseStamped, topics.TARGET_POSE))
        for kind, topic in listened:
            self._listen(kind, topic, profile if lockstep else qos.reliable(1000))
        self._listen(PolicyStatus, topics.STATUS, qos.latched() if lockstep else qos.reliable(1000))

    @staticmethod
    def _policy(topic: str) -> str:
        return topics.resolve(topic)

    def _listen(self, kind: type, topic: str, profile: QoSProfile) -> None:
        kept: list[Any] = self.heard.setdefault(topic.removeprefix("~/"), [])
        self.node.create_subscription(kind, self._policy(topic), kept.append, profile)

    def close(self) -> None:
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def spin(self, seconds: float) -> None:
        """Listen for ``seconds``."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=left)

    def until(self, condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
        """Listen until ``condition()`` is true, and return it; fails the test, naming ``what``."""
        until = time.monotonic() + timeout
        while not (found := condition()):
            assert time.monotonic() < until, f"waited {timeout:g} s for {what}"
            self._executor.spin_once(timeout_sec=0.05)
        return found

    def call(self, kind: Any, name: str, request: Any) -> Any:
        """Call one of the policy node's services and return its response."""
        client = self.node.create_client(kind, self._policy(f"~/{name}"))
        try:
            self.until(client.service_is_ready, f"the service {name}")
            future = client.call_async(request)
            self.until(future.done, f"an answer of {name}")
            return future.result()
        finally:
            self.node.destroy_client(client)

    def change(self, transition: int) -> bool:
        """Ask for a transition of the policy node's lifecycle."""
        request = ChangeState.Request()
        request.transition.id = transition
        return bool(self.call(ChangeState, "change_state", request).success)

    def meet(self) -> None:
        """Until the policy's subscriptions and publishers are there."""
        publishers = [*self.views.values(), self.joints]
        self.until(lambda: all(p.get_subscription_count() for p in publishers), "the policy's subscriptions")
        self.until(lambda: self.node.count_publishers(self._policy(topics.STATUS)), "the policy's ~/status")
        self.spin(0.5)  # the other side learns of ours a moment later

    def say(self, observation: Observation, stamp: int, *, without: Sequence[str] = ()) -> None:
        """Publish all parts of an observation but those in ``without`` under ``stamp`` (ns)."""
        for view, publisher in self.views.items():
            if view not in without:
                pixels = np.ascontiguousarray(observation.images[view])
                image = Image(header=MESSAGES.header(stamp, optical_frame(view)), encoding="rgb8")
                image.height, image.width, image.step = pixels.shape[0], pixels.shape[1], pixels.shape[1] * 3
                image.data.frombytes(pixels.tobytes())
                publisher.publish(image)
        if "joint_states" not in without:
            names = [entry for group in self.contract.proprioception for entry in group.entries]
            values = [float(v) for g in self.contract.proprioception for v in observation.proprioception[g.name]]
            self.joints.publish(MESSAGES.joints(names, values, stamp, "base"))

    def drive(self, observations: Sequence[Observation], *, without: Sequence[str] = (), hz: float = 20.0) -> list[int]:
        """In real time: say one observation a period, stamped with the present time; returns the stamps (ns)."""
        stamps = []
        due = time.monotonic()
        for observation in observations:
            due += 1 / hz
            stamps.append(time.time_ns())
            self.say(observation, stamps[-1], without=without)
            self.spin(due - time.monotonic())
        return stamps

    def episode(self, number: int, instruction: str, *, seed: int, draw: int, stamp: int) -> Any:
        """In lockstep: begin an episode and return the status that answers it."""
        self.episodes.publish(
            MESSAGES.episode(number, instruction, seed=seed, draw=draw, stamp=stamp, frame=self.contract.action.frame)
        )
        return self.until(lambda: self.answers("status").get(stamp), f"an answer to episode {number}")

    def answers(self, topic: str) -> dict[int, Any]:
        """What was heard on ``topic`` by the stamp that it answers (ns)."""
        return {nanoseconds_of(message): message for message in self.heard[topic]}


@contextlib.contextmanager
def policy_node(**parameters: object) -> Iterator[PolicyNode]:
    """An unconfigured policy node that spins in a thread of its own; what it raises fails the test."""
    rclpy.init()
    node = PolicyNode({name.replace("__", "."): value for name, value in parameters.items()})
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    stop = threading.Event()
    failed: list[BaseException] = []

    def spin() -> None:
        try:
            while not stop.is_set():
                executor.spin_once(timeout_sec=0.05)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield node
    finally:
        stop.set()
        thread.join(PATIENCE)
        node.trigger_shutdown()
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown()
        if failed:
            raise failed[0]


@contextlib.contextmanager
def robot(contract: Contract, *, lockstep: bool = False) -> Iterator[Robot]:
    """A :class:`Robot`, closed at the end."""
    made = Robot(contract, lockstep=lockstep)
    try:
        yield made
    finally:
        made.close()
