"""Scripted experts of LIBERO's suites: shapes, grasps, fresh states, and whole tasks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("robosuite", reason="the simulator is not installed (requirements/sim.txt)")

import mujoco

from m2distill_policy.errors import SimulationError
from m2distill_policy.sim.experts.episode import ExpertLostError, run_expert
from m2distill_policy.sim.experts.motion import DOWN
from m2distill_policy.sim.experts.noise import Noise
from m2distill_policy.sim.libero import files as libero_files
from m2distill_policy.sim.libero.env import LiberoEnv
from m2distill_policy.sim.libero.expert import LiberoExpert
from m2distill_policy.sim.libero.grasps import OPENING, down_at_yaw, grasps_from_above, leaned, pointing_down
from m2distill_policy.sim.libero.shapes import Shapes
from m2distill_policy.sim.record import record_episode
from m2distill_policy.sim.seeds import DEMONSTRATIONS_FROM, demonstration_seed, is_demonstration_seed
from m2distill_policy.sim.suites import make_expert, make_sim_env, suite_task
from tests.libero_scenes import needs_scenes

SCENE = """<mujoco><worldbody>
<geom name="floor" type="plane" size="2 2 0.1"/>
<body name="table" pos="0 0 0.4"><geom name="top" type="box" size="0.5 0.5 0.02"/></body>
<body name="box" pos="0.1 0 0.45"><freejoint/><geom name="box" type="box" size="0.02 0.04 0.03"/></body>
<body name="shelf" pos="0.1 0.05 0.6" euler="0 0 30"><geom name="shelf" type="box" size="0.02 0.3 0.01"/></body>
<body name="seen"><geom name="seen" type="box" size="1 1 1" contype="0" conaffinity="0"/></body>
</worldbody></mujoco>"""


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return Shapes(model, data)


def test_what_stands_where(shapes: Shapes) -> None:
    box = shapes.geoms_of(shapes.model.body("box").id)
    low, high = shapes.boxes(box)
    assert np.allclose(low, [[0.08, -0.04, 0.42]]) and np.allclose(high, [[0.12, 0.04, 0.48]])
    points = shapes.points(box)
    assert np.allclose(points.min(axis=0), low[0]) and np.allclose(points.max(axis=0), high[0])
    assert np.any(np.abs(points[:, 2] - 0.45) < 1e-9), "along the edges too, not at the corners alone"
    nothing = box[:0]
    start, end = np.array([-0.4, -0.4, 0.5]), np.array([-0.2, -0.4, 0.5])
    assert shapes.highest_on_way(start, end, 0.05, nothing) == pytest.approx(0.42), "the table, not what is only seen"
    across = np.array([0.1, -0.3, 0.5]), np.array([0.1, -0.02, 0.5])
    shelf = shapes.geoms_of(shapes.model.body("shelf").id)
    assert shapes.highest_on_way(*across, 0.03, shelf) == pytest.approx(0.48)
    assert shapes.support_height(box) == pytest.approx(0.42)
    far = np.array([3.0, 3.0, 0.0])
    assert shapes.highest_on_way(far, far, 0.05, nothing) == -np.inf
    with pytest.raises(SimulationError, match="no collision geom"):
        shapes.geoms_of(shapes.model.body("seen").id)


def test_the_way_out_from_under_a_shelf(shapes: Shapes) -> None:
    box = shapes.geoms_of(shapes.model.body("box").id)
    away = shapes.direction_from_under(box, 0.01)
    assert away is not None and np.linalg.norm(away) == pytest.approx(1.0)
    qpos = shapes.data.qpos
    before = qpos.copy()
    try:
        qpos[:2] = before[:2] + 0.3 * np.array([1.0, 0.0])
        mujoco.mj_forward(shapes.model, shapes.data)
        assert shapes.direction_from_under(box, 0.01) is None
    finally:
        qpos[:] = before
        mujoco.mj_forward(shapes.model, shapes.data)


def test_a_hand_that_points_down() -> None:
    assert np.allclose(down_at_yaw(0.0), DOWN)
    rotation = pointing_down(np.array([0.6, 0.8, 0.3]))
    assert np.allclose(rotation[:, 0], [0.6, 0.8, 0.0]) and np.allclose(rotation[:, 2], [0, 0, -1])
    assert np.linalg.det(rotation) == pytest.approx(1.0)


def test_a_narrow_thing_is_taken_across(shapes: Shapes) -> None:
    points = shapes.points(shapes.geoms_of(shapes.model.body("box").id))
    grasps = grasps_from_above(points)
    assert grasps
    for grasp in grasps:
        along = points @ grasp.rotation[:, 0]
        assert along.max() - along.min() <= OPENING + 0.02
        assert np.allclose(grasp.position[:2], [0.1, 0.0], atol=1e-6) and 0.42 < grasp.position[2] < 0.48
        assert np.allclose(grasp.approach, [0, 0, -1])
    # 8 cm by 4: never along the long side.
    assert all(abs(grasp.rotation[1, 0]) < 0.9 for grasp in grasps)
    for lean in leaned(grasps):
        assert np.arccos(-lean.approach[2]) == pytest.approx(0.5, abs=1e-6)


def test_a_wide_thing_is_taken_by_its_rim() -> None:
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    ring = np.stack([0.05 * np.cos(angle), 0.05 * np.sin(angle), np.full(60, 0.1)], axis=1)
    grasps = grasps_from_above(np.concatenate([ring, ring * [0.6, 0.6, 0.0]]))
    for grasp in grasps:
        out = grasp.position[:2] / np.linalg.norm(grasp.position[:2])
        assert 0.02 < np.linalg.norm(grasp.position[:2]) < 0.065
        assert abs(out @ grasp.rotation[:2, 0]) == pytest.approx(1.0, abs=1e-6), "the fingers on both sides of the rim"
    sides = np.array([grasp.position[:2] for grasp in grasps])
    assert (sides[:, 0] > 0.03).any() and (sides[:, 0] < -0.03).any() and (sides[:, 1] > 0.03).any()


def test_a_grasp_moves_with_its_body() -> None:
    grasp = grasps_from_above(np.array([[x, y, z] for x in (0, 0.04) for y in (0, 0.04) for z in (0, 0.05)]))[0]
    position, rotation = np.array([0.3, -0.2, 0.1]), down_at_yaw(0.7)
    there = grasp.relative_to(position, rotation)
    assert np.allclose(there.seen_from(position, rotation).position, grasp.position)
    assert there.is_like(there) and not there.is_like(grasp.seen_from(position, rotation))


def test_seeds_of_demonstrations() -> None:
    assert is_demonstration_seed(demonstration_seed(0, 0, 0)) and is_demonstration_seed(
        demonstration_seed(999, 99, 9999)
    )
    assert not is_demonstration_seed(DEMONSTRATIONS_FROM - 1) and not is_demonstration_seed(1_100_000_000)


# ---- in LIBERO's scenes ------------------------------------------------------------------------------------------


@pytest.fixture
def env(request: pytest.FixtureRequest) -> Iterator[LiberoEnv]:
    made = make_sim_env(suite_task(*request.param), size=32)
    assert isinstance(made, LiberoEnv)
    yield made
    made.close()


@pytest.mark.libero
@pytest.mark.slow
@needs_scenes
@pytest.mark.parametrize("env", [("libero_spatial", 4)], indirect=True)
def test_demonstrations_begin_in_fresh_states(env: LiberoEnv) -> None:
    """A bowl in an open drawer and another on the cabinet: placed relative to a fixture, which stays where it is."""
    fixtures = env.model.body_pos.copy()
    states = []
    for seed in (DEMONSTRATIONS_FROM, DEMONSTRATIONS_FROM + 1, DEMONSTRATIONS_FROM, 1_100_000_003, 3):
        env.reset_state(seed)
        states.append(env.state())
        assert not env.success() and np.array_equal(env.model.body_pos, fixtures)
        drawer = env.slide_of("wooden_cabinet_1_top_region")
        bowl = env.data.xpos[env.object_body("akita_black_bowl_1")]
        assert drawer is not None and drawer.open > 0.12
        # LIBERO's own rule: inside the region, and lying there.
        assert env._libero._eval_predicate(["in", "akita_black_bowl_1", "wooden_cabinet_1_top_region"]), bowl
    assert np.array_equal(states[0], states[2]) and not np.allclose(states[0], states[1], atol=1e-3)
    assert np.array_equal(states[3], states[4]), "LIBERO's own state number 3, modulo 50"


@pytest.mark.libero
@pytest.mark.slow
@needs_scenes
@pytest.mark.parametrize(
    "env",
    [("libero_object", 1), ("libero_spatial", 2), ("libero_goal", 0), ("libero_goal", 5), ("libero_goal", 7)],
    indirect=True,
    ids=["carry", "by the rim", "pull", "push", "turn"],
)
def test_experts_reach_the_goal(env: LiberoEnv) -> None:
    """Each skill once, disturbed as in a collection; the other ways out of a hundred are in docs/benchmarks.md."""
    tried = [run_expert(env, demonstration_seed(7, 0, n), make_expert, noise=Noise()) for n in range(2)]
    assert any(run.success for run in tried)
    for run in tried:
        assert np.all(np.isfinite(run.actions)) and np.all(np.abs(run.executed) <= 1.0)
        assert set(np.unique(run.actions[:, 6])) <= {-1.0, 1.0}
    again = run_expert(env, demonstration_seed(7, 0, 0), make_expert, noise=Noise())
    assert np.array_equal(again.states, tried[0].states), "the same seed, the same demonstration"


@pytest.mark.libero
@pytest.mark.slow
@needs_scenes
@pytest.mark.parametrize("env", [("libero_goal", 7)], indirect=True)
def test_a_recording_shows_what_the_world_shows(env: LiberoEnv) -> None:
    """Drawn afterwards from its states: the glow of a stove that is on, and no marker of the hand."""
    made = None
    for number in range(4):
        made = made or record_episode(env, demonstration_seed(7, 0, number))
    assert made is not None and made.states is not None
    hand = [i for i in range(env.model.nsite) if env.model.site(i).name.startswith("gripper0")]
    assert hand and np.all(env.render_model.site_rgba[hand, 3] == 0.0)
    for index in (0, len(made.states) // 2):
        seen = env.reset_to(made.states[index])
        for name, frames in made.episode.images.items():
            assert np.array_equal(frames[index], seen.images[name]), name
    on = made.states[-1].copy()
    knob = env.model.joint("flat_stove_1_button")
    cold, hot = (env.views(_with(on, 1 + int(knob.qposadr[0]), angle))["agentview_rgb"] for angle in (0.0, 1.0))
    redder = hot[..., 0].astype(int) - hot[..., 2] > cold[..., 0].astype(int) - cold[..., 2] + 20
    assert redder.any()
    # Upright: the robot stands at the back, so the table's edge is above the stove in the picture.
    assert not env.success()


def _with(state: np.ndarray, index: int, value: float) -> np.ndarray:
    changed = state.copy()
    changed[index] = value
    return changed


@pytest.mark.libero
@pytest.mark.slow
@needs_scenes
@pytest.mark.parametrize("env", [("libero_object", 1)], indirect=True)
def test_an_expert_at_a_loss_has_failed(env: LiberoEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(expert: LiberoExpert) -> None:
        raise ExpertLostError("no way")

    monkeypatch.setattr(LiberoExpert, "target", lost)
    run = run_expert(env, demonstration_seed(7, 0, 0), make_expert)
    assert not run.success and len(run.actions) == 0
    assert record_episode(env, demonstration_seed(7, 0, 0)) is None
    monkeypatch.undo()
    monkeypatch.setitem(env._goals, env.task.name, [["close", "cream_cheese_1"]])
    monkeypatch.setattr(LiberoEnv, "holds", lambda env, part: False)
    with pytest.raises(SimulationError, match="no skill for 'close cream_cheese_1'"):
        LiberoExpert(env, 0).target()


@pytest.mark.libero
@pytest.mark.slow
@needs_scenes
@pytest.mark.parametrize("missing", ["texture_map.png", "alphabet_soup.xml"])
def test_a_missing_part_of_a_scene_is_named(tmp_path: Path, missing: str) -> None:
    """Told by the collection that needs it, which keeps what it had."""
    assets = libero_files.assets_folder()
    for source in assets.rglob("*"):
        target = tmp_path / "assets" / source.relative_to(assets)
        if source.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        elif source.name != missing or "alphabet" not in source.parent.name:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source)
    words = ["demos", "--suite", "libero_object", "--tasks", "0", "--episodes", "1", "--size", "16", "--workers", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "m2distill_policy", *words, "--out", str(tmp_path / "out")],
        env={**os.environ, "M2DISTILL_LIBERO_ASSETS": str(tmp_path / "assets")},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("m2distill: LIBERO's scene of 'pick_up_the_alphabet_soup") and missing in last
    assert "set M2DISTILL_LIBERO_ASSETS to it" in last and "Traceback" not in done.stderr
