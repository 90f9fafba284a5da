"""Collecting: the same demonstrations however many workers, however often killed."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("robosuite", reason="the simulator is not installed (requirements/sim.txt)")

from m2distill_policy.demonstrations import DemonstrationFile, Episode, demonstration_path
from m2distill_policy.errors import DemonstrationError, SimulationError
from m2distill_policy.sim import collect as collect_module
from m2distill_policy.sim import collect_worker
from m2distill_policy.sim.collect import collect
from m2distill_policy.sim.collection import Collection, open_writer, parse_tasks
from m2distill_policy.sim.experts.episode import run_expert
from m2distill_policy.sim.experts.motion import action_towards
from m2distill_policy.sim.experts.noise import Noise
from m2distill_policy.sim.record import record_episode
from m2distill_policy.sim.response import fit_velocity_response
from m2distill_policy.sim.seeds import demonstration_seed
from m2distill_policy.sim.suites import make_expert
from m2distill_policy.sim.tabletop.env import TabletopEnv
from m2distill_policy.sim.tabletop.expert import TabletopExpert
from m2distill_policy.sim.tabletop.tasks import TASKS

ROOT = Path(__file__).resolve().parent.parent
NAMES = [task.name for task in TASKS]


def _command(folder: Path, *more: str) -> list[str]:
    words = ["demos", "--tasks", "0,1", "--episodes", "6", "--size", "16", "--out", str(folder), "--workers", "2"]
    return [sys.executable, "-m", "m2distill_policy", *words, *more]


def _hashes(folder: Path) -> list[str]:
    return [DemonstrationFile(demonstration_path(folder, name)).sha256() for name in NAMES[:2]]


def _children(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_killed_and_resumed_is_the_same(tmp_path: Path) -> None:
    whole = collect(Collection(tmp_path / "whole", (0, 1), episodes=6, size=16, workers=1))
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        _command(killed), cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and not list(killed.glob("*.parts/[0-9]*.hdf5")):
            assert process.poll() is None, "the collection ended before it could be killed"
            time.sleep(0.02)
        assert list(killed.glob("*.parts/[0-9]*.hdf5")), "no episode within 90 s"
        workers = _children(process.pid)
        process.kill()  # the parent alone: its workers must not go on beside the next call
        process.wait(timeout=30)
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in workers):
            assert time.monotonic() < deadline, "workers live on without their parent"
            time.sleep(0.05)
        assert len(workers) >= 2
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert not list(killed.glob("*_demo.hdf5")) or len(list(killed.glob("*_demo.hdf5"))) < 2
    done = subprocess.run(_command(killed), cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert "6 successful of 6 attempts" in done.stdout
    assert _hashes(killed) == [file.sha256() for file in whole]
    assert not list(killed.glob("*.parts"))
    # Run again: nothing to do, nothing changed. With other settings: refused.
    stamps = [demonstration_path(killed, name).stat().st_mtime_ns for name in NAMES[:2]]
    collect(Collection(killed, (0, 1), episodes=6, size=16))
    assert stamps == [demonstration_path(killed, name).stat().st_mtime_ns for name in NAMES[:2]]
    with pytest.raises(DemonstrationError, match="--force"):
        collect(Collection(killed, (0,), episodes=6, size=16, seed=1))
    collect(Collection(killed, (0,), episodes=6, size=16, force=True))
    assert stamps[0] == demonstration_path(killed, NAMES[0]).stat().st_mtime_ns, "what is as asked for is not made anew"
    demonstration_path(killed, NAMES[0]).write_bytes(b"damaged")
    with pytest.raises(DemonstrationError, match="cannot be read as HDF5"):
        collect(Collection(killed, (0,), episodes=6, size=16))
    assert collect(Collection(killed, (0,), episodes=6, size=16, force=True))[0].sha256() == whole[0].sha256()


@pytest.mark.slow
def test_fewer_episodes_than_were_collected_before_a_gap(tmp_path: Path) -> None:
    """Attempts end in any order: of the first, one may be untried while enough later ones have succeeded."""
    settings = {"tasks": (0,), "size": 16, "workers": 1}
    whole = collect(Collection(tmp_path / "whole", episodes=2, **settings))[0]  # type: ignore[arg-type]
    collection = Collection(tmp_path / "gap", episodes=2, **settings)  # type: ignore[arg-type]
    writer, task = open_writer(collection, TASKS[0]), TASKS[0]
    env = TabletopEnv(task, size=16)
    try:
        for attempt in (0, 2, 3):
            made = record_episode(env, demonstration_seed(0, task.index, attempt))
            assert made is not None
            writer.add(made)
    finally:
        env.close()
    part = writer.parts / f"{demonstration_seed(0, task.index, 0)}.hdf5"
    content = part.read_bytes()
    part.write_bytes(b"")  # as a power cut may leave it
    with pytest.raises(DemonstrationError, match=f"{part.name} is damaged .*remove it and run the same command"):
        collect(collection)
    part.write_bytes(content)
    assert collect(collection)[0].sha256() == whole.sha256()


@pytest.mark.slow
def test_episodes_are_added_to_a_finished_file(tmp_path: Path) -> None:
    settings = {"tasks": (0,), "size": 16, "workers": 1}
    whole = collect(Collection(tmp_path / "whole", episodes=3, **settings))[0]  # type: ignore[arg-type]
    short = Collection(tmp_path / "more", episodes=2, **settings)  # type: ignore[arg-type]
    first = collect(short)[0].sha256()
    with pytest.raises(DemonstrationError, match="--extend"):
        collect(dataclasses.replace(short, episodes=3))
    (longer,) = collect(dataclasses.replace(short, episodes=3, extend=True))
    assert len(longer) == 3 and longer.tried == whole.tried
    assert longer.sha256() == whole.sha256() != first, "as if all had been collected at once"
    assert not list((tmp_path / "more").glob("*.parts"))
    for changed in ({"episodes": 2}, {"episodes": 4, "noise": 0.5}):  # fewer episodes, or other settings
        with pytest.raises(DemonstrationError, match="--force"):
            collect(dataclasses.replace(short, extend=True, **changed))
    assert DemonstrationFile(longer.path).sha256() == whole.sha256()


def test_a_file_with_foreign_episodes_is_not_extended(tmp_path: Path) -> None:
    collection = Collection(tmp_path, (0,), episodes=2, size=16, workers=1, extend=True)
    env = TabletopEnv(TASKS[0], size=16)
    try:
        made = record_episode(env, 5)  # no seed of a collection
    finally:
        env.close()
    assert made is not None
    writer = open_writer(collection, TASKS[0])
    writer.add(made)
    content = writer.finish([5], 1).path.read_bytes()
    with pytest.raises(DemonstrationError, match="seed 5"):
        collect(collection)
    assert demonstration_path(tmp_path, NAMES[0]).read_bytes() == content
    assert not list(tmp_path.glob("*.parts"))


@pytest.mark.parametrize("problem", ["a damaged file", "an unfinished collection", "no environment"])
def test_what_is_refused_leaves_no_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: str) -> None:
    def no_env(*_: object) -> None:
        raise SimulationError("no environment")

    monkeypatch.setattr(collect_module, "_run", no_env)
    if problem == "a damaged file":
        demonstration_path(tmp_path, NAMES[1]).write_bytes(b"damaged")
    elif problem == "an unfinished collection":
        other = open_writer(Collection(tmp_path, (1,), episodes=1, size=32), TASKS[1])
        other.add_failure(0)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises((DemonstrationError, SimulationError)):
        collect(Collection(tmp_path, (0, 1), episodes=1, size=16))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".lock", *before])


def test_a_seed_whose_physics_fails_is_a_failed_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    collection = Collection(tmp_path, (0,), episodes=1, size=16)
    monkeypatch.setattr(collect_worker, "_collection", collection)
    monkeypatch.setattr(collect_worker, "_env", None)
    monkeypatch.setattr(TabletopEnv, "advance", _unstable)
    seed = demonstration_seed(0, 0, 0)
    assert not collect_worker.run_attempt(0, seed)
    assert open_writer(collection, TASKS[0]).attempts() == {seed: False}
    assert f"seed {seed}, counts as failed: the physics became unstable" in capsys.readouterr().err


def _unstable(*_: object) -> None:
    raise SimulationError("the physics became unstable")


def _kill_a_child() -> None:
    children = multiprocessing.active_children()
    assert children and children[0].pid is not None
    os.kill(children[0].pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_that_dies_is_started_anew(tmp_path: Path) -> None:
    whole = collect(Collection(tmp_path / "whole", (0,), episodes=4, size=16, workers=1))
    notes: list[str] = []

    def once(done: int, total: int, note: str) -> None:
        notes.append(note)
        if done == 1 and not any("restarted" in said for said in notes):
            _kill_a_child()

    killed = collect(Collection(tmp_path / "killed", (0,), episodes=4, size=16, workers=1), once)
    assert [n[-6:] for n in notes if "died" in n] == ["1 of 3"]
    assert [f.sha256() for f in killed] == [f.sha256() for f in whole]

    def always(done: int, total: int, note: str) -> None:
        if "tried" in note:
            _kill_a_child()

    with pytest.raises(SimulationError, match=r"died .* 4 times in all"):
        collect(Collection(tmp_path / "lost", (0,), episodes=9, size=16, workers=1), always)
    assert list(tmp_path.glob("lost/*.parts/[0-9]*.hdf5"))


def test_episode_is_what_the_world_shows() -> None:
    env = TabletopEnv(TASKS[2], size=32)
    try:
        made = record_episode(env, 1_000_123)
        assert made is not None and made.states is not None
        episode = made.episode
        for index in (0, len(episode) // 2, len(episode) - 1):
            seen = env.reset_to(made.states[index])
            for name, frames in episode.images.items():
                assert np.array_equal(frames[index], seen.images[name])
            for name, values in episode.proprioception.items():
                assert np.allclose(values[index], seen.proprioception[name], atol=1e-6)
        assert episode.ee is not None
        env.reset_to(made.states[3])
        assert np.allclose(episode.ee[3], env.end_effector(), atol=1e-5)
        assert set(np.unique(episode.actions[:, 6])) == {-1.0, 1.0}
        assert record_episode(env, 1_000_123, noise=0.0) is not None
    finally:
        env.close()


def test_velocities_reproduce_the_demonstrations() -> None:
    env = TabletopEnv(TASKS[0], size=16)
    episodes = []
    try:
        for index in range(3):
            env.task = TASKS[index]
            for seed in range(4):
                run = run_expert(env, seed, make_expert, noise=Noise())
                actions, ee = run.actions.astype(np.float32), run.ee.astype(np.float32)
                executed = run.executed.astype(np.float32)
                episodes.append(Episode({}, run.proprioception, actions, ee, seed, run.states[0], executed))
        response = fit_velocity_response(episodes)
        assert response.fitted_from == sum(len(episode) - 1 for episode in episodes)
        assert all(0.12 < response.velocities[axis][-1] < 0.3 for axis in range(3)), "about 0.2 m/s at full action"
        env.task = TASKS[1]
        for seed in (50, 51):
            run = run_expert(env, seed, make_expert)
            env.reset_state(seed)
            for action in run.actions[:-1]:
                env.step_twist(response.twist(action), float(action[6]))
            assert np.linalg.norm(env.end_effector()[:3] - run.ee[-1, :3]) < 0.05
            # With the expert looking, the velocity drive does the task in about as many steps.
            env.reset_state(seed)
            steps = 0
            while not env.success() and steps < env.task.horizon:
                action = action_towards(TabletopExpert(env).target(), *env.grip_pose(), env.contract.action)
                env.step_twist(response.twist(action), float(action[6]))
                steps += 1
            assert env.success() and steps < 1.3 * len(run.actions)
    finally:
        env.close()
    with pytest.raises(DemonstrationError, match="at least 50 demonstrated steps"):
        fit_velocity_response([Episode({}, {}, actions[:40], ee[:40], executed=executed[:40])])
    with pytest.raises(DemonstrationError, match="no end-effector poses"):
        fit_velocity_response([dataclasses.replace(episodes[0], ee=None)])


def test_a_workers_error_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two OpenGL libraries that exclude each other: mujoco refuses to be imported in the worker.
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "egl")
    with pytest.raises(SimulationError, match=f"'{NAMES[0]}' from seed 1000000 failed: .*OSMesa"):
        collect(Collection(tmp_path, (0,), episodes=1, size=16, workers=1))


def test_questions_that_make_no_sense(tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match=r"libero_gaol.*tabletop, .*did you mean 'libero_goal'"):
        Collection(tmp_path, (0,), suite="libero_gaol")
    with pytest.raises(SimulationError, match="tasks is"):
        Collection(tmp_path, ())
    with pytest.raises(SimulationError, match="did you mean 'stock'"):
        Collection(tmp_path, (0,), visuals="stok")
    with pytest.raises(SimulationError, match=r"size is 4 .*16 to 1024"):
        Collection(tmp_path, (0,), size=4)
    with pytest.raises(SimulationError, match="named twice"):
        Collection(tmp_path, (1, 1))
    with pytest.raises(SimulationError, match=r"noise is 9.0 .*0 to 3"):
        Collection(tmp_path, (0,), noise=9.0)
    with pytest.raises(SimulationError, match="tasks is 'one'"):
        parse_tasks("one", "tabletop")
    with pytest.raises(SimulationError, match="there is no task 9"):
        parse_tasks("0,9", "tabletop")
    assert parse_tasks("all", "tabletop") == (0, 1, 2, 3, 4)
