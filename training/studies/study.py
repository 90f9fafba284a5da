"""A study: variants (called arms) that differ in a few settings, each trained with several seeds.

Every run has its own folder. The runs of one seed share their first stage if their strategies allow it
(``Strategy.shares_first_stage``), because no strategy regularises anything in this stage. Its result is then the same
for every arm.
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
from training.lifelong.strategies.m2distill import TERMS
from training.parallel_runs import Job, run_alone, run_jobs
from training.run_config import RunConfig

#: Strategy -> its label in tables.
STRATEGY_LABELS = {
    "sequential": "sequential fine-tuning",
    "er": "experience replay",
    "ewc": "ewc, LIBERO's weight and decay",
    "packnet": "packnet, task identity given",
    "multitask": "multitask, all tasks jointly",
    "m2distill": "m2distill",
}
#: Settings that switch the four distillation terms off.
TERMS_OFF = tuple(f"distill.{term}.on=false" for term in TERMS)


@dataclass(frozen=True)
class Arm:
    """One variant that a study compares: one row of its table.

    Attributes:
        name: Name of the arm and of its runs' folders.
        label: Label of the arm in tables.
        overrides: ``key=value`` settings in which the arm differs from the study's configuration.
    """

    name: str
    label: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """What the runs of a study share, and the arms that it compares.

    Attributes:
        config: Configuration file; None: the defaults.
        data: Folder of the demonstrations.
        folder: Folder of the runs; each run has the subfolder ``seed_<seed>/<arm>``.
        overrides: ``key=value`` changes to the configuration file.
        arms: Arms to compare. The other arms copy the first stage of the first arm.
    """

    config: Path | None
    data: Path
    folder: Path
    overrides: tuple[str, ...] = ()
    arms: tuple[Arm, ...] = ()

    def shared_config(self) -> RunConfig:
        """Return the configuration that the runs share, before the arms' own settings."""
        return load_config(RunConfig, self.config, self.overrides)

    def jobs(self, seed: int) -> list[Job]:
        """Return the runs of one seed, in the order of the arms."""
        root = self.folder / f"seed_{seed}"
        common = [] if self.config is None else ["--config", str(self.config)]
        common += ["--data", str(self.data)]
        jobs = []
        for arm in self.arms:
            settings = (*self.overrides, *arm.overrides, f"seed={seed}")
            config = load_config(RunConfig, self.config, settings)
            alone = arm is self.arms[0] or not config.strategy_class.shares_first_stage
            shared = [] if alone else ["--first-stage-from", str(root / self.arms[0].name)]
            arguments = (*common, *shared, *settings)
            jobs.append(Job(f"seed {seed} {arm.name}", root / arm.name, arguments, config, self.data))
        return jobs


def strategy_arm(strategy: str, *overrides: str, detail: str = "") -> Arm:
    """Make the arm of a strategy.

    Args:
        strategy: Name of the strategy, and of the arm.
        overrides: Settings besides the strategy.
        detail: Text that is appended to the strategy's label.
    """
    label = f"{STRATEGY_LABELS[strategy]}, {detail}" if detail else STRATEGY_LABELS[strategy]
    return Arm(strategy, label, (f"strategy={strategy}", *overrides))


def without_each_term(
    overrides: Sequence[str], name: str = "m2distill_no_", label: str = "m2distill"
) -> tuple[Arm, ...]:
    """Make four arms: m2distill without one of its four distillation terms.

    Args:
        overrides: Settings of m2distill with all four terms, including ``strategy=m2distill``.
        name: Prefix of the arms' names; the term follows.
        label: Prefix of the arms' labels; ``without <term>`` follows.
    """
    return tuple(
        Arm(f"{name}{term}", f"{label} without {term}".strip(), (*overrides, f"distill.{term}.on=false"))
        for term in TERMS
    )


def run_seed(first: Job, jobs: Sequence[Job], at_once: int, launcher: Launcher | None = None) -> None:
    """Finish the runs of one seed.

    Args:
        first: Run whose first stage the other runs copy. It trains this stage alone, before the others start.
        jobs: Runs to finish.
        at_once: Number of runs at the same time.
        launcher: Starts the processes of the runs; None: on this machine.
    """
    if any(not job.finished for job in jobs) and not (first.folder / "evaluation" / "stage_0.json").exists():
        first.require_same()
        print(f"{first.name}: first stage, shared by all arms", file=sys.stderr)
        command = [word for word in first.command() if word != "--quiet"]
        run_alone([*command, "--stages", "1"], first.name)
    run_jobs(jobs, at_once, launcher)


def results_of(job: Job) -> dict[str, Any]:
    """Read the results of a finished run."""
    found: dict[str, Any] = read_json(job.folder / "results.json")
    return found
