"""The public functions of the package: train, resume, evaluate and extend a run. ``m2distill train`` uses them too.

    import training
    from m2distill_policy.config import load_config

    config = load_config(training.RunConfig, "config/tiny.toml", ["tasks=[0,1]"])
    trained = training.train(config, "demos", "runs/first")
    print(trained.bundle, trained.results.metrics if trained.results else "not evaluated")
    training.extend("runs/first", [2], "demos", "runs/second")

Under ``torchrun``, every process must call these functions inside ``with training.distributed.joined():``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from m2distill_policy.config import to_dict
from m2distill_policy.errors import ConfigError, TrainingError
from m2distill_policy.sim.env import FILES
from training import distributed
from training.extension import extend_run
from training.lifelong.first_stage import share_first_stage
from training.lifelong.records import RunResults
from training.lifelong.run import LifelongRun
from training.new_run import create_run
from training.pipeline import finish_run
from training.release import ReleaseCriteria
from training.run_config import RunConfig, first_difference


@dataclass(frozen=True)
class Trained:
    """A run and its results, as the functions of this module return them.

    Attributes:
        run: The run.
        results: Results of the run; None until every stage is trained and evaluated.
    """

    run: LifelongRun
    results: RunResults | None

    @property
    def bundle(self) -> Path | None:
        """Folder of the newest stage's bundle; None before the first stage is exported."""
        stages = [stage for stage in range(self.run.stages) if self.run.bundle_folder(stage).exists()]
        return self.run.bundle_folder(stages[-1]) if stages else None


def train(
    config: RunConfig,
    demonstrations: Path | str,
    out: Path | str,
    *,
    first_stage_from: Path | str | None = None,
    evaluate: bool = True,
    stages: int | None = None,
    quiet: bool = False,
) -> Trained:
    """Train a run, export every stage as a bundle, and evaluate it.

    If training was interrupted, the same call with the same arguments continues it.

    Args:
        config: Settings of the run.
        demonstrations: Folder of ``<task>_demo.hdf5`` files.
        out: Folder of the run.
        first_stage_from: Folder of another run. If its first stage is the same, it is copied instead of trained.
        evaluate: Run rollouts of the bundles in simulation, as set in ``config.evaluation``.
        stages: Number of stages to train, counted from the first; None: all stages.
        quiet: Show no progress bars.

    Returns:
        The run, and its results once all stages are done.

    Raises:
        TrainingError: ``out`` holds another run, the settings do not fit the demonstrations, or training failed.
        DemonstrationError: A demonstration file is missing or damaged.
    """
    out, demonstrations = Path(out), Path(demonstrations)

    def made() -> LifelongRun:
        if LifelongRun.begun(out):
            run = LifelongRun.open(out)
            _require_same(run, config, demonstrations)
            return run
        # The source is opened first, so that a missing source does not leave an incomplete new run.
        source = LifelongRun.open(Path(first_stage_from)) if first_stage_from is not None else None
        run = create_run(out, config, demonstrations)
        if source is not None and not share_first_stage(source, run):
            print(f"the first stage of {first_stage_from} differs, so this run trains its own", file=sys.stderr)
        return run

    return _finished(made, out, evaluate, stages, quiet)


def resume(out: Path | str, *, evaluate: bool = True, stages: int | None = None, quiet: bool = False) -> Trained:
    """Continue the run in ``out`` with the configuration and demonstrations it was started with; see :func:`train`."""
    out = Path(out)
    return _finished(lambda: LifelongRun.open(out), out, evaluate, stages, quiet)


def evaluate(out: Path | str, *, quiet: bool = False) -> RunResults:
    """Evaluate a trained run. Stages that have been evaluated before are not evaluated again.

    Args:
        out: Folder of the run.
        quiet: Show no progress bars.

    Raises:
        TrainingError: A stage is not trained yet.
        ConfigError: ``evaluation.rollouts`` is 0.
    """
    run = LifelongRun.open(Path(out))
    missing = [stage for stage in range(run.stages) if not run.trained(stage)]
    if missing:
        raise TrainingError(
            f"stage {missing[0]} of {out} is not trained yet; finish it with 'm2distill train --resume --out {out}'"
        )
    results = finish_run(run, quiet=quiet)
    if results is None:
        raise ConfigError(f"{out} has evaluation.rollouts=0: there is nothing to evaluate")
    return results


def extend(
    source: Path | str,
    tasks: Sequence[int],
    demonstrations: Path | str,
    out: Path | str,
    *,
    config: RunConfig | None = None,
    release: ReleaseCriteria | None = None,
    files: bool = False,
    evaluate: bool = True,
    stages: int | None = None,
    quiet: bool = False,
) -> Trained:
    """Train new tasks on top of a finished run, in a new run; the old demonstrations are not needed.

    Args:
        source: Folder of the finished run, which is not changed.
        tasks: Tasks to add: their numbers in the suite, or the positions of their files in ``demonstrations``.
        demonstrations: Folder of the new tasks' files.
        out: Folder of the new run.
        config: Settings of the new stages; None: the settings of ``source``.
        release: Criteria for publishing a bundle of the new run. They are saved in the run, and ``m2distill train``
            applies them.
        files: Whether the new tasks are recordings of your own although the old tasks are from a simulated suite.
        evaluate: See :func:`train`.
        stages: See :func:`train`.
        quiet: See :func:`train`.

    Raises:
        TrainingError: The settings or tasks do not fit ``source``, or ``out`` holds another run.
        ConfigError: ``release`` needs an evaluation of the old tasks, and the configuration has none.
    """
    source, demonstrations, out = Path(source), Path(demonstrations), Path(out)

    def made() -> LifelongRun:
        old = LifelongRun.open(source)
        wanted = config or old.config
        if release is not None and release.publish and not release.untested:
            _require_rollouts(wanted)
        there = out.exists()
        run = extend_run(old, out, wanted, tasks, demonstrations, release, files=files)
        if there:
            _say_continues(run)
        return run

    return _finished(made, out, evaluate, stages, quiet)


def _finished(made: Callable[[], LifelongRun], out: Path, evaluate: bool, stages: int | None, quiet: bool) -> Trained:
    # If there are several processes, the first one creates the folder and the others wait for it.
    first = made() if distributed.is_first() else None
    distributed.wait()
    run = first or LifelongRun.open(out)
    return Trained(run, finish_run(run, evaluate=evaluate, stages=stages, quiet=quiet))


def _require_same(run: LifelongRun, config: RunConfig, demonstrations: Path) -> None:
    difference = first_difference(to_dict(run.config), to_dict(config))
    if run.extends or difference is not None or run.record.demonstrations != str(demonstrations.resolve()):
        why = difference or ("it extends another run" if run.extends else f"it uses {run.record.demonstrations}")
        raise TrainingError(
            f"{run.folder} already holds a different run: {why}; continue it with --resume, or choose another folder"
        )
    _say_continues(run)


def _require_rollouts(config: RunConfig) -> None:
    if config.suite == FILES:
        raise ConfigError(
            f"--publish evaluates the old tasks, and suite={FILES} has no simulator for them; use --untested to "
            "publish without evaluation, or remove --publish and try the bundle on the robot"
        )
    if not config.evaluation.rollouts:
        raise ConfigError("--publish evaluates the old tasks, and evaluation.rollouts is 0; set it to 20, for example")


def _say_continues(run: LifelongRun) -> None:
    print(f"continuing the run in {run.folder}", file=sys.stderr)
