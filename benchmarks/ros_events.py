"""Faults of the node, its files and its surroundings. :mod:`benchmarks.ros_faults` runs them.

Each fault is a function of a bundle with the instruction 'noise' and an empty folder. It returns the status and the
times.
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

#: Seconds of normal operation before a fault, and seconds that the fault lasts.
_NORMAL_S, _FAULT_S = 2.0, 2.0


def _robot(bundle: Path) -> contextlib.closing[Robot]:
    return contextlib.closing(Robot(open_bundle(bundle).contract))


def _drive(robot: Robot) -> None:
    robot.drive_until(StatusCode.RUNNING)
    robot.drive(_NORMAL_S)


def bundle_gone_and_tampered(bundle: Path, folder: Path) -> dict[str, Any]:
    """Delete the running bundle, then offer a bundle with one changed byte."""
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
        robot.drive(_FAULT_S)
        answered = [robot.answers[stamp][1] for stamp in robot.sent if stamp not in before and stamp in robot.answers]
        if len(robot.swaps) != 1 or robot.swaps[0].success:
            raise TransportError("the node accepted a bundle with a changed byte")
        return {
            "status": robot.statuses[-1][1].name,
            "message": robot.swaps[0].message,
            "observations": len(robot.sent) - len(before),
            "answered_by_the_old_bundle": sum(one == open_bundle(bundle).identifier for one in answered),
        }


def disk_full(bundle: Path, folder: Path) -> dict[str, Any]:
    """Keep the node from writing any file, even its log, then send it an unknown instruction."""
    with node(bundle, folder / "node.log") as process, _robot(bundle) as robot:
        instruction = robot.node.create_publisher(String, topics.resolve(topics.INSTRUCTION), qos.latched())
        robot.bring_up()
        _drive(robot)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        begin = time.monotonic()
        instruction.publish(String(data="fly away"))
        robot.drive(_FAULT_S)
        found = robot.halted(begin, StatusCode.UNKNOWN_INSTRUCTION)
        instruction.publish(String(data="noise"))
        return {**found, "moves_again_s": round(robot.drive_until(StatusCode.RUNNING), 3)}


def provider_lost(bundle: Path, folder: Path) -> dict[str, Any]:
    """Make ONNX Runtime fail on every step for two seconds.

    The network of ``bundle`` cannot be made to fail from outside. It is therefore replaced by a small network, which
    fails if the position of the first joint is above 0.05 rad.
    """
    contract = toy_contract()
    fragile = write_toy(folder / "fragile", contract=contract, fails_above=0.05)

    def far(robot: Robot, i: int) -> None:
        stamp = time.time_ns()
        for name, publisher in robot.views.items():
            publisher.publish(robot.image(name, i, stamp))
        state = robot.joint_state(i, stamp)
        state.position[0] = 0.08  # near enough that the joint can have moved there
        robot.joints.publish(state)

    with node(fragile, folder / "node.log", instruction=INSTRUCTIONS[0]), _robot(fragile) as robot:
        robot.bring_up()
        _drive(robot)
        begin = time.monotonic()
        robot.drive(_FAULT_S, far)
        found = robot.halted(begin, StatusCode.ENGINE_FAILED)
        return {**found, "moves_again_s": round(robot.drive_until(StatusCode.RUNNING), 3)}


def nan_offered(bundle: Path, folder: Path) -> dict[str, Any]:
    """Offer a bundle whose network returns NaN while another bundle runs. Times count from the request."""
    sound = write_toy(folder / "sound")
    broken = write_toy(folder / "broken", seed=1, bias_nan=True)
    with node(sound, folder / "node.log", instruction=INSTRUCTIONS[0]) as _, _robot(sound) as robot:
        robot.bring_up()
        _drive(robot)
        begin = time.monotonic()
        robot.ask_for_swap(broken)
        while not robot.swaps and time.monotonic() < begin + 60.0:  # a separate process loads it
            robot.drive(0.5)
        robot.drive(_FAULT_S)
        if robot.swaps and not robot.swaps[0].success:
            return {"status": robot.statuses[-1][1].name, "message": robot.swaps[0].message}
        found = robot.halted(begin, StatusCode.BAD_OUTPUT)
        robot.ask_for_swap(sound)
        return {**found, "moves_again_s": round(robot.drive_until(StatusCode.RUNNING), 3)}


def another_publisher(bundle: Path, folder: Path) -> dict[str, Any]:
    """Let another node send twists to the arm for two seconds."""
    with node(bundle, folder / "node.log") as _, _robot(bundle) as robot:
        robot.bring_up()
        _drive(robot)
        other = robot.node.create_publisher(TwistStamped, topics.resolve(topics.TWIST), qos.reliable(10))
        robot.drive(1.0)  # the other node is discovered and does not publish yet
        begin = time.monotonic()

        def publish(robot: Robot, i: int) -> None:
            twist = TwistStamped(header=MESSAGES.header(time.time_ns(), "base"))
            twist.twist.linear.x = 0.05
            other.publish(twist)
            robot.publish(i)

        robot.drive(_FAULT_S, publish)
        found = robot.halted(begin, StatusCode.OTHER_PUBLISHER)
        robot.node.destroy_publisher(other)
        return {**found, "moves_again_s": round(robot.drive_until(StatusCode.RUNNING), 3)}


#: A limited workspace: the node then needs the end effector's pose.
_BOX = {"safety.workspace_low": "[0.2, -0.5, 0.0]", "safety.workspace_high": "[0.6, 0.5, 0.8]"}


def _poses(robot: Robot) -> Callable[..., Callable[[Robot, int], None]]:
    """Return a function of ``x`` (m) and ``frozen``. It returns a publisher of observations.

    In these observations the end effector is at ``x``. The pose has measurement noise unless it is frozen.
    """
    pose = robot.node.create_publisher(PoseStamped, topics.resolve(topics.END_EFFECTOR_POSE), qos.reliable(10))

    def at(x: float, frozen: bool = False) -> Callable[[Robot, int], None]:
        def publish(robot: Robot, i: int) -> None:
            stamp = time.time_ns()
            noise = 0.0 if frozen else 1e-5 * (i % 7)
            pose.publish(MESSAGES.pose(np.array([x + noise, 0.0, 0.4, np.pi, 0.0, 0.0]), stamp, "base"))
            robot.publish(i, stamp)

        return publish

    return at


def _pose_fault(bundle: Path, folder: Path, x: float, *, frozen: bool, recovers: bool) -> dict[str, Any]:
    """Make the pose faulty for two seconds, in a limited workspace: at ``x`` (m) instead of 0.4 m, or frozen."""
    with node(bundle, folder / "node.log", **_BOX) as _, _robot(bundle) as robot:
        at = _poses(robot)
        robot.bring_up()
        robot.drive_until(StatusCode.RUNNING, at(0.4))
        robot.drive(_NORMAL_S, at(0.4))
        begin = time.monotonic()
        robot.drive(_FAULT_S, at(x, frozen))
        found = robot.halted(begin, StatusCode.BAD_POSE)
        if recovers:
            return {**found, "moves_again_s": round(robot.drive_until(StatusCode.RUNNING, at(0.4)), 3)}
        robot.drive(_FAULT_S, at(0.4))
        return {**found, "moves_again_s": None, "let_go": robot.statuses[-1][1].name}


def pose_freezes(bundle: Path, folder: Path) -> dict[str, Any]:
    """Publish the same pose again and again, with new stamps."""
    return _pose_fault(bundle, folder, 0.4, frozen=True, recovers=True)


def pose_jumps(bundle: Path, folder: Path) -> dict[str, Any]:
    """Publish a pose that is 3 m away. Afterwards the node waits to be enabled."""
    return _pose_fault(bundle, folder, 3.4, frozen=False, recovers=False)


def clock_set_back(bundle: Path, folder: Path) -> dict[str, Any]:
    """Set the clock of the stamps and of the node (/clock) back by a minute while the arm moves."""
    now = 1000.0

    def publish(robot: Robot, i: int) -> None:
        nonlocal now
        now += robot.contract.period
        stamp = round(now * 1e9)
        clock.publish(Clock(clock=MESSAGES.header(stamp, "").stamp))
        robot.executor.spin_once(timeout_sec=0.005)
        robot.publish(i, stamp)

    with node(bundle, folder / "node.log", use_sim_time="true"), _robot(bundle) as robot:
        clock = robot.node.create_publisher(Clock, "/clock", qos.reliable(10))
        robot.bring_up()
        robot.drive_until(StatusCode.RUNNING, publish)
        robot.drive(_NORMAL_S, publish)
        now -= 60.0
        begin = time.monotonic()
        robot.drive(1.0, publish)
        ramp = robot.first(begin, lambda s: s.motion != 0)
        moving = robot.first(ramp[0], lambda s: s.code == StatusCode.RUNNING) if ramp is not None else None
        if ramp is None or moving is None:
            raise TransportError(
                f"the node did not react to the clock that was set back; its last status is {robot.statuses[-1:]}"
            )
        stopped = robot.first(begin, lambda s: s.halted)
        return {
            "status": ramp[1].name,
            "message": ramp[1].message,
            "ramp_begins_s": round(ramp[0] - begin, 3),
            "fully_stopped_s": round(stopped[0] - begin, 3) if stopped is not None and stopped[0] < moving[0] else None,
            "moves_again_s": round(moving[0] - begin, 3),
        }


def terminated(bundle: Path, folder: Path) -> dict[str, Any]:
    """Send SIGTERM to the node while the arm moves."""
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
    """Send SIGKILL to the node while the arm moves, with the launch file's ``respawn``.

    A killed node cannot publish, so the arm's own timeout has to stop the arm.
    """
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
            "message": "no status and no command is published",
            "last_command_s": round(last, 3),
            "moves_again_s": round(1.0 + driven, 3),
        }


EVENTS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "the running bundle is deleted, and a corrupted one is offered": bundle_gone_and_tampered,
    "the disk is full": disk_full,
    "the execution provider fails": provider_lost,
    "a bundle whose network returns NaN is offered": nan_offered,
    "another node commands the arm": another_publisher,
    "the pose jumps by 3 m": pose_jumps,
    "the pose freezes": pose_freezes,
    "the clock is set back": clock_set_back,
    "SIGTERM": terminated,
    "kill -9 under ros2 launch": killed,
}
