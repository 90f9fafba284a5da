"""The JSON records of a run folder, each a dataclass, written with a format number and read strictly.

============================================ =============================================================
file                                         record
============================================ =============================================================
``run.json``                                 :class:`RunRecord`
``stages/stage_<k>/partial.json``            :class:`PartialRecord`, while the stage trains
``stages/stage_<k>/candidates.json``         :class:`CandidatesRecord`, when the stage is trained
``stages/stage_<k>/selection.json``          :class:`SelectionRecord`, if there are several candidates
``stages/stage_<k>/stage.json``              :class:`StageRecord`; a stage counts as trained if it exists
``stages/stage_<k>/samples.json``            :class:`SamplesRecord`
``evaluation/stage_<k>.json``                :class:`EvaluationRecord`
``evaluation/stage_<k>_curve.json``          :class:`CurveRecord`
``results.json``                             :class:`RunResults`
``gate.json``                                :class:`training.regression_gate.Gate`
============================================ =============================================================

A record holds the names and sha256 of the files that it describes. It is written after these files, so that they are
always complete.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from m2distill_policy.config import from_dict, to_dict
from m2distill_policy.errors import ConfigError, TrainingError
from m2distill_policy.evaluation.results import CellSummary
from m2distill_policy.sim.env import Task
from training.lifelong.checkpoint import read_json, write_json
from training.release import ReleaseCriteria
from training.run_config import RunConfig

T = TypeVar("T")

#: Increase it whenever a record changes in a way that an older or newer version cannot read.
FORMAT = 3


@dataclass(frozen=True)
class FileRecord:
    """A file of tensors in the same folder as the record that names it."""

    file: str
    sha256: str


@dataclass(frozen=True)
class ExtensionRecord:
    """A finished run that another run extends.

    Attributes:
        run: Name of the finished run's folder.
        stages: Number of stages of the finished run.
        config: Settings of the finished run.
        release: Criteria for publishing a bundle of the extended run.
    """

    run: str
    stages: int
    config: RunConfig
    release: ReleaseCriteria


@dataclass(frozen=True)
class RunRecord:
    """Everything on which the results of a run depend.

    Attributes:
        config: Settings of the run.
        contract: Contract of the demonstrations, with the text encoder, as plain JSON.
        tasks: Tasks in the order in which they are learned.
        embeddings: Embeddings of the instructions (tasks, text size), in the same order.
        demonstrations: Absolute path of the folder of demonstration files.
        data: Position of a task -> sha256 of its demonstrations, recorded when the run first reads them.
        extends: Runs that this run extends, oldest first.
        commit, versions, machine, time: See :mod:`m2distill_policy.provenance`.
    """

    config: RunConfig
    contract: dict[str, Any]
    tasks: tuple[Task, ...]
    embeddings: tuple[tuple[float, ...], ...]
    demonstrations: str
    commit: str
    versions: dict[str, str]
    machine: dict[str, Any]
    time: str
    data: dict[str, str] = field(default_factory=dict)
    extends: tuple[ExtensionRecord, ...] = ()


@dataclass(frozen=True)
class PartialRecord:
    """The partial checkpoint of a stage that is being trained.

    Attributes:
        stage: Number of the stage, from 0.
        step: Number of finished steps.
        file: Name of the file with the policy and the optimiser after these steps.
        sha256: sha256 of the file.
    """

    stage: int
    step: int
    file: str
    sha256: str


@dataclass(frozen=True)
class StateRecord:
    """The file, in the folder ``memory``, with the tensors that a strategy passes to the next stage."""

    strategy: str
    file: str
    sha256: str


@dataclass(frozen=True)
class CandidatesRecord:
    """The checkpoint candidates of a stage, and what the next stage needs.

    Attributes:
        candidates: Number of a candidate -> its file. If there are several candidates, there is also a number 0: the
            network at the start of the stage.
        made_by: Commit, versions, machine, time and precision of the stage's training.
        exemplars: Position of each new task -> sha256 of its kept demonstrations; None if no demonstrations are kept.
        state: State of the strategy; None if the strategy has no state.
    """

    candidates: dict[str, FileRecord]
    made_by: dict[str, Any]
    exemplars: dict[str, str | None]
    state: StateRecord | None = None


@dataclass(frozen=True)
class SelectionRecord:
    """The checkpoint candidate that ends a stage.

    Attributes:
        chosen: Number of the candidate, from 1.
        rates: Success rate of each candidate; None for a candidate, or for all, if it was not measured.
    """

    chosen: int
    rates: tuple[float | None, ...] | None = None


@dataclass(frozen=True)
class StageRecord:
    """The policy that a trained stage ends with.

    Attributes:
        file: Name of the file with the weights.
        sha256: sha256 of the file.
        candidate: Number of the checkpoint candidate.
        bytes_kept: Memory size after the stage, in bytes: the replay buffer and the tensors of the strategy, for all
            tasks so far. The network does not count.
    """

    file: str
    sha256: str
    candidate: int
    bytes_kept: int


@dataclass(frozen=True)
class SamplesRecord:
    """The sha256 of the demonstration and of the windows that a stage saves (see :mod:`training.lifelong.samples`)."""

    episode: str
    probes: str


@dataclass(frozen=True)
class EvaluationRecord:
    """Summary of the rollouts after a stage: one entry for each task learned so far, in order."""

    cells: tuple[CellSummary, ...]


@dataclass(frozen=True)
class CurveRecord:
    """Success on a stage's new tasks at each candidate, from candidate 0 (before the first step) to the chosen one."""

    rates: tuple[float, ...]


@dataclass(frozen=True)
class Drift:
    """How far the latents of one modality have moved since their task was learned.

    Attributes:
        l2: Mean distance between earlier and current latents.
        relative: ``l2`` divided by the mean norm of the earlier latents.
        cosine: Mean cosine similarity.
        cka: Linear centred kernel alignment (Kornblith et al. 2019, https://arxiv.org/abs/1905.00414) over all steps.
            It is 1 if the current latents are the earlier latents rotated, scaled by one factor or shifted: the next
            layer can undo these changes. None if the earlier latents are the same for every step.
    """

    l2: float
    relative: float
    cosine: float
    cka: float | None


@dataclass(frozen=True)
class RunResults:
    """The results of a finished run.

    Attributes:
        label: Label of the run in tables and charts.
        run: Name of the run's folder.
        strategy: Name of the strategy.
        seed: Seed of the run.
        tasks: Tasks in the order in which they were learned.
        rollouts: Number of rollouts of each task after each stage.
        sampling: How actions were sampled from the mixture, see ``evaluation.sampling``.
        success: Share of successful rollouts: a row for each stage, a column for each task learned so far; None for a
            task without rollouts.
        wrong_object: Share of rollouts that lifted an object which the instruction does not name, in the same layout.
        errors: Number of rollouts that ended in an error.
        cells: Summaries of the rollouts, from which these rates are computed, in the same layout.
        cross_instruction: Summaries of the cross-instruction evaluation: every environment under the instruction of
            each other task. None if it was not configured.
        cross_instruction_success: Mean success rate of the cross-instruction evaluation; None if it was not configured.
        success_curves: For each stage, the success rate on its new tasks at each checkpoint candidate.
        metrics: See :mod:`training.metrics`; None for a metric that does not apply.
        bytes_kept: See :class:`StageRecord`.
        drift: How far the latents of each modality have moved. Row: the stage after which it was measured. Column: the
            stage whose latents were measured.
        config: Settings of the run.
        data: See :class:`RunRecord`.
        trained: Commit, versions, machine, time and precision of the training of each stage.
        commit, versions, machine, time: Provenance of these results, see :mod:`m2distill_policy.provenance`.
    """

    label: str
    run: str
    strategy: str
    seed: int
    tasks: tuple[Task, ...]
    rollouts: int
    sampling: str
    success: tuple[tuple[float | None, ...], ...]
    wrong_object: tuple[tuple[float | None, ...], ...]
    errors: int
    cells: tuple[tuple[CellSummary, ...], ...]
    cross_instruction: tuple[CellSummary, ...] | None
    cross_instruction_success: float | None
    success_curves: tuple[tuple[float, ...], ...]
    metrics: dict[str, float | None]
    bytes_kept: int
    drift: tuple[tuple[dict[str, Drift], ...], ...]
    config: RunConfig
    data: dict[str, str]
    trained: tuple[dict[str, Any], ...]
    commit: str
    versions: dict[str, str]
    machine: dict[str, Any]
    time: str


def write_record(path: Path, record: Any) -> None:
    """Write a record; a reader sees the old file or the new one."""
    write_json(path, {"format": FORMAT, **to_dict(record)})


def read_record(kind: type[T], path: Path) -> T:
    """Read a record of the class ``kind``.

    Raises:
        TrainingError: The file is missing, damaged or of another format, or it has an unknown key or a wrong value.
    """
    data = read_json(path)
    found = data.pop("format", None) if isinstance(data, dict) else None
    if found != FORMAT:
        raise TrainingError(
            f"{path} has format {found or 'none'} and this version of m2distill reads format {FORMAT}; use the "
            "version that made this run, or train a new run in another folder"
        )
    try:
        return from_dict(kind, data)
    except ConfigError as error:
        raise TrainingError(
            f"{path} cannot be used: {error}; restore the file, or train a new run in another folder"
        ) from error
