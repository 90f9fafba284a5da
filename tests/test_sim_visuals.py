"""Visual profiles change what is drawn and never what moves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("robosuite", reason="the simulator is not installed (requirements/sim.txt)")

from m2distill_policy.errors import SimulationError
from m2distill_policy.sim import visuals
from m2distill_policy.sim.cache import cache_dir
from m2distill_policy.sim.tabletop.env import TabletopEnv
from m2distill_policy.sim.tabletop.scene import build_xml
from m2distill_policy.sim.tabletop.tasks import TASKS
from m2distill_policy.storage import write_atomic


def test_what_is_dropped_has_no_mass() -> None:
    import mujoco

    xml = build_xml()
    stock = mujoco.MjModel.from_xml_string(xml)
    lean = mujoco.MjModel.from_xml_string(visuals.physics_xml(xml))
    assert lean.ngeom < stock.ngeom and lean.nmeshface < stock.nmeshface
    assert np.array_equal(stock.body_mass, lean.body_mass)
    assert np.array_equal(stock.body_inertia, lean.body_inertia)
    assert (stock.nq, stock.nv, stock.nu, stock.nsite) == (lean.nq, lean.nv, lean.nu, lean.nsite)
    # And so the motion is the same, bit by bit.
    data = [mujoco.MjData(stock), mujoco.MjData(lean)]
    for one in data:
        one.qpos[:7] = (0.0, 0.3, 0.0, -2.2, 0.0, 2.6, 0.8)
        one.ctrl[:7] = (1.0, -8.0, 0.5, 6.0, 0.3, 1.0, 0.1)
    for _ in range(200):
        mujoco.mj_step(stock, data[0])
        mujoco.mj_step(lean, data[1])
    assert np.array_equal(data[0].qpos, data[1].qpos)


def test_profiles_share_physics_and_look_alike() -> None:
    rng = np.random.default_rng(1)
    actions = rng.uniform(-0.6, 0.6, (8, 7))
    states, views, faces = [], [], []
    for name in ("stock", "fast"):
        env = TabletopEnv(TASKS[0], size=64, visuals=name)
        env.reset(7)
        for action in actions:
            env.advance(action)
        states.append(env.state())
        views.append(env.observe().images)
        faces.append(env._renderer.model.nmeshface)
        env.close()
    assert np.array_equal(states[0], states[1])
    assert faces[1] * 6 < faces[0]
    for camera in views[0]:
        difference = np.abs(views[0][camera].astype(int) - views[1][camera].astype(int))
        assert difference.mean() < 8.0, camera


def test_works_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("M2DISTILL_CACHE", str(tmp_path / "file" / "below"))
    assert cache_dir("meshes") is None
    model = visuals.visual_model(build_xml(), visuals.visual_profile("fast"))
    assert model.nmeshface < 30_000


def test_cached_meshes_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M2DISTILL_CACHE", str(tmp_path))
    first = visuals.visual_model(build_xml(), visuals.visual_profile("fast"))
    written = sorted((tmp_path / "meshes").iterdir())
    assert written and not [file for file in written if file.name.startswith(".")]
    stamps = [file.stat().st_mtime_ns for file in written]
    second = visuals.visual_model(build_xml(), visuals.visual_profile("fast"))
    assert np.array_equal(first.mesh_vert, second.mesh_vert)
    assert [file.stat().st_mtime_ns for file in sorted((tmp_path / "meshes").iterdir())] == stamps


def test_atomic_writing_leaves_nothing_half_done(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a", b"one")
    write_atomic(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_bytes() == b"two"
    with pytest.raises(OSError):
        write_atomic(tmp_path / "absent" / "a", b"three")
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_scene_with_massive_visuals_is_refused() -> None:
    with pytest.raises(SimulationError, match="inertiagrouprange"):
        visuals.physics_xml("<mujoco><compiler angle='radian'/><worldbody/></mujoco>")
