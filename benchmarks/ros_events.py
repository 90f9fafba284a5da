"""What happens to the node itself and to what it stands on; see :mod:`benchmarks.ros_faults`, which runs these.

Each takes a bundle that knows the instruction 'noise' and an empty folder, and returns what was seen.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped, TwistStamped
from rosgraph_msgs.msg import Clock
from std_msgs.msg import String

from benchmarks.child import child, finish
from benchmarks.ros_robot import Robot, node
from m2distill_policy.bundle import open_bundle
from m2distill_policy.errors import TransportError
from m2distill_policy.node import topics
from m2distill_policy.ros import qos
from m2distill_policy.ros.messages import MESSAGES
from m2distill_policy.runtime.status import StatusCode
from tests.bundles import INSTRUCTIONS, toy_contract, write_toy

_DRIVEN, _BROKEN = 2.0, 2.0


def _robot(bundle: Path) -> contextlib.closing[Robot]:
    return contextlib.closing(Robot(open_bundle(bundle).contract))


def _drive(robot: Robot) -> None:
    robot.drive_until(StatusCode.RUNNING)
    robot.drive(_DRIVEN)


def bundle_gone_and_tampered(bundle: Path, folder: Path) -> dict[str, Any]:
    """The running bundle is deleted, then one is offered of which a byte was changed."""
    running, tampered = folder / "running", folder / "tampered"
    shutil.copytree(bundle, running)
    shutil.copytree(bundle, tampered)
    graph = tampered / "step.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    with node(running, folder / "node.log"), _robot(running) as robot:
        robot.bring_up()
        _drive(robot)
        shutil.rmtree(running)
        before = set(robot.sent)
        robot.drive(1.0)
        robot.ask_for_swap(tampered)
        robot.drive(_BROKEN)
        answered = [robot.answers[stamp][1] for stamp in robot.sent if stamp not in before and stamp in robot.answers]
        if len(robot.swaps) != 1 or robot.swaps[0].success:
            raise TransportError("a bundle that was tampered with was not refused")
        return {
            "status": robot.statuses[-1][1].name,
            "sentence": robot.swaps[0].message,
            "observations": len(robot.sent) - len(before),
            "answered_by_the_old_bundle": sum(one == open_bundle(bundle).identifier for one in answered),
        }


def disk_full(bundle: Path, folder: Path) -> dict[str, Any]:
    """Nothing can be written to a file any more, the log among it, and then the instruction is one to be refused."""
    with node(bundle, folder / "node.log") as process, _robot(bundle) as robot:
        tell = robot.node.create_publisher(String, topics.resolve(topics.INSTRUCTION), qos.latched())
        robot.bring_up()
        _drive(robot)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        begin = time.monotonic()
        tell.publish(String(data="fly away"))
        robot.drive(_BROKEN)
        found = robot.halted(begin, StatusCode.UNKNOWN_INSTRUCTION)
        tell.publish(String(data="noise"))
        return {**found, "driven_again_s": round(robot.drive_until(StatusCode.RUNNING), 3)}


def provider_lost(bundle: Path, folder: Path) -> dict[str, Any]:
    """ONNX Runtime fails on every step for two seconds: a small network that fails where the first joint is above 0.05.

    The network of ``bundle`` cannot be made to fail from outside.
    """
    contract = toy_contract()
    fragile = write_toy(folder / "fragile", contract=contract, fails_above=0.05)

    def far(robot: Robot, i: int) -> None:
        stamp = time.time_ns()
        for name, publisher in robot.views.items():
            publisher.publish(robot.picture(name, i, stamp))
        state = robot.joint_state(i, stamp)
        state.position[0] = 0.08  # not so far that no joint could have got there
        robot.joints.publish(state)

    with node(fragile, folder / "node.log", instruction=INSTRUCTIONS[0]), _robot(fragile) as robot:
        robot.bring_up()
        _drive(robot)
        begin = time.monotonic()
        robot.drive(_BROKEN, far)
        found = robot.halted(begin, StatusCode.ENGINE_FAILED)
        return {**found, "driven_again_s": round(robot.drive_until(StatusCode.RUNNING), 3)}


def nan_offered(bundle: Path, folder: Path) -> dict[str, Any]:
    """A bundle whose network answers NaN is offered for a swap while another drives: from the request on."""
    sound = write_toy(folder / "sound")
    broken = write_toy(folder / "broken", seed=1, bias_nan=True)
    with node(sound, folder / "node.log", instruction=INSTRUCTIONS[0]) as _, _robot(sound) as robot:
        robot.bring_up()
        _drive(robot)
        begin = time.monotonic()
        robot.ask_for_swap(broken)
        while not robot.swaps and time.monotonic() < begin + 60.0:  # it is loaded by a process of its own
            robot.drive(0.5)
        robot.drive(_BROKEN)
        if robot.swaps and not robot.swaps[0].success:
            return {"status": robot.statuses[-1][1].name, "sentence": robot.swaps[0].message}
        found = robot.halted(begin, StatusCode.BAD_OUTPUT)
        robot.ask_for_swap(sound)
        return {**found, "driven_again_s": round(robot.drive_until(StatusCode.RUNNING), 3)}


def another_publisher(bundle: Path, folder: Path) -> dict[str, Any]:
    """Somebody else sends moving twists to the arm for two seconds."""
    with node(bundle, folder / "node.log") as _, _robot(bundle) as robot:
        robot.bring_up()
        _drive(robot)
        other = robot.node.create_publisher(TwistStamped, topics.resolve(topics.TWIST), qos.reliable(10))
        robot.drive(1.0)  # it is found, and says nothing yet
        begin = time.monotonic()

        def say(robot: Robot, i: int) -> None:
            twist = TwistStamped(header=MESSAGES.header(time.time_ns(), "base"))
            twist.twist.linear.x = 0.05
            other.publish(twist)
            robot.publish(i)

        robot.drive(_BROKEN, say)
        found = robot.halted(begin, StatusCode.OTHER_PUBLISHER)
        robot.node.destroy_publisher(other)
        return {**found, "driven_again_s": round(robot.drive_until(StatusCode.RUNNING), 3)}


#: A workspace, with which the policy needs the end effector's pose.
_BOX = {"safety.workspace_low": "[0.2, -0.5, 0.0]", "safety.workspace_high": "[0.6, 0.5, 0.8]"}


def _poses(robot: Robot) -> Callable[..., Callable[[Robot, int], None]]:
    """Makes what says observations with the end effector at ``x`` (m); as measured, or frozen."""
    pose = robot.node.create_publisher(PoseStamped, topics.resolve(topics.END_EFFECTOR_POSE), qos.reliable(10))

    def at(x: float, frozen: bool = False) -> Callable[[Robot, int], None]:
        def say(robot: Robot, i: int) -> None:
            stamp = time.time_ns()
            noise = 0.0 if frozen else 1e-5 * (i % 7)
            pose.publish(MESSAGES.pose(np.array([x + noise, 0.0, 0.4, np.pi, 0.0, 0.0]), stamp, "base"))
            robot.publish(i, stamp)

        return say

    return at


def pose_freezes(bundle: Path, folder: Path) -> dict[str, Any]:
    """In a limited workspace, the pose stays the same for two seconds under fresh stamps."""
    with node(bundle, folder / "node.log", **_BOX) as _, _robot(bundle) as robot:
        at = _poses(robot)
        robot.bring_up()
        robot.drive_until(StatusCode.RUNNING, at(0.4))
        robot.drive(_DRIVEN, at(0.4))
        begin = time.monotonic()
        robot.drive(_BROKEN, at(0.4, frozen=True))
        found = robot.halted(begin, StatusCode.BAD_POSE)
        return {**found, "driven_again_s": round(robot.drive_until(StatusCode.RUNNING, at(0.4)), 3)}


def pose_jumps(bundle: Path, folder: Path) -> dict[str, Any]:
    """In a limited workspace, the pose is 3 m away for two seconds."""
    with node(bundle, folder / "node.log", **_BOX) as _, _robot(bundle) as robot:
        at = _poses(robot)
        robot.bring_up()
        robot.drive_until(StatusCode.RUNNING, at(0.4))
        robot.drive(_DRIVEN, at(0.4))
        begin = time.monotonic()
        robot.drive(_BROKEN, at(3.4))
        found = robot.halted(begin, StatusCode.BAD_POSE)
        robot.drive(_BROKEN, at(0.4))
        return {**found, "driven_again_s": None, "let_go": robot.statuses[-1][1].name}


def clock_set_back(bundle: Path, folder: Path) -> dict[str, Any]:
    """The clock that stamps and the node follow, /clock here, is set back by a minute while the arm moves."""
    now = 1000.0

    def say(robot: Robot, i: int) -> None:
        nonlocal now
        now += robot.contract.period
        stamp = round(now * 1e9)
        clock.publish(Clock(clock=MESSAGES.header(stamp, "").stamp))
        robot.executor.spin_once(timeout_sec=0.005)
        robot.publish(i, stamp)

    with node(bundle, folder / "node.log", use_sim_time="true"), _robot(bundle) as robot:
        clock = robot.node.create_publisher(Clock, "/clock", qos.reliable(10))
        robot.bring_up()
        robot.drive_until(StatusCode.RUNNING, say)
        robot.drive(_DRIVEN, say)
        now -= 60.0
        begin = time.monotonic()
        robot.drive(1.0, say)
        ramp = robot.first(begin, lambda s: s.motion != 0)
        again = robot.first(ramp[0], lambda s: s.code == StatusCode.RUNNING) if ramp is not None else None
        if ramp is None or again is None:
            raise TransportError(f"a clock that was set back was not noticed, or not followed: {robot.statuses[-1:]}")
        still = robot.first(begin, lambda s: s.halted)
        return {
            "status": ramp[1].name,
            "sentence": ramp[1].message,
            "ramp_begins_s": round(ramp[0] - begin, 3),
            "stands_still_s": round(still[0] - begin, 3) if still is not None and still[0] < again[0] else None,
            "driven_again_s": round(again[0] - begin, 3),
        }


def terminated(bundle: Path, folder: Path) -> dict[str, Any]:
    """SIGTERM while the arm moves."""
    log = folder / "node.log"
    with node(bundle, log) as process, _robot(bundle) as robot:
        robot.bring_up()
        _drive(robot)
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        while process.poll() is None and time.monotonic() < begin + 10:
            robot.drive(2 * robot.contract.period)
        ended = time.monotonic() - begin
        finish(process, log)
        return {**robot.halted(begin, StatusCode.HALT_REQUESTED), "ended_s": round(ended, 3)}


def killed(bundle: Path, folder: Path) -> dict[str, Any]:
    """kill -9 while the arm moves, and the launch file's ``respawn``. The arm's own timeout has to stop it: the node
    can say nothing any more."""
    words = {"bundle": bundle, "instruction": "noise", "enable": "true", "respawn": "true"}
    command = ["ros2", "launch", "m2distill_policy", "policy.launch.py", *(f"{k}:={v}" for k, v in words.items())]
    log = folder / "launch.log"
    with child(command, log, end=signal.SIGINT), _robot(bundle) as robot:
        _drive(robot)
        lines = [line for line in log.read_text().splitlines() if "policy_node-1]: process started with pid" in line]
        begin = time.monotonic()
        os.kill(int(lines[-1].rsplit("[", 1)[1].rstrip("]")), signal.SIGKILL)
        robot.drive(1.0)
        last = max((at - begin for at in robot.twists if at >= begin), default=0.0)
        driven = robot.drive_until(StatusCode.RUNNING)
        return {
            "status": "none",
            "sentence": "no status and no command comes",
            "last_command_s": round(last, 3),
            "driven_again_s": round(1.0 + driven, 3),
        }


EVENTS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "the running bundle is deleted, another tampered with": bundle_gone_and_tampered,
    "the disk is full": disk_full,
    "the provider is lost": provider_lost,
    "a bundle is offered that answers NaN": nan_offered,
    "somebody else commands the arm": another_publisher,
    "the pose jumps by 3 m": pose_jumps,
    "the pose freezes": pose_freezes,
    "the clock is set back": clock_set_back,
    "SIGTERM": terminated,
    "kill -9 under ros2 launch": killed,
}
