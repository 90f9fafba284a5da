"""How long a run will take: what is counted, and that it can be said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("robosuite", reason="the simulator is not installed (requirements/sim.txt)")

from m2distill_policy.cli import main
from m2distill_policy.config import load_config, override
from m2distill_policy.demonstration_writer import DemonstrationWriter
from m2distill_policy.demonstrations import Episode, Recording, demonstration_path
from m2distill_policy.errors import ConfigError, TrainingError
from m2distill_policy.sim.suites import suite_tasks
from tests.training_fixtures import CONTRACT
from training.run_config import RunConfig
from training.studies.plan import count, demonstrated_steps


def test_a_plan_counts_what_a_run_does() -> None:
    tasks = suite_tasks("tabletop")[:3]
    config = load_config(
        RunConfig,
        None,
        ["tasks=[0,1,2]", "optim.epochs=2", "optim.batch=4", "evaluation.rollouts=5", "evaluation.cross_instruction=1"],
    )
    work = count(config, tasks, [4000, 2000, 6000], history=10)
    assert work.steps == (200, 100, 300)
    assert work.rollouts == {"reported": 5 * (1 + 2 + 3), "cross-instruction": 6}
    assert work.control_steps == (30 + 6) * 90
    chosen = override(config, ["evaluation.candidates=3", "evaluation.horizon=50", "evaluation.cross_instruction=0"])
    assert count(chosen, tasks, [4000] * 3, 10).rollouts == {"selection": 45, "candidates": 45, "reported": 30}
    assert count(chosen, tasks, [4000] * 3, 10).control_steps == 120 * 50
    joint = override(config, ["strategy=multitask", "evaluation.cross_instruction=0"])
    assert count(joint, tasks, [4000, 2000, 6000], 10).steps == (600,)
    assert count(joint, tasks, [4000, 2000, 6000], 10).rollouts == {"reported": 15}
    longer = override(config, ["optim.first_epochs=5", "evaluation.cross_instruction=0"])
    assert count(longer, tasks, [4000, 2000, 6000], 10).steps == (500, 100, 300)
    with pytest.raises(ConfigError, match=r"optim.first_epochs is 5 and optim.epochs 0"):
        override(config, ["optim.first_epochs=5", "optim.epochs=0"])
    none = count(override(config, ["evaluation.rollouts=0"]), tasks, [400] * 3, 10)
    assert none.rollouts == {} and none.control_steps == 0


def test_a_plan_takes_the_files_lengths(tmp_path: Path) -> None:
    config = load_config(RunConfig, None, ["tasks=[0]", "episodes=2"])
    (task,) = suite_tasks("tabletop")[:1]
    assert demonstrated_steps(config, [task], None, 130) == [260]
    writer = DemonstrationWriter(
        demonstration_path(tmp_path, task.name), instruction=task.instruction, contract=CONTRACT
    )
    for number, length in enumerate((7, 9, 30)):
        views = {c.name: np.zeros((length, *c.shape), np.uint8) for c in CONTRACT.cameras}
        readings = {g.name: np.zeros((length, g.size), np.float32) for g in CONTRACT.proprioception}
        writer.add(Recording(Episode(views, readings, np.zeros((length, 7), np.float32))), number)
    writer.finish([0, 1, 2], 3)
    assert demonstrated_steps(config, [task], tmp_path, 130) == [16]
    with pytest.raises(TrainingError, match="has 3 episodes and the configuration asks for 4"):
        demonstrated_steps(override(config, ["episodes=4"]), [task], tmp_path, 130)


@pytest.mark.slow
def test_a_plan_says_the_hours(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--config", "config/tiny.toml", "--seeds", "3", "evaluation.workers=1"]
    assert main([*words, "network.channels=[8,8]", "image_size=32", "optim.batch=2"]) == 0
    shown = capsys.readouterr().out
    assert "m2distill, 3 tasks of tabletop, 3 stages" in shown and "3600 steps" in shown
    assert "60 reported" in shown and "3 seeds: at most" in shown
    assert main(["plan", "suite=files", "evaluation.rollouts=0"]) == 2
    assert "suite=files" in capsys.readouterr().err
