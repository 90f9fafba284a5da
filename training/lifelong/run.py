"""The folder of a lifelong run: its records, demonstrations, memory, checkpoints and bundles.

::

    run.json                  what the run is (see training.lifelong.records for every record)
    metrics.jsonl             the terms of the loss, a row every few steps; tensorboard/ holds the same by stage
    memory/                   the replay buffer: demonstrations of old tasks; also tensors of the strategy
    stages/stage_<k>/         partial.json while it trains; candidate_<i>.safetensors, the checkpoint candidates;
                              stage.json once it is trained; samples on which bundles are checked and drift is measured
    bundles/stage_<k>/        the bundle for the robot
    evaluation/               one JSON line for each rollout, and their summaries
    results.json              success, metrics, memory size, drift

Training is in :mod:`training.lifelong.trainer`, export in :mod:`training.lifelong.stage_bundle`.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from m2distill_policy import provenance
from m2distill_policy.bundle import open_bundle
from m2distill_policy.contract import Contract
from m2distill_policy.demonstrations import demonstration_path
from m2distill_policy.errors import BundleError, TrainingError
from m2distill_policy.evaluation.results import CellSummary
from m2distill_policy.lock import only_writer
from m2distill_policy.sim.env import Task
from training import distributed
from training.data.task_data import TaskData, WindowBatch, load_task
from training.lifelong import samples
from training.lifelong.checkpoint import digest_of, load_tensors
from training.lifelong.memory import Memory
from training.lifelong.records import (
    CandidatesRecord,
    EvaluationRecord,
    ExtensionRecord,
    RunRecord,
    SelectionRecord,
    StageRecord,
    read_record,
    write_record,
)
from training.lifelong.stage import pick_device
from training.models.resnet_t import ResNetT
from training.run_config import RunConfig


class LifelongRun:
    """A run folder. Make one with :meth:`create` or :meth:`open`.

    Attributes:
        folder: Folder of the run.
        record: Contents of ``run.json``.
        contract: Contract of the demonstrations, with the text encoder.
    """

    def __init__(self, folder: Path, record: RunRecord) -> None:
        self.folder, self.record = folder, record
        self.contract = Contract.from_dict(record.contract)

    @staticmethod
    def create(
        folder: Path,
        config: RunConfig,
        contract: Contract,
        tasks: Sequence[Task],
        embeddings: NDArray[np.float32],
        demonstrations: Path,
    ) -> LifelongRun:
        """Create a run folder. An existing run without any training is replaced.

        Args:
            folder: Folder of the run.
            config: Settings of the run.
            contract: Contract of the demonstrations, with the text encoder.
            tasks: Tasks in the order in which they are learned.
            embeddings: Embeddings of the tasks' instructions (tasks, text size), in the same order.
            demonstrations: Folder of the demonstration files.

        Raises:
            TrainingError: ``folder`` holds a run whose training has begun.
            StorageError: Another process is training in ``folder``.
        """
        record = RunRecord(
            config=config,
            contract=contract.to_dict(),
            tasks=tuple(tasks),
            embeddings=tuple(map(tuple, embeddings.tolist())),
            demonstrations=str(demonstrations.resolve()),
            **provenance.describe(),
        )
        with only_writer(folder):
            if LifelongRun.begun(folder):
                raise TrainingError(
                    f"{folder} already holds a run; continue it with --resume, or choose another folder"
                )
            if (folder / "run.json").exists():
                for left in ("stages", "tensorboard"):
                    shutil.rmtree(folder / left, ignore_errors=True)
                (folder / "metrics.jsonl").unlink(missing_ok=True)
            write_record(folder / "run.json", record)
        return LifelongRun(folder, record)

    @staticmethod
    def begun(folder: Path) -> bool:
        """Return whether ``folder`` holds a run whose training has begun."""
        if not (folder / "run.json").exists():
            return False
        if (folder / "results.json").exists():
            return True
        records = ("partial.json", "candidates.json", "stage.json")
        return any((stage / name).exists() for stage in folder.glob("stages/stage_*") for name in records)

    @staticmethod
    def open(folder: Path) -> LifelongRun:
        """Open a run folder.

        Raises:
            TrainingError: The run is missing, damaged, or of another version.
        """
        return LifelongRun(folder, read_record(RunRecord, folder / "run.json"))

    # -- what the run is ------------------------------------------------------------------------------------------

    @property
    def config(self) -> RunConfig:
        """The settings of the run."""
        return self.record.config

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks, in the order in which they are learned."""
        return self.record.tasks

    @property
    def extends(self) -> tuple[ExtensionRecord, ...]:
        """The runs that this run extends, oldest first."""
        return self.record.extends

    @property
    def joint(self) -> bool:
        """Whether all tasks are learned in one stage, so that there is no old task."""
        return self.config.strategy_class.learns_jointly or self.config.jointly == len(self.tasks) > 1

    @property
    def stages(self) -> int:
        """The number of stages."""
        return self.config.stages

    def learned(self, stage: int) -> int:
        """Return how many tasks have been learned after stage ``stage``."""
        return self.config.learned(stage)

    def answering(self, stage: int, task: int) -> int:
        """Return the stage whose network is used for a task after ``stage``. For most strategies it is ``stage``."""
        return self.config.stage_of(task) if self.config.strategy_class.network_per_task else stage

    # -- paths ----------------------------------------------------------------------------------------------------

    def stage_folder(self, stage: int) -> Path:
        """Return the folder of a stage."""
        return self.folder / "stages" / f"stage_{stage}"

    def bundle_folder(self, stage: int) -> Path:
        """Return the folder of a stage's bundle."""
        return self.folder / "bundles" / f"stage_{stage}"

    @property
    def memory_folder(self) -> Path:
        """The folder of the replay buffer and the tensors of the strategy."""
        return self.folder / "memory"

    def exemplars_path(self, task: int) -> Path:
        """Return the file of a task's kept demonstrations."""
        return self.memory_folder / f"exemplars_{task}.safetensors"

    def evaluation_path(self, stage: int) -> Path:
        """Return the file with the summary of the rollouts after a stage."""
        return self.folder / "evaluation" / f"stage_{stage}.json"

    def curve_path(self, stage: int) -> Path:
        """Return the file with the success rate of each checkpoint candidate of a stage."""
        return self.folder / "evaluation" / f"stage_{stage}_curve.json"

    def selection_path(self, stage: int) -> Path:
        """Return the file that records which checkpoint candidate ends a stage."""
        return self.stage_folder(stage) / "selection.json"

    def candidates_path(self, stage: int) -> Path:
        """Return the file that names the checkpoint candidates of a stage."""
        return self.stage_folder(stage) / "candidates.json"

    # -- records --------------------------------------------------------------------------------------------------

    def trained(self, stage: int) -> bool:
        """Return whether a stage has been trained."""
        return (self.stage_folder(stage) / "stage.json").exists()

    def stage_record(self, stage: int) -> StageRecord:
        """Read the record of a trained stage."""
        return read_record(StageRecord, self.stage_folder(stage) / "stage.json")

    def candidates(self, stage: int) -> CandidatesRecord:
        """Read the record of a trained stage's checkpoint candidates."""
        return read_record(CandidatesRecord, self.candidates_path(stage))

    def chosen(self, stage: int) -> int:
        """Return the number, from 1, of the checkpoint candidate that ends a stage."""
        return read_record(SelectionRecord, self.selection_path(stage)).chosen

    def cells(self, stage: int) -> tuple[CellSummary, ...] | None:
        """Return the summary of rollouts after a stage, for every task learned so far; None before the evaluation."""
        path = self.evaluation_path(stage)
        return read_record(EvaluationRecord, path).cells if path.exists() else None

    def success(self, stage: int) -> list[float | None] | None:
        """Return the success rates, after a stage, on all tasks learned so far; None before the evaluation."""
        cells = self.cells(stage)
        return None if cells is None else [cell.rate for cell in cells]

    # -- networks -------------------------------------------------------------------------------------------------

    def new_policy(self) -> ResNetT:
        """Make the network with random weights from the seed of the run."""
        torch.manual_seed(self.config.seed)
        return ResNetT(self.config.network, self.contract).to(pick_device())

    def policy(self, stage: int) -> ResNetT:
        """Load the network at the end of a stage."""
        record = self.stage_record(stage)
        return self._loaded(stage, record.file, record.sha256)

    def candidate_policy(self, stage: int, candidate: int) -> ResNetT:
        """Load the network of a checkpoint candidate; 0 is the start of the stage."""
        record = self.candidates(stage).candidates[str(candidate)]
        return self._loaded(stage, record.file, record.sha256)

    def _loaded(self, stage: int, file: str, sha256: str) -> ResNetT:
        policy = self.new_policy()
        policy.load_state_dict(load_tensors(self.stage_folder(stage) / file, sha256))
        return policy

    # -- data and memory ------------------------------------------------------------------------------------------

    def embedding(self, index: int) -> NDArray[np.float32]:
        """Return the embedding (text size,) of a task's instruction."""
        return np.asarray(self.record.embeddings[index], dtype=np.float32)

    def data(self, index: int) -> TaskData:
        """Read the demonstrations of a task.

        Raises:
            TrainingError: The file has changed since the run first read it.
        """
        task = self.tasks[index]
        path = demonstration_path(Path(self.record.demonstrations), task.name)
        data = load_task(path, task.instruction, self.embedding(index), self.contract, self.config.episodes_of(index))
        digest = data.content_hash()
        known = self.record.data.get(str(index))
        if known is None:
            self.record = dataclasses.replace(self.record, data={**self.record.data, str(index): digest})
            if distributed.is_first():
                write_record(self.folder / "run.json", self.record)
        elif known != digest:
            raise TrainingError(
                f"{path} has changed since this run read it first (sha256 {known[:12]}, now {digest[:12]}); restore "
                "the file, or start a new run"
            )
        return data

    def new_data(self, stage: int) -> tuple[TaskData, ...]:
        """Read the demonstrations of a stage's new tasks."""
        new = self.config.new_tasks(stage)
        # One task fits into memory; all tasks of a suite may not.
        return tuple(self.data(i).on_disk(self.folder) if len(new) > 1 else self.data(i) for i in new)

    def episode(self, stage: int) -> TaskData:
        """Return a demonstration of the last task of a stage, on which its bundle is checked."""
        folder, last = self.stage_folder(stage), self.learned(stage) - 1
        if samples.have(folder):
            return samples.episode(folder, self.tasks[last].name, self.tasks[last].instruction)
        return self.data(last).subset([0])

    def probes(self, stage: int) -> WindowBatch:
        """Return windows of the last task of a stage, on which drift is measured."""
        if not samples.have(self.stage_folder(stage)):
            self.save_samples(stage, self.data(self.learned(stage) - 1))
        return samples.probes(self.stage_folder(stage))

    def save_samples(self, stage: int, data: TaskData) -> None:
        """Save samples of a stage's demonstrations, for use when the demonstrations are no longer available."""
        rng = np.random.default_rng([self.config.seed, stage, 2**31 + 1])
        samples.save_samples(self.stage_folder(stage), data, rng, self.contract.history)

    def memory(self, stages: int) -> Memory:
        """Load the replay buffer after the first ``stages`` stages."""
        config, strategy = self.config.memory, self.config.strategy_class
        if not strategy.uses_memory:
            config = dataclasses.replace(config, episodes=0, windows=0)
        if not strategy.uses_old_instructions:
            config = dataclasses.replace(config, instructions=False)
        memory = Memory(config)
        for task in range(self.learned(stages - 1) if stages else 0):
            memory.embeddings.append(self.embedding(task))
            if config.demonstrations:
                self._verify_exemplars(task)
                name, instruction = self.tasks[task].name, self.tasks[task].instruction
                memory.exemplars.append(TaskData.load(self.exemplars_path(task), name, instruction))
        return memory

    def _verify_exemplars(self, task: int) -> None:
        """Check the kept demonstrations of a task.

        Raises:
            TrainingError: The demonstrations are damaged or missing.
        """
        path, stage = self.exemplars_path(task), self.config.stage_of(task)
        known = self.candidates(stage).exemplars.get(str(task)) if self.candidates_path(stage).exists() else None
        if known is not None and (not path.exists() or digest_of(path) != known):
            raise TrainingError(f"memory file {path} is damaged or missing; restore it, or start a new run")

    def strategy_state(self, stage: int) -> dict[str, torch.Tensor]:
        """Load the state that the strategy saved after a stage; empty if another strategy saved it."""
        state = self.candidates(stage).state
        if state is None or state.strategy != self.config.strategy:
            return {}
        return load_tensors(self.memory_folder / state.file, state.sha256)

    # -- check ----------------------------------------------------------------------------------------------------

    def require_whole(self) -> None:
        """Check the files of every trained stage, so that a damaged file is found before hours of training.

        Raises:
            TrainingError, BundleError: A file is missing or damaged.
        """
        for stage in range(self.stages):
            if not self.trained(stage):
                return
            folder, chosen = self.stage_folder(stage), self.stage_record(stage)
            for candidate in self.candidates(stage).candidates.values():
                path = folder / candidate.file
                if not path.exists() or (candidate.file == chosen.file and digest_of(path) != chosen.sha256):
                    raise TrainingError(
                        f"checkpoint {path} is damaged or missing; restore it, or start a new run in another folder"
                    )
            self.memory(stage + 1)
            self.strategy_state(stage)
            if samples.have(folder):
                samples.episode(folder, "", "")
                samples.probes(folder)
            if self.bundle_folder(stage).exists():
                try:
                    open_bundle(self.bundle_folder(stage))
                except BundleError as error:
                    raise BundleError(
                        f"{error}; remove {self.bundle_folder(stage)} and continue with --resume, which writes it again"
                    ) from error
