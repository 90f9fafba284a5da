"""Ten thousand randomly broken messages, on plain DDS and on ROS 2: the policy survives, and commands stay in limits.

Fields that make no sense, and bytes that are no message, between good observations. Seeded; a failure names its seed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from m2distill_policy.node import topics
from m2distill_policy.runtime.status import StatusCode
from tests.bundles import INSTRUCTIONS, observations, toy_contract, write_toy
from tests.sides import Robot, Side

CONTRACT = toy_contract()
MESSAGES = 10_000
A_CYCLE = 40
SPEED = [0.05, 0.05, 0.05, 0.2, 0.2, 0.2]
LOW, HIGH = [0.3, -0.2, 0.1], [0.5, 0.2, 0.5]
WHERE = np.array([0.4, 0.0, 0.3, np.pi, 0.0, 0.0])


class Breaker:
    """Makes broken messages for a robot."""

    def __init__(self, robot: Robot, seed: int) -> None:
        self._robot = robot
        self._rng = np.random.default_rng(seed)
        self._camera = topics.camera_topic(CONTRACT.camera_names[0])
        self._info = topics.camera_info_topic(CONTRACT.camera_names[0])
        self._kinds: list[tuple[str, Callable[[], Any]]] = [
            (self._camera, self._image),
            (topics.camera_topic(CONTRACT.camera_names[1]), self._image),
            (topics.JOINT_STATES, self._joints),
            (topics.END_EFFECTOR_POSE, self._pose),
            (self._info, self._camera_info),
            (topics.INSTRUCTION, lambda: robot.string(self._text())),
            (topics.DEAD_MAN, lambda: robot.flag(bool(self._rng.integers(2)))),
        ]

    def publish_one(self) -> bool:
        """A broken message on one of the topics that the policy listens to; False where none could be sent.

        Cyclone DDS looks at what it is given to send, and at what it receives: bytes that are no message of the type go
        no further.
        """
        topic, make = self._kinds[int(self._rng.integers(len(self._kinds)))]
        message = make()
        if self._rng.integers(3):
            self._robot.publish(topic, message)
            return True
        return self._robot.publish_bytes(topic, self._damaged(self._robot.serialised(message)))

    def _damaged(self, data: bytes) -> bytes:
        found = bytearray(data)
        kind = int(self._rng.integers(4))
        if kind == 0:  # cut off, behind the encapsulation header: without that it is not even handed on
            return bytes(found[: int(self._rng.integers(4, len(found) + 1))])
        if kind == 1:  # lengths and counts that promise too much
            at = int(self._rng.integers(4, max(5, len(found) - 4)))
            found[at : at + 4] = int(self._rng.integers(2**31)).to_bytes(4, "little")
        elif kind == 2:
            for _ in range(int(self._rng.integers(1, 20))):
                found[int(self._rng.integers(4, max(5, len(found))))] = int(self._rng.integers(256))
        else:
            found[4:] = self._rng.bytes(int(self._rng.integers(1, 300)))
        return bytes(found)

    def _number(self) -> float:
        kinds = (math.nan, math.inf, -math.inf, 1e308, -1e308, 0.0, -0.0, 1e-300, float(self._rng.normal()))
        return float(kinds[int(self._rng.integers(len(kinds)))])

    def _text(self) -> str:
        kinds = ("", "\u2603 \U0001f916", "a" * 5000, "../../etc", "lift the red box\n", INSTRUCTIONS[0], "%s{}")
        return kinds[int(self._rng.integers(len(kinds)))]

    def _stamp(self) -> int:
        kinds = (0, 1, 2**31 - 1, time.time_ns() // 10**9, int(self._rng.integers(2**31)))
        return kinds[int(self._rng.integers(len(kinds)))] * 10**9 + int(self._rng.integers(10**9))

    def _image(self) -> Any:
        rng = self._rng
        sizes = (0, 1, 2, 31, 32, 33, 640, 2**31, 2**32 - 1)
        height, width, step = (sizes[int(rng.integers(len(sizes)))] for _ in range(3))
        encodings = ("rgb8", "bgr8", "rgba8", "mono8", "yuv422", "bayer_rggb8", "32FC1", "", "rgb8 ", "\u00e9")
        encoding = encodings[int(rng.integers(len(encodings)))]
        return self._robot.image(self._stamp(), height, width, encoding, step, rng.bytes(int(rng.integers(4000))))

    def _joints(self) -> Any:
        count = int(self._rng.integers(12))
        names = [entry for group in CONTRACT.proprioception for entry in group.entries][:count]
        names += [self._text() for _ in range(int(self._rng.integers(3)))]
        values = [self._number() for _ in range(int(self._rng.integers(12)))]
        return self._robot.messages.joints(names, values, self._stamp(), self._text())

    def _pose(self) -> Any:
        message = self._robot.messages.pose(WHERE, self._stamp(), self._text())
        for part in (message.pose.position, message.pose.orientation):
            for axis in ("x", "y", "z"):
                if self._rng.integers(2):
                    setattr(part, axis, self._number())
        return message

    def _camera_info(self) -> Any:
        message = self._robot.messages.camera_info(CONTRACT.cameras[0], 32, 32, self._stamp())
        message.k[4] = self._number()
        message.height = (0, 1, 2**32 - 1)[int(self._rng.integers(3))]
        return message


def _check_commands(robot: Robot) -> None:
    for action in robot.heard["action"]:
        values = np.asarray(action.action)
        assert values.shape == (7,) and np.isfinite(values).all() and np.abs(values).max() <= 1.0, values
    for twist in robot.heard["twist"]:
        linear, angular = twist.twist.linear, twist.twist.angular
        found = np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z])
        assert np.isfinite(found).all() and (np.abs(found) <= np.array(SPEED) + 1e-9).all(), found
    for target in robot.heard["target_pose"]:
        place = target.pose.position
        found = np.array([place.x, place.y, place.z])
        assert np.isfinite(found).all()
    for grip in robot.heard["gripper"]:
        assert grip.position in (0.0, 0.08)


def test_broken_messages(side: Side, tmp_path: Path) -> None:
    settings = {"safety__speed": SPEED, "safety__workspace_low": LOW, "safety__workspace_high": HIGH}
    with side.met(CONTRACT, write_toy(tmp_path / "toy"), instruction=INSTRUCTIONS[0], **settings) as (policy, robot):
        breaker = Breaker(robot, seed=3)

        def say_where() -> None:
            robot.at(WHERE, time.time_ns())

        def drive_until_running() -> None:
            deadline, turn = time.monotonic() + 15, 0
            while not any(s.code == StatusCode.RUNNING for s in robot.heard["status"]):
                assert time.monotonic() < deadline, f"{robot.heard['status'][-1:]}\n{policy.output[-3000:]}"
                turn += 1  # a camera whose stamps are wrong counts as slow until another instruction is set
                robot.instruct(INSTRUCTIONS[turn % 2])
                robot.drive(observations(CONTRACT, 24, seed=int(time.monotonic() * 1000)), first=say_where)

        drive_until_running()  # a policy that has not driven yet sends no commands
        sent = cycle = 0
        while sent < MESSAGES:
            cycle += 1
            if cycle % 20 == 0:
                robot.instruct(INSTRUCTIONS[0])
            sent += sum(breaker.publish_one() for _ in range(A_CYCLE))
            robot.drive(observations(CONTRACT, 1, seed=cycle), first=say_where)
            assert policy.process.poll() is None, f"the policy died in cycle {cycle}:\n{policy.output[-3000:]}"
        _check_commands(robot)
        assert robot.heard["twist"], "not one command went out in all that time"
        # And it still works.
        robot.forget()
        drive_until_running()
        assert policy.end() == 0
        assert "Traceback" not in policy.output, policy.output[-3000:]
