"""Requests of an operator by topics and signals, on plain DDS and on ROS 2."""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from m2distill_policy.node import topics
from m2distill_policy.runtime.status import StatusCode
from tests.bundles import INSTRUCTIONS, observations, toy_bundle, toy_contract, write_toy
from tests.sides import HEARD, Side
from tests.test_behaviour_real_time import drive_until

CONTRACT = toy_contract()


def test_enable_and_disable_by_topic(side: Side, tmp_path: Path) -> None:
    bundle = write_toy(tmp_path / "toy")
    with side.met(CONTRACT, bundle, instruction=INSTRUCTIONS[0], enable=False) as (policy, robot):
        drive_until(robot, StatusCode.DISABLED, "answer in shadow")
        assert not robot.heard["twist"]
        robot.enable(True)
        robot.forget()
        drive_until(robot, StatusCode.RUNNING, "answer after it was enabled")
        assert robot.heard["twist"]
        robot.enable(False)
        robot.forget()
        drive_until(robot, StatusCode.DISABLED, "shadow again")
        robot.publish(topics.EMERGENCY_STOP, robot.flag(True))
        robot.enable(True)
        robot.forget()
        drive_until(robot, StatusCode.EMERGENCY_STOP, "the emergency stop")
        robot.publish(topics.EMERGENCY_STOP, robot.flag(False))
        robot.forget()
        drive_until(robot, StatusCode.HELD, "the emergency stop was let go")
        robot.drive(observations(CONTRACT, 12, seed=1))
        robot.enable(True)  # as a publisher does that repeats itself
        robot.forget()
        robot.drive(observations(CONTRACT, 12, seed=2))
        assert {s.code for s in robot.heard["status"]} == {StatusCode.HELD}
        robot.enable_again()
        robot.forget()
        drive_until(robot, StatusCode.RUNNING, "answer after it was enabled again")
        assert policy.end() == 0


def test_enable_measures_slow_cameras_again(side: Side, tmp_path: Path) -> None:
    with side.met(CONTRACT, write_toy(tmp_path / "toy"), instruction=INSTRUCTIONS[0]) as (policy, robot):
        robot.drive(observations(CONTRACT, 26), hz=10)
        robot.status(lambda s: s.code == StatusCode.HALT_REQUESTED, "the slow camera")
        robot.enable(True)
        robot.forget()
        robot.drive(observations(CONTRACT, 26, seed=1), hz=10)
        assert StatusCode.RUNNING not in {s.code for s in robot.heard["status"]}, "it is as slow as before"
        assert robot.heard["status"][-1].code == StatusCode.HALT_REQUESTED
        robot.enable_again()
        robot.forget()
        drive_until(robot, StatusCode.RUNNING, "answer, now that the camera is fast enough")
        assert policy.end() == 0


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_more_signals_do_not_end_a_long_ramp(side: Side, tmp_path: Path, first: signal.Signals) -> None:
    bundle = write_toy(tmp_path / "toy")
    with side.met(CONTRACT, bundle, instruction=INSTRUCTIONS[0], safety__halt_time=3.0) as (policy, robot):
        drive_until(robot, StatusCode.RUNNING, "first answer")
        robot.forget()
        policy.process.send_signal(first)
        began = time.monotonic()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):  # more than a second after the first
            robot.drive(observations(CONTRACT, 13 if number is not signal.SIGINT else 14))
            policy.process.send_signal(number)
        assert policy.wait(15) == 0, policy.output
        assert 2.8 < time.monotonic() - began < 8
        robot.listen(0.2)
        motions = [s.motion for s in robot.heard["status"] if s.code == StatusCode.HALT_REQUESTED]
        assert motions.count(1) > 40 and motions[-1] == 2, motions
        assert not np.any(np.asarray([robot.heard["action"][-1].action[:6]]))
        assert "Traceback" not in policy.output


# --- another publisher of the commands ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["twist", "target_pose", "gripper"])
def test_another_publisher_of_a_command_is_named_and_halts(side: Side, tmp_path: Path, name: str) -> None:
    """Another publisher gives a warning, and its first command a halt; both end when it is gone."""
    with side.met(CONTRACT, write_toy(tmp_path / "toy"), instruction=INSTRUCTIONS[0]) as (policy, robot):
        drive_until(robot, StatusCode.RUNNING, "first answer")
        other = side.robot(CONTRACT)
        send = other.commander(HEARD[name])
        robot.forget()
        topic = topics.resolve(HEARD[name])
        deadline = time.monotonic() + 20  # a busy machine discovers it late
        robot.drive(observations(CONTRACT, 50, seed=1))
        while f"another publisher of '{topic}' (" not in robot.heard["status"][-1].warning:
            assert time.monotonic() < deadline, robot.heard["status"][-1:]
            robot.drive(observations(CONTRACT, 10, seed=int(deadline * 1000)))
        assert StatusCode.OTHER_PUBLISHER not in {s.code for s in robot.heard["status"]}
        send()
        robot.forget()
        drive_until(robot, StatusCode.OTHER_PUBLISHER, "halt for another publisher")
        robot.drive(observations(CONTRACT, 12, seed=2))
        assert topic in robot.heard["status"][-1].message and robot.heard["status"][-1].halted
        robot.forget()
        robot.drive(observations(CONTRACT, 30, seed=3))
        assert StatusCode.RUNNING not in {s.code for s in robot.heard["status"]}
        assert not robot.heard["twist"] and not robot.heard["gripper"], "the arm is left to the other one"
        other.close()
        robot.forget()
        drive_until(robot, StatusCode.RUNNING, "answer after the other one has left")
        robot.drive(observations(CONTRACT, 24, seed=4))
        assert "another publisher" not in robot.heard["status"][-1].warning
        assert policy.end() == 0


def test_second_policy_for_one_arm_does_not_start(side: Side, tmp_path: Path) -> None:
    """It is enabled, but has no instruction until it has discovered the first one, which a busy machine does late."""
    other = toy_bundle(tmp_path / "other", seed=1)
    with side.met(CONTRACT, write_toy(tmp_path / "toy"), instruction=INSTRUCTIONS[0]) as (policy, robot):
        drive_until(robot, StatusCode.RUNNING, "first answer")
        with side.policy(other.path, autostart=True) as second:
            deadline, said = time.monotonic() + 20, set[tuple[StatusCode, str]]()
            while (StatusCode.OTHER_PUBLISHER, other.identifier) not in said:
                assert time.monotonic() < deadline, said
                robot.drive(observations(CONTRACT, 20, seed=1))
                said = {(StatusCode(s.code), s.bundle) for s in robot.heard["status"]}
            robot.instruct(INSTRUCTIONS[0])
            robot.drive(observations(CONTRACT, 100, seed=1))
            said = {(StatusCode(s.code), s.bundle) for s in robot.heard["status"]}
            assert (StatusCode.RUNNING, other.identifier) not in said
            robot.forget()
            robot.drive(observations(CONTRACT, 20, seed=2))
            assert len(robot.heard["twist"]) < 25, "one of them drives"
            assert policy.end() == 0
            robot.forget()
            deadline = time.monotonic() + 20
            # On a busy machine it may be the rate of the cameras that holds the arm then.
            while not any(s.code in (StatusCode.RUNNING, StatusCode.HALT_REQUESTED) for s in robot.heard["status"]):
                assert time.monotonic() < deadline, robot.heard["status"][-1:]
                robot.drive(observations(CONTRACT, 4, seed=int(deadline * 1000)))
            assert robot.heard["status"][-1].code != StatusCode.OTHER_PUBLISHER
            assert second.end() == 0


def test_allowed_other_publisher_does_not_halt(side: Side, tmp_path: Path) -> None:
    settings = {"instruction": INSTRUCTIONS[0], "allow_other_publishers": True}
    with side.met(CONTRACT, write_toy(tmp_path / "toy"), **settings) as (_, robot):
        drive_until(robot, StatusCode.RUNNING, "first answer")
        with contextlib.closing(side.robot(CONTRACT)) as other:
            send = other.commander(topics.TWIST)
            robot.forget()
            robot.drive(observations(CONTRACT, 40, seed=1), first=send)
        assert StatusCode.OTHER_PUBLISHER not in {s.code for s in robot.heard["status"]}
        assert not any(s.warning for s in robot.heard["status"])


def test_in_shadow_another_node_may_drive_and_enable_reports_it(side: Side, tmp_path: Path) -> None:
    with side.met(CONTRACT, write_toy(tmp_path / "toy"), instruction=INSTRUCTIONS[0], enable=False) as (_, robot):
        drive_until(robot, StatusCode.DISABLED, "answer in shadow")
        with contextlib.closing(side.robot(CONTRACT)) as other:
            send = other.commander(topics.TWIST)
            robot.forget()
            robot.drive(observations(CONTRACT, 40, seed=1), first=send)
            codes = {s.code for s in robot.heard["status"]}
            assert StatusCode.DISABLED in codes and StatusCode.OTHER_PUBLISHER not in codes
            robot.enable(True)
            robot.forget()
            drive_until(robot, StatusCode.OTHER_PUBLISHER, "halt for the one that drives", first=send)
            robot.drive(observations(CONTRACT, 30, seed=3))  # it falls silent, and is still there
            assert robot.heard["status"][-1].code == StatusCode.OTHER_PUBLISHER
            robot.enable_again()
            robot.forget()
            drive_until(robot, StatusCode.RUNNING, "answer after it was enabled again")


# --- two arms -------------------------------------------------------------------------------------------------------


def test_two_arms_in_two_namespaces_do_not_meet(side: Side, tmp_path: Path) -> None:
    bundle = write_toy(tmp_path / "toy")
    with (
        side.met(CONTRACT, bundle, instruction=INSTRUCTIONS[0], namespace="/left") as (left_policy, left),
        side.met(CONTRACT, bundle, instruction=INSTRUCTIONS[1], namespace="/right") as (right_policy, right),
    ):
        drive_until(left, StatusCode.RUNNING, "the left arm's first answer")
        assert StatusCode.RUNNING not in {s.code for s in right.heard["status"]}, "it has no cameras of its own yet"
        drive_until(right, StatusCode.RUNNING, "the right arm's first answer")
        for robot, instruction in ((left, INSTRUCTIONS[0]), (right, INSTRUCTIONS[1])):
            robot.forget()
            robot.drive(observations(CONTRACT, 50, seed=1))
            assert {s.instruction for s in robot.heard["status"]} == {instruction}
            assert StatusCode.OTHER_PUBLISHER not in {s.code for s in robot.heard["status"]}
            assert robot.heard["twist"] and not any(s.warning for s in robot.heard["status"])
        names = {entry.name for message in right.heard["diagnostics"] for entry in message.status}
        assert names >= {"left/m2distill_policy: policy", "right/m2distill_policy: policy"}
        rates = {value.key for m in right.heard["diagnostics"] for entry in m.status for value in entry.values}
        assert {"rate of /left/joint_states (Hz)", "rate of /right/joint_states (Hz)"} <= rates
        assert left_policy.end() == 0 and right_policy.end() == 0
