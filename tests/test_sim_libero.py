"""LIBERO by the same interface: its tasks, its initial states without unpickling, and one task end to end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("robosuite", reason="the simulator is not installed (requirements/sim.txt)")

from m2distill_policy.errors import SimulationError
from m2distill_policy.sim.libero import files as libero_files
from m2distill_policy.sim.suites import suite_tasks
from tests.libero_scenes import needs_scenes

ROOT = Path(__file__).resolve().parent.parent

try:
    libero_files.package_folder()
except SimulationError as _absent:
    pytest.skip(str(_absent), allow_module_level=True)


@pytest.mark.parametrize("suite", ["libero_spatial", "libero_object", "libero_goal", "libero_10"])
def test_ten_tasks_with_words_and_states(suite: str) -> None:
    tasks = suite_tasks(suite)
    assert len(tasks) == 10 and len({task.name for task in tasks}) == 10
    for task in tasks:
        assert task.instruction == task.instruction.lower() or suite == "libero_10"
        assert "_" not in task.instruction and "SCENE" not in task.instruction and task.targets
        states = libero_files.initial_states(task)
        assert states.shape[0] == 50 and states.shape[1] > 40 and np.all(np.isfinite(states))


def test_first_instruction_is_liberos() -> None:
    assert suite_tasks("libero_object")[0].instruction == "pick up the alphabet soup and place it in the basket"
    assert suite_tasks("libero_10")[2].instruction == "turn on the stove and put the moka pot on it"


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x02K\x01.", b"cos\nsystem\n(S'touch /tmp/x'\ntR.", b"no pickle at all"]
)
def test_other_pickles_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError):
        libero_files.read_matrix(content)


def test_scenes_are_found_by_one_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M2DISTILL_LIBERO_ASSETS", str(tmp_path))
    with pytest.raises(SimulationError, match="has no folder 'scenes'"):
        libero_files.assets_folder()
    (tmp_path / "scenes").mkdir()
    assert libero_files.assets_folder() == tmp_path


def test_missing_looks_are_told_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    from m2distill_policy.sim.libero.build import hide_missing_visuals

    xml = """<mujoco><asset><mesh name="seen" file="/absent/seen.msh"/>
    <mesh name="solid" file="/absent/solid.msh"/></asset>
    <worldbody><geom name="a" type="mesh" mesh="seen" contype="0" conaffinity="0" group="1"/>
    <geom name="b" type="mesh" mesh="solid" group="0"/></worldbody></mujoco>"""
    out = hide_missing_visuals(xml)
    assert "/absent/seen.msh" not in out and 'name="a"' in out and "/absent/solid.msh" in out
    assert "/absent/seen.msh" in caplog.text and "solid" not in caplog.text


@pytest.mark.libero
@pytest.mark.slow
@needs_scenes
def test_one_task_runs_end_to_end(tmp_path: Path) -> None:
    """In a process of its own, with an empty home folder and nobody to answer a question."""
    code = """
import sys
import numpy as np
from m2distill_policy.sim.suites import make_sim_env, suite_tasks
task = suite_tasks("libero_object")[0]
world = make_sim_env(task, size=64, visuals="fast")
observation = world.reset(3)
observation.check(world.contract)
assert observation.stamp == 0.0 and not world.success() and world.lifted() == ()
start = world.state()
for _ in range(5):
    observation = world.step(np.array([0, 0, 0.5, 0, 0, 0, -1.0]))
observation.check(world.contract)
assert abs(observation.stamp - 0.25) < 1e-9
assert world.end_effector()[2] > 0 and world.render("agentview", 96, 128).shape == (96, 128, 3)
again = world.reset(3)
assert np.array_equal(world.state(), start)
assert not np.array_equal(world.reset(4).images["agentview_rgb"], again.images["agentview_rgb"])
# Let the soup fall into the basket: the goal is LIBERO's own predicate.
state = world.reset_to(start) and world.state()
def place(name):
    return 1 + int(world.model.joint(name + "_joint0").qposadr[0])
soup, basket = place("alphabet_soup_1"), place("basket_1")
state[soup : soup + 3] = state[basket : basket + 3] + np.array([0, 0, 0.3])
world.reset_to(state)
assert not world.success()
for _ in range(25):
    world.step(np.zeros(7))
assert world.success() and task.name in world.achieved(), world.achieved()
world.step_twist(np.array([0.05, 0, 0, 0, 0, 0]), -1.0)
world.close()
assert "torch" not in sys.modules and "libero.libero.benchmark" not in sys.modules
"""
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    environment.setdefault("M2DISTILL_CACHE", str(Path.home() / ".cache" / "m2distill"))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / ".libero").exists()
