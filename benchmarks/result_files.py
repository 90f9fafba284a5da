"""Read and write the files in ``benchmarks/results``.

``<measurement>.json`` holds one measurement: its configuration, its figures and their provenance. Each figure is on its
own line.

``<study>.jsonl`` holds the finished runs of a study. The first line is the header: the format's version, the study's
name, the configuration that its runs share, and the machines with their package versions. Every other line is one run;
:class:`RunResult` describes it. A run states only the settings in which it differs from the header's configuration, and
refers to its machine by the machine's position in the header. ``absent`` lists the settings of the header that a run
does not have, because they belong to another strategy.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m2distill_policy import provenance
from m2distill_policy.errors import TrainingError
from m2distill_policy.storage import whole_file

#: Format version of the files of runs. Increase it when the meaning of a line changes.
FORMAT = 1
#: Number of decimals of a drift, of a mean number of steps and of a point of a success curve.
_DIGITS = 4
#: Number of hexadecimal digits that are kept of the hash of a task's demonstrations.
_HASH_DIGITS = 16


@dataclass(frozen=True)
class Origin:
    """The provenance of a training or of results.

    Attributes:
        commit: Commit of the source, with ``+changes`` if files had been edited.
        time: Time in UTC, ISO 8601.
        environment: ``machine`` and ``versions``, as :func:`m2distill_policy.provenance.describe` returns them.
        precision: Precision of training, such as ``bfloat16``; empty for results.
    """

    commit: str
    time: str
    environment: dict[str, Any]
    precision: str = ""

    @staticmethod
    def of(record: Mapping[str, Any]) -> Origin:
        """Make the origin from a record that contains the keys of :func:`m2distill_policy.provenance.describe`."""
        environment = {"machine": record["machine"], "versions": record["versions"]}
        return Origin(record["commit"], record["time"], environment, record.get("precision", "").removeprefix("torch."))


@dataclass(frozen=True)
class RunResult:
    """The results of one finished run of a study.

    Attributes:
        arm: Name of the arm.
        seed: Seed of the run.
        config: Full configuration of the run.
        data: Position of a task -> hash of its demonstrations. Empty for runs that did not record it.
        rollouts: Number of rollouts of a task after a stage.
        successes: Number of successful rollouts; row: stage, column: task.
        wrong_object: Number of rollouts in which an object was lifted that the instruction does not name, in the same
            layout as ``successes``.
        steps: Mean number of control steps of a rollout, in the same layout.
        errors: ``[stage, task, rollouts]``, with the number of rollouts that ended in an error. These rollouts count
            neither as success nor as failure.
        cross_instruction: ``[task, instruction's task, rollouts without error, successes, wrong_object]``: rollouts in
            a task's environment under another task's instruction, after the last stage.
        success_curves: Success rate of a stage's new tasks at its checkpoint candidates; row: stage.
        metrics: See :class:`training.metrics.LifelongMetrics`.
        drift: Modality -> relative drift of the latents; row: stage, column: old task.
        memory_bytes: Memory size after the last stage.
        trained: Origin of the training of each stage.
        evaluated: Origin of the results.
    """

    arm: str
    seed: int
    config: dict[str, Any]
    data: dict[str, str]
    rollouts: int
    successes: list[list[int]]
    wrong_object: list[list[int]]
    steps: list[list[float | None]]
    errors: list[list[int]]
    cross_instruction: list[list[int]]
    success_curves: list[list[float]]
    metrics: dict[str, float | None]
    drift: dict[str, list[list[float]]]
    memory_bytes: int
    trained: tuple[Origin, ...]
    evaluated: Origin

    @staticmethod
    def of(arm: str, results: Mapping[str, Any]) -> RunResult:
        """Make the result of a run from the ``results.json`` of its folder."""
        cells: list[list[dict[str, Any]]] = results["cells"]
        instructions = [task["instruction"] for task in results["tasks"]]
        positions = {task["index"]: position for position, task in enumerate(results["tasks"])}
        drift: list[list[dict[str, dict[str, float]]]] = results["drift"]
        modalities = drift[0][0] if drift else {}
        return RunResult(
            arm=arm,
            seed=results["seed"],
            config=results["config"],
            data={task: digest[:_HASH_DIGITS] for task, digest in results.get("data", {}).items()},
            rollouts=results["rollouts"],
            successes=[[cell["successes"] for cell in row] for row in cells],
            wrong_object=[[_count(cell) for cell in row] for row in cells],
            steps=[[_rounded(cell["mean_steps"]) for cell in row] for row in cells],
            errors=[
                [stage, task, cell["errors"]]
                for stage, row in enumerate(cells)
                for task, cell in enumerate(row)
                if cell["errors"]
            ],
            cross_instruction=[
                [
                    positions[cell["task_index"]],
                    instructions.index(cell["instruction"]),
                    cell["rollouts"] - cell["errors"],
                    cell["successes"],
                    _count(cell),
                ]
                for cell in results["cross_instruction"] or []
            ],
            success_curves=[[round(rate, _DIGITS) for rate in curve] for curve in results["success_curves"]],
            metrics=results["metrics"],
            drift={
                name: [[round(old[name]["relative"], _DIGITS) for old in row] for row in drift] for name in modalities
            },
            memory_bytes=results["bytes_kept"],
            trained=tuple(Origin.of(record) for record in results["trained"]),
            evaluated=Origin.of(results),
        )

    @property
    def success(self) -> list[list[float]]:
        """The success rates; row: stage, column: task."""
        return self._rates(self.successes)

    @property
    def wrong_object_rate(self) -> list[list[float]]:
        """The share of rollouts in which an object was lifted that the instruction does not name."""
        return self._rates(self.wrong_object)

    @property
    def error_count(self) -> int:
        """The number of rollouts that ended in an error."""
        return sum(count for _, _, count in self.errors)

    @property
    def cross_instruction_success(self) -> float | None:
        """The mean success rate of an environment's own task under another task's instruction; None: not measured."""
        rates = [successes / rollouts for _, _, rollouts, successes, _ in self.cross_instruction if rollouts]
        return float(np.mean(rates)) if rates else None

    def _rates(self, counts: list[list[int]]) -> list[list[float]]:
        errors = {(stage, task): count for stage, task, count in self.errors}
        return [
            [count / (self.rollouts - errors.get((stage, task), 0)) for task, count in enumerate(row)]
            for stage, row in enumerate(counts)
        ]


def write_runs(path: Path, study: str, config: Mapping[str, Any], runs: Iterable[RunResult]) -> None:
    """Write the runs of a study.

    Args:
        path: Path of the ``.jsonl`` file.
        study: Name of the study.
        config: Configuration that the runs share. A run states only the settings that differ from it.
        runs: Runs in any order. They are sorted by seed; runs of the same seed keep their order.
    """
    base, environments = flatten(config), list[dict[str, Any]]()

    def place(origin: Origin) -> int:
        if origin.environment not in environments:
            environments.append(origin.environment)
        return environments.index(origin.environment)

    lines = []
    for run in sorted(runs, key=lambda run: run.seed):
        own = flatten(run.config)
        lines.append(
            {
                "arm": run.arm,
                "seed": run.seed,
                "config": {name: value for name, value in own.items() if name not in base or base[name] != value},
                **({"absent": absent} if (absent := [name for name in base if name not in own]) else {}),
                "data": run.data,
                "rollouts": run.rollouts,
                "metrics": run.metrics,
                "memory_bytes": run.memory_bytes,
                "errors": run.errors,
                "successes": run.successes,
                "wrong_object": run.wrong_object,
                "steps": run.steps,
                "cross_instruction": run.cross_instruction,
                "success_curves": run.success_curves,
                "drift": run.drift,
                "trained": [[o.commit, o.precision, place(o), o.time] for o in run.trained],
                "evaluated": [run.evaluated.commit, place(run.evaluated), run.evaluated.time],
            }
        )
    header = {"format": FORMAT, "study": study, "config": config, "environments": environments}
    _write(path, "".join(_line(line) + "\n" for line in [header, *lines]))


def read_runs(path: Path) -> list[RunResult]:
    """Read the runs of a study, in order of seed. If the file is missing, there are no runs.

    Raises:
        TrainingError: The file is not a file of runs, or it has another format.
    """
    if not path.exists():
        return []
    try:
        header, *lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if header["format"] != FORMAT:
            raise TrainingError(
                f"{path} has format {header['format']} and this version reads {FORMAT}; use the version that wrote it, "
                "or run the study again"
            )
        return [_run(line, header["config"], header["environments"]) for line in lines]
    except (ValueError, TypeError, LookupError) as error:
        raise TrainingError(
            f"{path} is not a file of runs ({error!r}); restore it, or move it away and run the study again"
        ) from error


def _run(line: dict[str, Any], config: dict[str, Any], environments: list[dict[str, Any]]) -> RunResult:
    origins = [Origin(commit, time, environments[i], precision) for commit, precision, i, time in line.pop("trained")]
    commit, place, time = line.pop("evaluated")
    own, absent = line.pop("config"), line.pop("absent", [])
    settings = _unflatten({name: value for name, value in {**flatten(config), **own}.items() if name not in absent})
    evaluated = Origin(commit, time, environments[place])
    return RunResult(**line, config=settings, trained=tuple(origins), evaluated=evaluated)


def write_measurement(name: str, config: Mapping[str, Any], figures: Mapping[str, Any], out: Path | None) -> None:
    """Print a measurement as JSON with one figure per line, and write it to a file if one is given.

    Args:
        name: Name of the benchmark.
        config: Settings of the measurement.
        figures: Name -> measured figure.
        out: The file, or None.
    """
    record = {"benchmark": name, **provenance.describe(), "config": config}
    head = "".join(f"{json.dumps(key)}: {json.dumps(value)},\n" for key, value in record.items())
    rows = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in figures.items())
    text = f'{{{head}"figures": {{\n{rows}\n}}}}\n'
    print(text, end="")
    if out is not None:
        _write(out, text)


class PartialFigures:
    """The figures of a measurement that is not finished, kept in ``<out>.partial`` so that its command can resume."""

    def __init__(self, out: Path | None, config: Mapping[str, Any]) -> None:
        """Read the figures of an earlier call.

        Args:
            out: File of the measurement; None: nothing is kept.
            config: Settings of the measurement.

        Raises:
            TrainingError: The figures were measured with another configuration.
        """
        self._path = None if out is None else out.with_name(f"{out.name}.partial")
        self._config = json.loads(json.dumps(config))
        self.figures: dict[str, Any] = {}
        if self._path is not None and self._path.exists():
            record = json.loads(self._path.read_text(encoding="utf-8"))
            if record["config"] != self._config:
                raise TrainingError(
                    f"{self._path} has figures of other options; repeat those, remove the file, or choose another --out"
                )
            self.figures = record["figures"]

    def add(self, name: str, figure: Any) -> None:
        """Add a figure and write all figures to the partial file."""
        self.figures[name] = figure
        if self._path is not None:
            _write(self._path, json.dumps({"config": self._config, "figures": self.figures}))

    def remove(self) -> None:
        """Remove the partial file. Call this when the measurement itself is written."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def flatten(config: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    """Return nested settings as ``section.key`` -> value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{within}{key}.")
        else:
            found[f"{within}{key}"] = value
    return found


def _unflatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        *sections, key = name.split(".")
        place = found
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return found


def _count(cell: Mapping[str, Any]) -> int:
    return round((cell["wrong_rate"] or 0.0) * (cell["rollouts"] - cell["errors"]))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DIGITS)


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, separators=(",", ":"))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
