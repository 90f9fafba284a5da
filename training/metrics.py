"""LIBERO's lifelong metrics: forward transfer, negative backward transfer, area under the success curve.

Liu et al. 2023 (https://arxiv.org/abs/2306.03310), section 2. c_{i,j,e} is the success rate on task j after e epochs of
stage i, which learns task i. c_{i,j} is the rate at the chosen epoch of stage i; ``final[i][j]`` holds it.
``curves[k]`` holds c_{k,k,e} in order of e, from e = 0, which is before the first step of stage k. If a run has one
checkpoint candidate for each stage, there is no curve: ``curves[k]`` then holds only c_{k,k}, and FWT is the mean of
c_{k,k} over k. All values are rates in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from m2distill_policy.errors import M2DistillError


@dataclass(frozen=True)
class LifelongMetrics:
    """The metrics of a run of K tasks.

    Attributes:
        fwt: Forward transfer: mean over tasks of the mean over epochs of c_{k,k,e}.
        fwt_final: Mean of c_{k,k} over tasks.
        nbt: Negative backward transfer (forgetting): mean over all K tasks. The last task counts as 0.
        nbt_k_minus_1: Negative backward transfer as the mean over the first K - 1 tasks, which can be forgotten.
        auc: Area under the success curve.
        mean_final: Mean success rate over all tasks after the last stage.
    """

    fwt: float
    fwt_final: float
    nbt: float
    nbt_k_minus_1: float
    auc: float
    mean_final: float


def until_perfect(rates: Iterable[float]) -> list[float]:
    """Return the rates up to the first that is 1. Later rates could not be higher, so they are not computed."""
    taken = []
    for rate in rates:
        taken.append(rate)
        if rate == 1.0:
            break
    return taken


def first_best(selection: Sequence[float]) -> int:
    """Return the index of the highest value. If several are equal, return the first one's.

    Raises:
        M2DistillError: There are no values.
    """
    if not selection:
        raise M2DistillError("no checkpoint candidates to choose among; evaluate at least one checkpoint a stage")
    return max(range(len(selection)), key=lambda e: (selection[e], -e))


def fill_after_best(curve: Sequence[float], best: int, entries: int) -> list[float]:
    """Set c_{k,k,e} to c_{k,k} for all epochs e after the chosen one, because later training is discarded.

    Args:
        curve: Success rate at the start of a stage and at its checkpoint candidates, at least up to the chosen one.
        best: Index of the chosen candidate in ``curve``.
        entries: Length of the result.
    """
    return [*curve[:best], *[curve[best]] * (entries - best)]


def lifelong_metrics(
    final: Sequence[Sequence[float]], curves: Sequence[Sequence[float]], tasks: Sequence[int] | None = None
) -> LifelongMetrics:
    """Compute the metrics of a finished run of K stages.

    Args:
        final: K rows. Row i has at least i + 1 entries: the success rates on the tasks of stages 0 to i after stage i.
        curves: K rows. Row k has at least one entry, and its last entry is c_{k,k}.
        tasks: Number of tasks of each stage; None: one task for each stage. The entries of ``final`` and ``curves`` are
            means over the tasks of a stage. Every metric is a mean over all tasks; ``nbt_k_minus_1`` leaves out the
            tasks of the last stage.

    Raises:
        M2DistillError: The numbers of rows or entries do not fit.
    """
    count = len(final)
    if count == 0 or len(curves) != count:
        raise M2DistillError(f"metrics need one curve a stage; got {count} stages and {len(curves)} curves")
    for i, row in enumerate(final):
        if len(row) <= i:
            raise M2DistillError(f"stage {i} has success on {len(row)} tasks; it needs tasks 0 to {i}")
    for k, curve in enumerate(curves):
        if not curve:
            raise M2DistillError(f"stage {k} has no checkpoint candidates; at least its final success is needed")
    fwt_each = [sum(curve) / len(curve) for curve in curves]
    forgotten = []
    area = []
    for k in range(count):
        later = [final[t][k] for t in range(k + 1, count)]
        forgotten.append(sum(final[k][k] - c for c in later) / len(later) if later else 0.0)
        area.append((fwt_each[k] + sum(later)) / (len(later) + 1))
    weights = [1] * count if tasks is None else list(tasks)
    if len(weights) != count:
        raise M2DistillError(f"metrics need one number of tasks a stage; got {len(weights)} for {count} stages")

    def mean(values: Sequence[float], of: int = count) -> float:
        return sum(w * v for w, v in zip(weights[:of], values, strict=False)) / sum(weights[:of])

    return LifelongMetrics(
        fwt=mean(fwt_each),
        fwt_final=mean([final[k][k] for k in range(count)]),
        nbt=mean(forgotten),
        nbt_k_minus_1=mean(forgotten, count - 1) if count > 1 else 0.0,
        auc=mean(area),
        mean_final=mean(final[-1]),
    )


def joint_metrics(final: Sequence[float]) -> dict[str, float | None]:
    """Return the metrics of jointly learned tasks: ``mean_final`` is their mean success, the others are None."""
    names = [field.name for field in fields(LifelongMetrics)]
    return {**dict.fromkeys(names, None), "mean_final": sum(final) / len(final)}
