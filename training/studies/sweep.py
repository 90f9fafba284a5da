"""Search for the best settings with Optuna (https://optuna.org). A trial is one run for each seed.

The trials are recorded in ``study.journal``, a file of JSON lines, and in the runs' folders. A search that was
interrupted resumes with the trial that was running. Do not use seeds whose results you report.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import optuna
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import TrialState

from m2distill_policy import provenance
from m2distill_policy.cluster import Launcher
from m2distill_policy.config import load_config, to_dict
from m2distill_policy.errors import ConfigError, DivergedError, TrainingError
from m2distill_policy.tables import format_table
from training.lifelong.checkpoint import read_json, write_json
from training.parallel_runs import Job, run_jobs
from training.run_config import RunConfig, first_difference
from training.studies.study import Arm, Study, results_of

#: Types of a setting's value.
Value: TypeAlias = bool | int | float | str

#: Metrics of which a lower value is better.
LOWER_IS_BETTER = ("nbt", "nbt_k_minus_1")


@dataclass(frozen=True)
class Axis:
    """The range of one setting.

    Attributes:
        low: Smallest value; None with ``choices``.
        high: Largest value; None with ``choices``.
        log: Whether values are sampled on a logarithmic scale.
        whole: Whether values are whole numbers.
        choices: Allowed values, instead of a range.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False
    choices: tuple[Value, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.choices) == (self.low is not None or self.high is not None):
            raise ConfigError("an axis of the search space has either choices, or low and high; give one of the two")
        if self.choices:
            return
        if self.low is None or self.high is None or not self.low < self.high:
            raise ConfigError(f"low is {self.low} and high is {self.high}; an axis needs both, with low below high")
        if self.log and self.low <= 0:
            raise ConfigError(f"low is {self.low}; on a logarithmic axis it must be above 0")

    @property
    def lowest(self) -> Value:
        """An allowed value: the first choice, or the smallest value."""
        if self.choices:
            return self.choices[0]
        assert self.low is not None
        return round(self.low) if self.whole else self.low

    def sample(self, trial: optuna.Trial, name: str) -> Value:
        """Sample a value for ``trial``."""
        if self.choices:
            return cast("Value", trial.suggest_categorical(name, self.choices))
        assert self.low is not None and self.high is not None
        if self.whole:
            return trial.suggest_int(name, round(self.low), round(self.high), log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


@dataclass(frozen=True)
class SweepConfig:
    """The metric that a search optimises, and its search space.

    Attributes:
        metric: Name of a metric in ``results.json``. Its mean over seeds is maximised, or minimised for NBT.
        space: Setting -> range of its values.
    """

    metric: Literal["auc", "nbt", "nbt_k_minus_1", "mean_final", "fwt", "fwt_final"] = "auc"
    space: dict[str, Axis] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.space:
            raise ConfigError("the search space is empty; name settings and their ranges under [space]")


def sweep(
    config: SweepConfig, runs: Study, seeds: Sequence[int], trials: int, at_once: int, seed: int = 0,
    say: Callable[[str], None] = print, launcher: Launcher | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Run trials until ``trials`` have succeeded, including those of earlier calls.

    A trial fails if one of its runs diverges or if its settings are not allowed together. The search ends if the first
    trial or two trials in a row fail.

    Args:
        config: Metric and search space.
        runs: Configuration, demonstrations and folder of the runs. Its arms are replaced.
        seeds: Seeds of the runs of every trial.
        trials: Number of successful trials.
        at_once: Number of runs at the same time.
        seed: Seed of the search itself.
        say: Function that prints a message.
        launcher: Starts the processes of the runs; None: on this machine.

    Returns:
        The contents of ``<folder>/sweep.json``.

    Raises:
        ConfigError: A setting does not exist, or the folder holds another search.
        TrainingError: The search cannot continue.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name, axis in config.space.items():  # an unknown setting is an error before anything runs
        load_config(RunConfig, runs.config, [*runs.overrides, *_overrides({name: axis.lowest})])
    base = runs.shared_config()
    if trials < 1:
        raise ConfigError(f"the number of trials is {trials}; it must be at least 1")
    if not base.evaluation.rollouts:
        raise ConfigError(
            "evaluation.rollouts is 0, and trials are compared by success in rollouts; set evaluation.rollouts above 0"
        )
    if base.strategy_class.learns_jointly and config.metric != "mean_final":
        raise ConfigError(
            f"strategy={base.strategy} learns all tasks jointly and has no {config.metric}; set metric to mean_final"
        )
    runs.folder.mkdir(parents=True, exist_ok=True)
    _require_same(config, runs, base, seeds)
    direction: Literal["minimize", "maximize"] = "minimize" if config.metric in LOWER_IS_BETTER else "maximize"
    storage = JournalStorage(JournalFileBackend(str(runs.folder / "study.journal")))
    study = optuna.create_study(study_name="sweep", storage=storage, direction=direction, load_if_exists=True)
    for begun in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if set(begun.params) != set(config.space):
            # The trial was interrupted while its values were being sampled, so nothing has run with them.
            study.tell(begun.number, state=TrialState.FAIL)
            continue
        say(f"trial {begun.number}: resumed")
        _finish(study, begun.number, begun.params, config, runs, seeds, at_once, say, launcher)
    while len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < trials:
        # The sampler depends on the trials so far and on this seed only, so a resumed search samples the same values.
        trial_seed = seed + len(study.get_trials(deepcopy=False))
        study.sampler = optuna.samplers.TPESampler(seed=trial_seed, n_startup_trials=min(10, max(3, trials // 3)))
        trial = study.ask()
        chosen = {name: axis.sample(trial, name) for name, axis in config.space.items()}
        _finish(study, trial.number, chosen, config, runs, seeds, at_once, say, launcher)
    found = _summary(study, config, runs, seeds)
    write_json(runs.folder / "sweep.json", found)
    return found


def _finish(
    study: optuna.Study, number: int, chosen: dict[str, Any], config: SweepConfig, runs: Study,
    seeds: Sequence[int], at_once: int, say: Callable[[str], None], launcher: Launcher | None,
) -> None:  # fmt: skip
    """Finish the runs of one trial and report the result to Optuna."""
    label = ", ".join(f"{name}={_text(value)}" for name, value in chosen.items())
    say(f"trial {number}: {label}")
    arm = Arm(f"trial_{number}", label, _overrides(chosen))
    try:
        jobs = [_job(seed, arm, runs) for seed in seeds]
        run_jobs(jobs, at_once, launcher)
    except (ConfigError, DivergedError) as error:  # other errors say nothing about the settings
        study.tell(number, state=TrialState.FAIL)
        before = study.get_trials(deepcopy=False)[number - 1].state if number else TrialState.FAIL
        if before == TrialState.FAIL:
            raise TrainingError(
                f"trial {number} failed, and no trial before it succeeded: {error}; change the search space"
            ) from error
        say(f"trial {number} failed and does not count: {error}")
        return
    values = [float(results_of(job)["metrics"][config.metric]) for job in jobs]
    study.tell(number, float(np.mean(values)))
    say(f"trial {number}: {config.metric} {np.mean(values):.3f} over seeds {', '.join(map(str, seeds))}")


def _job(seed: int, arm: Arm, runs: Study) -> Job:
    """Return the run of one trial and seed. It copies the first stage of an earlier trial if there is one."""
    root = runs.folder / f"seed_{seed}"
    begun = sorted(root.glob("trial_*/stages/stage_0/stage.json"))
    first = Arm(begun[0].parents[2].name if begun else arm.name, "", ())
    arms = (arm,) if first.name == arm.name else (first, arm)
    return replace(runs, arms=arms).jobs(seed)[-1]


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else f"{value:.6g}" if isinstance(value, float) else str(value)


def _overrides(chosen: dict[str, Any]) -> tuple[str, ...]:
    # json.dumps writes all digits, so that the run's configuration has exactly the value that Optuna recorded.
    return tuple(f"{n}={value if isinstance(value, str) else json.dumps(value)}" for n, value in chosen.items())


def _require_same(config: SweepConfig, runs: Study, base: RunConfig, seeds: Sequence[int]) -> None:
    """Refuse a folder that holds a search with other ranges, metric, seeds, data or configuration.

    Raises:
        ConfigError: The folder holds such a search.
    """
    record = runs.folder / "search.json"
    wanted = {
        "sweep": to_dict(config),
        "seeds": list(seeds),
        "data": str(runs.data.resolve()),
        **to_dict(base),
    }
    if not record.exists():
        write_json(record, wanted)
        return
    difference = first_difference(read_json(record), json.loads(json.dumps(wanted)))
    if difference is not None:
        raise ConfigError(
            f"{runs.folder} holds another search: {difference}; repeat that one's settings, or choose another folder"
        )


def _summary(study: optuna.Study, config: SweepConfig, runs: Study, seeds: Sequence[int]) -> dict[str, Any]:
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ranked = sorted(done, key=lambda t: t.value or 0.0, reverse=config.metric not in LOWER_IS_BETTER)
    return {
        "metric": config.metric,
        "seeds": list(seeds),
        "best": dict(ranked[0].params),
        "trials": [{"number": t.number, "value": t.value, "settings": dict(t.params)} for t in ranked],
        "importance": _importance(study, len(done)),
        "overrides": list(runs.overrides),
        **provenance.describe(),
    }


def _importance(study: optuna.Study, done: int) -> dict[str, float] | None:
    """Return the share of the metric's variance that each setting explains.

    The result is None if there are too few trials or if the metric is the same in all of them.
    """
    if done < 4 or len({t.value for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))}) < 2:
        return None
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return {n: float(v) for n, v in optuna.importance.get_param_importances(study, evaluator=evaluator).items()}


def table(found: dict[str, Any]) -> str:
    """Make a table for a terminal: the trials, best first, and the importance of each setting."""
    rows = [("trial", found["metric"], "settings")]
    for trial in found["trials"]:
        settings = ", ".join(f"{name}={_text(value)}" for name, value in trial["settings"].items())
        rows.append((str(trial["number"]), f"{trial['value']:.3f}", settings))
    lines = [format_table(rows, ">><")]
    if found["importance"]:
        lines.append("importance: " + ", ".join(f"{n} {v:.2f}" for n, v in found["importance"].items()))
    return "\n".join(lines)
