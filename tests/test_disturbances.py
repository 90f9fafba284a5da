"""A world made a little wrong: in the way that was asked for, by as much, and reproducibly."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from m2distill_policy.errors import SimulationError
from m2distill_policy.evaluation.results import curves, curves_table, make_cells, summarise
from m2distill_policy.evaluation.rollouts import RolloutPool
from m2distill_policy.observation import Observation
from m2distill_policy.sim.collection import Collection
from m2distill_policy.sim.disturbances import KINDS, Disturbance, DisturbedEnv
from m2distill_policy.sim.record import record_episode
from m2distill_policy.sim.tabletop.env import TabletopEnv
from m2distill_policy.sim.tabletop.tasks import TASKS
from tests.bundles import INSTRUCTIONS, toy_bundle

MOVE = np.array([0.6, -0.3, -0.2, 0.0, 0.0, 0.4, -1.0])


@pytest.fixture(scope="module")
def env() -> Iterator[TabletopEnv]:
    made = TabletopEnv(TASKS[0], size=32)
    yield made
    made.close()


def seen(env: TabletopEnv, kind: str, level: float, steps: int = 6, seed: int = 5) -> list[Observation]:
    disturbed = DisturbedEnv(env, [Disturbance(kind, level)])
    try:
        return [disturbed.reset(seed), *(disturbed.step(MOVE) for _ in range(steps))]
    finally:
        disturbed.restore()


def difference(a: Observation, b: Observation) -> float:
    return float(np.mean([np.abs(a.images[n].astype(int) - b.images[n]).mean() for n in a.images]))


def test_without_a_level_nothing_is_wrong_and_everything_is_given_back(env: TabletopEnv) -> None:
    plain = [env.reset(5), *(env.step(MOVE) for _ in range(6))]
    for kind in KINDS:
        seen(env, kind, 1.0)
        for a, b in zip(plain, seen(env, kind, 0.0), strict=True):
            assert difference(a, b) == 0
            assert all(np.array_equal(a.proprioception[n], b.proprioception[n]) for n in a.proprioception)
    for a, b in zip(plain, [env.reset(5), *(env.step(MOVE) for _ in range(6))], strict=True):
        assert difference(a, b) == 0, "after restore() the world looks as before"


@pytest.mark.parametrize("kind", ["camera", "light", "texture", "noise"])
def test_what_is_seen_differs_more_at_a_higher_level_and_the_motion_does_not(env: TabletopEnv, kind: str) -> None:
    plain, half, full = (seen(env, kind, level) for level in (0.0, 0.5, 1.0))
    differences = [(difference(p, h), difference(p, f)) for p, h, f in zip(plain, half, full, strict=True)]
    assert all(0.3 < h < f < 80 for h, f in differences), differences
    again = seen(env, kind, 1.0)
    assert all(difference(a, b) == 0 for a, b in zip(full, again, strict=True)), "the seed decides"
    others = zip(full, seen(env, kind, 1.0, seed=6), strict=True)
    assert all(difference(a, b) > 0.3 for a, b in others)
    spread = {"joint_states": 0.02, "gripper_states": 0.002} if kind == "noise" else {}
    for name in plain[0].proprioception:
        moved = np.array([f.proprioception[name] - p.proprioception[name] for p, f in zip(plain, full, strict=True)])
        if name in spread:
            assert 0.5 * spread[name] < moved.std() < 1.6 * spread[name]
        else:
            assert not moved.any()


def test_a_delay_is_a_motion_that_comes_later(env: TabletopEnv) -> None:
    plain, late = seen(env, "delay", 0.0, steps=9), seen(env, "delay", 1.0, steps=9)
    joints = [np.array([o.proprioception["joint_states"] for o in run]) for run in (plain, late)]
    assert np.abs(joints[1][:4] - joints[1][0]).max() < 0.02, "for three periods the arm holds still"
    moved = [float(np.abs(j[-1] - j[0]).max()) for j in joints]
    assert moved[1] < 0.8 * moved[0]
    np.testing.assert_allclose(joints[1][3:] - joints[1][3], joints[0][:7] - joints[0][0], atol=0.02)


def test_a_gain_moves_further_or_less_far(env: TabletopEnv) -> None:
    def travelled(level: float, seed: int) -> float:
        run = seen(env, "gain", level, steps=8, seed=seed)
        joints = [o.proprioception["joint_states"] for o in run]
        return float(np.abs(joints[-1] - joints[0]).max())

    ratios = [travelled(1.0, seed) / travelled(0.0, seed) for seed in range(8)]
    assert min(ratios) < 0.75 and max(ratios) > 1.2, ratios


def test_what_is_no_disturbance_is_refused() -> None:
    with pytest.raises(SimulationError, match=r"'lights'; .* camera, .*; did you mean 'light'\?"):
        Disturbance("lights", 0.5)
    with pytest.raises(SimulationError, match=r"is 1.5; allowed are 0 to 1"):
        Disturbance("light", 1.5)


def test_the_docs_say_what_level_1_is() -> None:
    text = (Path(__file__).resolve().parent.parent / "docs" / "explanation" / "simulation.md").read_text(
        encoding="utf-8"
    )
    assert all(f"| `{kind}` | {what} |" in text for kind, what in KINDS.items())


def test_an_evaluation_with_disturbances(tmp_path: Path) -> None:
    """Workers draw disturbed and undisturbed worlds in turn; the log resumes; the curves are counted by hand."""
    bundle = toy_bundle(tmp_path / "bundle")
    wrong = [(), (Disturbance("gain", 0.5),), (Disturbance("gain", 1.0),), (Disturbance("noise", 1.0),)]
    cells = [c for w in wrong for c in make_cells("tabletop", [0], 1, instruction=INSTRUCTIONS[0], disturbances=w)]
    log = tmp_path / "rollouts.jsonl"
    with RolloutPool(1) as pool:
        first = pool.evaluate(bundle, cells, sampling="mode", log=log)
        assert pool.evaluate(bundle, cells, sampling="mode", log=log) == first
    assert [r.error for r in first] == [None] * 4
    assert [r.disturbance for r in first] == ["", "gain 0.5", "gain 1", "noise 1"]
    rated = [dataclasses.replace(r, success=i in (0, 1)) for i, r in enumerate(first)]
    found = curves(summarise(rated))
    assert found == {"gain": {"0": 1.0, "0.5": 1.0, "1": 0.0}, "noise": {"0": 1.0, "1": 0.0}}
    assert curves_table(found).splitlines()[1].split() == ["gain", "1.00", "1.00", "0.00"]
    assert curves_table(found).splitlines()[2].split() == ["noise", "1.00", "-", "0.00"]


def test_demonstrations_in_worlds_that_are_a_little_wrong(env: TabletopEnv) -> None:
    plain = record_episode(env, 1_000_007)
    wrong = record_episode(env, 1_000_007, randomise=("camera", "light", "texture", "noise"))
    again = record_episode(env, 1_000_007, randomise=("camera", "light", "texture", "noise"))
    assert plain is not None and wrong is not None and again is not None
    assert plain.states is not None and wrong.states is not None
    assert np.array_equal(plain.states, wrong.states), "what is only seen changes no motion"
    for name, frames in plain.episode.images.items():
        assert np.abs(frames.astype(int) - wrong.episode.images[name]).mean() > 1
        assert np.array_equal(wrong.episode.images[name], again.episode.images[name])
    moved = wrong.episode.proprioception["joint_states"] - plain.episode.proprioception["joint_states"]
    assert 0 < moved.std() < 0.025
    unlike = record_episode(env, 1_000_007, randomise=("gain", "delay"))
    if unlike is not None:
        assert unlike.episode.executed is not None
        assert not np.array_equal(unlike.episode.executed, unlike.episode.actions)
        assert np.array_equal(unlike.episode.images["agentview_rgb"][0], plain.episode.images["agentview_rgb"][0])
    with pytest.raises(SimulationError, match="'lights'"):
        Collection(folder=Path("nowhere"), tasks=(0,), randomise=("lights",))
