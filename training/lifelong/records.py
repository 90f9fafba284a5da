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
``gate.json``                                :class:`training.gate.Gate`
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

#: Raised whenever a record changes in a way that this version could not read.
FORMAT = 3


@dataclass(frozen=True)
class FileRecord:
    """A file of tensors, by its name in the record's folder. sha256: of the file."""

    file: str
    sha256: str


@dataclass(frozen=True)
class ExtensionRecord:
    """A finished run that this one continues. run: its folder's name; stages: how many it had; config: its own;
    release: when a bundle of the extended run is published."""

    run: str
    stages: int
    config: RunConfig
    release: ReleaseCriteria


@dataclass(frozen=True)
class RunRecord:
    """What a run is: everything that its results depend on.

    config: its settings. contract: of its demonstrations, with the text encoder, as plain JSON.
    tasks: in the order in which they are learned. embeddings: (tasks, text size), in that order.
    demonstrations: folder of the demonstration files, absolute.
    data: position of a task -> sha256 of its demonstrations, written when the run first reads them.
    extends: the runs that this one continues, oldest first.
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
    """A stage that is being trained. step: how many steps are done; file: policy and optimiser after that step."""

    stage: int
    step: int
    file: str
    sha256: str


@dataclass(frozen=True)
class StateRecord:
    """The tensors that a strategy carries to the next stage, in the folder ``memory``."""

    strategy: str
    file: str
    sha256: str


@dataclass(frozen=True)
class CandidatesRecord:
    """The checkpoint candidates of a stage, and what the stage leaves to the next one.

    candidates: number of a candidate -> its file; 0 is the network as the stage began, where there are several.
    made_by: commit, versions, machine, time and precision with which the stage was trained.
    exemplars: position of a task that the stage learned -> sha256 of its kept demonstrations; None: none are kept.
    state: what the strategy carries on; None: nothing.
    """

    candidates: dict[str, FileRecord]
    made_by: dict[str, Any]
    exemplars: dict[str, str | None]
    state: StateRecord | None = None


@dataclass(frozen=True)
class SelectionRecord:
    """Which candidate ends a stage. rates: success of each, None where it was not measured; chosen: from 1."""

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
    """sha256 of the demonstration and of the windows that a stage puts aside (see :mod:`training.lifelong.samples`)."""

    episode: str
    probes: str


@dataclass(frozen=True)
class EvaluationRecord:
    """The rollouts after a stage, summed up: one entry for each task learned so far, in their order."""

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

    label: for tables and charts. run: name of the folder. tasks: in the order learned. rollouts, sampling: how
    success was measured. success, wrong_object: after each stage a row, in it each task learned so far: share of
    rollouts that succeeded, and that lifted an object the instruction is not about; None where a task was not rolled
    out. errors: rollouts that ended in an error. cells: the summaries behind these rows.
    cross_instruction, cross_instruction_success: the cross-instruction evaluation, every environment under the
    instruction of each other task, and its mean success; None where it was not asked for.
    success_curves: for each stage, success on its new tasks at each candidate. metrics: see :mod:`training.metrics`;
    None where a metric does not apply. bytes_kept: see :class:`StageRecord`. drift: after each stage, for each stage up
    to it, modality -> how far its latents moved. data: see :class:`RunRecord`. trained: what each stage was trained
    with. commit, versions, machine, time: of the summing up.
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
    """Write a record so that a reader sees the old file or the new one, never half of one."""
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
            f"{path} has format {found or 'none'}, and this version reads format {FORMAT}: another version of "
            "m2distill made this run; use that version, or train a new run in another folder"
        )
    try:
        return from_dict(kind, data)
    except ConfigError as error:
        raise TrainingError(
            f"{path} cannot be used: {error}; restore the file, or train a new run in another folder"
        ) from error
