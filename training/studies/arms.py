"""Runs that differ in a few settings, over several seeds: each a folder, trained side by side, their first stage once.

No strategy has an old task to hold on to in the first stage, so every arm of a seed takes it from the first arm.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2distill_policy.cluster import Launcher
from m2distill_policy.config import load_config
from training.lifelong.checkpoint import read_json
from training.parallel_runs import Job, run_alone, run_jobs
from training.run_config import RunConfig


@dataclass(frozen=True)
class Arm:
    """One row of a table: a name for folders, words for readers, and what differs from the configuration."""

    name: str
    words: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """What the arms have in common: the configuration file, the demonstrations' folder, where the runs lie, and
    changes to the configuration."""

    config: Path | None
    data: Path
    folder: Path
    overrides: tuple[str, ...] = ()


def jobs_of(seed: int, arms: Sequence[Arm], setting: Setting) -> list[Job]:
    """The runs of one seed, in ``<folder>/seed_<seed>/<arm>``; the first one's first stage is the others' too."""
    root = setting.folder / f"seed_{seed}"
    common = [] if setting.config is None else ["--config", str(setting.config)]
    common += ["--data", str(setting.data)]
    jobs = []
    for arm in arms:
        settings = (*setting.overrides, *arm.overrides, f"seed={seed}")
        config = load_config(RunConfig, setting.config, settings)
        alone = arm is arms[0] or not config.strategy_class.shares_first_stage
        shared = [] if alone else ["--first-stage-from", str(root / arms[0].name)]
        jobs.append(
            Job(f"seed {seed} {arm.name}", root / arm.name, (*common, *shared, *settings), config, setting.data)
        )
    return jobs


def run_seed(first: Job, jobs: Sequence[Job], at_once: int, launcher: Launcher | None = None) -> None:
    """Bring ``jobs`` to their end; ``first``, whose first stage they take, goes through that stage alone before.

    launcher: where the runs go on after it (default: this machine).
    """
    if any(not job.finished for job in jobs) and not (first.folder / "evaluation" / "stage_0.json").exists():
        first.require_same()
        print(f"{first.name}: the first task, shared by all arms", file=sys.stderr)
        command = [word for word in first.command() if word != "--quiet"]
        run_alone([*command, "--stages", "1"], first.name)
    run_jobs(jobs, at_once, launcher)


def results_of(job: Job) -> dict[str, Any]:
    """What a finished run's results are."""
    found: dict[str, Any] = read_json(job.folder / "results.json")
    return found
