"""A robot of noise on ROS 2, and the policy node in a process of its own: what the ROS benchmarks share."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from m2distill_msgs.msg import PolicyAction, PolicyStatus
from m2distill_msgs.srv import LoadPolicy
from rclpy.executors import SingleThreadedExecutor
from rclpy.task import Future
from sensor_msgs.msg import Image, JointState

from benchmarks.child import child
from m2distill_policy.contract import Contract
from m2distill_policy.errors import TransportError
from m2distill_policy.node import topics
from m2distill_policy.node.messages import nanoseconds_of, optical_frame
from m2distill_policy.ros import qos
from m2distill_policy.ros.messages import MESSAGES
from m2distill_policy.runtime.status import StatusCode

_PATIENCE = 60.0
#: As the launch files do.
os.environ.setdefault("CYCLONEDDS_URI", (Path(__file__).parent.parent / "config" / "cyclonedds.xml").as_uri())


class Robot:
    """Publishes observations and keeps what came back.

    sent: stamp (ns) -> s, when the last message was out. answers, steps: stamp -> s of arrival and bundle; s in the
    policy server. statuses: each with s of arrival. twists: s of arrival. cycles: /diagnostics' percentiles of whole
    cycles, one entry a message. swaps: how each swap that was asked for went.
    """

    #: Height and width of the pictures, in pixels.
    picture_size = (480, 640)

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.node = rclpy.create_node("benchmark_robot")
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        rng = np.random.default_rng(0)
        height, width = self.picture_size
        # More than the policy remembers: a camera that shows the same few in turn is a frozen one.
        self._pictures = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8).tobytes() for _ in range(16)]
        self._height, self._width = height, width
        self.views = {
            name: self.node.create_publisher(Image, topics.camera_topic(name), qos.reliable(2))
            for name in contract.camera_names
        }
        self.joints = self.node.create_publisher(JointState, topics.JOINT_STATES, qos.reliable(10))
        self._names = [entry for group in contract.proprioception for entry in group.entries]
        self._count = 0
        self.sent: dict[int, float] = {}
        self.answers: dict[int, tuple[float, str]] = {}
        self.steps: dict[int, float] = {}
        self.statuses: list[tuple[float, PolicyStatus]] = []
        self.twists: list[float] = []
        self.cycles: list[tuple[float, ...]] = []
        self.swaps: list[LoadPolicy.Response] = []
        self._listen(PolicyAction, topics.ACTION, self._action)
        self._listen(PolicyStatus, topics.STATUS, self._status)
        self._listen(DiagnosticArray, topics.DIAGNOSTICS, self._diagnostics)
        self._listen(TwistStamped, topics.TWIST, lambda twist: self.twists.append(time.monotonic()))
        self._load = self.node.create_client(LoadPolicy, topics.resolve("~/load_policy"))

    def _listen(self, kind: Any, topic: str, callback: Any) -> None:
        self.node.create_subscription(kind, topics.resolve(topic), callback, qos.reliable(100))

    def _action(self, action: PolicyAction) -> None:
        if action.command:
            self.answers[nanoseconds_of(action)] = (time.monotonic(), action.bundle)

    def _status(self, status: PolicyStatus) -> None:
        self.steps[nanoseconds_of(status)] = status.latency
        self.statuses.append((time.monotonic(), status))

    def _diagnostics(self, message: DiagnosticArray) -> None:
        for pair in message.status[0].values:
            if pair.key.startswith("whole cycle"):
                self.cycles.append(tuple(float(number) for number in pair.value.split(",")))

    def close(self) -> None:
        """Leave ROS 2's graph."""
        self.executor.shutdown()
        self.node.destroy_node()

    def wait(self, future: Future) -> Any:
        """What a service answers."""
        deadline = time.monotonic() + _PATIENCE
        while not future.done():
            if time.monotonic() > deadline:
                raise TransportError(f"the node did not answer within {_PATIENCE:g} s")
            self.executor.spin_once(timeout_sec=0.1)
        return future.result()

    def bring_up(self) -> None:
        """Configure the node and activate it."""
        client = self.node.create_client(ChangeState, topics.resolve("~/change_state"))
        if not client.wait_for_service(_PATIENCE):
            raise TransportError(f"the node did not appear within {_PATIENCE:g} s")
        for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
            request = ChangeState.Request()
            request.transition.id = transition
            if not self.wait(client.call_async(request)).success:
                raise TransportError("the node cannot be brought up; its log says why")

    def ask_for_swap(self, bundle: Path) -> None:
        """Without waiting for the answer."""
        future = self._load.call_async(LoadPolicy.Request(path=str(bundle)))
        future.add_done_callback(lambda done: self.swaps.append(done.result()))

    def picture(self, name: str, i: int, stamp: int) -> Image:
        """The view ``name``'s picture of observation ``i``, stamped ``stamp`` ns."""
        image = Image(header=MESSAGES.header(stamp, optical_frame(name)), encoding="rgb8")
        image.height, image.width, image.step = self._height, self._width, 3 * self._width
        image.data.frombytes(self._pictures[i % len(self._pictures)])
        return image

    def joint_state(self, i: int, stamp: int) -> JointState:
        """Joints move a little, so that pictures that repeat after a while are not taken for a frozen camera."""
        positions = [float(0.01 * np.sin(i / 10))] * len(self._names)
        state: JointState = MESSAGES.joints(list(self._names), positions, stamp, "base")
        return state

    def publish(self, i: int, stamp: int | None = None) -> None:
        """Observation ``i``, stamped ``stamp`` ns or with the present time."""
        stamp = time.time_ns() if stamp is None else stamp
        for name, publisher in self.views.items():
            publisher.publish(self.picture(name, i, stamp))
        self.joints.publish(self.joint_state(i, stamp))
        self.sent[stamp] = time.monotonic()

    def drive(self, seconds: float, say: Callable[[Robot, int], object] | None = None) -> None:
        """One observation a period for ``seconds``; say: publishes number ``i`` where it is not a sound one."""
        due = time.monotonic()
        for _ in range(round(seconds / self.contract.period)):
            (say or Robot.publish)(self, self._count)
            self._count += 1
            due += self.contract.period
            while (left := due - time.monotonic()) > 0:
                self.executor.spin_once(timeout_sec=left)

    def drive_until(self, code: StatusCode, say: Callable[[Robot, int], object] | None = None) -> float:
        """Drive until the policy's status is ``code``; s from now until it was."""
        begin = time.monotonic()
        while (found := self.first(begin, lambda s: s.code == code)) is None:
            if time.monotonic() - begin > _PATIENCE:
                raise TransportError(f"the policy is not {code.name} within {_PATIENCE:g} s: {self.statuses[-1:]}")
            self.drive(4 * self.contract.period, say)
        return found[0] - begin

    def first(self, since: float, fits: Callable[[PolicyStatus], bool]) -> tuple[float, PolicyStatus] | None:
        """The first status since ``since`` that fits, with s of its arrival."""
        return next(((at, status) for at, status in self.statuses if at >= since and fits(status)), None)

    def halted(self, since: float, code: StatusCode) -> dict[str, Any]:
        """How the arm was halted for ``code`` since ``since`` (s): what was said, s to the ramp and to standstill."""
        ramp = self.first(since, lambda s: s.code == code and s.motion != 0)
        still = self.first(ramp[0], lambda s: s.halted) if ramp is not None else None
        if ramp is None or still is None:
            raise TransportError(f"no {code.name} and a halt; the last status is {self.statuses[-1:]}")
        said = ramp[1]
        return {
            "status": said.name,
            "sentence": f"{said.message} {said.warning}".strip(),
            "ramp_begins_s": round(ramp[0] - since, 3),
            "stands_still_s": round(still[0] - since, 3),
        }


@contextlib.contextmanager
def node(bundle: Path, log: Path, **parameters: object) -> Iterator[subprocess.Popen[bytes]]:
    """The policy node in a process of its own, not yet configured, ended by SIGTERM."""
    told = {"bundle": bundle, "instruction": "noise", "enable": "true", "swap_when": "now", **parameters}
    words = [word for name, value in told.items() for word in ("-p", f"{name}:={value}")]
    with child([sys.executable, "-m", "m2distill_policy.ros.main", "--ros-args", *words], log) as process:
        yield process
