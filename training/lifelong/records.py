"""The JSON records of a run folder, each a dataclass, written with a format number and read strictly.

============================================ =============================================================
file                                         record
============================================ =============================================================
``run.json``                                 :class:`RunRecord`
``stages/stage_<k>/partial.json``            :class:`PartialRecord`, while the stage trains
``stages/stage_<k>/candidates.json``             :class:`CandidatesRecord`, once it is trained
``stages/stage_<k>/selection.json``          :class:`SelectionRecord`, where there are several candidates
``stages/stage_<k>/stage.json``              :class:`StageRecord`, last: with it the stage counts as trained
``stages/stage_<k>/samples.json``            :class:`SamplesRecord`
``evaluation/stage_<k>.json``                :class:`EvaluationRecord`
``evaluation/stage_<k>_curve.json``          :class:`CurveRecord`
``results.json``                             :class:`RunResults`
``gate.json``                                :class:`training.regression_gate.Gate`
============================================ =============================================================

A record names files with their sha256 and is renamed into place last, so it always names whole files.
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

#: Increase it whenever a record changes so that an older or newer version cannot read it.
FORMAT = 3


@dataclass(frozen=True)
class FileRecord:
    """A file of tensors in the record's folder."""

    file: str
    sha256: str


@dataclass(frozen=True)
class ExtensionRecord:
    """A finished run that this one extends.

    run: name of its folder. stages: how many it had. config: its settings. release: when a bundle of the extended run
    is published.
    """

    run: str
    stages: int
    config: RunConfig
    release: ReleaseCriteria


@dataclass(frozen=True)
class RunRecord:
    """Everything on which the results of a run depend.

    config: its settings. contract: of its demonstrations, with the text encoder, as plain JSON.
    tasks: in the order in which they are learned. embeddings: (tasks, text size), in that order.
    demonstrations: folder of the demonstration files, absolute.
    data: position of a task -> sha256 of its demonstrations, recorded when the run first reads them.
    extends: the runs that this one extends, oldest first.
    commit, versions, machine, time: see :mod:`m2distill_policy.provenance`.
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
    """A stage that is being trained. step: number of finished steps. file: policy and optimiser after them."""

    stage: int
    step: int
    file: str
    sha256: str


@dataclass(frozen=True)
class StateRecord:
    """The tensors that a strategy passes to the next stage, in the folder ``memory``."""

    strategy: str
    file: str
    sha256: str


@dataclass(frozen=True)
class CandidatesRecord:
    """The checkpoint candidates of a stage, and what the next stage needs.

    candidates: number of a candidate -> its file. If there are several, 0 is the network at the start of the stage.
    made_by: commit, versions, machine, time and precision with which the stage was trained.
    exemplars: position of each new task -> sha256 of its kept demonstrations; None: none are kept.
    state: of the strategy; None: it has none.
    """

    candidates: dict[str, FileRecord]
    made_by: dict[str, Any]
    exemplars: dict[str, str | None]
    state: StateRecord | None = None


@dataclass(frozen=True)
class SelectionRecord:
    """The candidate that ends a stage. chosen: its number, from 1. rates: success of each; None: not measured."""

    chosen: int
    rates: tuple[float | None, ...] | None = None


@dataclass(frozen=True)
class StageRecord:
    """The policy that a trained stage ends with.

    candidate: its number among the candidates. bytes_kept: memory size after the stage, in bytes: demonstrations and
    tensors of the strategy that the run keeps of all tasks so far, without the network.
    """

    file: str
    sha256: str
    candidate: int
    bytes_kept: int


@dataclass(frozen=True)
class SamplesRecord:
    """sha256 of the demonstration and of the windows that a stage saves (see :mod:`training.lifelong.samples`)."""

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

    l2: mean distance between earlier and current latents. relative: l2 over the mean norm of the earlier ones.
    cosine: mean cosine similarity.
    cka: linear centred kernel alignment (Kornblith et al. 2019, https://arxiv.org/abs/1905.00414) over all steps: 1
    where the current latents are the earlier ones rotated, scaled by one factor or shifted, which a next layer can
    undo; None where the earlier latents are the same for every step.
    """

    l2: float
    relative: float
    cosine: float
    cka: float | None


@dataclass(frozen=True)
class RunResults:
    """The results of a finished run.

    label: for tables and charts. run: name of the folder. tasks: in the order learned. rollouts, sampling: of the
    evaluation. success: share of successful rollouts, a row for each stage, a column for each task learned so far; None
    for a task without rollouts. wrong_object: share of rollouts that lifted an object which the instruction does not
    name, as ``success``. errors: rollouts that ended in an error. cells: the summaries from which these rates are made.
    cross_instruction, cross_instruction_success: the cross-instruction evaluation, every environment under the
    instruction of each other task, and its mean success; None if it was not configured.
    success_curves: for each stage, success on its new tasks at each candidate. metrics: see :mod:`training.metrics`;
    None for a metric that does not apply. bytes_kept: see :class:`StageRecord`. drift: a row for each stage, a column
    for each stage up to it, modality -> drift. data: see :class:`RunRecord`. trained: commit, versions, machine, time
    and precision of the training of each stage. commit, versions, machine, time: of these results.
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
        TrainingError: the file is missing, damaged, of another format, or has another key or a wrong value.
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
