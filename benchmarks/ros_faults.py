"""What goes wrong on a robot, and how long until the arm stands still: ``python -m benchmarks.ros_faults``.

For each fault: a node that drives, the fault for two seconds, the status it earns, s from the fault's first message (or
from the last good one, where something stops coming) to the first command of the ramp and to standstill, and s from the
fault's end until the arm is driven again. Where ROS 2 and ros2_ws are sourced.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rclpy
from m2distill_msgs.msg import PolicyStatus
from std_msgs.msg import Bool

from benchmarks.command_latency import random_bundle
from benchmarks.output import add_out, write
from benchmarks.ros_soak import Robot, node
from m2distill_policy.bundle import open_bundle
from m2distill_policy.errors import M2DistillError, TransportError
from m2distill_policy.node import topics
from m2distill_policy.ros import qos
from m2distill_policy.runtime.status import StatusCode

_DRIVEN, _BROKEN, _PATIENCE = 2.0, 2.0, 15.0


@dataclass(frozen=True)
class Fault:
    """say: publishes observation number ``i`` as it is when broken. code: what it is to be called. silent: whether it
    stops something."""

    say: Callable[[Robot, int], None]
    code: StatusCode = StatusCode.BAD_OBSERVATION
    silent: bool = False


class Watcher:
    """Every ~/status with when it came (s)."""

    def __init__(self, robot: Robot) -> None:
        self.heard: list[tuple[float, PolicyStatus]] = []
        robot.node.create_subscription(PolicyStatus, topics.resolve(topics.STATUS), self._take, qos.reliable(1000))

    def _take(self, status: PolicyStatus) -> None:
        self.heard.append((time.monotonic(), status))

    def first(self, since: float, fits: Callable[[PolicyStatus], bool]) -> tuple[float, PolicyStatus] | None:
        """The first since ``since`` that fits."""
        return next(((at, status) for at, status in self.heard if at >= since and fits(status)), None)


def _with(change: Callable[[Any, Any, int], tuple[Any, Any] | None]) -> Callable[[Robot, int], None]:
    """An observation whose second view and joint state are what ``change`` makes of them; None leaves both out."""

    def say(robot: Robot, i: int) -> None:
        stamp = time.time_ns()
        first, second = robot.views
        robot.views[first].publish(robot.picture(first, i, stamp))
        made = change(robot.picture(second, i, stamp), robot.joint_state(i, stamp), i)
        if made is not None:
            robot.views[second].publish(made[0])
            robot.joints.publish(made[1])

    return say


def _shifted(seconds: float) -> Callable[[Robot, int], None]:
    def say(robot: Robot, i: int) -> None:
        stamp = time.time_ns() + round(seconds * 1e9)
        for name, publisher in robot.views.items():
            publisher.publish(robot.picture(name, i, stamp))
        robot.joints.publish(robot.joint_state(i, stamp))

    return say


class _Same:
    """The very same message again and again, stamp and all."""

    def __init__(self) -> None:
        self._stamp = 0

    def __call__(self, robot: Robot, i: int) -> None:
        self._stamp = self._stamp or time.time_ns()
        for name, publisher in robot.views.items():
            publisher.publish(robot.picture(name, 0, self._stamp))
        robot.joints.publish(robot.joint_state(i, self._stamp))


def _frozen(robot: Robot, i: int) -> None:
    """New stamps, the very same picture, while the joints move as fast as an arm does."""
    stamp = time.time_ns()
    for name, publisher in robot.views.items():
        publisher.publish(robot.picture(name, 0, stamp))
    state = robot.joint_state(i, stamp)
    state.position = [0.01 * (i % 50)] * len(state.position)
    robot.joints.publish(state)


def _half(image: Any, joints: Any, i: int) -> tuple[Any, Any]:
    del image.data[len(image.data) // 2 :]
    return image, joints


def _small(image: Any, joints: Any, i: int) -> tuple[Any, Any]:
    image.height, image.width, image.step = 32, 32, 96
    del image.data[32 * 96 :]
    return image, joints


def _encoding(image: Any, joints: Any, i: int) -> tuple[Any, Any]:
    image.encoding = "16UC1"
    return image, joints


def _nameless(image: Any, joints: Any, i: int) -> tuple[Any, Any]:
    joints.name, joints.position = joints.name[1:], joints.position[1:]
    return image, joints


def _nan(image: Any, joints: Any, i: int) -> tuple[Any, Any]:
    joints.position[0] = math.nan
    return image, joints


FAULTS: dict[str, Fault] = {
    "a camera stops": Fault(_with(lambda image, joints, i: None), StatusCode.MISSING_OBSERVATION, silent=True),
    "everything stops": Fault(lambda robot, i: None, StatusCode.MISSING_OBSERVATION, silent=True),
    "a camera repeats its stamp": Fault(_Same(), StatusCode.REPEATED_STAMP),
    "a camera freezes": Fault(_frozen, StatusCode.FROZEN_VIEW),
    "stamps jump 2 s back": Fault(_shifted(-2.0), StatusCode.STALE_OBSERVATION),
    "stamps jump 2 s forward": Fault(_shifted(2.0), StatusCode.FUTURE_STAMP),
    "joints lack a name": Fault(_with(_nameless)),
    "a joint is NaN": Fault(_with(_nan)),
    "another encoding": Fault(_with(_encoding)),
    "too small a picture": Fault(_with(_small)),
    "half-written pictures": Fault(_with(_half)),
}


def measure(name: str, robot: Robot, watcher: Watcher, period: float) -> dict[str, Any]:
    """One fault, from driving to driving again."""
    fault = FAULTS[name]
    count = 0

    def drive(seconds: float, say: Callable[[Robot, int], object]) -> None:
        nonlocal count
        due = time.monotonic()
        for _ in range(round(seconds / period)):
            say(robot, count)
            count += 1
            due += period
            while (left := due - time.monotonic()) > 0:
                robot.executor.spin_once(timeout_sec=left)

    def drive_until(code: StatusCode) -> float:
        begin = time.monotonic()
        while (found := watcher.first(begin, lambda s: s.code == code)) is None:
            if time.monotonic() - begin > _PATIENCE:
                raise TransportError(f"after '{name}' the policy is not {code.name}: {watcher.heard[-1:]}")
            drive(4 * period, lambda r, i: r.publish(i))
        return found[0] - begin

    drive_until(StatusCode.RUNNING)
    drive(_DRIVEN, lambda r, i: r.publish(i))
    begin = time.monotonic() - (period if fault.silent else 0.0)
    drive(_BROKEN, fault.say)
    halting = watcher.first(begin, lambda s: s.code == fault.code and s.motion != 0)
    halted = watcher.first(halting[0], lambda s: s.halted) if halting is not None else None
    if halting is None or halted is None:
        raise TransportError(f"'{name}' is not {fault.code.name} and a halt; the last status is {watcher.heard[-1:]}")
    said = halting[1]
    back = drive_until(StatusCode.RUNNING)
    return {
        "status": said.name,
        "sentence": f"{said.sentence} {said.warning}".strip(),
        "ramp_begins_s": round(halting[0] - begin, 3),
        "stands_still_s": round(halted[0] - begin, 3),
        "driven_again_s": round(back, 3),
    }


def operators(robot: Robot, watcher: Watcher, period: float) -> dict[str, Any]:
    """The emergency stop, from its message on."""
    stop = robot.node.create_publisher(Bool, topics.resolve(topics.EMERGENCY_STOP), qos.reliable(10))
    for i in range(40):
        robot.publish(i)
        robot.executor.spin_once(timeout_sec=period)
    begin = time.monotonic()
    stop.publish(Bool(data=True))
    while (halted := watcher.first(begin, lambda s: s.halted)) is None:
        robot.publish(0)
        robot.executor.spin_once(timeout_sec=period)
        if time.monotonic() - begin > _PATIENCE:
            raise TransportError("the emergency stop did not halt the arm")
    return {
        "status": halted[1].name,
        "sentence": halted[1].sentence,
        "stands_still_s": round(halted[0] - begin, 3),
        "driven_again_s": None,
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("config/tiny.toml"), help="of the random network")
    parser.add_argument("--bundle", type=Path, help="a bundle that knows the instruction 'noise'")
    add_out(parser)
    args = parser.parse_args()
    rclpy.init()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = args.bundle or random_bundle(folder, 0, args.config)
        contract = open_bundle(bundle).contract
        with node(bundle, folder / "node.log", []):
            robot = Robot(contract, 480, 640)
            watcher = Watcher(robot)
            robot.bring_up()
            for fault in FAULTS:
                figures[fault] = measure(fault, robot, watcher, contract.period)
                print(f"{fault}: {figures[fault]}", file=sys.stderr, flush=True)
            figures["emergency stop"] = operators(robot, watcher, contract.period)
    rclpy.shutdown()
    write(
        "ros_faults",
        {
            "bundle": open_bundle(bundle).identifier if args.bundle else f"random weights, {args.config}",
            "halt_time_s": 0.25,
            "rate_hz": contract.rate_hz,
            "rmw": rclpy.get_rmw_implementation_identifier(),
            "load_average": round(os.getloadavg()[0], 1),
        },
        figures,
        args.out,
    )


if __name__ == "__main__":
    try:
        main()
    except M2DistillError as error:
        sys.exit(f"benchmarks.ros_faults: {error}")
