"""Whether a run that was extended may go to the robot: what it could do before, it still does."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from m2distill_policy.bundle import open_bundle
from m2distill_policy.errors import TrainingError
from training.lifelong.checkpoint import write_json
from training.lifelong.run import LifelongRun


@dataclass(frozen=True)
class Gate:
    """Success on each old task (a share) before the new ones were learned and after; margin: how far it may fall."""

    tasks: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    margin: float
    rollouts: int

    @property
    def fallen(self) -> tuple[str, ...]:
        """A phrase for each old task that fell by more than the margin."""
        found = zip(self.tasks, self.before, self.after, strict=True)
        return tuple(
            f"'{task}' from {before:.2f} to {after:.2f}" for task, before, after in found
            if before - after > self.margin + 1e-9
        )  # fmt: skip


def gate(run: LifelongRun, margin: float) -> Gate | None:
    """The gate of an extended run whose last stage was evaluated, kept in ``gate.json``; None where there was nothing
    to compare: a suite without worlds, or no evaluation."""
    old, last = run.extends[-1]["stages"], run.stages - 1
    before, after = run.success(old - 1), run.success(last)
    if before is None or after is None:
        return None
    kept = [b for b in before if b is not None]
    now = [a for a in after[:old] if a is not None]
    if len(kept) != old or len(now) != old:
        raise TrainingError(f"{run.folder} has tasks whose rollouts all ended in errors; go on with --resume")
    found = Gate(
        tuple(task.instruction for task in run.tasks[:old]), tuple(kept), tuple(now), margin,
        run.config.evaluation.rollouts,
    )  # fmt: skip
    write_json(run.folder / "gate.json", {**asdict(found), "fallen": found.fallen})
    return found


def require_passed(found: Gate, bundle: Path) -> None:
    """:class:`TrainingError` that names the old tasks which fell by more than the margin."""
    if found.fallen:
        raise TrainingError(
            f"success fell by more than {found.margin:g} over {found.rollouts} rollouts on {', '.join(found.fallen)}; "
            f"{bundle} is kept and not published: hold the old tasks harder (distill.policy.weight), keep "
            "demonstrations of them (memory.episodes), or allow more by --margin"
        )


def publish(bundle: Path, folder: Path, name: str) -> Path:
    """Copy a bundle into a folder that ``m2distill serve --watch`` watches: there by rename, whole or not at all.

    Returns where it lies; nothing happens where this very bundle lies there already.
    """
    target = folder / name
    made = open_bundle(bundle)
    if target.exists():
        if open_bundle(target).identifier == made.identifier:
            return target
        raise TrainingError(f"{target} is another bundle; move it away or publish to another folder")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(bundle, temporary)
    temporary.rename(target)
    return target
