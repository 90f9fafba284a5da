"""A robot on ROS 2 that publishes noise, and the policy node in its own process: shared by the ROS benchmarks."""

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

_TIMEOUT_S = 60.0
#: The launch files set this variable too.
os.environ.setdefault("CYCLONEDDS_URI", (Path(__file__).parent.parent / "config" / "cyclonedds.xml").as_uri())


class Robot:
    """The robot: it publishes observations and records the node's messages.

    Times are in seconds of the monotonic clock.

    Attributes:
        sent: Stamp (ns) -> time after the last message of the observation was published.
        answers: Stamp (ns) -> time of the action's arrival, and the action's bundle.
        steps: Stamp (ns) -> seconds that the step took in the policy server.
        statuses: Time of arrival and content of every status message.
        twists: Time of arrival of every twist.
        cycles: Percentiles of the time of a whole cycle, from /diagnostics, with one entry for each message.
        swaps: Responses to the requests for a hot swap.
    """

    #: Height and width of the images, in pixels.
    image_size = (480, 640)

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.node = rclpy.create_node("benchmark_robot")
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        rng = np.random.default_rng(0)
        height, width = self.image_size
        # There are more images than the node compares, because a few repeated images count as a frozen camera.
        self._images = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8).tobytes() for _ in range(16)]
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
        """Destroy the ROS node."""
        self.executor.shutdown()
        self.node.destroy_node()

    def wait(self, future: Future) -> Any:
        """Wait for a service's response and return it."""
        deadline = time.monotonic() + _TIMEOUT_S
        while not future.done():
            if time.monotonic() > deadline:
                raise TransportError(f"the node did not answer within {_TIMEOUT_S:g} s")
            self.executor.spin_once(timeout_sec=0.1)
        return future.result()

    def bring_up(self) -> None:
        """Configure the node and activate it."""
        client = self.node.create_client(ChangeState, topics.resolve("~/change_state"))
        if not client.wait_for_service(_TIMEOUT_S):
            raise TransportError(f"the node did not appear within {_TIMEOUT_S:g} s")
        for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
            request = ChangeState.Request()
            request.transition.id = transition
            if not self.wait(client.call_async(request)).success:
                raise TransportError("the node cannot be brought up; its log says why")

    def ask_for_swap(self, bundle: Path) -> None:
        """Request a hot swap, without waiting for the response."""
        future = self._load.call_async(LoadPolicy.Request(path=str(bundle)))
        future.add_done_callback(lambda done: self.swaps.append(done.result()))

    def image(self, name: str, i: int, stamp: int) -> Image:
        """Make the image of view ``name`` for observation ``i``, stamped ``stamp`` ns."""
        image = Image(header=MESSAGES.header(stamp, optical_frame(name)), encoding="rgb8")
        image.height, image.width, image.step = self._height, self._width, 3 * self._width
        image.data.frombytes(self._images[i % len(self._images)])
        return image

    def joint_state(self, i: int, stamp: int) -> JointState:
        """Make the joint state of observation ``i``. The joints move only a little, so repeated images are no fault."""
        positions = [float(0.01 * np.sin(i / 10))] * len(self._names)
        state: JointState = MESSAGES.joints(list(self._names), positions, stamp, "base")
        return state

    def publish(self, i: int, stamp: int | None = None) -> None:
        """Publish observation ``i``, stamped ``stamp`` ns or with the current time."""
        stamp = time.time_ns() if stamp is None else stamp
        for name, publisher in self.views.items():
            publisher.publish(self.image(name, i, stamp))
        self.joints.publish(self.joint_state(i, stamp))
        self.sent[stamp] = time.monotonic()

    def drive(self, seconds: float, publish: Callable[[Robot, int], object] | None = None) -> None:
        """Publish one observation per period for ``seconds``.

        Args:
            seconds: Duration.
            publish: Function that publishes observation number ``i``; None: publish a valid observation.
        """
        due = time.monotonic()
        for _ in range(round(seconds / self.contract.period)):
            (publish or Robot.publish)(self, self._count)
            self._count += 1
            due += self.contract.period
            while (left := due - time.monotonic()) > 0:
                self.executor.spin_once(timeout_sec=left)

    def drive_until(self, code: StatusCode, publish: Callable[[Robot, int], object] | None = None) -> float:
        """Publish observations until the status is ``code``; return the seconds that this took."""
        begin = time.monotonic()
        while (found := self.first(begin, lambda s: s.code == code)) is None:
            if time.monotonic() - begin > _TIMEOUT_S:
                raise TransportError(f"the policy is not {code.name} within {_TIMEOUT_S:g} s: {self.statuses[-1:]}")
            self.drive(4 * self.contract.period, publish)
        return found[0] - begin

    def first(self, since: float, fits: Callable[[PolicyStatus], bool]) -> tuple[float, PolicyStatus] | None:
        """Return the first status since time ``since`` for which ``fits`` is true, with its time of arrival."""
        return next(((at, status) for at, status in self.statuses if at >= since and fits(status)), None)

    def halted(self, since: float, code: StatusCode) -> dict[str, Any]:
        """Return the status, its message, and the seconds from ``since`` to the ramp and to the full stop.

        Raises:
            TransportError: The arm did not halt with the status ``code``.
        """
        ramp = self.first(since, lambda s: s.code == code and s.motion != 0)
        stopped = self.first(ramp[0], lambda s: s.halted) if ramp is not None else None
        if ramp is None or stopped is None:
            raise TransportError(f"no {code.name} and a halt; the last status is {self.statuses[-1:]}")
        status = ramp[1]
        return {
            "status": status.name,
            "message": f"{status.message} {status.warning}".strip(),
            "ramp_begins_s": round(ramp[0] - since, 3),
            "fully_stopped_s": round(stopped[0] - since, 3),
        }


@contextlib.contextmanager
def node(bundle: Path, log: Path, **parameters: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run the policy node in its own process, not yet configured; SIGTERM ends it."""
    settings = {"bundle": bundle, "instruction": "noise", "enable": "true", "swap_when": "now", **parameters}
    words = [word for name, value in settings.items() for word in ("-p", f"{name}:={value}")]
    with child([sys.executable, "-m", "m2distill_policy.ros.main", "--ros-args", *words], log) as process:
        yield process
