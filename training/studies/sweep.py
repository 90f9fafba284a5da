"""Which settings are best: a search by Optuna (https://optuna.org), every trial a run a seed.

What was tried lies in ``study.journal``, a file of JSON lines, and in the runs' folders. A search that was cut off
goes on with the trial it was in. The seeds should be none that are reported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import optuna
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import TrialState

from m2distill_policy import provenance
from m2distill_policy.cluster import Launcher
from m2distill_policy.config import load_config, to_dict
from m2distill_policy.errors import ConfigError, DivergedError, TrainingError
from training.lifelong.checkpoint import read_json, write_json
from training.parallel_runs import Job, run_jobs
from training.run_config import RunConfig, first_difference
from training.studies.arms import Arm, Setting, jobs_of, results_of

#: What a setting can be.
Value: TypeAlias = bool | int | float | str

#: Metrics that are better when smaller.
SMALL_IS_GOOD = ("nbt", "nbt_k_minus_1")


@dataclass(frozen=True)
class Axis:
    """One setting's range: ``low`` to ``high`` (by order of magnitude where ``log``; whole numbers where ``whole``), or
    one of ``choices``."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False
    choices: tuple[Value, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.choices) == (self.low is not None or self.high is not None):
            raise ConfigError("an axis of the space has either choices, or low and high")
        if self.choices:
            return
        if self.low is None or self.high is None or not self.low < self.high:
            raise ConfigError(f"an axis goes from low to high; got low = {self.low} and high = {self.high}")
        if self.log and self.low <= 0:
            raise ConfigError(f"an axis by order of magnitude begins above 0; got low = {self.low}")

    @property
    def lowest(self) -> Value:
        """A value that is allowed: the first of the choices, or the least."""
        if self.choices:
            return self.choices[0]
        assert self.low is not None
        return round(self.low) if self.whole else self.low

    def draw(self, trial: optuna.Trial, name: str) -> Value:
        """A value for ``trial``."""
        if self.choices:
            return cast("Value", trial.suggest_categorical(name, self.choices))
        assert self.low is not None and self.high is not None
        if self.whole:
            return trial.suggest_int(name, round(self.low), round(self.high), log=self.log)
        return trial.suggest_float(name, self.low, self.high, log=self.log)


@dataclass(frozen=True)
class SweepConfig:
    """metric: of ``results.json``, made large (NBT small), mean over seeds. space: setting -> its range."""

    metric: Literal["auc", "nbt", "nbt_k_minus_1", "mean_final", "fwt", "fwt_final"] = "auc"
    space: dict[str, Axis] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.space:
            raise ConfigError("the sweep's space is empty; name settings and their ranges under [space]")


def sweep(
    config: SweepConfig, setting: Setting, seeds: Sequence[int], trials: int, at_once: int, seed: int = 0,
    say: Callable[[str], None] = print, launcher: Launcher | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Try ``trials`` settings in all, those of earlier calls included. Writes ``<folder>/sweep.json`` and returns it.

    seed: of the search. launcher: where the runs are (default: this machine). A trial whose run fails (a loss that is
    not finite), or whose settings are none together, does not count; two in a row, or the first, end the search. Raises
    :class:`ConfigError` where the folder holds another search.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for name, axis in config.space.items():  # a setting that does not exist is known before anything is run
        load_config(RunConfig, setting.config, [*setting.overrides, *_overrides({name: axis.lowest})])
    base = load_config(RunConfig, setting.config, setting.overrides)
    if trials < 1:
        raise ConfigError(f"{trials} trials were asked for; at least 1 is needed")
    if not base.evaluation.rollouts:
        raise ConfigError("a trial is told by its rollouts, and evaluation.rollouts is 0; ask for some")
    if base.strategy_class.learns_jointly and config.metric != "mean_final":
        raise ConfigError(
            f"strategy={base.strategy} learns all tasks at once and has no {config.metric}; its metric is mean_final"
        )
    setting.folder.mkdir(parents=True, exist_ok=True)
    _require_same(config, setting, base, seeds)
    direction: Literal["minimize", "maximize"] = "minimize" if config.metric in SMALL_IS_GOOD else "maximize"
    storage = JournalStorage(JournalFileBackend(str(setting.folder / "study.journal")))
    study = optuna.create_study(study_name="sweep", storage=storage, direction=direction, load_if_exists=True)
    for begun in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if set(begun.params) != set(config.space):
            # Cut off while it was being drawn: nothing was run under it.
            study.tell(begun.number, state=TrialState.FAIL)
            continue
        say(f"trial {begun.number}: going on with it")
        _finish(study, begun.number, begun.params, config, setting, seeds, at_once, say, launcher)
    while len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < trials:
        # The sampler draws from the trials there are and this seed: a search that was cut off goes on as it would have.
        drawn = seed + len(study.get_trials(deepcopy=False))
        study.sampler = optuna.samplers.TPESampler(seed=drawn, n_startup_trials=min(10, max(3, trials // 3)))
        trial = study.ask()
        chosen = {name: axis.draw(trial, name) for name, axis in config.space.items()}
        _finish(study, trial.number, chosen, config, setting, seeds, at_once, say, launcher)
    found = _summary(study, config, setting, seeds)
    write_json(setting.folder / "sweep.json", found)
    return found


def _finish(
    study: optuna.Study, number: int, chosen: dict[str, Any], config: SweepConfig, setting: Setting,
    seeds: Sequence[int], at_once: int, say: Callable[[str], None], launcher: Launcher | None,
) -> None:  # fmt: skip
    """Run what is left of one trial and tell the study."""
    words = ", ".join(f"{name}={_word(value)}" for name, value in chosen.items())
    say(f"trial {number}: {words}")
    arm = Arm(f"trial_{number}", words, _overrides(chosen))
    try:
        jobs = [_job(seed, arm, setting) for seed in seeds]
        run_jobs(jobs, at_once, launcher)
    except (ConfigError, DivergedError) as error:  # whatever else ends a run says nothing of its settings
        study.tell(number, state=TrialState.FAIL)
        before = study.get_trials(deepcopy=False)[number - 1].state if number else TrialState.FAIL
        if before == TrialState.FAIL:
            raise TrainingError(f"trial {number} failed, and no trial before it went well: {error}") from error
        say(f"trial {number} failed and does not count: {error}")
        return
    values = [float(results_of(job)["metrics"][config.metric]) for job in jobs]
    study.tell(number, float(np.mean(values)))
    say(f"trial {number}: {config.metric} {np.mean(values):.3f} over seeds {', '.join(map(str, seeds))}")


def _job(seed: int, arm: Arm, setting: Setting) -> Job:
    """The run of one trial and seed; its first stage is an earlier trial's where that would be the very same."""
    root = setting.folder / f"seed_{seed}"
    begun = sorted(root.glob("trial_*/stages/stage_0/stage.json"))
    first = Arm(begun[0].parents[2].name if begun else arm.name, "", ())
    return jobs_of(seed, (arm,) if first.name == arm.name else (first, arm), setting)[-1]


def _word(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else f"{value:.6g}" if isinstance(value, float) else str(value)


def _overrides(chosen: dict[str, Any]) -> tuple[str, ...]:
    # Numbers in full, so that the run's configuration says the very value that the study holds.
    return tuple(f"{n}={value if isinstance(value, str) else json.dumps(value)}" for n, value in chosen.items())


def _require_same(config: SweepConfig, setting: Setting, base: RunConfig, seeds: Sequence[int]) -> None:
    """One folder is one search: ranges, metric, seeds, data and configuration do not change within it."""
    record = setting.folder / "search.json"
    wanted = {
        "sweep": to_dict(config),
        "seeds": list(seeds),
        "data": str(setting.data.resolve()),
        **to_dict(base),
    }
    if not record.exists():
        write_json(record, wanted)
        return
    difference = first_difference(read_json(record), json.loads(json.dumps(wanted)))
    if difference is not None:
        raise ConfigError(
            f"{setting.folder} holds another search: {difference}; go on with that one as it was, or choose another "
            "folder"
        )


def _summary(study: optuna.Study, config: SweepConfig, setting: Setting, seeds: Sequence[int]) -> dict[str, Any]:
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ranked = sorted(done, key=lambda t: t.value or 0.0, reverse=config.metric not in SMALL_IS_GOOD)
    return {
        "metric": config.metric,
        "seeds": list(seeds),
        "best": dict(ranked[0].params),
        "trials": [{"number": t.number, "value": t.value, "settings": dict(t.params)} for t in ranked],
        "importance": _importance(study, len(done)),
        "overrides": list(setting.overrides),
        **provenance.describe(),
    }


def _importance(study: optuna.Study, done: int) -> dict[str, float] | None:
    """How much of the metric's spread each setting explains; None for too few trials or where all are equal."""
    if done < 4 or len({t.value for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))}) < 2:
        return None
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return {n: float(v) for n, v in optuna.importance.get_param_importances(study, evaluator=evaluator).items()}


def table(found: dict[str, Any]) -> str:
    """The trials, best first, and what mattered."""
    lines = [f"{'trial':>6}{found['metric']:>8}  settings"]
    for trial in found["trials"]:
        words = ", ".join(f"{name}={_word(value)}" for name, value in trial["settings"].items())
        lines.append(f"{trial['number']:>6}{trial['value']:>8.3f}  {words}")
    if found["importance"]:
        lines.append("what mattered: " + ", ".join(f"{n} {v:.2f}" for n, v in found["importance"].items()))
    return "\n".join(lines)
