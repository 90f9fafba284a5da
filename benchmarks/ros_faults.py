"""Measure what the policy node does when something goes wrong, and how soon the arm is fully stopped.

For each fault, the node runs normally and then gets the fault for two seconds. The benchmark measures the status, the
seconds from the fault's first message to the first command of the ramp and to the full stop, and the seconds from the
fault's end until the arm moves again. If the fault is that messages stop, the time counts from the last good message.
It takes about five minutes. It needs ROS 2 and ros2_ws sourced, or the environment of ``make test-ros``. With
``--out``, the faults measured so far are kept in ``FILE.partial``; run the same command again to resume.

Example:
    eval "$(scripts/ros_env.sh .venv-ros .venv/bin/python)" && "$ROS_PYTHON" -m benchmarks.ros_faults --out mine.json
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
from benchmarks.result_files import PartialFigures, write_measurement
from benchmarks.ros_events import EVENTS, killed
from benchmarks.ros_robot import Robot, node
from m2distill_policy.bundle import open_bundle
from m2distill_policy.node import topics
from m2distill_policy.ros import qos
from m2distill_policy.runtime.safety import SafetyLimits
from m2distill_policy.runtime.status import StatusCode

#: Seconds of normal operation before a fault, and seconds that the fault lasts.
_NORMAL_S, _FAULT_S = 2.0, 2.0


_EMERGENCY_STOP = "the emergency stop"


@dataclass(frozen=True)
class Fault:
    """A fault of the observations.

    Attributes:
        publish: Function that publishes the faulty observation number ``i``.
        code: The expected status.
        is_silent: Whether the fault is that messages stop.
    """

    publish: Callable[[Robot, int], None]
    code: StatusCode = StatusCode.BAD_OBSERVATION
    is_silent: bool = False


def _with(change: Callable[[Any, Any, int], tuple[Any, Any] | None]) -> Callable[[Robot, int], None]:
    """Return a function that publishes an observation and passes its second view and joint state through ``change``.

    If ``change`` returns None, neither of the two is published.
    """

    def publish(robot: Robot, i: int) -> None:
        stamp = time.time_ns()
        first, second = robot.views
        robot.views[first].publish(robot.image(first, i, stamp))
        made = change(robot.image(second, i, stamp), robot.joint_state(i, stamp), i)
        if made is not None:
            robot.views[second].publish(made[0])
            robot.joints.publish(made[1])

    return publish


def _shifted(seconds: float) -> Callable[[Robot, int], None]:
    def publish(robot: Robot, i: int) -> None:
        stamp = time.time_ns() + round(seconds * 1e9)
        for name, publisher in robot.views.items():
            publisher.publish(robot.image(name, i, stamp))
        robot.joints.publish(robot.joint_state(i, stamp))

    return publish


def _clocks(view: float = 0.0, joints: float = 0.0) -> Callable[[Robot, int], None]:
    """Return a function that publishes observations with wrong stamps.

    Args:
        view: Seconds by which the stamps of the second view are ahead of the first view's.
        joints: Seconds by which the stamps of the joints are ahead of the first view's.
    """

    def publish(robot: Robot, i: int) -> None:
        now = time.time_ns()
        first, second = robot.views
        robot.views[first].publish(robot.image(first, i, now))
        robot.views[second].publish(robot.image(second, i, now + round(view * 1e9)))
        robot.joints.publish(robot.joint_state(i, now + round(joints * 1e9)))

    return publish


def _frozen_joints(robot: Robot, i: int) -> None:
    """Publish new stamps and images with the same joint positions."""
    stamp = time.time_ns()
    for name, publisher in robot.views.items():
        publisher.publish(robot.image(name, i, stamp))
    robot.joints.publish(robot.joint_state(0, stamp))


def _other_joints(robot: Robot, i: int) -> None:
    """Publish an observation, and joint positions that are 0.5 rad away, as another node would."""
    stamp = time.time_ns()
    robot.publish(i, stamp)
    state = robot.joint_state(i, stamp + 1_000_000)
    state.position = [position + 0.5 for position in state.position]
    robot.joints.publish(state)


class _RepeatedStamp:
    """A publisher that repeats the same images with the same stamp."""

    def __init__(self) -> None:
        self._stamp = 0

    def __call__(self, robot: Robot, i: int) -> None:
        self._stamp = self._stamp or time.time_ns()
        for name, publisher in robot.views.items():
            publisher.publish(robot.image(name, 0, self._stamp))
        robot.joints.publish(robot.joint_state(i, self._stamp))


def _frozen_view(robot: Robot, i: int) -> None:
    """Publish new stamps with the same images, while the joints move as fast as those of an arm."""
    stamp = time.time_ns()
    for name, publisher in robot.views.items():
        publisher.publish(robot.image(name, 0, stamp))
    state = robot.joint_state(i, stamp)
    state.position[0] = 0.01 * (i % 50)
    robot.joints.publish(state)


def _half_image(image: Any, joints: Any, i: int) -> tuple[Any, Any]:
    del image.data[len(image.data) // 2 :]
    return image, joints


def _small_image(image: Any, joints: Any, i: int) -> tuple[Any, Any]:
    image.height, image.width, image.step = 32, 32, 96
    del image.data[32 * 96 :]
    return image, joints


def _encoding(image: Any, joints: Any, i: int) -> tuple[Any, Any]:
    image.encoding = "16UC1"
    return image, joints


def _missing_name(image: Any, joints: Any, i: int) -> tuple[Any, Any]:
    joints.name, joints.position = joints.name[1:], joints.position[1:]
    return image, joints


def _nan(image: Any, joints: Any, i: int) -> tuple[Any, Any]:
    joints.position[0] = math.nan
    return image, joints


FAULTS: dict[str, Fault] = {
    "a camera stops": Fault(_with(lambda image, joints, i: None), StatusCode.MISSING_OBSERVATION, is_silent=True),
    "everything stops": Fault(lambda robot, i: None, StatusCode.MISSING_OBSERVATION, is_silent=True),
    "a camera repeats its stamp": Fault(_RepeatedStamp(), StatusCode.REPEATED_STAMP),
    "a camera freezes": Fault(_frozen_view, StatusCode.FROZEN_VIEW),
    "stamps jump 2 s back": Fault(_shifted(-2.0), StatusCode.STALE_OBSERVATION),
    "stamps jump 2 s forward": Fault(_shifted(2.0), StatusCode.FUTURE_STAMP),
    "a camera's clock is 0.3 s ahead": Fault(_clocks(view=0.3), StatusCode.FUTURE_STAMP),
    "the joints' clock is 1 s ahead": Fault(_clocks(joints=1.0), StatusCode.FUTURE_STAMP),
    "the joints' clock is 1 s behind": Fault(_clocks(joints=-1.0), StatusCode.STALE_OBSERVATION),
    "two cameras' stamps differ by 24 ms": Fault(_clocks(view=-0.024), StatusCode.UNSYNCHRONISED, is_silent=True),
    "the joints freeze": Fault(_frozen_joints, StatusCode.FROZEN_JOINTS),
    "a second node publishes other joint positions": Fault(_other_joints),
    "a joint's name is missing": Fault(_with(_missing_name)),
    "a joint is NaN": Fault(_with(_nan)),
    "an image has another encoding": Fault(_with(_encoding)),
    "an image is too small": Fault(_with(_small_image)),
    "images are cut in half": Fault(_with(_half_image)),
}


def measure(fault: Fault, robot: Robot) -> dict[str, Any]:
    """Measure one fault, from normal operation until the arm moves again."""
    robot.drive_until(StatusCode.RUNNING)
    robot.drive(_NORMAL_S)
    begin = time.monotonic() - (robot.contract.period if fault.is_silent else 0.0)
    robot.drive(_FAULT_S, fault.publish)
    found = robot.halted(begin, fault.code)
    return {**found, "moves_again_s": round(robot.drive_until(StatusCode.RUNNING), 3)}


def emergency_stop(robot: Robot) -> dict[str, Any]:
    """Measure the emergency stop. After its release, the node waits to be enabled."""
    stop = robot.node.create_publisher(Bool, topics.resolve(topics.EMERGENCY_STOP), qos.reliable(10))
    robot.drive(_NORMAL_S)
    begin = time.monotonic()
    stop.publish(Bool(data=True))
    robot.drive(1.0)
    found = robot.halted(begin, StatusCode.EMERGENCY_STOP)
    stop.publish(Bool(data=False))
    robot.drive(1.0)
    return {**found, "moves_again_s": None, "let_go": robot.statuses[-1][1].name}


def main() -> None:
    """Measure, and write the result."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("config/tiny.toml"),
        help="sizes of the random network (default: %(default)s)",
    )
    parser.add_argument(
        "--image",
        type=int,
        nargs=2,
        default=(480, 640),
        metavar=("HEIGHT", "WIDTH"),
        help="size of the images in pixels (default: 480 640)",
    )
    add_out(parser)
    args = parser.parse_args()
    Robot.image_size = tuple(args.image)
    rclpy.init()
    config = {
        "bundle": f"random weights, {args.config}",
        "halt_time_s": SafetyLimits().halt_time,
        "image": list(args.image),
        "rmw": rclpy.get_rmw_implementation_identifier(),
    }
    partial = PartialFigures(args.out, config)
    count = len(FAULTS) + 1 + len(EVENTS)

    def add(name: str, found: dict[str, Any]) -> None:
        partial.add(name, found)
        print(f"{len(partial.figures)} of {count}: {name}: {found}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle = random_bundle(folder, 0, args.config)
        contract = open_bundle(bundle).contract
        if not {*FAULTS, _EMERGENCY_STOP} <= partial.figures.keys():
            with node(bundle, folder / "node.log"), contextlib.closing(Robot(contract)) as robot:
                robot.bring_up()
                for name, fault in FAULTS.items():
                    if name not in partial.figures:
                        add(name, measure(fault, robot))
                add(_EMERGENCY_STOP, emergency_stop(robot))
        for name, event in EVENTS.items():
            if name in partial.figures:
                continue
            if event is killed and shutil.which("ros2") is None:
                print(f"{name}: skipped, ros2 launch is not installed", file=sys.stderr, flush=True)
                continue
            inside = folder / event.__name__
            inside.mkdir()
            add(name, event(bundle, inside))
    rclpy.shutdown()
    about = {**config, "rate_hz": contract.rate_hz, "load_average": round(os.getloadavg()[0], 1)}
    write_measurement("ros_faults", about, partial.figures, args.out)
    partial.remove()


if __name__ == "__main__":
    command(main)
