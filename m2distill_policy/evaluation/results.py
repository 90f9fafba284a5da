"""What was asked and what came of it: cells, results of single rollouts, their log and their summary."""

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
from m2distill_policy.evaluation.seeds import Purpose, initial_states, state_seed
from m2distill_policy.sim.disturbances import Disturbance
from m2distill_policy.sim.env import Task
from m2distill_policy.storage import writing


@dataclass(frozen=True)
class Cell:
    """Some rollouts of one task.

    suite, task: the world, by the task's index. told: the instruction given, when it is not the task's own.
    rollouts: how many, numbered from ``first``. seed: run seed. purpose: ``reported`` or ``selection`` states.
    disturbances: ways in which the world is wrong. horizon: control steps after which a rollout has failed, where that
    is sooner than the task says; 0: the task's own.

    Rollout ``i`` starts from ``state_seed(purpose, seed, i)`` and draws actions from
    ``numpy.random.default_rng([seed, i])``, whatever else is evaluated and by how many workers.
    """

    suite: str
    task: int
    told: str | None = None
    rollouts: int = 20
    seed: int = 0
    purpose: Purpose = "reported"
    first: int = 0
    disturbances: tuple[Disturbance, ...] = ()
    horizon: int = 0

    def __post_init__(self) -> None:
        if self.horizon < 0:
            raise ConfigError(f"a horizon of {self.horizon} control steps was asked for; 0 is the task's own")
        if self.rollouts < 1:
            raise ConfigError(f"a cell has {self.rollouts} rollouts; at least 1 is needed")
        if self.task < 0:
            raise ConfigError(f"task index is {self.task}; whole numbers from 0 on are allowed")
        states = initial_states(self.suite)
        if states is not None and self.rollouts > states:
            raise ConfigError(
                f"{self.rollouts} rollouts a task were asked for and '{self.suite}' has {states} initial states a "
                f"task: some would count twice; ask for at most {states}"
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
    told: str | None = None,
    disturbances: tuple[Disturbance, ...] = (),
    horizon: int = 0,
) -> list[Cell]:
    """One cell a task."""
    wanted = list(tasks)
    if len(set(wanted)) != len(wanted):
        raise ConfigError(f"the tasks name one twice: {wanted}")
    return [
        Cell(suite, task, told, rollouts, seed, purpose, disturbances=disturbances, horizon=horizon) for task in wanted
    ]


@dataclass(frozen=True)
class RolloutResult:
    """One rollout.

    suite, task_index, task: the world; told: the instruction given. purpose, seed, episode, state_seed: the state.
    bundle, sampling, temperature, visuals: the policy and how it was run.
    success: whether the world's own task was done within the horizon; None when the rollout ended in an error.
    steps: control steps taken. achieved: names of the suite's tasks that were done, whichever was told.
    lifted: objects raised; wrong: those among them that the told instruction is not about.
    error: what went wrong, or None; a crash is never a failure. seconds: of wall time. film: path, or None.
    disturbance: in which ways the world was wrong, such as ``camera 0.5``; empty where it was not.
    horizon: see :class:`Cell`.
    """

    suite: str
    task_index: int
    task: str
    told: str
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
    film: str | None = None
    disturbance: str = ""
    horizon: int = 0

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two rollouts the same one, for resuming."""
        return (
            self.suite, self.task_index, self.told, self.purpose, self.seed, self.episode,
            self.bundle, self.sampling, self.temperature, self.visuals, self.disturbance, self.horizon,
        )  # fmt: skip

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @staticmethod
    def from_json(line: str) -> RolloutResult:
        """Read what :meth:`to_json` wrote; raises ValueError or TypeError."""
        data = json.loads(line)
        if not isinstance(data, dict):
            raise TypeError(f"a JSON object is needed; got {type(data).__name__}")
        for name in ("achieved", "lifted", "wrong"):
            data[name] = tuple(data[name])
        return RolloutResult(**data)


class RolloutLog:
    """A JSON-lines file that grows by one line as each rollout ends. A line cut short by a kill is dropped on opening.

    Raises :class:`SimulationError` for any other line that cannot be read.
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
                    f"'{path}', line {number} is not a rollout's result ({error}); move the file away to begin anew"
                ) from error

    def done(self) -> dict[tuple[Any, ...], RolloutResult]:
        """Finished rollouts by key, without those that ended in an error: they are tried again."""
        return {result.key: result for result in self.results if result.error is None}

    def add(self, result: RolloutResult) -> None:
        """Append one result and hand it to the operating system at once."""
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(result.to_json() + "\n")
        self.results.append(result)


@dataclass(frozen=True)
class CellSummary:
    """Rollouts of one task under one instruction and disturbance.

    rate: successes among the rollouts that did not end in an error, or None when there are none; low, high: its 95 %
    Wilson interval. wrong_rate: share of them in which an object was lifted that the instruction is not about.
    """

    suite: str
    task_index: int
    task: str
    told: str
    rollouts: int
    errors: int
    successes: int
    rate: float | None
    low: float
    high: float
    wrong_rate: float | None
    mean_steps: float | None
    disturbance: str = ""


def summarise(results: Sequence[RolloutResult]) -> list[CellSummary]:
    """One summary for each (suite, task, told instruction, disturbance), in the order of first appearance."""
    groups: dict[tuple[str, int, str, str], list[RolloutResult]] = {}
    for result in results:
        groups.setdefault((result.suite, result.task_index, result.told, result.disturbance), []).append(result)
    summaries = []
    for (suite, index, told, disturbance), group in groups.items():
        good = [r for r in group if r.error is None]
        successes = sum(bool(r.success) for r in good)
        low, high = wilson(successes, len(good))
        summaries.append(
            CellSummary(
                suite=suite,
                task_index=index,
                task=group[0].task,
                told=told,
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
    """The summary of a task that has no world."""
    return CellSummary(task.suite, task.index, task.name, task.instruction, 0, 0, 0, None, 0.0, 1.0, None, None)


def wilson(successes: int, count: int) -> tuple[float, float]:
    """95 % Wilson interval of a rate; (0, 1) when nothing was counted."""
    if count == 0:
        return 0.0, 1.0
    z = 1.959964
    rate, n = successes / count, float(count)
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def curves(summaries: Sequence[CellSummary]) -> dict[str, dict[str, float]]:
    """Kind of disturbance -> level -> success over all tasks together; level 0 is the undisturbed world.

    Cells with several disturbances at once, and rollouts that ended in an error, are left out.
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
    """:func:`curves` as a table of plain text."""
    levels = sorted({level for curve in found.values() for level in curve}, key=float)
    rows = [("success under", *(f"{level}" for level in levels))]
    rows += [(kind, *(f"{curve[v]:.2f}" if v in curve else "-" for v in levels)) for kind, curve in found.items()]
    return _columns(rows)


def table(summaries: Sequence[CellSummary]) -> str:
    """The summaries as a table of plain text."""
    rows: list[tuple[str, ...]] = [
        ("task", "told", "disturbed by", "success", "95 %", "wrong object", "steps", "errors")
    ]
    for s in summaries:
        rate = "-" if s.rate is None else f"{s.rate:.2f} ({s.successes}/{s.rollouts - s.errors})"
        wrong = "-" if s.wrong_rate is None else f"{s.wrong_rate:.2f}"
        steps = "-" if s.mean_steps is None else f"{s.mean_steps:.0f}"
        interval = f"{s.low:.2f}..{s.high:.2f}"
        rows.append((s.task, s.told, s.disturbance or "-", rate, interval, wrong, steps, str(s.errors)))
    return _columns(rows)


def _columns(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
