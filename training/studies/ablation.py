"""What each of the four terms does: the whole, the whole without one of them, and without all, over several seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from m2distill_policy import provenance
from m2distill_policy.cluster import Launcher
from m2distill_policy.config import to_dict
from m2distill_policy.errors import ConfigError
from training.lifelong.checkpoint import write_json
from training.lifelong.strategies.m2distill import TERMS, DistillConfig
from training.studies.arms import Arm, Setting, jobs_of, results_of, run_seed

#: Shown for every arm: name in results.json -> heading.
METRICS = {"mean_final": "success", "nbt": "NBT", "auc": "AUC", "fwt": "FWT"}

ARMS: tuple[Arm, ...] = (
    Arm("whole", "the four terms", ("strategy=m2distill",)),
    *(Arm(f"no_{term}", f"without {term}", ("strategy=m2distill", f"distill.{term}.on=false")) for term in TERMS),
    Arm("none", "without any", ("strategy=m2distill", *(f"distill.{term}.on=false" for term in TERMS))),
)


def ablate(setting: Setting, seeds: Sequence[int], at_once: int, launcher: Launcher | None = None) -> dict[str, Any]:
    """Every arm on every seed; what is finished is not run again. Writes ``<folder>/ablation.json`` and returns it.

    launcher: where the runs are (default: this machine).

    Raises :class:`ConfigError` where the configuration has a term switched off already, or no rollouts.
    """
    if len(set(seeds)) != len(seeds):
        raise ConfigError(f"the seeds name one twice: {list(seeds)}")
    jobs = {seed: jobs_of(seed, ARMS, setting) for seed in seeds}
    config = jobs[seeds[0]][0].config
    off = [term for term in TERMS if not getattr(config.section(DistillConfig), term).value]
    if off:
        raise ConfigError(f"distill.{off[0]} is off or weighs nothing: there is nothing to leave out; give it a weight")
    if not config.evaluation.rollouts:
        raise ConfigError("an ablation is told by its rollouts, and evaluation.rollouts is 0; ask for some")
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
        "demonstrations": str(setting.data.resolve()),
        "arms": {
            arm.name: {
                "words": arm.words,
                "values": values[arm.name],
                "mean_and_interval": {m: interval(values[arm.name][m]) for m in METRICS},
                "beside_whole": {
                    m: interval([a - b for a, b in zip(values[arm.name][m], values["whole"][m], strict=True)])
                    for m in METRICS
                },
            }
            for arm in ARMS
        },
        **provenance.describe(),
    }
    write_json(setting.folder / "ablation.json", found)
    return found


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float | None, float | None]:
    """Mean, and the ends of its Student interval over seeds; None for both where there is a single seed."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None, None
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1)) * error
    return mean, mean - half, mean + half


def table(found: dict[str, Any]) -> str:
    """The same for a terminal: means, and each arm's AUC beside the whole's, seed by seed, with its interval."""
    lines = [
        f"{'':<18}" + "".join(f"{words:>9}" for words in METRICS.values()) + "   AUC beside the whole (95 % interval)"
    ]
    for name, arm in found["arms"].items():
        line = f"{arm['words']:<18}" + "".join(f"{arm['mean_and_interval'][m][0]:>9.2f}" for m in METRICS)
        if name != "whole":
            mean, low, high = arm["beside_whole"]["auc"]
            line += f"   {mean:+.2f}" + ("" if low is None else f" ({low:+.2f} to {high:+.2f})")
        lines.append(line)
    seeds = ", ".join(map(str, found["seeds"]))
    return "\n".join([*lines, f"seeds {seeds}" + ("" if len(found["seeds"]) > 1 else "; one seed carries no interval")])
