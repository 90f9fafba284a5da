"""The launch files with ``ros2 launch``: start, restart after a kill, refusal, and Ctrl-C."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="ROS 2 is not sourced")
pytest.importorskip("m2distill_msgs", reason="ros2_ws is not built and sourced")

from ament_index_python.packages import PackageNotFoundError, get_package_prefix

from m2distill_policy.bundle import open_bundle
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.status import StatusCode
from m2distill_policy.runtime.watchdog import WatchLimits
from m2distill_policy.sim.seeds import state_seed
from tests.bundles import INSTRUCTIONS, toy_contract, write_toy
from tests.ros_side import RosRobot
from tests.sides import Child, running
from tests.test_behaviour_real_time import drive_until


def _lacking() -> str:
    """What ``ros2 launch`` of this package needs and is missing; "" if nothing is."""
    if importlib.util.find_spec("ros2launch") is None:
        return "ros2 launch is not installed"
    try:
        get_package_prefix("m2distill_policy")
    except PackageNotFoundError:
        return "ros2_ws is not built and sourced"
    return ""


CONTRACT = toy_contract()
pytestmark = pytest.mark.usefixtures("own_domain")


@contextlib.contextmanager
def launched(folder: Path, file: str, **arguments: object) -> Iterator[Child]:
    """Run ``ros2 launch``, and end all its processes at the end."""
    if lacking := _lacking():
        pytest.skip(lacking)
    words = [f"{name}:={value}" for name, value in arguments.items()]
    environment = {"ROS_LOG_DIR": str(folder / "log"), "ROS_HOME": str(folder)}
    with running(["ros2", "launch", "m2distill_policy", file, *words], folder / "launch.log", **environment) as child:
        try:
            yield child
        finally:
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGINT)
                with contextlib.suppress(AssertionError):
                    child.wait(15)


def _node_of(child: Child) -> int:
    """Return the process of the policy node that was started last."""
    lines = [line for line in child.output.splitlines() if "[policy_node-1]: process started with pid" in line]
    return int(lines[-1].rsplit("[", 1)[1].rstrip("]"))


def test_the_policy_comes_up_and_comes_back_when_it_is_killed(tmp_path: Path) -> None:
    bundle = write_toy(tmp_path / "toy")
    settings = {"bundle": bundle, "instruction": INSTRUCTIONS[0], "enable": "true", "respawn": "true"}
    with launched(tmp_path, "policy.launch.py", **settings) as launch, contextlib.closing(RosRobot(CONTRACT)) as robot:
        launch.wait_for("process started with pid")
        robot.meet()
        drive_until(robot, StatusCode.RUNNING, "first answer")
        first = _node_of(launch)
        os.kill(first, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while _node_of(launch) == first:
            assert time.monotonic() < deadline, launch.output
            robot.listen(0.2)
        robot.forget()
        drive_until(robot, StatusCode.RUNNING, "answer of the node that was started again")
        assert robot.heard["status"][-1].cycle < 1000
        second = _node_of(launch)
        launch.process.send_signal(signal.SIGINT)
        assert launch.wait(20) == 0, launch.output
        with pytest.raises(ProcessLookupError):
            os.kill(second, 0)
        assert "process has finished cleanly" in launch.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_node_ends_with_its_launcher(tmp_path: Path, number: signal.Signals) -> None:
    """``ros2 launch`` forwards neither signal; without the check of its launcher the node would continue to drive."""
    settings = {"bundle": write_toy(tmp_path / "toy"), "instruction": INSTRUCTIONS[0], "enable": "true"}
    with launched(tmp_path, "policy.launch.py", **settings) as launch, contextlib.closing(RosRobot(CONTRACT)) as robot:
        launch.wait_for("process started with pid")
        robot.meet()
        drive_until(robot, StatusCode.RUNNING, "first answer")
        node = _node_of(launch)
        launch.process.send_signal(number)
        deadline = time.monotonic() + 20
        while _runs(node):
            assert time.monotonic() < deadline, "the node goes on without its launcher"
            robot.listen(0.05)
        robot.listen(0.5)
        last = robot.heard["status"][-1]
        assert last.code == StatusCode.HALT_REQUESTED and last.halted, last


def _runs(process: int) -> bool:
    """Return whether the process exists and is not a zombie."""
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:
        return False


def test_without_enable_it_answers_in_shadow(tmp_path: Path) -> None:
    bundle = write_toy(tmp_path / "toy")
    settings = {"bundle": bundle, "instruction": INSTRUCTIONS[0], "profile": _profile(tmp_path)}
    with launched(tmp_path, "policy.launch.py", **settings), contextlib.closing(RosRobot(CONTRACT)) as robot:
        robot.meet()
        drive_until(robot, StatusCode.DISABLED, "answer in shadow")
        assert not robot.heard["twist"]


def _profile(folder: Path) -> Path:
    file = folder / "arm.yaml"
    file.write_text('/**:\n  ros__parameters:\n    safety:\n      halt_time: 0.5\n    sampling: "mode"\n')
    return file


def test_a_bundle_that_cannot_be_opened_ends_the_launch(tmp_path: Path) -> None:
    with launched(tmp_path, "policy.launch.py", bundle=tmp_path / "nothing") as launch:
        launch.wait_for("was required: shutting down")
        assert "there is no bundle at" in launch.output
        assert launch.wait(20) == 1


@pytest.mark.parametrize("file", ["policy.launch.py", "sim.launch.py"])
def test_unknown_argument_ends_the_launch(tmp_path: Path, file: str) -> None:
    with launched(tmp_path, file, bundle=tmp_path / "nothing", profil="fr3_moveit_servo") as launch:
        assert launch.wait(20) == 1
        assert "argument 'profil' is not known; did you mean 'profile'?" in launch.output


def test_a_misspelt_key_of_a_profile_ends_the_launch(tmp_path: Path) -> None:
    file = tmp_path / "arm.yaml"
    file.write_text("/**: {ros__parameters: {safety: {sped: [0.1, 0.1, 0.1, 0.5, 0.5, 0.5]}}}\n")
    with launched(tmp_path, "policy.launch.py", bundle=write_toy(tmp_path / "toy"), profile=file) as launch:
        assert launch.wait(30) == 1
        assert "'safety.sped' is not known; did you mean 'safety.speed'?" in launch.output


def test_the_simulated_robot_and_the_policy_in_lockstep(tmp_path: Path) -> None:
    """One launch file starts both and ends by itself; the results equal those of the runtime in one process."""
    pytest.importorskip("robosuite")
    from m2distill_policy.sim.suites import make_sim_env, suite_task

    task = suite_task("tabletop", 1)
    env = make_sim_env(task, size=32)
    contract = dataclasses.replace(env.contract, text=CONTRACT.text)
    bundle = write_toy(tmp_path / "toy", contract=contract, instructions=[task.instruction])
    out = tmp_path / "result.json"
    settings = {"bundle": bundle, "task": 1, "rollouts": 2, "seed": 7, "out": out}
    with launched(tmp_path, "sim.launch.py", **settings) as launch:
        assert launch.wait(120) == 0, launch.output
        assert "the rollouts are over" in launch.output or "was required" in launch.output
        assert "0 of 2 rollouts done" in launch.output
    result = json.loads(out.read_text())
    server = PolicyServer(open_bundle(bundle), watch=WatchLimits.lockstep())
    for episode, rollout in enumerate(result["rollouts"]):
        server.set_instruction(task.instruction)
        server.reset("test", seed=7, episode=episode, is_stationary=True)
        observation = env.reset(state_seed("reported", 7, episode))
        steps = 0
        while steps < task.horizon and not env.success():
            observation = env.step(server.step(observation, observation.stamp).action)
            steps += 1
        assert (rollout["steps"], rollout["success"]) == (steps, env.success())
    env.close()


def test_a_robot_without_the_simulator_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise ModuleNotFoundError('none', name='numba')")
    command = [sys.executable, "-m", "m2distill_policy.ros.sim_robot", "--suite", "tabletop", "--task", "0"]
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    with running(command, tmp_path / "log", PYTHONPATH=path) as child:
        assert child.wait(60) == 2
        assert "'numba'" in child.output and "requirements/sim.txt" in child.output
        assert "Traceback" not in child.output
