"""Broken inputs, on plain DDS and on ROS 2: the policy halts, reports the cause, and drives again afterwards."""

from __future__ import annotations

import dataclasses
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from m2distill_policy.node import topics
from m2distill_policy.observation import Observation
from m2distill_policy.runtime.status import StatusCode
from tests.bundles import INSTRUCTIONS, observations, toy_contract, write_toy
from tests.sides import Robot, Side
from tests.test_behaviour_real_time import drive_until

CONTRACT = toy_contract()
CAMERA, OTHER = CONTRACT.camera_names


def _say_with(robot: Robot, observation: Observation, picture: Callable[[int], object]) -> None:
    """Publish an observation whose second view is the message that ``picture`` makes for its stamp."""
    stamp = time.time_ns()
    robot.publish(topics.camera_topic(OTHER), picture(stamp))
    robot.say(observation, stamp, without=(OTHER,))


def _half_written(robot: Robot, observation: Observation) -> None:
    _say_with(robot, observation, lambda stamp: robot.image(stamp, 32, 32, "rgb8", 96, bytes(100)))


def _wrong_encoding(robot: Robot, observation: Observation) -> None:
    _say_with(robot, observation, lambda stamp: robot.image(stamp, 32, 32, "32FC1", 128, bytes(32 * 128)))


def _no_picture(robot: Robot, observation: Observation) -> None:
    _say_with(robot, observation, lambda stamp: robot.image(stamp, 0, 0, "rgb8", 0, b""))


def _joint_missing(robot: Robot, observation: Observation) -> None:
    stamp = time.time_ns()
    names, values = robot.joint_state(observation)
    robot.say(observation, stamp, without=("joint_states",))
    robot.publish(topics.JOINT_STATES, robot.messages.joints(names[1:], values[1:], stamp, "base"))


def _joints_uneven(robot: Robot, observation: Observation) -> None:
    stamp = time.time_ns()
    names, values = robot.joint_state(observation)
    robot.publish(topics.JOINT_STATES, robot.messages.joints(names, values[:-1], stamp, "base"))
    robot.say(observation, stamp, without=("joint_states",))


def _joint_nan(robot: Robot, observation: Observation) -> None:
    groups = {name: values.copy() for name, values in observation.proprioception.items()}
    groups["joint_states"][2] = np.nan
    robot.say(dataclasses.replace(observation, proprioception=groups), time.time_ns())


def _from_the_future(robot: Robot, observation: Observation) -> None:
    robot.say(observation, time.time_ns() + 2_000_000_000)


def _from_the_past(robot: Robot, observation: Observation) -> None:
    robot.say(observation, time.time_ns() - 2_000_000_000)


@dataclass(frozen=True)
class Fault:
    """say: publishes the broken observation. codes: allowed status codes. parts: of the message or the warning."""

    say: Callable[[Robot, Observation], None]
    codes: Sequence[StatusCode]
    parts: Sequence[str]


FAULTS = {
    "half-written image": Fault(_half_written, [StatusCode.BAD_OBSERVATION], ["image is incomplete", "has 100 bytes"]),
    "wrong encoding": Fault(_wrong_encoding, [StatusCode.BAD_OBSERVATION], ["encoding '32FC1' is not known", "bgr8"]),
    "empty image": Fault(_no_picture, [StatusCode.BAD_OBSERVATION], [f"view '{OTHER}'", "0 rows"]),
    "joint missing": Fault(_joint_missing, [StatusCode.BAD_OBSERVATION], ["does not name", "panda_joint1"]),
    "joints uneven": Fault(
        _joints_uneven, [StatusCode.MISSING_OBSERVATION, StatusCode.BAD_OBSERVATION], ["names 9 joints", "8 positions"]
    ),
    "NaN joint": Fault(_joint_nan, [StatusCode.BAD_OBSERVATION], ["panda_joint3"]),
    "stamps jump forward": Fault(
        _from_the_future, [StatusCode.FUTURE_STAMP], ["in the future", "synchronise the clocks"]
    ),
    "stamps jump back": Fault(
        _from_the_past, [StatusCode.STALE_OBSERVATION, StatusCode.OUT_OF_ORDER, StatusCode.MISSING_OBSERVATION], []
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_observation_halts_and_is_reported(side: Side, tmp_path: Path, fault: str) -> None:
    """During the fault the arm ramps to a halt and the status reports why; afterwards the arm is driven again."""
    kind = FAULTS[fault]
    with side.met(CONTRACT, write_toy(tmp_path / "toy"), instruction=INSTRUCTIONS[0]) as (policy, robot):
        drive_until(robot, StatusCode.RUNNING, "first answer")
        robot.forget()
        due = time.monotonic()
        for observation in observations(CONTRACT, 16, seed=1):
            kind.say(robot, observation)
            due += 0.05
            robot.listen(due - time.monotonic())
        found = [s for s in robot.heard["status"] if s.code in kind.codes]
        assert found, robot.heard["status"][-3:]
        assert any(all(part in f"{s.message} {s.warning}" for part in kind.parts) for s in found), found[-1]
        robot.until(lambda: robot.heard["status"][-1].halted, "standstill")
        stopped = [a for a in robot.heard["action"] if a.command]
        assert not stopped or not np.any(np.asarray(stopped[-1].action[:6]))
        robot.listen(0.3)
        robot.forget()
        drive_until(robot, StatusCode.RUNNING, f"answer after '{fault}' has passed")
        assert policy.end() == 0


def test_a_camera_stops_and_comes_back(side: Side, tmp_path: Path) -> None:
    with side.met(CONTRACT, write_toy(tmp_path / "toy"), instruction=INSTRUCTIONS[0]) as (policy, robot):
        drive_until(robot, StatusCode.RUNNING, "first answer")
        robot.forget()
        drive_until(robot, StatusCode.MISSING_OBSERVATION, "halt without a camera", without=(CAMERA,))
        missing = [s for s in robot.heard["status"] if s.code == StatusCode.MISSING_OBSERVATION]
        assert CAMERA in missing[-1].message and missing[-1].motion in (1, 2)
        robot.forget()
        drive_until(robot, StatusCode.RUNNING, "answer after the camera came back")
        again = next(s for s in robot.heard["status"] if s.code == StatusCode.RUNNING)
        assert again.window == 1 and again.window_cleared
        assert policy.end() == 0


def test_a_camera_freezes(side: Side, tmp_path: Path) -> None:
    """New stamps and the same image while the arm moves."""
    with side.met(CONTRACT, write_toy(tmp_path / "toy"), instruction=INSTRUCTIONS[0]) as (_, robot):
        drive_until(robot, StatusCode.RUNNING, "first answer")
        robot.forget()
        moving = observations(CONTRACT, 30, seed=1)
        still = {**moving[0].images}
        frozen = [dataclasses.replace(o, images={**o.images, CAMERA: still[CAMERA]}) for o in moving]
        robot.drive(frozen)
        found = [s for s in robot.heard["status"] if s.code == StatusCode.FROZEN_VIEW]
        assert found and f"View '{CAMERA}'" in found[-1].message and "restart the camera" in found[-1].message


def test_a_camera_repeats_its_stamp(side: Side, tmp_path: Path) -> None:
    """A driver that repeats its last image with its stamp."""
    with side.met(CONTRACT, write_toy(tmp_path / "toy"), instruction=INSTRUCTIONS[0]) as (_, robot):
        drive_until(robot, StatusCode.RUNNING, "first answer")
        robot.forget()
        stamp = time.time_ns()
        (observation,) = observations(CONTRACT, 1, seed=1)
        for _ in range(16):
            robot.say(observation, stamp)
            robot.listen(0.05)
        halted = [s for s in robot.heard["status"] if s.motion]
        assert halted and halted[-1].halted and halted[-1].code == StatusCode.REPEATED_STAMP


def test_a_camera_that_is_too_slow_is_refused(side: Side, tmp_path: Path) -> None:
    with side.met(CONTRACT, write_toy(tmp_path / "toy"), instruction=INSTRUCTIONS[0]) as (_, robot):
        robot.drive(observations(CONTRACT, 26), hz=10)
        refusal = robot.status(lambda s: s.code == StatusCode.HALT_REQUESTED, "the slow camera")
        assert "sends 10." in refusal.message or "sends 9." in refusal.message, refusal.message
        assert "the policy needs 20" in refusal.message
        # The instruction is sent again, but the camera is as slow as before.
        robot.forget()
        robot.drive(observations(CONTRACT, 10, seed=1), hz=10, first=lambda: robot.instruct(INSTRUCTIONS[0]))
        assert StatusCode.RUNNING not in {s.code for s in robot.heard["status"]}


def test_unknown_instruction(side: Side, tmp_path: Path) -> None:
    with side.met(CONTRACT, write_toy(tmp_path / "toy")) as (_, robot):
        drive_until(robot, StatusCode.NO_INSTRUCTION, "status without an instruction")
        robot.instruct("lift the rad box")
        drive_until(robot, StatusCode.UNKNOWN_INSTRUCTION, "refusal of an unknown instruction")
        refusal = next(s for s in robot.heard["status"] if s.code == StatusCode.UNKNOWN_INSTRUCTION)
        assert all(text in refusal.message for text in ("lift the rad box", *INSTRUCTIONS))
        robot.instruct(INSTRUCTIONS[1])
        robot.forget()
        drive_until(robot, StatusCode.RUNNING, "answer")


def test_the_bundle_of_a_running_policy_is_deleted(side: Side, tmp_path: Path) -> None:
    """The running bundle was read completely, so the policy continues."""
    bundle = write_toy(tmp_path / "toy")
    with side.met(CONTRACT, bundle, instruction=INSTRUCTIONS[0]) as (policy, robot):
        drive_until(robot, StatusCode.RUNNING, "first answer")
        for file in bundle.iterdir():
            file.unlink()
        bundle.rmdir()
        robot.forget()
        robot.drive(observations(CONTRACT, 20, seed=1))
        assert sum(s.code == StatusCode.RUNNING for s in robot.heard["status"]) >= 10
        assert policy.end() == 0


def test_the_engine_fails_while_the_arm_moves(side: Side, tmp_path: Path) -> None:
    """As when a GPU is lost: ONNX Runtime fails on every step until the robot is elsewhere."""
    sound = observations(CONTRACT, 60, seed=1)
    joints = CONTRACT.proprioception[0].name
    for observation in sound:
        observation.proprioception[joints][0] = 0.0
    lost = [dataclasses.replace(o, proprioception={k: v.copy() for k, v in o.proprioception.items()}) for o in sound]
    for observation in lost:
        observation.proprioception[joints][0] = 2.0
    bundle = write_toy(tmp_path / "toy", fails_above=1.5)
    with side.met(CONTRACT, bundle, instruction=INSTRUCTIONS[0]) as (policy, robot):
        drive_until(robot, StatusCode.RUNNING, "first answer")
        robot.forget()
        robot.drive(lost[:24])
        found = [s for s in robot.heard["status"] if s.code == StatusCode.ENGINE_FAILED]
        assert found and "ONNX Runtime (CPUExecutionProvider) failed on bundle" in found[0].message
        robot.until(lambda: robot.heard["status"][-1].halted, "standstill")
        robot.forget()
        robot.drive(sound[:20])
        assert any(s.code == StatusCode.RUNNING for s in robot.heard["status"])
        assert policy.end() == 0
        assert "Traceback" not in policy.output


def test_the_disk_is_full(side: Side, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be written to files any more, including the log; the arm is still driven, instructed and halted."""
    monkeypatch.setenv("PYTHONUNBUFFERED", "")  # as users run it: what could not be written waits in a buffer
    with side.met(CONTRACT, write_toy(tmp_path / "toy"), instruction=INSTRUCTIONS[0]) as (policy, robot):
        drive_until(robot, StatusCode.RUNNING, "first answer")
        resource.prlimit(policy.process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        before = len(policy.output)
        robot.instruct("lift the rad box")
        robot.forget()
        drive_until(robot, StatusCode.UNKNOWN_INSTRUCTION, "refusal, which is logged as well")
        robot.instruct(INSTRUCTIONS[1])
        robot.forget()
        drive_until(robot, StatusCode.RUNNING, "answer")
        assert len(policy.output) == before, "something was written: this proves nothing"
        assert policy.end() == 0
