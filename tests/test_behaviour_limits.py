"""Commands and poses, on plain DDS and on ROS 2: impossible poses, set-points, and a faster bundle."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m2distill_policy.bundle import open_bundle
from m2distill_policy.contract import Contract, VelocityResponse
from m2distill_policy.node import topics
from m2distill_policy.node.messages import twist_of
from m2distill_policy.runtime.status import StatusCode, SwapState
from tests.bundles import INSTRUCTIONS, observations, toy_contract, write_toy
from tests.sides import Robot, Side
from tests.test_behaviour_real_time import drive_until

CONTRACT = toy_contract()
POSE = np.array([0.4, 0.3, 0.4, math.pi, 0.0, 0.0])
BOX: dict[str, Any] = {"safety__workspace_low": [0.2, 0.2, 0.2], "safety__workspace_high": [0.6, 0.6, 0.6]}


def with_top(top: float) -> Contract:
    response = VelocityResponse((0.0, 1.0), ((0.0, top),) * 6)
    return dataclasses.replace(CONTRACT, action=dataclasses.replace(CONTRACT.action, response=response))


def positions(robot: Robot) -> np.ndarray[Any, Any]:
    places = [target.pose.position for target in robot.heard["target_pose"]]
    return np.array([[place.x, place.y, place.z] for place in places]).reshape(-1, 3)


@pytest.mark.parametrize("box", [False, True], ids=["no box", "a box"])
def test_a_wrong_pose_gives_no_set_point(side: Side, tmp_path: Path, box: bool) -> None:
    with side.met(CONTRACT, write_toy(tmp_path / "toy"), instruction=INSTRUCTIONS[0], **(BOX if box else {})) as (
        policy,
        robot,
    ):

        def here() -> None:
            robot.at(POSE, time.time_ns())

        drive_until(robot, StatusCode.RUNNING, "first answer", first=here)
        robot.drive(observations(CONTRACT, 10), first=here)
        wrong = POSE.copy()
        for wrong[0] in (3.4, -1.0, 1e9, math.nan, math.inf):
            robot.drive(observations(CONTRACT, 1, seed=1), first=lambda: robot.at(wrong, time.time_ns()))
            robot.drive(observations(CONTRACT, 4, seed=2), first=here)
        found = positions(robot)
        assert len(found) >= 15
        scale = CONTRACT.action.translation_scale
        assert np.all(np.abs(found - POSE[:3]) <= scale + 1e-9)
        statuses = robot.heard["status"]
        assert any("refused" in status.warning for status in statuses)
        assert not box or any(status.code == StatusCode.BAD_POSE for status in statuses)
        robot.forget()
        drive_until(robot, StatusCode.RUNNING, "answer after the wrong poses", first=here)
        assert policy.end() == 0


def test_lasting_pose_jump_halts_and_is_reported(side: Side, tmp_path: Path) -> None:
    with side.met(CONTRACT, write_toy(tmp_path / "toy"), instruction=INSTRUCTIONS[0]) as (_, robot):
        drive_until(robot, StatusCode.RUNNING, "first answer", first=lambda: robot.at(POSE, time.time_ns()))
        robot.drive(observations(CONTRACT, 10), first=lambda: robot.at(POSE, time.time_ns()))
        there = POSE + np.array([0.5, 0.0, 0.0, 0.0, 0.0, 0.0])
        drive_until(robot, StatusCode.BAD_POSE, "halt", first=lambda: robot.at(there, time.time_ns()))
        robot.until(lambda: robot.heard["status"][-1].halted, "standstill")
        assert np.all(np.abs(positions(robot) - POSE[:3]) <= CONTRACT.action.translation_scale + 1e-9)


def test_pose_in_another_frame_halts_with_a_workspace(side: Side, tmp_path: Path) -> None:
    with side.met(CONTRACT, write_toy(tmp_path / "toy"), instruction=INSTRUCTIONS[0], **BOX) as (_, robot):

        def here(frame: str) -> None:
            robot.publish(topics.END_EFFECTOR_POSE, robot.messages.pose(POSE, time.time_ns(), frame))

        drive_until(robot, StatusCode.RUNNING, "first answer", first=lambda: here("base"))
        drive_until(robot, StatusCode.BAD_POSE, "halt", first=lambda: here("camera_link"))
        robot.until(lambda: "'camera_link'" in robot.heard["status"][-1].warning, "the frame's name")
        robot.forget()
        drive_until(robot, StatusCode.RUNNING, "answer in the right frame", first=lambda: here("base"))


def test_a_pose_that_comes_after_the_joints_gives_a_set_point(side: Side, tmp_path: Path) -> None:
    with side.met(CONTRACT, write_toy(tmp_path / "toy"), instruction=INSTRUCTIONS[0]) as (_, robot):
        drive_until(robot, StatusCode.RUNNING, "first answer")

        def send(count: int) -> list[int]:
            stamps = []
            due = time.monotonic()
            for observation in observations(CONTRACT, count, seed=1):
                due += 0.05
                stamps.append(time.time_ns())
                robot.say(observation, stamps[-1])
                time.sleep(0.004)
                robot.at(POSE, stamps[-1])
                robot.listen(due - time.monotonic())
            return stamps

        send(5)
        # A busy machine may deliver a pose later than the node waits for it, 15 ms: then it is tried again. A node that
        # does not wait has 1 set-point in 20. tests/test_node_poses.py asks for 97 in 100, without a clock.
        rounds: list[float] = []
        while not rounds or (rounds[-1] < 0.8 and len(rounds) < 5):
            robot.forget()
            send(40)
            robot.listen(0.3)
            drove = [status for status in robot.heard["status"] if status.code == StatusCode.RUNNING]
            assert len(drove) >= 20
            rounds.append(len(robot.heard["target_pose"]) / len(drove))
        assert rounds[-1] >= 0.8, rounds


def test_faster_bundle_is_refused_and_slightly_faster_one_is_limited(side: Side, tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()
    first = write_toy(tmp_path / "first", contract=with_top(0.2))
    settings: dict[str, Any] = {"instruction": INSTRUCTIONS[0], "watch_folder": watched, "swap_when": "now"}
    with side.met(CONTRACT, first, **settings) as (policy, robot):
        drive_until(robot, StatusCode.RUNNING, "first answer")
        write_toy(tmp_path / "faster", 3, contract=with_top(0.3)).rename(watched / "faster")
        drive_until(robot, StatusCode.RUNNING, "a refusal", fits=lambda s: s.swap == SwapState.REFUSED)
        refused = next(s for s in robot.heard["status"] if s.swap == SwapState.REFUSED)
        assert "0.3 m/s" in refused.swap_message and refused.bundle == open_bundle(first).identifier
        write_toy(tmp_path / "refit", 4, contract=with_top(0.21)).rename(watched / "refit")
        drive_until(robot, StatusCode.RUNNING, "the refit", fits=lambda s: s.swap == SwapState.SWITCHED)
        robot.forget()
        robot.drive(observations(CONTRACT, 20, seed=2))
        assert any("limited" in status.warning for status in robot.heard["status"])
        twists = np.array([twist_of(twist) for twist in robot.heard["twist"]])
        assert len(twists) >= 5 and np.all(np.abs(twists) <= 0.2 + 1e-9)
        assert policy.end() == 0


@pytest.mark.parametrize("name", [b"caf\xe9", b"a\nb", b"\x1b[31mred", "\u202eback".encode(), b"\xff" * 60])
def test_name_that_is_not_text_is_refused_and_the_arm_halts(side: Side, tmp_path: Path, name: bytes) -> None:
    """A file name may be any bytes, but a message is text."""
    watched = tmp_path / "watched"
    watched.mkdir()
    bad = write_toy(tmp_path / "bad", 2)
    (bad / "step.onnx").unlink()
    settings: dict[str, Any] = {"instruction": INSTRUCTIONS[0], "watch_folder": watched, "swap_when": "now"}
    with side.met(CONTRACT, write_toy(tmp_path / "toy"), **settings) as (policy, robot):
        drive_until(robot, StatusCode.RUNNING, "first answer")
        bad.rename(watched / os.fsdecode(name))
        drive_until(robot, StatusCode.RUNNING, "a refusal", fits=lambda s: s.swap == SwapState.REFUSED)
        assert all(s.swap_message.isprintable() and s.warning.isprintable() for s in robot.heard["status"])
        robot.forget()
        assert policy.end() == 0
        robot.listen(0.3)
        assert robot.heard["status"][-1].halted and not any(robot.heard["action"][-1].action[:6])
