"""Requests of operators by ROS 2's services, actions and parameters: a refused request changes nothing."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not sourced")
pytest.importorskip("m2distill_msgs", reason="ros2_ws is not built and sourced")

from lifecycle_msgs.msg import Transition
from m2distill_msgs.action import RunTask
from m2distill_msgs.srv import LoadPolicy
from rcl_interfaces.msg import ParameterType
from rcl_interfaces.srv import GetParameters, SetParameters, SetParametersAtomically
from rclpy.action import ActionClient
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_msgs.msg import Bool
from std_srvs.srv import SetBool, Trigger

from m2distill_policy.node import topics
from m2distill_policy.ros.policy_node import PolicyNode
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.status import StatusCode
from m2distill_policy.runtime.watchdog import Fault
from m2distill_policy.settings.definitions import PARAMETERS
from tests.bundles import INSTRUCTIONS, observations, server_state, toy_contract, write_toy
from tests.ros_side import RosRobot
from tests.ros_support import policy_node
from tests.sides import PATIENCE, ROOT

CONTRACT = toy_contract()
pytestmark = pytest.mark.usefixtures("own_domain")


@contextlib.contextmanager
def _robot(node_settings: dict[str, object], *, up: bool = True) -> Iterator[tuple[PolicyNode, RosRobot]]:
    with policy_node(**node_settings) as node, contextlib.closing(RosRobot(CONTRACT)) as there:
        if up:
            assert there.operator.change(Transition.TRANSITION_CONFIGURE)
            assert there.operator.change(Transition.TRANSITION_ACTIVATE)
            there.meet()
        yield node, there


def _drive_until(there: RosRobot, code: StatusCode) -> None:
    deadline = time.monotonic() + PATIENCE
    while not any(s.code == code for s in there.heard["status"][-4:]):
        assert time.monotonic() < deadline, f"no {code.name}; the last status was {there.heard['status'][-1:]}"
        there.drive(observations(CONTRACT, 4, seed=int(time.monotonic() * 1000)))


def _enable(there: RosRobot, wanted: bool = True) -> tuple[bool, str]:
    answer = there.operator.call(SetBool, "enable", SetBool.Request(data=wanted))
    return answer.success, answer.message


class _Tasks:
    """A client of ~/run_task."""

    def __init__(self, there: RosRobot) -> None:
        self._there = there
        self._client = ActionClient(there.node, RunTask, topics.resolve("~/run_task"))
        there.until(self._client.server_is_ready, "the action server")

    def send(self, instruction: str, timeout: float = 0.0) -> Any:
        sent = self._client.send_goal_async(RunTask.Goal(instruction=instruction, timeout=timeout))
        self._there.until(sent.done, "the goal's answer")
        return sent.result()

    def outcome(self, handle: Any) -> RunTask.Result:
        """Wait for the outcome of a goal, while the robot continues."""
        future = handle.get_result_async()
        deadline = time.monotonic() + PATIENCE
        while not future.done():
            assert time.monotonic() < deadline
            self._there.drive(observations(CONTRACT, 1, seed=int(time.monotonic() * 1000)))
        return future.result().result


# --- ~/run_task -----------------------------------------------------------------------------------------------------


def test_a_goal_that_is_refused_because_nothing_is_enabled_leaves_no_instruction(tmp_path: Path) -> None:
    with _robot({"bundle": str(write_toy(tmp_path / "toy"))}) as (node, there):
        _drive_until(there, StatusCode.NO_INSTRUCTION)
        refused = _Tasks(there).outcome(_Tasks(there).send(INSTRUCTIONS[0], 5.0))
        assert refused.outcome == RunTask.Result.REFUSED and "enable" in refused.message
        assert node.policy.server is not None and node.policy.server.instruction is None
        done, said = _enable(there)
        assert done and "no instruction" in said and said != "commands are sent"
        there.forget()
        there.drive(observations(CONTRACT, 40, seed=1))
        assert StatusCode.RUNNING not in {s.code for s in there.heard["status"]} and not there.heard["twist"]


def test_a_goal_that_is_refused_lets_the_running_task_go_on(tmp_path: Path) -> None:
    with _robot({"bundle": str(write_toy(tmp_path / "toy")), "enable": True}) as (node, there):
        tasks = _Tasks(there)
        running = tasks.send(INSTRUCTIONS[0])
        _drive_until(there, StatusCode.RUNNING)
        assert node.policy.server is not None
        there.forget()
        for instruction in ("sing a song", INSTRUCTIONS[0].upper(), "x" * 10_000):
            before = node.policy.server.episode
            refused = tasks.outcome(tasks.send(instruction))
            assert refused.outcome == RunTask.Result.REFUSED and node.policy.server.episode == before
        assert not tasks.send("").accepted and not tasks.send(INSTRUCTIONS[1], -1.0).accepted
        assert not tasks.send(INSTRUCTIONS[1], float("nan")).accepted
        there.drive(observations(CONTRACT, 20, seed=1))
        halted = {StatusCode.UNKNOWN_INSTRUCTION, StatusCode.NO_INSTRUCTION, StatusCode.ENGINE_FAILED, StatusCode.HELD}
        assert not halted & {s.code for s in there.heard["status"]}
        assert node.policy.server.instruction == INSTRUCTIONS[0]
        there.forget()
        _drive_until(there, StatusCode.RUNNING)
        running.cancel_goal_async()
        assert tasks.outcome(running).outcome == RunTask.Result.CANCELLED


def test_with_the_emergency_stop_pressed_nothing_begins(tmp_path: Path) -> None:
    options: dict[str, object] = {"bundle": str(write_toy(tmp_path / "toy")), "enable": True}
    with _robot(options) as (node, there):
        tasks = _Tasks(there)
        there.publish(topics.EMERGENCY_STOP, Bool(data=True))
        _drive_until(there, StatusCode.EMERGENCY_STOP)
        assert node.policy.server is not None
        refused = tasks.outcome(tasks.send(INSTRUCTIONS[0]))
        assert refused.outcome == RunTask.Result.REFUSED and "emergency stop" in refused.message
        assert node.policy.server.instruction is None
        done, said = _enable(there)
        assert not done and "emergency stop" in said
        there.publish(topics.EMERGENCY_STOP, Bool(data=False))
        _drive_until(there, StatusCode.NO_INSTRUCTION)
        assert tasks.outcome(tasks.send(INSTRUCTIONS[0])).outcome == RunTask.Result.REFUSED, "held until ~/enable"
        assert _enable(there)[0]
        running = tasks.send(INSTRUCTIONS[0])
        _drive_until(there, StatusCode.RUNNING)
        there.publish(topics.EMERGENCY_STOP, Bool(data=True))
        ended = tasks.outcome(running)
        assert ended.outcome == RunTask.Result.FAULT
        there.publish(topics.EMERGENCY_STOP, Bool(data=False))
        _drive_until(there, StatusCode.HELD)
        done, said = _enable(there)
        assert done and "send it again" in said
        there.forget()
        there.drive(observations(CONTRACT, 12, seed=1))
        assert StatusCode.RUNNING not in {s.code for s in there.heard["status"]}, "no task, no timeout"
        again = tasks.send(INSTRUCTIONS[0])
        _drive_until(there, StatusCode.RUNNING)
        again.cancel_goal_async()
        assert tasks.outcome(again).outcome == RunTask.Result.CANCELLED


def _fail(code: StatusCode, server: PolicyServer, node: PolicyNode) -> None:
    """Cause a fault that only ~/enable ends."""
    if code is StatusCode.BAD_COMMAND:
        assert node.policy.last_output is not None
        server.refuse_command(node.policy.last_output.decision, "a test wants it")
    elif code is StatusCode.BAD_POSE:
        server.report_pose_jump("The pose jumped, because a test wants it.")
    else:
        server._interlock.latched = Fault(code, "A test wants it.")


@pytest.mark.parametrize(
    "code", [StatusCode.BAD_COMMAND, StatusCode.BAD_POSE, StatusCode.DEADLINE_MISSED, StatusCode.HELD]
)
def test_latched_fault_ends_a_task_and_refuses_the_next(tmp_path: Path, code: StatusCode) -> None:
    with _robot({"bundle": str(write_toy(tmp_path / "toy")), "enable": True}) as (node, there):
        tasks = _Tasks(there)
        running = tasks.send(INSTRUCTIONS[0], 600.0)
        _drive_until(there, StatusCode.RUNNING)
        assert node.policy.server is not None
        _fail(code, node.policy.server, node)
        assert tasks.outcome(running).outcome == RunTask.Result.FAULT
        refused = tasks.outcome(tasks.send(INSTRUCTIONS[1], 600.0))
        assert refused.outcome == RunTask.Result.REFUSED and node.policy.server.instruction == INSTRUCTIONS[0]
        done, said = _enable(there)
        assert done and "send it again" in said
        there.forget()
        there.drive(observations(CONTRACT, 12, seed=1))
        assert StatusCode.RUNNING not in {s.code for s in there.heard["status"]}, "no task, no timeout"


# --- every refusal leaves everything as it is -----------------------------------------------------------------------


def _set(there: RosRobot, kind: Any, *changes: Parameter) -> list[Any]:
    request = kind.Request(parameters=[change.to_parameter_msg() for change in changes])
    answer = there.operator.call(
        kind, "set_parameters" if kind is SetParameters else "set_parameters_atomically", request
    )
    return list(answer.results) if kind is SetParameters else [answer.result]


def _kept(server: PolicyServer) -> dict[str, object]:
    """State that a refused request must not change, without the times that change by themselves."""
    return {name: value for name, value in server_state(server).items() if name != "interlock.missing"}


@pytest.mark.parametrize("instruction", ["", INSTRUCTIONS[0]])
def test_refused_requests_do_not_change_the_server(tmp_path: Path, instruction: str) -> None:
    options: dict[str, object] = {"bundle": str(write_toy(tmp_path / "toy")), "instruction": instruction}
    with _robot(options) as (node, there):
        _drive_until(there, StatusCode.DISABLED if instruction else StatusCode.NO_INSTRUCTION)
        there.publish(topics.EMERGENCY_STOP, Bool(data=True))
        _drive_until(there, StatusCode.EMERGENCY_STOP)
        # No cycle runs while the node is inactive: whatever changes is the refusal's doing.
        assert there.operator.change(Transition.TRANSITION_DEACTIVATE)
        server = node.policy.server
        assert server is not None
        tasks = _Tasks(there)
        before, values = _kept(server), node._settings.values()
        assert not _enable(there)[0]
        for goal in ("sing a song", *INSTRUCTIONS):
            future = tasks.send(goal).get_result_async()
            there.until(future.done, "the result")
            assert future.result().result.outcome == RunTask.Result.REFUSED
        assert not there.operator.call(Trigger, "rollback", Trigger.Request()).success
        unknown, known = Parameter("instruction", value="sing a song"), Parameter("instruction", value=INSTRUCTIONS[1])
        wrong = Parameter("slop", value=0.5)  # read when it is configured
        for kind, changes in (
            (SetParameters, (unknown,)),
            (SetParametersAtomically, (unknown,)),
            (SetParametersAtomically, (known, wrong)),
            (SetParametersAtomically, (wrong, known)),
            (SetParametersAtomically, (known, Parameter("enable", value="yes"))),
            (SetParameters, (Parameter("instruction", value=3),)),
            (SetParameters, (Parameter("instruction"),)),  # to undeclare it
        ):
            assert not any(result.successful for result in _set(there, kind, *changes)), changes
        assert _kept(server) == before and node._settings.values() == values
        answer = there.operator.call(LoadPolicy, "load_policy", LoadPolicy.Request(path=str(tmp_path / "nothing")))
        assert not answer.success
        after = _kept(server)
        assert {key for key in after if after[key] != before[key]} <= {"swap"}, "what became of it is said"
        assert _set(there, SetParameters, known)[0].successful and server.instruction == INSTRUCTIONS[1]


# --- parameters -----------------------------------------------------------------------------------------------------


def _node(folder: Path, *arguments: str, wait: float = 40) -> subprocess.CompletedProcess[str]:
    """Run the node in a process until it ends by itself."""
    command = [sys.executable, "-m", "m2distill_policy.ros.main", "--ros-args", *arguments]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "ROS_LOG_DIR": str(folder)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=wait, check=False, cwd=ROOT)


def _file(folder: Path, text: str) -> list[str]:
    file = folder / "arm.yaml"
    file.write_text(text)
    return ["--params-file", str(file)]


REFUSED = {
    "misspelt in a group of ours": ("/**: {ros__parameters: {safety: {sped: [0.1]}}}", "safety.sped", "safety.speed"),
    "misspelt under our name": ("m2distill_policy: {ros__parameters: {resum: enable}}", "resum", "resume"),
    "a scalar for a list": ("/**: {ros__parameters: {safety: {speed: 0.1}}}", "safety.speed", "double[]"),
    "text for a number": ("/**: {ros__parameters: {slop: '0.1'}}", "slop", "double"),
    "a list for a number": ("/**: {ros__parameters: {slop: [0.1]}}", "slop", "double"),
    "an empty list for a number": ("/**: {ros__parameters: {slop: []}}", "slop", "double"),
    "a number for a switch": ("/**: {ros__parameters: {enable: 1}}", "enable", "bool"),
    "a number for text": ("/**: {ros__parameters: {sampling: 3}}", "sampling", "string"),
    "too few": ("/**: {ros__parameters: {safety: {speed: [0.1]}}}", "speed", "1 entries; one is needed for each"),
    "out of range": ("/**: {ros__parameters: {safety: {halt_time: 9.0}}}", "safety.halt_time", "0 to 5"),
    "text in a list": ("/**: {ros__parameters: {safety: {speed: [a, b]}}}", "safety.speed", "double[]"),
    "autostart of another type": ("/**: {ros__parameters: {autostart: 3}}", "autostart", "bool"),
    "no value": ("/**: {ros__parameters: {safety: {speed: }}}", "", "No value at line 1"),
    "two types in a list": ("/**: {ros__parameters: {safety: {speed: [1, a]}}}", "", ""),
    "no YAML": ("/**: {ros__parameters: {safety: [", "", ""),
    "a misspelt key": ("/**: {ros_parameters: {slop: 0.1}}", "", ""),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_parameter_file_that_does_not_fit_ends_the_process_by_name(tmp_path: Path, case: str) -> None:
    text, name, part = REFUSED[case]
    given = [*_file(tmp_path, text), "-p", f"bundle:={write_toy(tmp_path / 'toy')}"]
    autostart = [] if name == "autostart" else ["-p", "autostart:=true"]
    done = _node(tmp_path, *given, *autostart)
    said = done.stdout + done.stderr
    assert done.returncode not in (0, -6, -11), said
    assert name in said and part in said, said
    assert "Traceback" not in said, said


def test_a_misspelt_parameter_on_the_command_line_is_refused(tmp_path: Path) -> None:
    done = _node(tmp_path, "-p", "autostart:=true", "-p", "bundel:=/b")
    assert done.returncode == 1 and "'bundel' is not known; did you mean 'bundle'?" in done.stdout + done.stderr


def test_unknown_ros_argument_gives_one_error(tmp_path: Path) -> None:
    done = _node(tmp_path, "--parms-file", "x")
    assert done.returncode == 2 and "policy_node:" in done.stderr and "Traceback" not in done.stderr


def test_an_empty_list_and_other_nodes_parameters_are_taken(tmp_path: Path) -> None:
    """As in the guide, and as written by ``ros2 param dump``."""
    text = (
        "/**: {ros__parameters: {safety: {speed: []}, joints: {names: [], entries: []}, update_rate: 100, x: {y: 1}}}\n"
        "controller: {ros__parameters: {gains: {p: 1}}}\n"
    )
    bundle = write_toy(tmp_path / "toy")
    given = [*_file(tmp_path, text), "-p", f"bundle:={bundle}", "-p", "autostart:=true"]
    command = [sys.executable, "-m", "m2distill_policy.ros.main", "--ros-args", *given]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    with contextlib.closing(RosRobot(CONTRACT)) as there:
        there.meet()
        _drive_until(there, StatusCode.NO_INSTRUCTION)
        names = ["safety.speed", "safety.jerk", "joints.names", "slop"]
        values = there.operator.call(GetParameters, "get_parameters", GetParameters.Request(names=names)).values
        assert [value.type for value in values] == [
            ParameterType.PARAMETER_DOUBLE_ARRAY,
            ParameterType.PARAMETER_DOUBLE_ARRAY,
            ParameterType.PARAMETER_STRING_ARRAY,
            ParameterType.PARAMETER_DOUBLE,
        ]
        child.terminate()
        assert child.communicate(timeout=PATIENCE) and child.returncode == 0


def test_an_empty_list_that_is_set_keeps_its_type(tmp_path: Path) -> None:
    with _robot({}, up=False) as (node, there):
        for parameter in PARAMETERS:
            if parameter.kind in ("floats", "strings"):
                assert _set(there, SetParameters, Parameter(parameter.name, value=[]))[0].successful
                kind = Parameter.Type.DOUBLE_ARRAY if parameter.kind == "floats" else Parameter.Type.STRING_ARRAY
                assert node.get_parameter(parameter.name).type_ == kind


VALUES: tuple[Any, ...] = (None, True, 7, -1.5, float("nan"), "", "fast", [], [True], [1], [0.1], ["a"], [b"x"])


def test_every_parameter_of_every_type_configures_or_refuses_by_name(tmp_path: Path) -> None:
    """With a value of every type of ROS 2: every error is reported, and the node survives."""
    with _robot({"bundle": str(write_toy(tmp_path / "toy"))}, up=False) as (node, there):
        for parameter in PARAMETERS:
            if parameter.is_fixed:
                continue
            for value in VALUES:
                (result,) = _set(there, SetParameters, Parameter(parameter.name, value=value))
                assert result.successful or parameter.name in result.reason, (parameter.name, value, result.reason)
            default = Parameter(parameter.name, value=node._parameters[parameter.name].value)
            assert node.has_parameter(parameter.name) and default is not None


# --- transitions ----------------------------------------------------------------------------------------------------

TRANSITIONS = {
    "configure": ("_new_loop", "trigger_configure"),
    "activate": ("_schedule", "trigger_activate"),
    "deactivate": ("_ramp_out", "trigger_deactivate"),
    "clean up": ("_free", "trigger_cleanup"),
}


@pytest.mark.parametrize("transition", TRANSITIONS)
def test_every_error_of_a_transition_is_logged(
    tmp_path: Path, transition: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import rclpy

    part, trigger = TRANSITIONS[transition]
    rclpy.init()
    node = PolicyNode({"bundle": str(write_toy(tmp_path / "toy"))})
    try:
        done = TransitionCallbackReturn.SUCCESS
        if transition != "configure":
            assert node.trigger_configure() == done
        if transition == "deactivate":
            assert node.trigger_activate() == done
        broken = [True]
        original = getattr(node, part)

        def fails(*arguments: object, **settings: object) -> object:
            if broken:
                broken.clear()
                raise RuntimeError("a bug that nobody expects")
            return original(*arguments, **settings)

        monkeypatch.setattr(node, part, fails)
        assert getattr(node, trigger)() != done
        said = capfd.readouterr().err
        assert f"cannot {transition}: RuntimeError: a bug that nobody expects" in said and "Traceback" in said
        monkeypatch.undo()
        if transition == "activate":
            assert not node.policy.is_active and node.trigger_activate() == done
        elif transition == "configure":
            assert node.trigger_configure() == done
        else:
            assert node.policy.server is None or not node.policy.server.enabled
    finally:
        node.trigger_shutdown()
        node.destroy_node()
        rclpy.shutdown()
