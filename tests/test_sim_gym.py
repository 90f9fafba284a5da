"""The environments with gymnasium's interface."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("robosuite", reason="the simulator is not installed (requirements/sim.txt)")
pytest.importorskip("gymnasium", reason="gymnasium is not installed (requirements/sim.txt)")

from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from m2distill_policy.errors import SimulationError
from m2distill_policy.sim.env import Task
from m2distill_policy.sim.experts.motion import action_towards
from m2distill_policy.sim.gym_env import IDS, GymEnv, make_env
from m2distill_policy.sim.suites import SUITES, make_expert, make_sim_env, suite_contract, suite_task
from m2distill_policy.sim.tabletop.env import TabletopEnv
from tests.libero_scenes import needs_scenes


@pytest.fixture(scope="module")
def env() -> Iterator[GymEnv]:
    made = make_env("tabletop", task=1, size=32, render_mode="rgb_array")
    assert isinstance(made.unwrapped, GymEnv)
    yield made.unwrapped
    made.close()


def _check(env: GymEnv) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)


def test_gymnasium_accepts_a_tabletop_task(env: GymEnv) -> None:
    _check(env)


@needs_scenes
def test_gymnasium_accepts_a_libero_task() -> None:
    made = make_env("libero_object", task=2, size=32, render_mode="rgb_array")
    try:
        assert isinstance(made.unwrapped, GymEnv)
        _check(made.unwrapped)
        assert made.reset(seed=0)[1]["instruction"] == suite_task("libero_object", 2).instruction
    finally:
        made.close()


def test_observations_are_those_of_the_simulation(env: GymEnv) -> None:
    contract = suite_contract("tabletop", 32)
    assert isinstance(env.observation_space, spaces.Dict)
    assert set(env.observation_space) == {*contract.camera_names, *contract.proprioception_names}
    observation, info = env.reset(seed=7)
    assert info == {
        "instruction": suite_task("tabletop", 1).instruction, "is_success": False, "achieved": (), "lifted": ()
    }  # fmt: skip
    actions = np.random.default_rng(0).uniform(-1, 1, (3, 7)).astype(np.float32)
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
    assert (reward, terminated, truncated) == (0.0, False, False)
    sim_env = make_sim_env(suite_task("tabletop", 1), size=32)
    try:
        sim_env.reset(7)
        for action in actions:
            after = sim_env.step(action)
    finally:
        sim_env.close()
    for expected in (after.images, after.proprioception):
        assert all(np.array_equal(observation[name], values) for name, values in expected.items())
    image = env.render()
    assert image is not None and image.shape == (256, 256, 3) and image.dtype == np.uint8


def test_reward_and_ends(env: GymEnv) -> None:
    sim_env = env.sim_env
    assert isinstance(sim_env, TabletopEnv)
    env.reset(seed=3)
    expert = make_expert(sim_env, 3)
    rewards = []
    for _ in range(sim_env.task.horizon):
        action = action_towards(expert.target(), *sim_env.grip_pose(), env.contract.action)
        _, reward, terminated, truncated, info = env.step(action)
        rewards.append(reward)
        if terminated or truncated:
            break
    assert terminated and not truncated and info["is_success"] and info["achieved"] == (sim_env.task.name,)
    assert rewards[-1] == 1.0 and not any(rewards[:-1]) and info["lifted"] == sim_env.task.targets
    env.reset(seed=3)
    for step in range(1, sim_env.task.horizon + 1):
        _, reward, terminated, truncated, _ = env.step(np.zeros(7))
        assert (reward, terminated) == (0.0, False) and truncated == (step == sim_env.task.horizon)


def test_initial_states(env: GymEnv) -> None:
    first, _ = env.reset(seed=11)
    state = env.sim_env.state()
    other, _ = env.reset()
    assert not np.array_equal(first["agentview_rgb"], other["agentview_rgb"])
    env.reset(seed=11)
    again, _ = env.reset()
    assert np.array_equal(other["agentview_rgb"], again["agentview_rgb"]), "the seed gives the later states too"
    same, _ = env.reset(options={"state": state})
    assert np.array_equal(first["joint_states"], same["joint_states"])
    with pytest.raises(SimulationError, match="did you mean 'state'"):
        env.reset(options={"stat": state})


def test_arguments() -> None:
    with pytest.raises(SimulationError, match="did you mean 'tabletop'"):
        make_env("tabeltop")
    with pytest.raises(SimulationError, match="there is no task 9"):
        make_env("tabletop", task=9)
    with pytest.raises(SimulationError, match="size is 8 pixels"):
        make_env(size=8)
    with pytest.raises(SimulationError, match="suite 'libero_goal'"):
        make_env("tabletop", task=Task("libero_goal", 0, "x", "x", 10))
    with pytest.raises(SimulationError, match="render_mode"):
        GymEnv(render_mode="human")


def test_a_task_of_ones_own() -> None:
    task = Task("tabletop", 5, "lift_the_can", "lift the can", 80, "lift", ("can",))
    env = make_env(task=task, size=16)
    try:
        assert env.reset(seed=0)[1]["instruction"] == "lift the can"
        assert env.spec is not None and env.spec.id == IDS["tabletop"]
    finally:
        env.close()


def test_registered_without_an_import() -> None:
    assert set(IDS) == set(SUITES)
    code = (
        "import gymnasium\n"
        "env = gymnasium.make('m2distill_policy.sim.gym_env:m2distill/Tabletop-v0', task=2, size=16)\n"
        "assert env.reset(seed=0)[1]['instruction'] == 'lift the blue box'\n"
        "env.close()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_gymnasium_is_not_imported_by_the_simulation() -> None:
    code = (
        "import sys, m2distill_policy.sim.suites, m2distill_policy.evaluation.worker\n"
        "assert 'gymnasium' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
