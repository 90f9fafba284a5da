"""The suite tabletop: worlds that repeat, judge fairly, refuse nonsense, and experts that solve them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

pytest.importorskip("robosuite", reason="the simulator is not installed (requirements/sim.txt)")

from m2distill_policy.errors import SimulationError
from m2distill_policy.sim.experts.episode import run_expert
from m2distill_policy.sim.experts.motion import action_towards
from m2distill_policy.sim.experts.noise import Noise
from m2distill_policy.sim.seeds import DEMONSTRATIONS_FROM, demonstration_seed
from m2distill_policy.sim.suites import make_expert, make_sim_env, suite_task, suite_tasks
from m2distill_policy.sim.tabletop import scene
from m2distill_policy.sim.tabletop.env import TabletopEnv
from m2distill_policy.sim.tabletop.expert import TabletopExpert
from m2distill_policy.sim.tabletop.tasks import TASKS


@pytest.fixture(scope="module")
def shared() -> Iterator[TabletopEnv]:
    """One world for the module: the scene is the same for every task."""
    env = TabletopEnv(TASKS[0], size=64)
    yield env
    env.close()


@pytest.fixture
def env(shared: TabletopEnv) -> TabletopEnv:
    shared.task = TASKS[0]
    return shared


def test_five_tasks_of_two_kinds() -> None:
    assert len(TASKS) == 5 and [t.index for t in TASKS] == list(range(5))
    assert {t.kind for t in TASKS} == {"lift", "place"}
    assert all(t.kind == "lift" for t in TASKS[:3])
    assert len({t.instruction for t in TASKS}) == 5
    assert {name for t in TASKS for name in t.targets} == {item.name for item in scene.OBJECTS}


def test_initial_state_comes_from_the_seed_alone(env: TabletopEnv) -> None:
    first = env.reset(5)
    state = env.state()
    for _ in range(5):
        env.step(np.array([0.5, 0.2, -0.5, 0.1, 0, 0, 1]))
    again = env.reset(5)
    assert np.array_equal(env.state(), state)
    assert all(np.array_equal(first.images[name], again.images[name]) for name in first.images)
    assert first.stamp == again.stamp == 0.0
    env.reset(6)
    assert not np.array_equal(env.state(), state)


def test_only_the_instruction_tells_tasks_apart(env: TabletopEnv) -> None:
    states = []
    for task in TASKS:
        env.task = task
        env.reset_state(11)
        states.append(env.state())
    assert all(np.array_equal(states[0], state) for state in states[1:])


def test_objects_swap_places_and_keep_apart() -> None:
    slots: dict[str, set[int]] = {item.name: set() for item in scene.OBJECTS}
    for seed in range(200):
        places = scene.sample_layout(seed).places
        assert set(places) == set(slots)
        for item in scene.OBJECTS:
            x, y, _ = places[item.name]
            centres = scene.SLOTS[item.group]
            nearest = int(np.argmin([np.hypot(x - cx, y - cy) for cx, cy in centres]))
            assert max(abs(x - centres[nearest][0]), abs(y - centres[nearest][1])) <= scene.JITTER
            slots[item.name].add(nearest)
        points = np.array([p[:2] for p in places.values()])
        apart = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.eye(len(points))
        assert apart.min() > 0.09
    assert all(len(slots[item.name]) == len(scene.SLOTS[item.group]) for item in scene.OBJECTS)


def test_everything_rests_where_it_was_put(env: TabletopEnv) -> None:
    env.reset_state(3)
    before = env.positions()
    for _ in range(20):
        env.advance(np.array([0, 0, 0, 0, 0, 0, -1.0]))
    for name, position in env.positions().items():
        assert np.linalg.norm(position - before[name]) < 0.003, name
    assert not env.success() and env.achieved() == () and env.lifted() == ()


def test_observation_is_the_contracts_and_upright(env: TabletopEnv) -> None:
    observation = env.reset(4)
    observation.check(env.contract)
    view = observation.images["agentview_rgb"].astype(int)
    # The grey wall is above, the white table below.
    assert view[:6].mean() < 160 < 220 < view[-12:].mean()
    # The bin stands at +y, which is right in the picture.
    violet = (abs(view - np.array([80, 70, 92])).max(axis=2) < 25).nonzero()[1]
    assert len(violet) > 60 and np.median(violet) > 40
    hand = observation.images["eye_in_hand_rgb"].astype(int)
    assert hand[-6:].mean() < 90, "the hand's own body is at the bottom"
    for color in range(3):  # each box is seen by both cameras or at least by the first
        others = [c for c in range(3) if c != color]
        assert ((view[..., color] > 90) & (view[..., others].max(axis=2) < 90)).sum() > 8


def test_fields_of_view_are_the_scenes(env: TabletopEnv) -> None:
    drawn = env._renderer.model
    assert env.contract.camera("agentview_rgb").fov_y == pytest.approx(drawn.cam_fovy[drawn.camera("agentview").id])
    hand = drawn.cam_fovy[drawn.camera("robot0_eye_in_hand").id]
    assert env.contract.camera("eye_in_hand_rgb").fov_y == pytest.approx(hand)


def test_a_state_brings_back_the_future(env: TabletopEnv) -> None:
    env.reset(8)
    state = env.state()
    actions = np.random.default_rng(0).uniform(-0.5, 0.5, (10, 7))
    ends = []
    for _ in range(2):
        env.reset_to(state)
        for action in actions:
            env.advance(action)
        ends.append(env.state())
    assert np.array_equal(ends[0], ends[1])


@pytest.mark.parametrize("index", range(5))
def test_experts_succeed_under_disturbance(env: TabletopEnv, index: int) -> None:
    env.task = TASKS[index]
    for seed in range(6):
        run = run_expert(env, demonstration_seed(9, index, seed), make_expert, noise=Noise())
        assert run.success
        assert np.all(np.abs(run.actions) <= 1.0) and np.abs(run.actions[:, :6]).max() <= 0.96
        assert not np.array_equal(run.actions[:, :6], run.executed[:, :6])
        assert set(env.lifted()) <= set(env.task.targets)
        assert env.task.name in env.achieved()
        assert len(run.actions) < 0.9 * env.task.horizon


def test_another_tasks_goal_is_not_this_ones(env: TabletopEnv) -> None:
    green = TASKS[1]
    env.reset_state(21)
    for _ in range(green.horizon):
        env.task = green
        action = action_towards(TabletopExpert(env).target(), *env.grip_pose(), env.contract.action)
        env.task = TASKS[0]
        env.advance(action)
    assert not env.success()
    assert env.achieved() == (green.name,)
    assert env.lifted() == green.targets


def test_velocity_drive_follows_the_twist(env: TabletopEnv) -> None:
    env.reset_state(2)
    twist = np.array([0.08, -0.05, -0.06, 0.0, 0.0, 0.0])
    start = env.end_effector()[:3]
    for _ in range(20):
        env.step_twist(twist, -1.0)
    assert np.allclose(env.end_effector()[:3] - start, twist[:3], atol=0.004)
    env.step_twist(np.zeros(6), -1.0)
    still = env.end_effector()[:3]
    for _ in range(5):
        env.step_twist(np.zeros(6), -1.0)
    assert np.allclose(env.end_effector()[:3], still, atol=0.003)


def test_velocity_drive_turns(env: TabletopEnv) -> None:
    from m2distill_policy.sim.osc import vector_from_rotation

    env.reset_state(2)
    _, before = env.grip_pose()
    for _ in range(10):
        env.step_twist(np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.5]), -1.0)
    _, after = env.grip_pose()
    assert np.allclose(vector_from_rotation(after @ before.T), [0.0, 0.0, 0.25], atol=0.01)


def test_nonsense_is_refused_in_a_sentence(env: TabletopEnv) -> None:
    env.reset_state(0)
    with pytest.raises(SimulationError, match="7 finite numbers"):
        env.step(np.full(7, np.nan))
    with pytest.raises(SimulationError, match="7 finite numbers"):
        env.step(np.zeros(6))
    with pytest.raises(SimulationError, match="6 finite numbers"):
        env.step_twist(np.zeros(7), 0.0)
    with pytest.raises(SimulationError, match="seed is -1"):
        env.reset(-1)
    with pytest.raises(SimulationError, match="finite numbers"):
        env.reset_to(np.zeros(3))
    with pytest.raises(SimulationError, match="no camera 'agentvew'"):
        env.render("agentvew", 64, 64)


def test_unknown_names_get_the_closest() -> None:
    with pytest.raises(SimulationError, match="did you mean 'tabletop'"):
        suite_tasks("tablefop")
    with pytest.raises(SimulationError, match="there is no task 7"):
        suite_task("tabletop", 7)
    with pytest.raises(SimulationError, match="did you mean 'fast'"):
        make_sim_env(TASKS[0], visuals="fsat")
    with pytest.raises(SimulationError, match="size is 8 pixels"):
        make_sim_env(TASKS[0], size=8)


def test_demonstration_seeds_are_apart() -> None:
    seeds = [demonstration_seed(run, task, i) for run in (0, 1) for task in range(5) for i in (0, 9999)]
    assert len(set(seeds)) == len(seeds) and min(seeds) == DEMONSTRATIONS_FROM
    with pytest.raises(SimulationError, match="allowed are"):
        demonstration_seed(0, 0, 10_000)
