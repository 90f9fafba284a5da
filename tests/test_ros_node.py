"""The policy node on a real ROS 2: lifecycle, answers, services, the task action, parameters, shutdown."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not sourced")
pytest.importorskip("m2distill_msgs", reason="ros2_ws is not built and sourced")

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from m2distill_msgs.action import RunTask
from m2distill_msgs.srv import LoadPolicy
from rcl_interfaces.srv import SetParameters
from rclpy.action import ActionClient
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger

from m2distill_policy.bundle import open_bundle
from m2distill_policy.node import topics
from m2distill_policy.ros.messages import MESSAGES
from m2distill_policy.runtime.status import StatusCode, SwapState
from tests.bundles import INSTRUCTIONS, observations, toy_contract, write_toy
from tests.ros_side import RosRobot
from tests.ros_support import policy_node
from tests.sides import PATIENCE

CONTRACT = toy_contract()
pytestmark = pytest.mark.usefixtures("own_domain")


@contextlib.contextmanager
def robot() -> Iterator[RosRobot]:
    """A robot that is closed at the end."""
    with contextlib.closing(RosRobot(CONTRACT)) as made:
        yield made


def _up(there: RosRobot) -> None:
    assert there.operator.change(Transition.TRANSITION_CONFIGURE)
    assert there.operator.change(Transition.TRANSITION_ACTIVATE)
    there.meet()


def _drive_until(there: RosRobot, code: StatusCode) -> None:
    deadline = time.monotonic() + PATIENCE
    while not any(s.code == code for s in there.heard["status"][-4:]):
        assert time.monotonic() < deadline, f"no {code.name}; the last status was {there.heard['status'][-1:]}"
        there.drive(observations(CONTRACT, 4, seed=int(time.monotonic() * 1000)))


def _change_while_it_drives(there: RosRobot, transition: int) -> None:
    request = ChangeState.Request()
    request.transition.id = transition
    future = there.node.create_client(ChangeState, topics.resolve("~/change_state")).call_async(request)
    deadline = time.monotonic() + PATIENCE
    while not future.done():
        assert time.monotonic() < deadline
        there.drive(observations(CONTRACT, 1, seed=int(time.monotonic() * 1000)))
    assert future.result().success


def test_drives_and_halts_when_it_is_deactivated(tmp_path: Path) -> None:
    bundle = write_toy(tmp_path / "toy")
    with policy_node(bundle=str(bundle), instruction=INSTRUCTIONS[0], enable=True), robot() as there:
        _up(there)
        _drive_until(there, StatusCode.RUNNING)
        stamps = there.drive(observations(CONTRACT, 30, seed=3))
        there.listen(0.2)
        actions, statuses = there.answers("action"), there.answers("status")
        answered = [stamp for stamp in stamps if stamp in actions and statuses[stamp].code == StatusCode.RUNNING]
        assert len(answered) > 0.8 * len(stamps)
        assert actions[answered[-1]].modes == 3 and len(actions[answered[-1]].means) == 21
        assert actions[answered[-1]].bundle == open_bundle(bundle).identifier
        assert statuses[answered[-1]].tasks and there.heard["twist"]
        del there.heard["status"][:]
        _drive_until(there, StatusCode.RUNNING)
        _change_while_it_drives(there, Transition.TRANSITION_DEACTIVATE)
        halting = [s for s in there.heard["status"] if "the node was deactivated" in s.message]
        assert [s.motion for s in halting[:5]] == [1, 1, 1, 1, 2]
        last = there.heard["twist"][-1].twist
        assert (last.linear.x, last.linear.y, last.linear.z, last.angular.z) == (0.0, 0.0, 0.0, 0.0)
        commands = len(there.heard["twist"])
        there.drive(observations(CONTRACT, 5))
        assert len(there.heard["twist"]) == commands
        seen = len(there.heard["status"])
        there.until(lambda: len(there.heard["status"]) > seen, "a status of the inactive node")
        assert "the node was deactivated" in there.heard["status"][-1].message
        # And again: nothing of the halt is left.
        assert there.operator.change(Transition.TRANSITION_ACTIVATE)
        del there.heard["status"][:]
        _drive_until(there, StatusCode.RUNNING)


def test_sends_no_command_until_it_is_enabled(tmp_path: Path) -> None:
    bundle = write_toy(tmp_path / "toy")
    with policy_node(bundle=str(bundle), instruction=INSTRUCTIONS[0]), robot() as there:
        assert not there.operator.call(SetBool, "enable", SetBool.Request(data=True)).success
        _up(there)
        _drive_until(there, StatusCode.DISABLED)
        there.drive(observations(CONTRACT, 10))
        assert there.heard["action"] and not any(a.command for a in there.heard["action"])
        assert not there.heard["twist"]
        assert there.operator.call(SetBool, "enable", SetBool.Request(data=True)).success
        _drive_until(there, StatusCode.RUNNING)
        assert there.heard["twist"]
        there.publish(topics.EMERGENCY_STOP, Bool(data=True))
        _drive_until(there, StatusCode.EMERGENCY_STOP)
        there.publish(topics.EMERGENCY_STOP, Bool(data=False))
        _drive_until(there, StatusCode.HELD)
        assert there.operator.call(SetBool, "enable", SetBool.Request(data=True)).success
        _drive_until(there, StatusCode.RUNNING)
        assert there.operator.call(SetBool, "enable", SetBool.Request(data=False)).success
        _drive_until(there, StatusCode.DISABLED)
        assert there.operator.call(Trigger, "reset", Trigger.Request()).success


def test_bundles_are_swapped_refused_and_rolled_back_while_it_drives(tmp_path: Path) -> None:
    first, second = write_toy(tmp_path / "first", seed=0), write_toy(tmp_path / "second", seed=1)
    broken = write_toy(tmp_path / "broken", seed=2)
    (broken / "step.onnx").write_bytes((broken / "step.onnx").read_bytes()[:-1] + b"x")
    ids = [open_bundle(path).identifier for path in (first, second)]
    options: dict[str, object] = {"instruction": INSTRUCTIONS[0], "enable": True, "swap_when": "now"}
    with policy_node(bundle=str(first), **options), robot() as there:
        _up(there)
        _drive_until(there, StatusCode.RUNNING)
        client = there.node.create_client(LoadPolicy, topics.resolve("~/load_policy"))
        for path, loads in ((broken, False), (second, True)):
            future = client.call_async(LoadPolicy.Request(path=str(path)))
            deadline = time.monotonic() + PATIENCE
            while not future.done():
                assert time.monotonic() < deadline
                there.drive(observations(CONTRACT, 2, seed=int(time.monotonic() * 1000)))
            answer = future.result()
            assert answer.success is loads, answer
            assert loads or "step.onnx" in answer.message
        there.drive(observations(CONTRACT, 10))
        assert there.heard["action"][-1].bundle == ids[1]
        assert {a.bundle for a in there.heard["action"]} == set(ids)
        swaps = {s.swap for s in there.heard["status"]}
        assert {SwapState.REFUSED, SwapState.SWITCHED} <= swaps
        back = there.operator.call(Trigger, "rollback", Trigger.Request())
        assert back.success, back
        there.drive(observations(CONTRACT, 10))
        assert there.heard["action"][-1].bundle == ids[0]


def test_a_task_runs_until_its_time_is_over_or_it_is_cancelled(tmp_path: Path) -> None:
    bundle = write_toy(tmp_path / "toy")
    with policy_node(bundle=str(bundle), enable=True), robot() as there:
        _up(there)
        client = ActionClient(there.node, RunTask, topics.resolve("~/run_task"))
        there.until(client.server_is_ready, "the action server")
        feedback: list[str] = []

        def send(instruction: str, timeout: float) -> object:
            goal = RunTask.Goal(instruction=instruction, timeout=timeout)
            sent = client.send_goal_async(goal, feedback_callback=lambda m: feedback.append(m.feedback.status))
            there.until(sent.done, "the goal's answer")
            return sent.result()

        def drive_until_done(handle: object) -> RunTask.Result:
            future = handle.get_result_async()  # type: ignore[attr-defined]
            deadline = time.monotonic() + PATIENCE
            while not future.done():
                assert time.monotonic() < deadline
                there.drive(observations(CONTRACT, 4, seed=int(time.monotonic() * 1000)))
            return future.result().result

        there.drive(observations(CONTRACT, 24))  # the cameras are known to be fast enough before the clock runs
        over = drive_until_done(send(INSTRUCTIONS[0], 1.0))
        assert over.outcome == RunTask.Result.OVER and 1.0 <= over.elapsed < 2.0 and over.commands > 5, over
        assert "RUNNING" in feedback
        _drive_until(there, StatusCode.HALT_REQUESTED)
        unknown = drive_until_done(send("sing a song", 1.0))
        assert unknown.outcome == RunTask.Result.REFUSED and INSTRUCTIONS[0] in unknown.message
        assert not send(INSTRUCTIONS[0], -1.0).accepted  # type: ignore[attr-defined]
        assert not send("", 1.0).accepted  # type: ignore[attr-defined]
        first = send(INSTRUCTIONS[0], 0.0)
        second = send(INSTRUCTIONS[1], 0.0)
        replaced = drive_until_done(first)
        assert replaced.outcome == RunTask.Result.REPLACED, replaced
        second.cancel_goal_async()  # type: ignore[attr-defined]
        cancelled = drive_until_done(second)
        assert cancelled.outcome == RunTask.Result.CANCELLED
        _drive_until(there, StatusCode.HALT_REQUESTED)


def test_parameters_are_checked_when_they_are_set(tmp_path: Path) -> None:
    bundle = write_toy(tmp_path / "toy")
    with policy_node(enable=True, safety__halt_time=0.5) as node, robot() as there:

        def set_one(name: str, value: object) -> tuple[bool, str]:
            request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
            result = there.operator.call(SetParameters, "set_parameters", request).results[0]
            return result.successful, result.reason

        assert not there.operator.change(Transition.TRANSITION_CONFIGURE)  # no bundle
        assert set_one("threads", 0) == (False, "parameter 'threads' is 0; allowed is at least 1")
        assert set_one("safety.speed", [0.1] * 6) == (True, "") and set_one("slop", 1) == (True, "")
        assert set_one("bundle", str(tmp_path / "nothing"))[0] and not there.operator.change(
            Transition.TRANSITION_CONFIGURE
        )
        assert set_one("bundle", str(bundle))[0]
        _up(there)
        assert node.policy.settings is not None and node.policy.settings.arm.safety.speed == (0.1,) * 6
        assert node.policy.settings.arm.safety.halt_time == 0.5
        refused, why = set_one("slop", 0.01)
        assert not refused and "is read when the node is configured" in why
        refused, why = set_one("instruction", "sing a song")
        assert not refused and INSTRUCTIONS[0] in why
        assert set_one("instruction", INSTRUCTIONS[1])[0]
        _drive_until(there, StatusCode.RUNNING)
        assert there.heard["status"][-1].instruction == INSTRUCTIONS[1]
        there.instruct(INSTRUCTIONS[0])
        there.until(
            lambda: node.policy.server is not None and node.policy.server.instruction == INSTRUCTIONS[0],
            "the instruction",
        )
        assert there.operator.change(Transition.TRANSITION_DEACTIVATE) and there.operator.change(
            Transition.TRANSITION_CLEANUP
        )
        assert node.policy.server is None and set_one("slop", 0.01)[0]


def test_a_watched_folder_is_still_watched_after_a_pause(tmp_path: Path) -> None:
    first, second = write_toy(tmp_path / "first", seed=0), write_toy(tmp_path / "second", seed=1)
    watched = tmp_path / "watched"
    watched.mkdir()
    options: dict[str, object] = {"instruction": INSTRUCTIONS[0], "enable": True, "swap_when": "now"}
    with policy_node(bundle=str(first), watch_folder=str(watched), **options), robot() as there:
        _up(there)
        assert there.operator.change(Transition.TRANSITION_DEACTIVATE) and there.operator.change(
            Transition.TRANSITION_ACTIVATE
        )
        identifier = open_bundle(second).identifier
        second.rename(watched / "second")
        deadline = time.monotonic() + PATIENCE
        while not any(a.bundle == identifier for a in there.heard["action"]):
            assert time.monotonic() < deadline, there.heard["status"][-1:]
            there.drive(observations(CONTRACT, 4, seed=int(time.monotonic() * 1000)))


def test_a_clock_that_is_set_back_halts_the_arm_and_is_then_followed(tmp_path: Path) -> None:
    """With sim time, stamps are compared with /clock, but timeouts use monotonic time."""
    bundle = write_toy(tmp_path / "toy")
    options: dict[str, object] = {"instruction": INSTRUCTIONS[0], "enable": True, "use_sim_time": True}
    with policy_node(bundle=str(bundle), **options), robot() as there:
        clock = there.node.create_publisher(Clock, "/clock", 10)
        seed = 0

        def drive(at: float, steps: int) -> float:
            nonlocal seed
            seed += 1
            for observation in observations(CONTRACT, steps, seed=seed):
                stamp = round(at * 1e9)
                clock.publish(Clock(clock=MESSAGES.header(stamp, "").stamp))
                there.listen(0.01)  # the clock is there before what is stamped with it
                there.say(observation, stamp)
                there.listen(0.04)
                at += 0.05
            return at

        drive(100.0, 2)
        _up(there)
        at = drive(101.0, 30)
        assert any(s.code == StatusCode.RUNNING for s in there.heard["status"][-10:])
        there.forget()
        at = drive(at - 60.0, 2)
        codes = {StatusCode(s.code) for s in there.heard["status"] if s.motion}
        assert codes & {StatusCode.OUT_OF_ORDER, StatusCode.FUTURE_STAMP}, there.heard["status"]
        there.forget()
        drive(at, 40)
        assert any(s.code == StatusCode.RUNNING for s in there.heard["status"][-10:]), there.heard["status"][-2:]
