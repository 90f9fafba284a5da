"""Results of rollouts: the rollouts to run (:class:`Cell`), the log file and the summaries."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2distill_policy.errors import ConfigError, SimulationError
from m2distill_policy.sim.disturbances import Disturbance
from m2distill_policy.sim.env import Task
from m2distill_policy.sim.seeds import Purpose, count_initial_states, state_seed
from m2distill_policy.storage import writing
from m2distill_policy.tables import format_table

#: Version of the format of the lines of ``rollouts.jsonl``. In version 1, two fields had other names.
ROLLOUT_FORMAT = 2


@dataclass(frozen=True)
class Cell:
    """The rollouts of one task with one instruction, which give one cell of a table of results.

    Rollout ``i`` starts from the initial state of ``state_seed(purpose, seed, i)`` and samples actions with
    ``numpy.random.default_rng([seed, i])``. Its result does not depend on other cells or on the number of workers.

    Attributes:
        suite: Suite of the task.
        task: Index of the task in its suite.
        instruction: Instruction given to the policy. None uses the instruction of the task. The instruction of another
            task makes this a cross-instruction evaluation.
        rollouts: Number of rollouts.
        seed: Run seed.
        purpose: Set of initial states to use: ``reported`` or ``selection``.
        first: Number of the first rollout.
        disturbances: Disturbances of the environment.
        horizon: Number of control steps after which a rollout counts as failed. It can only shorten the task's horizon.
            0 uses the task's horizon.

    Raises:
        ConfigError: A value is out of range.
    """

    suite: str
    task: int
    instruction: str | None = None
    rollouts: int = 20
    seed: int = 0
    purpose: Purpose = "reported"
    first: int = 0
    disturbances: tuple[Disturbance, ...] = ()
    horizon: int = 0

    def __post_init__(self) -> None:
        if self.horizon < 0:
            raise ConfigError(f"horizon is {self.horizon} control steps; use 1 or more, or 0 for the task's own")
        if self.rollouts < 1:
            raise ConfigError(f"rollouts is {self.rollouts}; at least 1 is needed")
        if self.task < 0:
            raise ConfigError(f"task index is {self.task}; use 0 or more")
        states = count_initial_states(self.suite)
        if states is not None and self.rollouts > states:
            raise ConfigError(
                f"rollouts is {self.rollouts}, but a task of '{self.suite}' has only {states} initial states; "
                f"use at most {states}"
            )
        state_seed(self.purpose, self.seed, self.first)
        state_seed(self.purpose, self.seed, self.first + self.rollouts - 1)


def make_cells(
    suite: str,
    tasks: Iterable[int],
    rollouts: int,
    *,
    seed: int = 0,
    purpose: Purpose = "reported",
    instruction: str | None = None,
    disturbances: tuple[Disturbance, ...] = (),
    horizon: int = 0,
) -> list[Cell]:
    """Return one cell for each task index in ``tasks``. The other arguments are those of :class:`Cell`.

    Raises:
        ConfigError: A task is named twice, or a value is out of range.
    """
    wanted = list(tasks)
    if len(set(wanted)) != len(wanted):
        raise ConfigError(f"a task is named twice in {wanted}; name each task once")
    return [
        Cell(suite, task, instruction, rollouts, seed, purpose, disturbances=disturbances, horizon=horizon)
        for task in wanted
    ]


@dataclass(frozen=True)
class RolloutResult:
    """The result of one rollout.

    Attributes:
        suite: Suite of the task.
        task_index: Index of the task in its suite.
        task: Name of the task.
        instruction: Instruction given to the policy.
        purpose: ``reported`` or ``selection``, see :func:`m2distill_policy.sim.seeds.state_seed`.
        seed: Run seed.
        episode: Number of the rollout.
        state_seed: Seed of the initial state.
        bundle: Identifier of the bundle.
        sampling: How actions were sampled: ``sample``, ``low_noise`` or ``mode``.
        temperature: Temperature of the sampling.
        visuals: Visual profile of the environment.
        success: Whether the task of the environment was done within the horizon. None if the rollout ended in an error.
        steps: Number of control steps.
        achieved: Names of all tasks of the suite that were done, also of tasks that the instruction does not ask for.
        lifted: Names of the objects that were lifted.
        wrong: Names of lifted objects that the instruction does not name. If the instruction names no objects, names of
            achieved tasks that it does not ask for.
        error: Error message if the rollout ended in an error, else None. An error does not count as a failure.
        seconds: Wall time of the rollout in s.
        video: Path of the video, or None.
        disturbance: Disturbances of the environment, such as ``camera 0.5``. Empty if there were none.
        horizon: Largest number of control steps, see :class:`Cell`.
    """

    suite: str
    task_index: int
    task: str
    instruction: str
    purpose: str
    seed: int
    episode: int
    state_seed: int
    bundle: str
    sampling: str
    temperature: float
    visuals: str
    success: bool | None
    steps: int
    achieved: tuple[str, ...]
    lifted: tuple[str, ...]
    wrong: tuple[str, ...]
    error: str | None
    seconds: float
    video: str | None = None
    disturbance: str = ""
    horizon: int = 0

    @property
    def key(self) -> tuple[Any, ...]:
        """The fields that identify a rollout. A rollout is not run again if its key is in the log already."""
        return (
            self.suite, self.task_index, self.instruction, self.purpose, self.seed, self.episode,
            self.bundle, self.sampling, self.temperature, self.visuals, self.disturbance, self.horizon,
        )  # fmt: skip

    def to_json(self) -> str:
        """Return the result as one line of JSON."""
        return json.dumps({"format": ROLLOUT_FORMAT, **dataclasses.asdict(self)}, sort_keys=True)

    @staticmethod
    def from_json(line: str) -> RolloutResult:
        """Read a line that :meth:`to_json` wrote.

        Raises:
            ValueError: The line is not JSON, or has another format version.
            TypeError: The line is not a JSON object, or a field is missing or unknown.
            KeyError: A field is missing.
        """
        data = json.loads(line)
        if not isinstance(data, dict):
            raise TypeError(f"a JSON object is needed; got {type(data).__name__}")
        version = data.pop("format", 1)
        if version != ROLLOUT_FORMAT:
            raise ValueError(f"its format is {version}; this version reads format {ROLLOUT_FORMAT}")
        for name in ("achieved", "lifted", "wrong"):
            data[name] = tuple(data[name])
        return RolloutResult(**data)


class RolloutLog:
    """A JSON-lines file with one line for each finished rollout.

    If the process is killed while it writes a line, the incomplete line is removed when the file is opened again.

    Args:
        path: The file. It is created if it does not exist.

    Raises:
        SimulationError: A complete line cannot be read, or has another format version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: list[RolloutResult] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(path, len(whole))
        for number, line in enumerate(whole.decode("utf-8").splitlines(), start=1):
            try:
                self.results.append(RolloutResult.from_json(line))
            except (ValueError, TypeError, KeyError) as error:
                raise SimulationError(
                    f"'{path}', line {number} is not a rollout result ({error}); move or delete the file to evaluate "
                    "again"
                ) from error

    def done(self) -> dict[tuple[Any, ...], RolloutResult]:
        """Return the finished rollouts by key. Rollouts that ended in an error are left out, so that they run again."""
        return {result.key: result for result in self.results if result.error is None}

    def add(self, result: RolloutResult) -> None:
        """Append one result and write it to the file at once."""
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(result.to_json() + "\n")
        self.results.append(result)


@dataclass(frozen=True)
class CellSummary:
    """Summary of the rollouts of one task with one instruction and one set of disturbances.

    Attributes:
        suite: Suite of the task.
        task_index: Index of the task in its suite.
        task: Name of the task.
        instruction: Instruction given to the policy.
        rollouts: Number of rollouts.
        errors: Number of rollouts that ended in an error. All fields below leave these rollouts out.
        successes: Number of successes.
        rate: Success rate, or None if every rollout ended in an error.
        low: Lower end of the 95 % Wilson interval of ``rate``.
        high: Upper end of that interval.
        wrong_rate: Share of the rollouts in which a wrong object was lifted, see :attr:`RolloutResult.wrong`.
        mean_steps: Mean number of control steps.
        disturbance: Disturbances of the environment, see :class:`RolloutResult`.
    """

    suite: str
    task_index: int
    task: str
    instruction: str
    rollouts: int
    errors: int
    successes: int
    rate: float | None
    low: float
    high: float
    wrong_rate: float | None
    mean_steps: float | None
    disturbance: str = ""


@dataclass(frozen=True)
class EvaluationSummary:
    """``summary.json`` of ``m2distill evaluate``: the results and where they come from.

    Attributes:
        bundle: Identifier of the bundle.
        bundle_path: Absolute path of the bundle's folder.
        tasks_learned: Names of the tasks that the bundle was trained on.
        provenance: How the bundle was made, from its manifest.
        sampling, temperature, seed, visuals: Settings of the rollouts, see :class:`RolloutResult`.
        cells: One summary for each task, instruction and disturbance.
        curves: Success rate by level of disturbance, see :func:`curves`.
        commit, versions, machine, time: Where the result comes from, see :mod:`m2distill_policy.provenance`.
    """

    bundle: str
    bundle_path: str
    tasks_learned: tuple[str, ...]
    provenance: dict[str, Any]
    sampling: str
    temperature: float
    seed: int
    visuals: str
    cells: tuple[CellSummary, ...]
    curves: dict[str, dict[str, float]]
    commit: str
    versions: dict[str, str]
    machine: dict[str, Any]
    time: str


def summarise(results: Sequence[RolloutResult]) -> list[CellSummary]:
    """Return one summary for each (suite, task, instruction, disturbance), in the order of first appearance."""
    groups: dict[tuple[str, int, str, str], list[RolloutResult]] = {}
    for result in results:
        groups.setdefault((result.suite, result.task_index, result.instruction, result.disturbance), []).append(result)
    summaries = []
    for (suite, index, instruction, disturbance), group in groups.items():
        good = [r for r in group if r.error is None]
        successes = sum(bool(r.success) for r in good)
        low, high = wilson(successes, len(good))
        summaries.append(
            CellSummary(
                suite=suite,
                task_index=index,
                task=group[0].task,
                instruction=instruction,
                rollouts=len(group),
                errors=len(group) - len(good),
                successes=successes,
                rate=successes / len(good) if good else None,
                low=low,
                high=high,
                wrong_rate=sum(bool(r.wrong) for r in good) / len(good) if good else None,
                mean_steps=sum(r.steps for r in good) / len(good) if good else None,
                disturbance=disturbance,
            )
        )
    return summaries


def summary_without_rollouts(task: Task) -> CellSummary:
    """Return an empty summary for a task that has no simulated environment."""
    return CellSummary(task.suite, task.index, task.name, task.instruction, 0, 0, 0, None, 0.0, 1.0, None, None)


def wilson(successes: int, count: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of ``successes`` out of ``count``, or (0, 1) if ``count`` is 0.

    Formula: Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953.
    """
    if count == 0:
        return 0.0, 1.0
    z = 1.959964
    rate, n = successes / count, float(count)
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def curves(summaries: Sequence[CellSummary]) -> dict[str, dict[str, float]]:
    """Return the success rate over all tasks: kind of disturbance -> level -> success rate.

    Level ``"0"`` is the undisturbed environment. Two kinds of data are left out: cells with several disturbances, and
    rollouts that ended in an error.
    """
    counts: dict[tuple[str, str], list[int]] = {}
    for s in summaries:
        kind, _, level = s.disturbance.partition(" ")
        if "," in s.disturbance:
            continue
        entry = counts.setdefault((kind, level or "0"), [0, 0])
        entry[0] += s.successes
        entry[1] += s.rollouts - s.errors
    kinds = [kind for kind in dict.fromkeys(kind for kind, _ in counts) if kind]
    found: dict[str, dict[str, float]] = {}
    for kind in kinds:
        mine = [(level, c) for (of, level), c in counts.items() if of in ("", kind) and c[1]]
        found[kind] = {level: c[0] / c[1] for level, c in sorted(mine, key=lambda entry: float(entry[0]))}
    return found


def curves_table(found: dict[str, dict[str, float]]) -> str:
    """Format the result of :func:`curves` as a plain-text table."""
    levels = sorted({level for curve in found.values() for level in curve}, key=float)
    rows = [("success at level", *levels)]
    rows += [(kind, *(f"{curve[v]:.2f}" if v in curve else "-" for v in levels)) for kind, curve in found.items()]
    return format_table(rows, "<" + ">" * len(levels))


def table(summaries: Sequence[CellSummary]) -> str:
    """Format the summaries as a plain-text table."""
    rows = [("task", "instruction", "disturbed by", "success", "95 %", "wrong object", "steps", "errors")]
    for s in summaries:
        rate = "-" if s.rate is None else f"{s.rate:.2f} ({s.successes}/{s.rollouts - s.errors})"
        wrong = "-" if s.wrong_rate is None else f"{s.wrong_rate:.2f}"
        steps = "-" if s.mean_steps is None else f"{s.mean_steps:.0f}"
        interval = f"{s.low:.2f}..{s.high:.2f}"
        rows.append((s.task, s.instruction, s.disturbance or "-", rate, interval, wrong, steps, str(s.errors)))
    return format_table(rows, "<<<>>>>>")
