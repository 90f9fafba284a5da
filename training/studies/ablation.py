"""Ablation: m2distill with all four distillation terms, without each one, and without any, over several seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from m2distill_policy import provenance
from m2distill_policy.cluster import Launcher
from m2distill_policy.config import to_dict
from m2distill_policy.errors import ConfigError
from m2distill_policy.tables import format_table
from training.lifelong.checkpoint import write_json
from training.lifelong.strategies.m2distill import TERMS, DistillConfig
from training.studies.study import TERMS_OFF, Arm, Study, results_of, run_seed, without_each_term

#: Metrics of every arm: name in results.json -> heading.
METRICS = {"mean_final": "success", "nbt": "NBT", "auc": "AUC", "fwt": "FWT"}

_M2DISTILL = ("strategy=m2distill",)
ARMS: tuple[Arm, ...] = (
    Arm("whole", "all four terms", _M2DISTILL),
    *without_each_term(_M2DISTILL, name="no_", label=""),
    Arm("none", "without any", (*_M2DISTILL, *TERMS_OFF)),
)


def ablate(study: Study, seeds: Sequence[int], at_once: int, launcher: Launcher | None = None) -> dict[str, Any]:
    """Run every arm with every seed. A finished run is not run again.

    Args:
        study: Configuration, demonstrations and folder. Its arms are replaced by :data:`ARMS`.
        seeds: Seeds of the runs, each named once.
        at_once: Number of runs at the same time.
        launcher: Starts the processes of the runs; None: on this machine.

    Returns:
        The contents of ``<folder>/ablation.json``.

    Raises:
        ConfigError: A seed is named twice; or in the configuration a term is off or has weight 0, or
            ``evaluation.rollouts`` is 0.
    """
    if len(set(seeds)) != len(seeds):
        raise ConfigError(f"the seeds are {list(seeds)}, and one is named twice; name each once")
    study = dataclasses.replace(study, arms=ARMS)
    jobs = {seed: study.jobs(seed) for seed in seeds}
    config = jobs[seeds[0]][0].config
    off = [term for term in TERMS if not getattr(config.section(DistillConfig), term).value]
    if off:
        raise ConfigError(
            f"distill.{off[0]} is off or has weight 0, so leaving it out changes nothing; give it a weight above 0"
        )
    if not config.evaluation.rollouts:
        raise ConfigError(
            "evaluation.rollouts is 0, and an ablation compares success in rollouts; set evaluation.rollouts above 0"
        )
    for job in (job for runs in jobs.values() for job in runs):
        job.require_same()
    for runs in jobs.values():
        run_seed(runs[0], runs, at_once, launcher)
    values = {
        arm.name: {metric: [float(results_of(jobs[s][i])["metrics"][metric]) for s in seeds] for metric in METRICS}
        for i, arm in enumerate(ARMS)
    }
    found = {
        "seeds": list(seeds),
        "config": to_dict(config),
        "demonstrations": str(study.data.resolve()),
        "arms": {
            arm.name: {
                "label": arm.label,
                "values": values[arm.name],
                "mean_and_interval": {m: interval(values[arm.name][m]) for m in METRICS},
                "difference_to_whole": {
                    m: interval([a - b for a, b in zip(values[arm.name][m], values["whole"][m], strict=True)])
                    for m in METRICS
                },
            }
            for arm in ARMS
        },
        **provenance.describe(),
    }
    write_json(study.folder / "ablation.json", found)
    return found


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float | None, float | None]:
    """Return the mean over seeds and both ends of its confidence interval, by Student's t distribution.

    Both ends are None if there is only one seed.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None, None
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1)) * error
    return mean, mean - half, mean + half


def table(found: dict[str, Any]) -> str:
    """Make a table for a terminal: means, and each arm's AUC minus the AUC with all four terms, paired by seed."""
    rows = [("variant", *METRICS.values(), "AUC minus that of all four (95 % interval)")]
    for name, arm in found["arms"].items():
        difference = ""
        if name != "whole":
            mean, low, high = arm["difference_to_whole"]["auc"]
            difference = f"{mean:+.2f}" + ("" if low is None else f" ({low:+.2f} to {high:+.2f})")
        rows.append((arm["label"], *(f"{arm['mean_and_interval'][m][0]:.2f}" for m in METRICS), difference))
    seeds = ", ".join(map(str, found["seeds"]))
    note = "" if len(found["seeds"]) > 1 else "; there is no interval from one seed"
    return f"{format_table(rows, '<' + '>' * len(METRICS) + '<')}\nseeds {seeds}{note}"
