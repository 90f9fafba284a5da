"""What goes wrong on a robot, and how long until the arm stands still: ``python -m benchmarks.ros_faults``.

For each fault: a node that drives, the fault for two seconds, the status it earns, s from the fault's first message (or
from the last good one, where something stops coming) to the first command of the ramp and to standstill, and s from the
fault's end until the arm is driven again. Where ROS 2 and ros2_ws are sourced, or with the wheels of ``make test-ros``:

    eval "$(scripts/ros_env.sh .venv-ros .venv/bin/python)" && "$ROS_PYTHON" -m benchmarks.ros_faults
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rclpy
from std_msgs.msg import Bool

from benchmarks.command_latency import random_bundle
from benchmarks.output import add_out, command, make_parser
from benchmarks.result_files import write_measurement
from benchmarks.ros_events import EVENTS, killed
from benchmarks.ros_robot import Robot, node
from m2distill_policy.bundle import open_bundle
from m2distill_policy.node import topics
from m2distill_policy.ros import qos
from m2distill_policy.runtime.safety import SafetyLimits
from m2distill_policy.runtime.status import StatusCode

_DRIVEN, _BROKEN = 2.0, 2.0


@dataclass(frozen=True)
class Fault:
    """say: publishes observation number ``i`` as it is when broken. code: what it is to be called. silent: whether it
    stops something."""

    say: Callable[[Robot, int], None]
    code: StatusCode = StatusCode.BAD_OBSERVATION
    silent: bool = False


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


def _clocks(view: float = 0.0, joints: float = 0.0) -> Callable[[Robot, int], None]:
    """The second view's and the joints' stamps are ahead of the others by so many seconds."""

    def say(robot: Robot, i: int) -> None:
        now = time.time_ns()
        first, second = robot.views
        robot.views[first].publish(robot.picture(first, i, now))
        robot.views[second].publish(robot.picture(second, i, now + round(view * 1e9)))
        robot.joints.publish(robot.joint_state(i, now + round(joints * 1e9)))

    return say


def _dead_driver(robot: Robot, i: int) -> None:
    """Fresh stamps and pictures, and the very same joint positions."""
    stamp = time.time_ns()
    for name, publisher in robot.views.items():
        publisher.publish(robot.picture(name, i, stamp))
    robot.joints.publish(robot.joint_state(0, stamp))


def _contradicted(robot: Robot, i: int) -> None:
    """Another node says that every joint is half a radian away."""
    stamp = time.time_ns()
    robot.publish(i, stamp)
    state = robot.joint_state(i, stamp + 1_000_000)
    state.position = [position + 0.5 for position in state.position]
    robot.joints.publish(state)


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
    state.position[0] = 0.01 * (i % 50)
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
    "a camera's clock is 0.3 s ahead": Fault(_clocks(view=0.3), StatusCode.FUTURE_STAMP),
    "the joints' clock is 1 s ahead": Fault(_clocks(joints=1.0), StatusCode.FUTURE_STAMP),
    "the joints' clock is 1 s behind": Fault(_clocks(joints=-1.0), StatusCode.STALE_OBSERVATION),
    "two cameras are 24 ms apart": Fault(_clocks(view=-0.024), StatusCode.UNSYNCHRONISED, silent=True),
    "the joints freeze": Fault(_dead_driver, StatusCode.FROZEN_JOINTS),
    "a second node publishes other joint positions": Fault(_contradicted),
    "joints lack a name": Fault(_with(_nameless)),
    "a joint is NaN": Fault(_with(_nan)),
    "another encoding": Fault(_with(_encoding)),
    "too small a picture": Fault(_with(_small)),
    "half-written pictures": Fault(_with(_half)),
}


def measure(fault: Fault, robot: Robot) -> dict[str, Any]:
    """One fault, from driving to driving again."""
    robot.drive_until(StatusCode.RUNNING)
    robot.drive(_DRIVEN)
    begin = time.monotonic() - (robot.contract.period if fault.silent else 0.0)
    robot.drive(_BROKEN, fault.say)
    found = robot.halted(begin, fault.code)
    return {**found, "driven_again_s": round(robot.drive_until(StatusCode.RUNNING), 3)}


def emergency_stop(robot: Robot) -> dict[str, Any]:
    """From its message on; let go, the arm is driven again only when that is asked for."""
    stop = robot.node.create_publisher(Bool, topics.resolve(topics.EMERGENCY_STOP), qos.reliable(10))
    robot.drive(_DRIVEN)
    begin = time.monotonic()
    stop.publish(Bool(data=True))
    robot.drive(1.0)
    found = robot.halted(begin, StatusCode.EMERGENCY_STOP)
    stop.publish(Bool(data=False))
    robot.drive(1.0)
    return {**found, "driven_again_s": None, "let_go": robot.statuses[-1][1].name}


def main() -> None:
    """Measure and write."""
    parser = make_parser(__doc__)
    parser.add_argument("--config", type=Path, default=Path("config/tiny.toml"), help="of the random network")
    parser.add_argument("--picture", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"), help="pixels")
    add_out(parser)
    args = parser.parse_args()
    Robot.picture_size = tuple(args.picture)
    rclpy.init()
    figures: dict[str, Any] = {}

    def note(name: str, found: dict[str, Any]) -> None:
        figures[name] = found
        print(f"{name}: {found}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = random_bundle(folder, 0, args.config)
        contract = open_bundle(bundle).contract
        with node(bundle, folder / "node.log"), contextlib.closing(Robot(contract)) as robot:
            robot.bring_up()
            for fault in FAULTS:
                note(fault, measure(FAULTS[fault], robot))
            note("the emergency stop", emergency_stop(robot))
        for named, happens in EVENTS.items():
            if happens is killed and shutil.which("ros2") is None:
                print(f"{named}: left out, ros2 launch is not installed", file=sys.stderr, flush=True)
                continue
            inside = folder / happens.__name__
            inside.mkdir()
            note(named, happens(bundle, inside))
    rclpy.shutdown()
    write_measurement(
        "ros_faults",
        {
            "bundle": f"random weights, {args.config}",
            "halt_time_s": SafetyLimits().halt_time,
            "rate_hz": contract.rate_hz,
            "picture": list(args.picture),
            "rmw": rclpy.get_rmw_implementation_identifier(),
            "load_average": round(os.getloadavg()[0], 1),
        },
        figures,
        args.out,
    )


if __name__ == "__main__":
    command(main)
