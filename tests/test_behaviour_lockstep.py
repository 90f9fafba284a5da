"""Lockstep in two processes, on plain DDS and on ROS 2: each observation is answered once, as in one process."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from m2distill_policy.bundle import open_bundle
from m2distill_policy.errors import TransportError
from m2distill_policy.evaluation.results import Cell
from m2distill_policy.evaluation.rollouts import RolloutPool
from m2distill_policy.observation import Observation
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.status import StatusCode, SwapState
from m2distill_policy.runtime.watchdog import WatchLimits
from m2distill_policy.sim.env import SimEnv
from m2distill_policy.sim.seeds import state_seed
from m2distill_policy.sim_robot.link import Command, Follow, Link
from m2distill_policy.sim_robot.robot import RobotOptions, Rollout, RolloutReport, SimRobot
from tests import toy_suite
from tests.bundles import INSTRUCTIONS, observations, toy_contract, write_toy
from tests.sides import Side
from tests.static_env import StaticEnv

SECOND = 1_000_000_000
PERIOD = 50_000_000
CONTRACT = toy_contract()


def _server(bundle: Path) -> PolicyServer:
    return PolicyServer(open_bundle(bundle), watch=WatchLimits.lockstep())


def _roll(
    side: Side, env: SimEnv, rollouts: Sequence[Rollout], options: RobotOptions | None = None
) -> list[RolloutReport]:
    """Run rollouts of a robot in this process."""
    options = options or RobotOptions()
    with side.link(env.contract, follow=options.follow, lockstep=True) as link:
        return SimRobot(link, env, lockstep=True, options=options).run(rollouts)


def test_each_observation_is_answered_once_and_as_in_process(side: Side, tmp_path: Path) -> None:
    bundle = write_toy(tmp_path / "toy")
    server = _server(bundle)
    with side.met(CONTRACT, bundle, lockstep=True) as (policy, robot):
        stamp = SECOND
        windows = []
        for number, (seed, random_stream, index) in enumerate([(3, 0, 0), (3, 1, 1), (3, 0, 0)], start=1):
            acknowledged = robot.begin(number, seed, random_stream, INSTRUCTIONS[index], stamp)
            assert acknowledged.instruction == INSTRUCTIONS[index] and not acknowledged.command
            server.set_instruction(INSTRUCTIONS[index])
            server.reset("test", seed=seed, episode=random_stream, is_stationary=True)
            stamp += SECOND
            for observation in observations(CONTRACT, 12, seed=number % 2):
                action, status = robot.ask(observation, stamp)
                stamp += PERIOD
                here = server.step(observation, observation.stamp)
                np.testing.assert_array_equal(action.action, here.action)
                assert here.mixture is not None and here.sample is not None
                np.testing.assert_array_equal(action.sample, here.sample)
                np.testing.assert_array_equal(action.logits, here.mixture.logits)
                np.testing.assert_array_equal(action.means, here.mixture.means.reshape(-1))
                np.testing.assert_array_equal(action.scales, here.mixture.scales.reshape(-1))
                assert action.modes == 3 and action.command and action.bundle == status.bundle == here.bundle
                assert status.code == StatusCode.RUNNING and status.name == "RUNNING" and status.episode == number
                windows.append(status.window)
        assert windows == [*range(1, 11), 10, 10] * 3
        # The third episode repeats the first: same seed, same pictures, same actions.
        first, third = robot.heard["action"][:12], robot.heard["action"][24:]
        assert [list(a.action) for a in first] == [list(a.action) for a in third]
        # One twist for each command, and the gripper topic only where it changed.
        robot.until(lambda: len(robot.heard["twist"]) >= 36, "a twist for each command")
        robot.listen(0.2)
        assert len(robot.heard["twist"]) == 36
        assert 3 <= len(robot.heard["gripper"]) <= 36
        assert policy.end() == 0


def test_robot_that_stops_midway_is_reported(side: Side, tmp_path: Path) -> None:
    # Long enough for the two to find each other on a busy machine as well.
    with side.met(CONTRACT, write_toy(tmp_path / "toy"), lockstep=True, timeout=6.0) as (policy, robot):
        robot.begin(1, 0, 0, INSTRUCTIONS[0], SECOND)
        robot.say(observations(CONTRACT, 1)[0], 2 * SECOND, without=["joint_states"])
        policy.wait_for("no message on")
        assert policy.wait(10) in (1, 2)
        assert "no message on /joint_states for 6 s" in policy.output
        assert "Traceback" not in policy.output


def test_without_a_policy_the_robot_names_the_missing_topics(side: Side) -> None:
    with pytest.raises(TransportError, match=r"/m2distill_policy/status.* within 0.3 s .*; start"):
        _roll(side, StaticEnv(CONTRACT), [Rollout(0, 0, 0)], RobotOptions(timeout=0.3))


def test_a_policy_that_dies_is_named(side: Side, tmp_path: Path) -> None:
    env = StaticEnv(CONTRACT, horizon=100_000)
    with side.policy(write_toy(tmp_path / "toy"), lockstep=True) as policy:
        env.before_step[20] = policy.process.kill
        # Long enough for the two to find each other at the start as well.
        with pytest.raises(TransportError, match=r"stamped .* came on /m2distill_policy/status (within 6 s|and the)"):
            _roll(side, env, [Rollout(0, 0, 0)], RobotOptions(timeout=6.0, instruction=INSTRUCTIONS[0]))
    assert 20 <= env.steps < 100


def test_an_instruction_that_the_bundle_does_not_know(side: Side, tmp_path: Path) -> None:
    with side.policy(write_toy(tmp_path / "toy"), lockstep=True) as policy:
        with pytest.raises(TransportError, match="did you mean 'lift the red box'"):
            _roll(side, StaticEnv(CONTRACT), [Rollout(0, 0, 0)], RobotOptions(instruction="lift the rad box"))
        assert policy.end() == 0


def test_a_swap_in_lockstep_takes_effect_at_one_observation(side: Side, tmp_path: Path) -> None:
    bundle = write_toy(tmp_path / "toy", seed=0)
    watched = tmp_path / "watched"
    watched.mkdir()
    settings = {"lockstep": True, "watch_folder": str(watched), "swap_when": "now"}
    with side.met(CONTRACT, bundle, **settings) as (_, robot):
        robot.begin(1, 0, 0, INSTRUCTIONS[0], SECOND)
        first, second = open_bundle(bundle), open_bundle(write_toy(tmp_path / "other", seed=1))
        answered = []
        for i, observation in enumerate(observations(CONTRACT, 8)):
            if i == 4:
                (tmp_path / "other").rename(watched / "other")
            _, status = robot.ask(observation, 2 * SECOND + i * PERIOD)
            answered.append(status.bundle)
        assert answered == [first.identifier] * 4 + [second.identifier] * 4
        assert robot.heard["status"][-1].swap == SwapState.SWITCHED
        assert robot.heard["status"][-1].window == 8  # the kept steps were fed to the new network


def test_a_swap_that_waits_for_the_arm_takes_effect_as_an_episode_begins(side: Side, tmp_path: Path) -> None:
    bundle = write_toy(tmp_path / "toy", seed=0)
    watched = tmp_path / "watched"
    watched.mkdir()
    with side.met(CONTRACT, bundle, lockstep=True, watch_folder=str(watched)) as (policy, robot):
        answered, stamp = [], SECOND
        first, second = open_bundle(bundle), open_bundle(write_toy(tmp_path / "other", seed=1))
        for episode in (1, 2):
            robot.begin(episode, 0, 0, INSTRUCTIONS[0], stamp)
            stamp += SECOND
            for i, observation in enumerate(observations(CONTRACT, 6)):
                if episode == 1 and i == 3:
                    (tmp_path / "other").rename(watched / "other")
                _, status = robot.ask(observation, stamp)
                answered.append(status.bundle)
                stamp += PERIOD
        assert answered == [first.identifier] * 6 + [second.identifier] * 6
        assert policy.end() == 0


@pytest.mark.parametrize("follow", ["action", "target_pose", "twist"])
def test_every_drive_follows_every_answer(side: Side, tmp_path: Path, follow: Follow) -> None:
    env = StaticEnv(CONTRACT, horizon=15)
    bundle = write_toy(tmp_path / "toy")
    server = _server(bundle)
    options = RobotOptions(follow=follow, instruction=INSTRUCTIONS[0], record_actions=True)
    with side.policy(bundle, lockstep=True):
        reports = _roll(side, env, [Rollout(5, 2, 1), Rollout(6, 2, 2)], options)
    for report in reports:
        assert report.steps == 15 and report.steps_without_command == 0 and len(report.bundles) == 1
        server.set_instruction(INSTRUCTIONS[0])
        server.reset("test", seed=2, episode=report.rollout.random_stream, is_stationary=True)
        observation = env.reset(report.rollout.state_seed)
        for followed in report.actions:
            decision = server.step(observation, observation.stamp)
            if follow == "twist":
                wanted = CONTRACT.action.response.twist(decision.action)
                np.testing.assert_allclose(followed[:6], wanted, atol=1e-12)
            else:
                np.testing.assert_allclose(followed[:6], decision.action[:6], atol=1e-9)
            if abs(decision.action[6]) > 0.2:
                assert np.sign(followed[6]) == np.sign(decision.action[6])
            observation = env.step(np.asarray(followed))


def _lose_the_first(link: Link, lost: list[str]) -> None:
    """Lose the first command and then an observation, as can happen to the first messages on a topic."""
    commands, observe = link.commands, link.observe

    def lossy_commands() -> list[Command]:
        found = commands()
        if found and not lost:
            lost.append("command")
            return []
        return found

    def lossy_observe(observation: Observation, pose: NDArray[np.float64] | None, stamp: int) -> None:
        if lost == ["command"]:
            lost.append("observation")
            return
        observe(observation, pose, stamp)

    link.commands, link.observe = lossy_commands, lossy_observe  # type: ignore[method-assign]


@pytest.mark.parametrize("follow", ["action", "twist"])
def test_lost_message_is_repeated_without_effect_on_results(side: Side, tmp_path: Path, follow: Follow) -> None:
    env = StaticEnv(CONTRACT, horizon=12)
    bundle = write_toy(tmp_path / "toy")
    options = RobotOptions(follow=follow, instruction=INSTRUCTIONS[0], record_actions=True, timeout=20)
    rollouts = [Rollout(5, 2, 1), Rollout(6, 2, 2)]
    lost: list[str] = []
    with side.policy(bundle, lockstep=True) as policy:
        with side.link(CONTRACT, follow=follow, lockstep=True) as link:
            _lose_the_first(link, lost)
            lossy = SimRobot(link, env, lockstep=True, options=options).run(rollouts)
        assert lost == ["command", "observation"]
        assert policy.end() == 0
    with side.policy(bundle, lockstep=True):
        whole = _roll(side, env, rollouts, options)
    assert [r.actions for r in lossy] == [r.actions for r in whole] and len(lossy[0].actions) == 12


def test_success_is_that_of_an_evaluation(side: Side, tmp_path: Path) -> None:
    """The same rollouts by the evaluation's workers and by messages have the same successes and lengths."""
    bundle = write_toy(tmp_path / "toy")
    with RolloutPool(1, suites="tests.toy_suite") as pool:
        inside = pool.evaluate(bundle, [Cell("toy", 1, rollouts=8, seed=4)])
    env = toy_suite.make_sim_env(toy_suite.suite_tasks("toy")[1], size=32)
    rollouts = [Rollout(state_seed("reported", 4, episode), 4, episode) for episode in range(8)]
    with side.policy(bundle, lockstep=True):
        reports = _roll(side, env, rollouts)
    assert [(r.success, r.steps) for r in reports] == [(r.success, r.steps) for r in inside]
    assert {r.success for r in reports} == {True, False}


def test_simulated_robot_equals_an_evaluation(side: Side, tmp_path: Path) -> None:
    """Both commands in separate processes, with robosuite, against the same rollouts in this process."""
    pytest.importorskip("robosuite")
    from m2distill_policy.sim.suites import make_sim_env, suite_task

    task = suite_task("tabletop", 0)
    env = make_sim_env(task, size=32)
    bundle = write_toy(
        tmp_path / "toy",
        contract=dataclasses.replace(env.contract, text=CONTRACT.text),
        instructions=[task.instruction],
    )
    out = tmp_path / "result.json"
    with side.policy(bundle, lockstep=True) as policy:
        arguments = ("--task", 0, "--bundle", bundle, "--lockstep", "--rollouts", 2, "--seed", 7, "--record-actions")
        with side.sim(*arguments, "--out", out) as robot:
            assert robot.wait(60) == 0, robot.output
        assert policy.end() == 0
    result = json.loads(out.read_text())
    server = _server(bundle)
    for episode, rollout in enumerate(result["rollouts"]):
        assert rollout["state_seed"] == state_seed("reported", 7, episode)
        server.set_instruction(task.instruction)
        server.reset("test", seed=7, episode=episode, is_stationary=True)
        observation = env.reset(rollout["state_seed"])
        for followed in rollout["actions"][:30]:
            decision = server.step(observation, observation.stamp)
            np.testing.assert_allclose(followed, decision.action, atol=1e-6)
            observation = env.step(decision.action)
    assert result["success"] == [False, False] and len(result["rollouts"]) == 2
    env.close()
