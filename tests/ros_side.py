"""ROS 2, see :mod:`tests.sides`. Imported only where a ROS 2 is sourced."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import rclpy
from control_msgs.msg import GripperCommand
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, TwistStamped
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from m2distill_msgs.msg import Episode, PolicyAction, PolicyStatus
from rclpy._rclpy_pybind11 import RCLError
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile
from rclpy.serialization import serialize_message
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Bool, String

from m2distill_policy.contract import Contract
from m2distill_policy.node import topics
from m2distill_policy.ros import qos
from m2distill_policy.ros.messages import MESSAGES
from m2distill_policy.ros.robot_link import RosLink
from m2distill_policy.sim_robot.link import Follow
from tests.sides import HEARD, PATIENCE, ROOT, Child, Robot, Side, running

_KINDS: dict[str, Any] = {
    "action": PolicyAction,
    "status": PolicyStatus,
    "twist": TwistStamped,
    "target_pose": PoseStamped,
    "gripper": GripperCommand,
    "diagnostics": DiagnosticArray,
}

#: State that a transition leads to.
_REACHED = {
    Transition.TRANSITION_CONFIGURE: State.PRIMARY_STATE_INACTIVE,
    Transition.TRANSITION_ACTIVATE: State.PRIMARY_STATE_ACTIVE,
    Transition.TRANSITION_DEACTIVATE: State.PRIMARY_STATE_INACTIVE,
    Transition.TRANSITION_CLEANUP: State.PRIMARY_STATE_UNCONFIGURED,
}


class Operator:
    """A client of the policy node's services, with its own node and context."""

    def __init__(self, name: str = "operator", namespace: str = "") -> None:
        self.context = Context()
        rclpy.init(context=self.context)
        self.namespace = namespace
        self.node = Node(name, context=self.context, namespace=namespace)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)

    def until(self, condition: Callable[[], Any], what: str, patience: float = PATIENCE) -> None:
        """Spin until ``condition()``. After ``patience`` s fail the test, naming ``what``."""
        deadline = time.monotonic() + patience
        while not condition():
            assert time.monotonic() < deadline, f"waited {patience:g} s for {what}"
            self.executor.spin_once(timeout_sec=0.05)

    def call(self, kind: Any, name: str, request: Any, patience: float = PATIENCE) -> Any:
        """Call one of the policy node's services and return its response."""
        client = self.node.create_client(kind, topics.resolve(f"~/{name}", namespace=self.namespace))
        try:
            self.until(client.service_is_ready, f"the service {name}")
            future = client.call_async(request)
            self.until(future.done, f"an answer of {name}", patience)
            return future.result()
        finally:
            self.node.destroy_client(client)

    def change(self, transition: int) -> bool:
        """Ask for a transition of the policy node's lifecycle.

        On a busy machine Fast DDS loses a request or an answer of a service that it has just discovered. So where no
        answer comes, the node's state is looked at, and the node is asked once more if it has not changed.
        """
        request = ChangeState.Request()
        request.transition.id = transition
        try:
            return bool(self.call(ChangeState, "change_state", request, patience=PATIENCE / 2).success)
        except AssertionError:
            if self.call(GetState, "get_state", GetState.Request()).current_state.id == _REACHED.get(transition):
                return True
        return bool(self.call(ChangeState, "change_state", request).success)

    def bring_up(self) -> None:
        """Configure the node and activate it."""
        assert self.change(Transition.TRANSITION_CONFIGURE), "the node cannot be configured; its log says why"
        assert self.change(Transition.TRANSITION_ACTIVATE)

    def close(self) -> None:
        """Leave."""
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


class RosRobot(Robot):
    """A robot on ROS 2, in its own context."""

    messages = MESSAGES

    def __init__(self, contract: Contract, *, lockstep: bool = False, namespace: str = "") -> None:
        super().__init__(contract)
        self._lockstep = lockstep
        self._namespace = namespace
        self.operator = Operator("robot", namespace)
        self.node, self._executor = self.operator.node, self.operator.executor
        profile = qos.lockstep() if lockstep else qos.reliable(10)
        self._publishers: dict[str, Publisher] = {}
        for view in contract.camera_names:
            self._publisher(topics.camera_topic(view), Image, profile)
            self._publisher(topics.camera_info_topic(view), CameraInfo, qos.reliable(1))
        self._publisher(topics.JOINT_STATES, JointState, profile)
        if not lockstep:  # a robot that publishes its pose waits for set-points
            self._publisher(topics.END_EFFECTOR_POSE, PoseStamped, profile)
        self._publisher(topics.EMERGENCY_STOP, Bool, qos.reliable(10))
        self._publisher(topics.DEAD_MAN, Bool, qos.reliable(10))
        self._publisher(topics.ENABLE, Bool, qos.reliable(10))
        self._publisher(topics.INSTRUCTION, String, qos.latched())
        self._publisher(topics.EPISODE, Episode, qos.latched())
        self._subscriptions: dict[str, Subscription] = {}
        for name, topic in HEARD.items():
            wanted = qos.latched() if lockstep and name == "status" else profile if lockstep else qos.reliable(1000)
            wanted = qos.reliable(1000) if name == "diagnostics" else wanted
            self._subscriptions[name] = self.node.create_subscription(
                _KINDS[name], self._full(topic), self.heard[name].append, wanted
            )

    def _full(self, topic: str) -> str:
        return topics.resolve(topic, namespace=self._namespace)

    def _publisher(self, topic: str, kind: type[Any], profile: QoSProfile) -> None:
        self._publishers[topic] = self.node.create_publisher(kind, self._full(topic), profile)

    def publish(self, topic: str, message: Any) -> None:
        self._publishers[topic].publish(message)

    def publish_bytes(self, topic: str, data: bytes) -> bool:
        try:
            self._publishers[topic].publish(data)
        except RCLError:
            return False
        return True

    def serialised(self, message: Any) -> bytes:
        return bytes(serialize_message(message))

    def image(self, stamp: int, height: int, width: int, encoding: str, step: int, data: bytes) -> Image:
        image = Image(header=MESSAGES.header(stamp, "camera"), encoding=encoding)
        image.height, image.width, image.step = height, width, step
        image.data.frombytes(data)
        return image

    def announce_joints(self, topic: str) -> None:
        self._publisher(topic, JointState, qos.reliable(10))
        self.until(lambda: self._publishers[topic].get_subscription_count() > 0, f"a subscription of {topic}")
        self.listen(0.5)

    def string(self, text: str) -> String:
        return String(data=text)

    def flag(self, value: bool) -> Bool:
        return Bool(data=value)

    def latched_flag(self, topic: str) -> Callable[[bool], None]:
        publisher = self.node.create_publisher(Bool, self._full(topic), qos.latched())
        return lambda value: publisher.publish(Bool(data=value))

    def commander(self, topic: str) -> Callable[[], None]:
        kind = next(_KINDS[name] for name, heard in HEARD.items() if heard == topic)
        publisher = self.node.create_publisher(kind, self._full(topic), qos.reliable(10))
        return lambda: publisher.publish(self.command(topic))

    def meet(self) -> None:
        heard = [p for p in self._publishers.values() if p.topic_name != self._full(topics.EPISODE)]
        heard += [self._publishers[topics.EPISODE]] if self._lockstep else []
        self.until(lambda: all(p.get_subscription_count() for p in heard), "the policy's subscriptions")
        said = [self._full(topic) for topic in HEARD.values()]
        self.until(lambda: all(self.node.count_publishers(topic) for topic in said), "the policy's publishers")
        self.listen(0.5)  # the other side learns of ours a moment later

    def listen(self, timeout: float) -> None:
        until = time.monotonic() + timeout
        while (left := until - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=left)
        for name, subscription in self._subscriptions.items():
            with subscription.handle:
                while (found := subscription.handle.take_message(_KINDS[name], False)) is not None:
                    self.heard[name].append(found[0])

    def wait(self, timeout: float) -> None:
        self._executor.spin_once(timeout_sec=timeout)

    def close(self) -> None:
        self.operator.close()


def parameters(settings: dict[str, object]) -> list[str]:
    """Return ``-p`` options for parameters by name, with two underscores for a dot."""
    words = []
    for name, value in settings.items():
        text = value if isinstance(value, str) else json.dumps(str(value) if isinstance(value, Path) else value)
        if isinstance(value, Sequence) and not isinstance(value, str):
            text = json.dumps(list(value))
        elif isinstance(value, str) and value.startswith("["):
            text = value
        words += ["-p", f"{name.replace('__', '.')}:={text}"]
    return words


class RosSide(Side):
    """Run ``ros2 run m2distill_policy policy_node``, configured and activated."""

    name = "ros"

    @contextlib.contextmanager
    def policy(self, bundle: Path, **settings: object) -> Iterator[Child]:
        node_settings = {"enable": True, **settings, "bundle": str(bundle)}
        namespace = str(node_settings.pop("namespace", ""))
        place = ["-r", f"__ns:={namespace}"] if namespace else []
        with self._process("main", "--ros-args", *place, *parameters(node_settings)) as child:
            if node_settings.get("autostart"):
                child.wait_for("] [m2distill_policy]: bundle")
            else:
                with contextlib.closing(Operator(namespace=namespace)) as operator:
                    operator.bring_up()
            yield child

    def sim(self, *arguments: object) -> contextlib.AbstractContextManager[Child]:
        return self._process("sim_robot", *arguments)

    def _process(self, module: str, *arguments: object) -> contextlib.AbstractContextManager[Child]:
        words = [sys.executable, "-m", f"m2distill_policy.ros.{module}", *arguments]
        path = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
        return running(words, self.folder / f"{module}-{time.monotonic_ns()}.log", PYTHONPATH=path)

    def robot(self, contract: Contract, *, lockstep: bool = False, namespace: str = "") -> RosRobot:
        return RosRobot(contract, lockstep=lockstep, namespace=namespace)

    @contextlib.contextmanager
    def link(self, contract: Contract, *, follow: Follow, lockstep: bool) -> Iterator[RosLink]:
        operator = Operator("sim_robot")
        try:
            yield RosLink(operator.node, operator.executor, contract, follow=follow, lockstep=lockstep)
        finally:
            operator.close()
