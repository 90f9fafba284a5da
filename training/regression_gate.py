"""The regression gate: a bundle is published only if success on the old tasks has not dropped by more than a margin."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from m2distill_policy.bundle import open_bundle
from m2distill_policy.errors import TrainingError
from training.lifelong.records import write_record
from training.lifelong.run import LifelongRun


@dataclass(frozen=True)
class Gate:
    """Success on the old tasks before and after an extension.

    Attributes:
        tasks: Instructions of the old tasks.
        before: Success rate on each old task before the extension. It is the better of two rates: just after the task
            was learned, and just before the extension.
        after: Success rate on each old task after the extension.
        margin: Share of rollouts by which the success rate may drop.
        rollouts: Number of rollouts of each task.
        errors: Number of rollouts after the extension that ended in an error. They count as failures, because for a
            robot a policy that halts is no better than one that fails.
    """

    tasks: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    margin: float
    rollouts: int
    errors: int = 0

    @property
    def fallen(self) -> tuple[str, ...]:
        """One phrase for each old task whose success rate dropped by more than the margin."""
        found = zip(self.tasks, self.before, self.after, strict=True)
        return tuple(
            f"'{task}' from {before:.2f} to {after:.2f}" for task, before, after in found
            if before - after > self.margin + 1e-9
        )  # fmt: skip


def gate(run: LifelongRun, margin: float) -> Gate | None:
    """Compare success on the old tasks before and after the extension of a run, and write ``gate.json``.

    Args:
        run: The extended run.
        margin: Share of rollouts by which the success rate may drop.

    Returns:
        The comparison. None if the old tasks have no simulated environment or the run has no evaluation.
    """
    stages = run.extends[-1].stages
    old = [task for task in range(run.learned(stages - 1)) if run.tasks[task].has_env]
    rows = [run.success(stage) for stage in range(run.stages)]
    if not old or any(row is None for row in rows):
        return None
    rates = [[rate or 0.0 for rate in row or ()] for row in rows]
    now = [(run.cells(run.stages - 1) or ())[task] for task in old]
    found = Gate(
        tuple(run.tasks[task].instruction for task in old),
        # The better of two rates: several small drops over several extensions must not add up to a large one.
        tuple(max(rates[run.config.stage_of(task)][task], rates[stages - 1][task]) for task in old),
        tuple(cell.successes / cell.rollouts for cell in now),
        margin,
        run.config.evaluation.rollouts,
        sum(cell.errors for cell in now),
    )
    write_record(run.folder / "gate.json", found)
    return found


def verdict(found: Gate, bundle: Path) -> str:
    """Return the result of the gate as a message: the success rates, or what dropped and what to do."""
    errors = f" ({found.errors} of them ended in an error and count as failures)" if found.errors else ""
    if found.fallen:
        return (
            f"rejected: success dropped by more than {found.margin:g} over {found.rollouts} rollouts{errors} on "
            f"{', '.join(found.fallen)}; {bundle} is not published. Train again with a higher distill.policy.weight or "
            "with more memory.episodes, or allow a larger drop by --margin"
        )
    rates = ", ".join(f"{b:.2f} -> {a:.2f}" for b, a in zip(found.before, found.after, strict=True))
    return f"old tasks before and after, over {found.rollouts} rollouts{errors}: {rates}"


def publish(bundle: Path, folder: Path, name: str) -> Path:
    """Copy a bundle into a folder that ``m2distill serve --watch`` watches.

    The copy is written under a temporary name and then renamed, so that no process reads an incomplete bundle. If the
    folder already holds this bundle, nothing is copied.

    Args:
        bundle: Folder of the bundle to publish.
        folder: The watched folder.
        name: Name of the bundle in the watched folder.

    Returns:
        The path of the published bundle.

    Raises:
        TrainingError: The folder holds another bundle of that name.
    """
    target = folder / name
    made = open_bundle(bundle)
    if target.exists():
        if open_bundle(target).identifier == made.identifier:
            return target
        raise TrainingError(f"{target} is another bundle; remove it, or publish to another folder")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(bundle, temporary)
    temporary.rename(target)
    return target
