"""The ROS 2 node over a long time: ``python -m benchmarks.ros_soak`` where ROS 2 and ros2_ws are sourced.

The node runs in a process of its own. This one publishes two cameras and the joints at the contract's rate, asks for a
hot swap between two bundles every few seconds, and notes which observation was answered, by which network, when the
twist came, and how much memory the node holds. An observation is missed when no command answers it before the next one
is sent. The node's own latencies, from the entry of the callback that completes a set to the return of the last
publish, are those of /diagnostics. Pictures are noise.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
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

from benchmarks.command_latency import random_bundle
from benchmarks.output import add_out, percentiles, write
from m2distill_policy.bundle import open_bundle
from m2distill_policy.contract import Contract
from m2distill_policy.errors import M2DistillError, TransportError
from m2distill_policy.node import topics
from m2distill_policy.node.messages import nanoseconds_of, optical_frame
from m2distill_policy.progress import ProgressBar
from m2distill_policy.ros import qos
from m2distill_policy.ros.messages import MESSAGES

_PATIENCE = 60.0


class Robot:
    """Publishes observations and keeps what came back.

    sent: stamp (ns) -> s, when the last message was out. answers, steps: stamp -> s of arrival and bundle; s in the
    policy server. twists: s of arrival. cycles: /diagnostics' percentiles of whole cycles, one entry a message.
    swaps: how each swap that was asked for went.
    """

    def __init__(self, contract: Contract, height: int, width: int) -> None:
        self.node = rclpy.create_node("soak_robot")
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        rng = np.random.default_rng(0)
        self._pictures = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8).tobytes() for _ in range(8)]
        self._height, self._width = height, width
        self.views = {
            name: self.node.create_publisher(Image, topics.camera_topic(name), qos.reliable(2))
            for name in contract.camera_names
        }
        self.joints = self.node.create_publisher(JointState, topics.JOINT_STATES, qos.reliable(10))
        self._names = [entry for group in contract.proprioception for entry in group.entries]
        self.sent: dict[int, float] = {}
        self.answers: dict[int, tuple[float, str]] = {}
        self.steps: dict[int, float] = {}
        self.cycles: list[tuple[float, ...]] = []
        self.swaps: list[LoadPolicy.Response] = []
        self._listen(PolicyAction, topics.ACTION, self._action)
        self._listen(PolicyStatus, topics.STATUS, self._status)
        self._listen(DiagnosticArray, topics.DIAGNOSTICS, self._diagnostics)
        self.twists = 0
        self._listen(TwistStamped, topics.TWIST, self._twist)
        self._load = self.node.create_client(LoadPolicy, topics.resolve("~/load_policy"))

    def _listen(self, kind: Any, topic: str, callback: Any) -> None:
        self.node.create_subscription(kind, topics.resolve(topic), callback, qos.reliable(100))

    def _action(self, action: PolicyAction) -> None:
        if action.command:
            self.answers[nanoseconds_of(action)] = (time.monotonic(), action.bundle)

    def _twist(self, twist: TwistStamped) -> None:
        self.twists += 1

    def _status(self, status: PolicyStatus) -> None:
        self.steps[nanoseconds_of(status)] = status.latency

    def _diagnostics(self, message: DiagnosticArray) -> None:
        for pair in message.status[0].values:
            if pair.key.startswith("whole cycle"):
                self.cycles.append(tuple(float(number) for number in pair.value.split(",")))

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

    def publish(self, i: int) -> int:
        """One observation, stamped with the present time, which is returned (ns)."""
        stamp = time.time_ns()
        for name, publisher in self.views.items():
            publisher.publish(self.picture(name, i, stamp))
        self.joints.publish(self.joint_state(i, stamp))
        self.sent[stamp] = time.monotonic()
        return stamp


@contextlib.contextmanager
def node(bundle: Path, log: Path, more: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """The policy node in a process of its own, ended by SIGTERM."""
    told = {"bundle": bundle, "instruction": "noise", "enable": "true", "swap_when": "now"}
    words = [word for name, value in told.items() for word in ("-p", f"{name}:={value}")]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "m2distill_policy.ros.main", "--ros-args", *words, *more],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    try:
        yield process
        process.terminate()
        if process.wait(20) != 0:
            raise TransportError(f"the node ended with {process.returncode}: {log.read_text()[-2000:]}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)


def resident(pid: int) -> float:
    """MiB that a process holds in memory."""
    text = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmRSS")) / 1024


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("config/tiny.toml"), help="of the random networks")
    parser.add_argument("--bundles", type=Path, nargs=2, help="two bundles, made by this option's default elsewhere")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--swaps", type=int, default=200)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    add_out(parser)
    args = parser.parse_args()
    rclpy.init()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundles = args.bundles or [random_bundle(folder, seed, args.config) for seed in (0, 1)]
        contract = open_bundle(bundles[0]).contract
        begin = time.monotonic()
        with node(bundles[0], folder / "node.log", []) as process:
            robot = Robot(contract, args.height, args.width)
            robot.bring_up()
            first = drive(robot, contract, 3.0, [], 0, process, begin)
            memory = [resident(process.pid)]
            warm = set(robot.sent)
            robot.twists = 0
            drive(robot, contract, args.seconds, list(bundles), args.swaps, process, begin, memory)
    rclpy.shutdown()
    measured = sorted(stamp for stamp in robot.sent if stamp not in warm)
    missed, after = [], []
    for this, following in zip(measured, [*measured[1:], None], strict=True):
        due = robot.sent[following] if following is not None else float("inf")
        if this not in robot.answers or robot.answers[this][0] > due:
            missed.append(round((this - measured[0]) / 1e9, 2))
        else:
            after.append(robot.answers[this][0] - robot.sent[this])
    steps = np.array([robot.steps[stamp] for stamp in measured if stamp in robot.steps])
    whole = np.array(robot.cycles)
    names = {open_bundle(path).identifier: path.name for path in bundles}
    write(
        "ros_soak",
        {
            "bundles": [open_bundle(path).identifier for path in bundles],
            "views": len(contract.cameras),
            "picture": [args.height, args.width],
            "network_picture": list(contract.cameras[0].shape[:2]),
            "rate_hz": contract.rate_hz,
            "seconds": args.seconds,
            "rmw": rclpy.get_rmw_implementation_identifier(),
            "load_average": round(os.getloadavg()[0], 1),
        },
        {
            "observations": len(measured),
            "missed": len(missed),
            "missed_after_s": missed[:50],
            "twists": robot.twists,
            "swaps_asked": args.swaps,
            "swaps_done": sum(response.success for response in robot.swaps),
            "refusals": [response.sentence for response in robot.swaps if not response.success][:5],
            "answered_by": dict(Counter(names[robot.answers[s][1]] for s in measured if s in robot.answers)),
            "changes_of_network": changes([robot.answers[s][1] for s in measured if s in robot.answers]),
            "first_command_s": round(first, 2),
            "policy_step_ms": percentiles(steps),
            "whole_cycle_ms": {
                "median_of_medians": round(float(np.median(whole[:, 0])), 2),
                "median_of_p99": round(float(np.median(whole[:, 2])), 2),
                "worst_p99": round(float(whole[:, 2].max()), 2),
            },
            "there_and_back_ms": percentiles(np.array(after)),
            "memory_mib": {"first": round(memory[0], 1), "last": round(memory[-1], 1), "most": round(max(memory), 1)},
        },
        args.out,
    )


def changes(bundles: list[str]) -> int:
    """How often the network that answers has changed."""
    return sum(a != b for a, b in itertools.pairwise(bundles))


def drive(
    robot: Robot,
    contract: Contract,
    seconds: float,
    bundles: list[Path],
    swaps: int,
    process: subprocess.Popen[bytes],
    begin: float,
    memory: list[float] | None = None,
) -> float:
    """Publish for ``seconds`` and ask for ``swaps``; returns s from ``begin`` to the first command that came."""
    period = contract.period
    count = round(seconds / period)
    first = float("inf")
    due = time.monotonic()
    with ProgressBar(total=count, unit="observation", disable=count < 200) as bar:
        for i in range(count):
            if swaps and (i * swaps) // count != ((i - 1) * swaps) // count:
                robot.ask_for_swap(bundles[((i * swaps) // count + 1) % 2])
            if memory is not None and i % 100 == 0:
                memory.append(resident(process.pid))
            robot.publish(i)
            bar.update()
            due = max(due + period, time.monotonic() + period / 2)
            while (left := due - time.monotonic()) > 0:
                robot.executor.spin_once(timeout_sec=left)
                if robot.answers and first == float("inf"):
                    first = time.monotonic() - begin
            if process.poll() is not None:
                raise TransportError(f"the node ended with {process.returncode} after {i * period:.1f} s")
    return first


if __name__ == "__main__":
    try:
        main()
    except M2DistillError as error:
        sys.exit(f"benchmarks.ros_soak: {error}")
