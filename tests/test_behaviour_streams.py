"""Streams with wrong clocks, split joint states and frozen joints, on plain DDS and on ROS 2."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from m2distill_policy.node import topics
from m2distill_policy.observation import Observation
from m2distill_policy.runtime.status import StatusCode
from tests.bundles import INSTRUCTIONS, observations, toy_contract, write_toy
from tests.sides import Robot, Side

CONTRACT = toy_contract()
A, B = CONTRACT.camera_names
JOINTS, POSE = topics.JOINT_STATES, topics.END_EFFECTOR_POSE
GRIPPER = "/gripper/joint_states"
WHERE = np.array([0.4, 0.0, 0.3, np.pi, 0.0, 0.0])
ARM = len(CONTRACT.proprioception[0].entries)
NS = 1_000_000_000


def say(
    robot: Robot, observation: Observation, offsets: dict[str, float], stamps: dict[str, int], *, grid: bool = False
) -> None:
    """Publish an observation whose streams have different clocks.

    offsets: s; stamps: ns, where a stream's is fixed. grid: exactly a period apart, however busy the machine is.
    """
    period = round(CONTRACT.period * NS)
    now = time.time_ns() // period * period if grid else time.time_ns()

    def stamp(stream: str) -> int:
        return stamps.get(stream, now + round(offsets.get(stream, 0.0) * NS))

    for name in (A, B):
        robot.say(observation, stamp(name), without=(A if name == B else B, "joint_states"))
    names, values = robot.joint_state(observation)
    robot.publish(JOINTS, robot.messages.joints(names, values, stamp("joints"), "base"))
    robot.at(WHERE, stamp("pose"))


#: Made beforehand: what takes time between two messages makes a camera slow.
SEEN = observations(CONTRACT, 64)
ORDER = itertools.count()


class Pace:
    """Publishes one observation a period, without a pause between two calls."""

    def __init__(self, robot: Robot) -> None:
        self._robot = robot
        self._due = time.monotonic()

    def drive(self, count: int, one: Callable[[Observation], object]) -> None:
        """Publish ``count`` observations."""
        self._due = max(self._due, time.monotonic() - CONTRACT.period)
        for _ in range(count):
            self._due += CONTRACT.period
            one(SEEN[next(ORDER) % len(SEEN)])
            self._robot.listen(self._due - time.monotonic())

    def until(self, code: StatusCode, one: Callable[[Observation], object], what: str) -> None:
        """Publish until the newest status has ``code``."""
        deadline, turn = time.monotonic() + 15, 0
        while not (self._robot.heard["status"] and self._robot.heard["status"][-1].code == code):
            last = self._robot.heard["status"][-1:]
            assert time.monotonic() < deadline, f"no {what}; the last status was {last}"
            turn += 1
            if turn % 12 == 0:  # a busy machine is taken for a slow camera, until the policy is told something else
                self._robot.instruct(INSTRUCTIONS[turn // 12 % 2])
            self.drive(2, one)


@dataclass(frozen=True)
class Case:
    """offsets, stamps, grid: see :func:`say`. codes: allowed status codes. parts: of every message meanwhile."""

    codes: Sequence[StatusCode]
    parts: Sequence[str]
    offsets: dict[str, float] = field(default_factory=dict)
    stamps: dict[str, int] = field(default_factory=dict)
    grid: bool = False


FUTURE, STALE = [StatusCode.FUTURE_STAMP], [StatusCode.STALE_OBSERVATION]
TOPIC_A, TOPIC_B = "/camera/agentview/image_raw", "/camera/eye_in_hand/image_raw"
CASES = {
    "both cameras 0.15 s ahead": Case(FUTURE, ["/camera/", "watch.future_tolerance"], {A: 0.15, B: 0.15}),
    "both cameras 0.4 s ahead": Case(FUTURE, ["/camera/", "0.1 s"], {A: 0.4, B: 0.4}),
    "one camera ahead": Case(FUTURE, [TOPIC_B], {B: 0.3}),
    "joints 1 s ahead": Case(FUTURE, ["/joint_states"], {"joints": 1.0}),
    "joints 2 s ahead": Case(FUTURE, ["/joint_states"], {"joints": 2.0}),
    "joints behind": Case(STALE, ["/joint_states", "watch.stale_after"], {"joints": -1.0}),
    "pose ahead": Case(FUTURE, ["/end_effector_pose"], {"pose": 1.0}),
    "pose behind": Case(STALE, ["/end_effector_pose"], {"pose": -1.0}),
    "cameras 37 s behind": Case(STALE, ["/camera/", "/joint_states", "37."], {A: -37.0, B: -37.0}),
    "a camera without stamps": Case([StatusCode.REPEATED_STAMP], [TOPIC_A], stamps={A: 0}),
    "cameras 24 ms apart": Case(
        [StatusCode.UNSYNCHRONISED], [TOPIC_A, TOPIC_B, "0.024 s", "slop"], {B: -0.024}, grid=True
    ),
}


def test_stream_with_a_wrong_clock_halts_and_is_reported(side: Side, tmp_path: Path) -> None:
    with side.met(CONTRACT, write_toy(tmp_path / "toy"), instruction=INSTRUCTIONS[0]) as (policy, robot):
        pace = Pace(robot)
        for name, case in CASES.items():

            def right(observation: Observation) -> None:
                say(robot, observation, {}, {})

            def wrong(observation: Observation, case: Case = case) -> None:
                say(robot, observation, case.offsets, case.stamps, grid=case.grid)

            pace.until(StatusCode.RUNNING, right, f"answer before '{name}'")
            pace.drive(14, wrong)
            robot.forget()
            pace.drive(8, wrong)
            found = robot.heard["status"]
            assert found and {s.code for s in found} <= {*case.codes, StatusCode.WAITING}, (name, found[-1])
            assert all(part in found[-1].message for part in case.parts), (name, found[-1].message)
            assert found[-1].halted, name
            assert not any(np.any(np.asarray(a.action[:6])) for a in robot.heard["action"] if a.command), name
            robot.forget()
        pace.until(StatusCode.RUNNING, right, "answer at the end")
        assert policy.end() == 0


def _pieces(robot: Robot, observation: Observation, topic: str) -> None:
    """Yield arm and gripper in separate messages, and velocities in between."""
    stamp = time.time_ns()
    robot.say(observation, stamp, without=("joint_states",))
    names, values = robot.joint_state(observation)
    robot.publish(JOINTS, robot.messages.joints(names[:ARM], values[:ARM], stamp, "base"))
    robot.publish(JOINTS, robot.messages.joints(names, [], stamp, "base"))
    robot.publish(topic, robot.messages.joints(names[ARM:], values[ARM:], stamp, "base"))


def test_arm_and_gripper_in_messages_of_their_own(side: Side, tmp_path: Path) -> None:
    with side.met(CONTRACT, write_toy(tmp_path / "toy"), instruction=INSTRUCTIONS[0]) as (policy, robot):
        pace = Pace(robot)

        def arm_alone(observation: Observation) -> None:
            stamp = time.time_ns()
            robot.say(observation, stamp, without=("joint_states",))
            names, values = robot.joint_state(observation)
            robot.publish(JOINTS, robot.messages.joints(names[:ARM], values[:ARM], stamp, "base"))

        pace.until(StatusCode.BAD_OBSERVATION, arm_alone, "word of the gripper's joints")
        text = robot.heard["status"][-1].message
        assert "does not name panda_finger_joint1, panda_finger_joint2" in text and "finite" not in text
        pace.until(StatusCode.RUNNING, lambda o: _pieces(robot, o, JOINTS), "answer")
        robot.forget()
        pace.drive(40, lambda o: _pieces(robot, o, JOINTS))
        codes = [s.code for s in robot.heard["status"]]
        assert codes.count(StatusCode.RUNNING) > 15 and StatusCode.BAD_OBSERVATION not in codes

        def twice(observation: Observation) -> None:
            stamp = time.time_ns()
            robot.say(observation, stamp, without=("joint_states",))
            names, values = robot.joint_state(observation)
            robot.publish(JOINTS, robot.messages.joints([*names, names[0]], [*values, values[0] + 0.1], stamp, "base"))

        robot.forget()
        pace.drive(12, twice)
        last = robot.heard["status"][-1]
        assert last.motion and "names panda_joint1 2 times" in last.warning, last
        assert policy.end() == 0


def test_the_gripper_on_a_topic_of_its_own(side: Side, tmp_path: Path) -> None:
    bundle = write_toy(tmp_path / "toy")
    with side.met(CONTRACT, bundle, instruction=INSTRUCTIONS[0], joint_topics=[GRIPPER]) as (policy, robot):
        pace = Pace(robot)
        robot.announce_joints(GRIPPER)
        pace.until(StatusCode.RUNNING, lambda o: _pieces(robot, o, GRIPPER), "answer")
        robot.forget()
        pace.drive(30, lambda o: _pieces(robot, o, GRIPPER))
        codes = [s.code for s in robot.heard["status"]]
        assert codes.count(StatusCode.RUNNING) > 10 and StatusCode.BAD_OBSERVATION not in codes
        assert policy.end() == 0


def test_joints_that_freeze_while_the_arm_is_commanded(side: Side, tmp_path: Path) -> None:
    """Fresh stamps, new images and the same joint positions: a dead driver that repeats its last state."""
    with side.met(CONTRACT, write_toy(tmp_path / "toy"), instruction=INSTRUCTIONS[0]) as (policy, robot):
        pace = Pace(robot)

        def right(observation: Observation) -> None:
            robot.say(observation, time.time_ns())

        pace.until(StatusCode.RUNNING, right, "answer")
        (still,) = observations(CONTRACT, 1, seed=5)

        def frozen(observation: Observation) -> None:
            robot.say(Observation(observation.images, still.proprioception, 0.0), time.time_ns())

        robot.forget()
        pace.until(StatusCode.FROZEN_JOINTS, frozen, "halt of frozen joints")
        pace.drive(8, frozen)
        last = robot.heard["status"][-1]
        assert last.code == StatusCode.FROZEN_JOINTS and last.halted and "joint_states" in last.message
        driven = [s for s in robot.heard["status"] if s.code == StatusCode.RUNNING]
        assert 8 <= len(driven) <= 14, "after ten commands"
        robot.forget()
        pace.until(StatusCode.RUNNING, right, "answer once the driver is back")
        assert policy.end() == 0


def test_a_pose_that_freezes_while_the_arm_is_commanded(side: Side, tmp_path: Path) -> None:
    """Fresh stamps, new joint positions and the same pose: its publisher repeats the last one."""
    with side.met(CONTRACT, write_toy(tmp_path / "toy"), instruction=INSTRUCTIONS[0]) as (policy, robot):
        pace = Pace(robot)

        def right(observation: Observation) -> None:
            robot.at(WHERE, stamp := time.time_ns())
            robot.say(observation, stamp)

        def frozen(observation: Observation) -> None:
            stamp = time.time_ns()
            robot.publish(POSE, robot.messages.pose(WHERE, stamp, "base"))
            robot.say(observation, stamp)

        pace.until(StatusCode.RUNNING, right, "answer")
        robot.forget()
        pace.until(StatusCode.BAD_POSE, frozen, "halt of a frozen pose")
        pace.drive(8, frozen)
        last = robot.heard["status"][-1]
        assert last.code == StatusCode.BAD_POSE and last.halted and POSE in last.message
        robot.forget()
        pace.until(StatusCode.RUNNING, right, "answer once the pose changes again")
        assert policy.end() == 0


def test_a_second_publisher_of_the_joints(side: Side, tmp_path: Path) -> None:
    """A forgotten joint_state_publisher publishes zeros: the same names, another order, or another topic."""
    bundle = write_toy(tmp_path / "toy")
    with side.met(CONTRACT, bundle, instruction=INSTRUCTIONS[0], joint_topics=[GRIPPER]) as (policy, robot):
        pace = Pace(robot)
        robot.announce_joints(GRIPPER)

        def right(observation: Observation) -> None:
            moved = {name: values + np.float32(0.5) for name, values in observation.proprioception.items()}
            moved["gripper_states"] = observation.proprioception["gripper_states"]
            robot.say(Observation(observation.images, moved, 0.0), time.time_ns())

        names, _ = robot.joint_state(SEEN[0])
        for topic, said in ((JOINTS, names), (JOINTS, names[::-1]), (GRIPPER, names)):

            def stray(observation: Observation, topic: str = topic, said: list[str] = said) -> None:
                right(observation)
                stamp = time.time_ns()
                robot.publish(topic, robot.messages.joints(said, [0.0] * len(said), stamp, "base"))

            pace.until(StatusCode.RUNNING, right, "answer")
            robot.forget()
            pace.until(StatusCode.BAD_OBSERVATION, stray, f"halt of a second publisher on {topic}")
            robot.forget()
            pace.drive(12, stray)
            found = robot.heard["status"]
            assert {s.code for s in found} == {StatusCode.BAD_OBSERVATION} and found[-1].halted
            assert topic in found[-1].message and any(name in found[-1].message for name in names)
        pace.until(StatusCode.RUNNING, right, "answer at the end")
        assert policy.end() == 0
