"""A lifelong run: a folder, one stage a task, each trained, exported and evaluated; killed and resumed at any moment.

run.json                  configuration, contract, tasks, data hashes, seed, versions, commit
metrics.jsonl             training terms as they come; tensorboard/ holds the same, a run a stage
memory/                   exemplars kept of old tasks
stages/stage_<k>/         partial.json while it trains; point_<i>.safetensors; stage.json once it is trained;
                          episode and probes.safetensors: what checks its bundles and its drift
bundles/stage_<k>/        what a robot loads
evaluation/               one JSON line a rollout
results.json              success matrix, metrics, bytes kept, drift
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from m2distill_policy import provenance
from m2distill_policy.bundle import open_bundle
from m2distill_policy.config import from_dict, to_dict
from m2distill_policy.contract import Contract
from m2distill_policy.demonstrations import demonstration_path
from m2distill_policy.errors import BundleError, TrainingError
from m2distill_policy.lock import only_writer
from m2distill_policy.progress import ProgressBar
from m2distill_policy.sim.env import Task
from m2distill_policy.storage import whole_file
from training import distributed
from training.data.joint_data import JointData
from training.data.task_data import Demonstrated, TaskData, load_task
from training.drift import latent_drift
from training.export import Parity, Precision, export_bundle
from training.lifelong import samples
from training.lifelong.checkpoint import digest_of, load_tensors, read_json, save_tensors, write_json
from training.lifelong.memory import Memory
from training.lifelong.stage import (
    append_json_line,
    drop_partial,
    end_stage,
    pick_device,
    pick_precision,
    train_stage,
)
from training.lifelong.strategies import make_strategy
from training.lifelong.strategy import Strategy
from training.models.resnet_t import ResNetT
from training.run_config import RunConfig

#: Every so many steps a row goes to metrics.jsonl and TensorBoard.
LOG_EVERY = 10


class LifelongRun:
    """A run folder and what is in it. Make one with :meth:`create` or :meth:`open`."""

    def __init__(
        self, folder: Path, config: RunConfig, contract: Contract, tasks: tuple[Task, ...], record: dict[str, Any]
    ) -> None:
        self.folder, self.config, self.contract, self.tasks, self.record = folder, config, contract, tasks, record

    @staticmethod
    def create(
        folder: Path,
        config: RunConfig,
        contract: Contract,
        tasks: tuple[Task, ...],
        embeddings: NDArray[np.float32],
        demonstrations: Path,
    ) -> LifelongRun:
        """Make the folder. One that holds a run of which nothing has been trained is made anew.

        Args:
            folder: of the run.
            config: what it is.
            contract: of its demonstrations, with the text encoder.
            tasks: in the order in which they are learned.
            embeddings: (tasks, text size), in that order.
            demonstrations: folder of the demonstration files.

        Raises:
            TrainingError: ``folder`` holds a run that has begun.
            StorageError: another process is training in it.
        """
        record = {
            "config": to_dict(config),
            "contract": contract.to_dict(),
            "tasks": [dataclasses.asdict(task) for task in tasks],
            "embeddings": embeddings.tolist(),
            "demonstrations": str(demonstrations.resolve()),
            "data": {},
            **provenance.describe(),
        }
        with only_writer(folder):
            if LifelongRun.begun(folder):
                raise TrainingError(f"{folder} already holds a run; go on with it by --resume or choose another folder")
            if (folder / "run.json").exists():
                for left in ("stages", "tensorboard"):
                    shutil.rmtree(folder / left, ignore_errors=True)
                (folder / "metrics.jsonl").unlink(missing_ok=True)
            write_json(folder / "run.json", record)
        return LifelongRun(folder, config, contract, tasks, record)

    @staticmethod
    def begun(folder: Path) -> bool:
        """Whether ``folder`` holds a run of which something has been trained, and would be lost."""
        if not (folder / "run.json").exists():
            return False
        if (folder / "results.json").exists():
            return True
        records = ("partial.json", "points.json", "stage.json")
        return any((stage / name).exists() for stage in folder.glob("stages/stage_*") for name in records)

    @staticmethod
    def open(folder: Path) -> LifelongRun:
        """Read a run folder back."""
        record = read_json(folder / "run.json")
        return LifelongRun(
            folder,
            from_dict(RunConfig, record["config"]),
            Contract.from_dict(record["contract"]),
            tuple(Task(**task) for task in record["tasks"]),
            record,
        )

    # -- places ---------------------------------------------------------------------------------------------------

    def stage_folder(self, stage: int) -> Path:
        """Where stage ``stage`` keeps its checkpoints."""
        return self.folder / "stages" / f"stage_{stage}"

    def bundle_folder(self, stage: int) -> Path:
        """Where stage ``stage``'s bundle lies once it is trained."""
        return self.folder / "bundles" / f"stage_{stage}"

    @property
    def extends(self) -> list[dict[str, Any]]:
        """The runs that this one goes on from, oldest first: name, number of stages, configuration."""
        found: list[dict[str, Any]] = self.record.get("extends", [])
        return found

    @property
    def joint(self) -> bool:
        """Whether all tasks are learned at once: there is no old task."""
        return self.config.strategy_class.learns_jointly or self.config.jointly == len(self.tasks) > 1

    @property
    def stages(self) -> int:
        """How many stages the run has: one a task, or one for all of them."""
        return self.config.stages

    def learned(self, stage: int) -> int:
        """How many of the tasks, from the first on, have been learned when stage ``stage`` has ended."""
        return self.config.learned(stage)

    def answering(self, stage: int, task: int) -> int:
        """The stage whose network answers ``task`` once stage ``stage`` has ended: that one, for most strategies."""
        return self.config.stage_of(task) if self.config.strategy_class.network_per_task else stage

    def trained(self, stage: int) -> bool:
        """Whether stage ``stage`` has been trained."""
        return (self.stage_folder(stage) / "stage.json").exists()

    # -- parts ----------------------------------------------------------------------------------------------------

    def new_policy(self) -> ResNetT:
        """The network with the weights the seed gives it."""
        torch.manual_seed(self.config.seed)
        return ResNetT(self.config.network, self.contract).to(pick_device())

    def policy(self, stage: int) -> ResNetT:
        """The network as stage ``stage`` left it."""
        record = read_json(self.stage_folder(stage) / "stage.json")
        policy = self.new_policy()
        policy.load_state_dict(load_tensors(self.stage_folder(stage) / record["policy"], record["sha256"]))
        return policy

    def embedding(self, index: int) -> NDArray[np.float32]:
        """Text embedding of task ``index``'s instruction."""
        return np.asarray(self.record["embeddings"][index], dtype=np.float32)

    def data(self, index: int) -> TaskData:
        """The demonstrations of task ``index``; refuses files that changed since the run first read them."""
        task = self.tasks[index]
        path = demonstration_path(Path(self.record["demonstrations"]), task.name)
        data = load_task(path, task.instruction, self.embedding(index), self.contract, self.config.episodes_of(index))
        digest = data.content_hash()
        known = self.record["data"].get(str(index))
        if known is None:
            self.record["data"][str(index)] = digest
            if distributed.is_first():
                write_json(self.folder / "run.json", self.record)
        elif known != digest:
            raise TrainingError(
                f"{path} has changed since this run first read it ({known[:12]} then, {digest[:12]} now); restore the "
                "file or start a new run"
            )
        return data

    def episode(self, stage: int) -> TaskData:
        """A demonstration of the last task that stage ``stage`` learned, on which its bundle is checked."""
        folder, last = self.stage_folder(stage), self.learned(stage) - 1
        if samples.have(folder):
            return samples.episode(folder, self.tasks[last].name, self.tasks[last].instruction)
        return self.data(last).subset([0])

    def put_aside(self, stage: int, data: TaskData) -> None:
        """Keep what the run folder needs of a stage's demonstrations once they are gone."""
        rng = np.random.default_rng([self.config.seed, stage, 2**31 + 1])
        samples.put_aside(self.stage_folder(stage), data, rng, self.contract.history)

    def memory(self, stages: int) -> Memory:
        """What is kept after the first ``stages`` stages."""
        memory = Memory(self.config.memory)
        uses = self.config.strategy_class
        if not uses.uses_memory:
            memory = Memory(dataclasses.replace(self.config.memory, episodes=0, windows=0))
        if not uses.uses_old_instructions:
            memory = Memory(dataclasses.replace(memory.config, instructions=False))
        for task in range(self.learned(stages - 1) if stages else 0):
            path = self.folder / "memory" / f"exemplars_{task}.safetensors"
            memory.embeddings.append(self.embedding(task))
            if memory.config.demonstrations:
                self._verify_exemplars(task, path)
                memory.exemplars.append(TaskData.load(path, self.tasks[task].name, self.tasks[task].instruction))
        return memory

    def _verify_exemplars(self, task: int, path: Path) -> None:
        """:class:`TrainingError` if what is kept of a task is not what was; older runs do not say what that is."""
        points = self.stage_folder(self.config.stage_of(task)) / "points.json"
        known = read_json(points).get("exemplars") if points.exists() else None
        if isinstance(known, dict):
            known = known[str(task)]
        if known is not None and (not path.exists() or digest_of(path) != known):
            raise TrainingError(f"memory file {path} is damaged or missing; restore it, or start the run anew")

    def require_whole(self) -> None:
        """:class:`TrainingError` or :class:`BundleError` where a trained stage's file is missing or damaged: the run
        would end well without it, and fail when it is used."""
        for stage in range(self.stages):
            if not self.trained(stage):
                return
            folder = self.stage_folder(stage)
            chosen = read_json(folder / "stage.json")
            points = read_json(folder / "points.json")["points"]
            for point in points.values():
                path = folder / point["file"]
                if not path.exists() or (point["file"] == chosen["policy"] and digest_of(path) != chosen["sha256"]):
                    raise TrainingError(
                        f"checkpoint {path} is damaged or missing; restore it, or start the run anew in another folder"
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
                        f"{error}; remove {self.bundle_folder(stage)} and go on with --resume, which writes it anew"
                    ) from error

    # -- the loop -------------------------------------------------------------------------------------------------

    def train_stages(
        self,
        after_stage: Callable[[int], None],
        say: Callable[[str], None],
        *,
        quiet: bool = False,
        stages: int | None = None,
    ) -> None:
        """Train every stage that is not trained yet; ``after_stage`` is called for each, trained now or before.

        stages: stop after so many.
        """
        for stage in range(self.stages)[:stages]:
            if not self.trained(stage):
                what = ", ".join(self.tasks[index].instruction for index in self.config.new_tasks(stage))
                say(f"{self.config.strategy}: stage {stage + 1} of {self.stages}, {what}")
                distributed.wait()  # none looks whether the stage is trained once the first process has written it
                self._train(stage, quiet)
            if distributed.is_first():
                after_stage(stage)
            distributed.wait()

    def _train(self, stage: int, quiet: bool) -> None:
        folder = self.stage_folder(stage)
        folder.mkdir(parents=True, exist_ok=True)
        parts = self._parts(stage)
        data: Demonstrated = JointData(parts) if len(parts) > 1 else parts[0]
        policy = self.policy(stage - 1) if stage else self.new_policy()
        made_by = provenance.describe()
        made_by["precision"] = str(pick_precision(self.config.optim.precision, pick_device()) or torch.float32)
        if stage == 0 and self.config.network.normalise:
            policy.fit_normalisation({name: torch.from_numpy(v) for name, v in data.proprioception.items()})
        memory = self.memory(stage)
        strategy = make_strategy(self.config, memory, self.contract.history)
        if stage:
            strategy.state = self.strategy_state(stage - 1)
        points: dict[int, str] = {}

        if not distributed.is_first():
            train_stage(policy, strategy, data, self.config, stage, folder, lambda *_: None, lambda _: None)
            return

        def snapshot(point: int) -> None:
            points[point] = save_tensors(folder / f"point_{point}.safetensors", policy.state_dict())

        with (
            SummaryWriter(str(self.folder / "tensorboard" / f"stage_{stage}"), purge_step=_done(folder)) as writer,
            ProgressBar(
                total=self.config.optim.stage_steps(stage, data.steps, self.contract.history, data.tasks),
                desc=f"{self.config.strategy} {data.name}",
                unit="step",
                disable=quiet,
            ) as bar,
        ):
            self._forget_rows_after(stage, folder)

            def listener(step: int, steps: int, terms: dict[str, float]) -> None:
                bar.update(step - bar.n)
                if step % LOG_EVERY == 0 or step == steps:
                    bar.set_postfix(loss=f"{terms['total']:.3f}", bc=f"{terms['bc']:.3f}", refresh=False)
                    append_json_line(
                        self.folder / "metrics.jsonl", {"stage": stage, "step": step, "steps": steps, **terms}
                    )
                    for name, value in terms.items():
                        writer.add_scalar(name, value, step)

            train_stage(policy, strategy, data, self.config, stage, folder, listener, snapshot)
        # A stage resumed after a snapshot has the earlier snapshots on disk, not in this process.
        for path in folder.glob("point_*.safetensors"):
            point = int(path.stem.split("_")[1])
            points.setdefault(point, digest_of(path))
        kept = self.keep(stage, parts, strategy, self.config.evaluation.points)
        write_json(
            folder / "points.json",
            {
                "points": {str(p): {"file": f"point_{p}.safetensors", "sha256": d} for p, d in sorted(points.items())},
                "made_by": made_by,
                **kept,
            },
        )
        self.choose(stage, self.config.evaluation.points)
        drop_partial(folder)

    def _parts(self, stage: int) -> tuple[TaskData, ...]:
        """The demonstrations that a stage learns from, a task each."""
        new = self.config.new_tasks(stage)
        # One task fits in memory; all of a suite need not.
        return tuple(self.data(i).on_disk(self.folder) if len(new) > 1 else self.data(i) for i in new)

    def keep(self, stage: int, parts: Sequence[TaskData], strategy: Strategy, point: int) -> dict[str, Any]:
        """Write down what stays of a stage that has been learned from ``parts`` and ends at evaluation point ``point``:
        before the record that makes it count.

        Returns what belongs into it: ``exemplars``, task -> the hash of what the memory keeps of it, and ``kept``,
        where the strategy's own lies beside the memory; None where there is none.
        """
        exemplars = {}
        for task, data in zip(self.config.new_tasks(stage), parts, strict=True):
            # Exemplars are drawn by the seed alone.
            strategy.memory.add(data, np.random.default_rng([self.config.seed, task, 2**31]))
            path = self.folder / "memory" / f"exemplars_{task}.safetensors"
            path.unlink(missing_ok=True)  # of a process that ended before it said what it had written
            strategy.memory.save(self.folder / "memory")
            exemplars[str(task)] = digest_of(path) if path.exists() else None
        self.put_aside(stage, parts[-1])
        record: dict[str, Any] = {"exemplars": exemplars, "kept": None}
        if strategy.state:
            name = f"{strategy.name}_{stage}_{point}.safetensors"
            digest = save_tensors(self.folder / "memory" / name, strategy.state)
            record["kept"] = {"strategy": strategy.name, "file": name, "sha256": digest}
        return record

    def strategy_state(self, stage: int) -> dict[str, torch.Tensor]:
        """What the run's strategy kept beside the memory when ``stage`` had ended; what another one kept is nothing to
        it."""
        record = read_json(self.stage_folder(stage) / "points.json").get("kept")
        if record is None or record["strategy"] != self.config.strategy:
            return {}
        return load_tensors(self.folder / "memory" / record["file"], record["sha256"])

    def choose(self, stage: int, point: int) -> None:
        """Make one evaluation point the stage's policy: what the next stage starts from and what is exported."""
        folder = self.stage_folder(stage)
        chosen = read_json(folder / "points.json")["points"][str(point)]
        write_json(
            folder / "stage.json",
            {"policy": chosen["file"], "sha256": chosen["sha256"], "point": point, "bytes_kept": self._bytes(stage)},
        )

    def end_at(self, stage: int, point: int) -> None:
        """:meth:`choose`, and let the strategy take what it keeps beside the memory there instead of at the last point:
        EWC holds every weight where the next stage finds it."""
        folder = self.stage_folder(stage)
        record = read_json(folder / "points.json")
        if self.strategy_state(stage) and point != self.config.evaluation.points:
            parts, before = self._parts(stage), record["kept"]["file"]
            data: Demonstrated = JointData(parts) if len(parts) > 1 else parts[0]
            strategy = make_strategy(self.config, self.memory(stage), self.contract.history)
            strategy.state = self.strategy_state(stage - 1) if stage else {}
            end_stage(self.point_policy(stage, point), strategy, data, self.config, stage)
            record |= self.keep(stage, parts, strategy, point)
            write_json(folder / "points.json", record)
            if record["kept"]["file"] != before:
                (self.folder / "memory" / before).unlink(missing_ok=True)
        self.choose(stage, point)

    def _bytes(self, stage: int) -> int:
        beside = self.strategy_state(stage).values()
        return self.memory(stage + 1).bytes + sum(values.nbytes for values in beside)

    def point_policy(self, stage: int, point: int) -> ResNetT:
        """The network as it was at an evaluation point of a stage; 0: as the stage began."""
        points = self.stage_folder(stage) / "points.json"
        record = read_json(points)["points"].get(str(point))
        if record is None:
            raise TrainingError(
                f"{points} knows no evaluation point {point}: the stage was trained by an earlier version; begin "
                "another run"
            )
        policy = self.new_policy()
        policy.load_state_dict(load_tensors(self.stage_folder(stage) / record["file"], record["sha256"]))
        return policy

    def _forget_rows_after(self, stage: int, folder: Path) -> None:
        """Drop logged rows that a resumed stage will log again."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return
        done = _done(folder)
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a killed process can be half a line; its step is logged again
            if (row["stage"], row["step"]) <= (stage, done):
                kept.append(line)
        with whole_file(path) as temporary:
            temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def made_by(self, stage: int) -> dict[str, Any]:
        """Commit, versions, machine, time and precision with which a stage was trained (its last resume's)."""
        made: dict[str, Any] = read_json(self.stage_folder(stage) / "points.json")["made_by"]
        return made

    def cells(self, stage: int) -> list[dict[str, Any]] | None:
        """The rollouts of tasks 0 to ``stage`` after that stage summed up, or None before it was evaluated."""
        path = self.folder / "evaluation" / f"stage_{stage}.json"
        if not path.exists():
            return None
        cells: list[dict[str, Any]] = read_json(path)
        return cells

    def success(self, stage: int) -> list[float | None] | None:
        """Success on tasks 0 to ``stage`` after that stage, or None before it was evaluated."""
        cells = self.cells(stage)
        return None if cells is None else [cell["rate"] for cell in cells]

    def export(
        self,
        stage: int,
        path: Path,
        *,
        policy: ResNetT | None = None,
        precision: Precision = "fp32",
        overwrite: bool = False,
    ) -> Parity:
        """Write the bundle of stage ``stage``; returns how it was checked.

        What int8 is calibrated on is the stage's own task: earlier ones are not to be had any more.
        """
        network = (policy or self.policy(stage)).cpu()
        known = [task for task in range(self.learned(stage)) if self.answering(stage, task) == stage]
        return export_bundle(
            network,
            path,
            tasks=[{"name": self.tasks[i].name, "instruction": self.tasks[i].instruction} for i in known],
            embeddings=np.stack([self.embedding(index) for index in known]),
            check_on=[self.episode(stage)],
            provenance={
                "run": self.folder.name,
                "stage": stage,
                "strategy": self.config.strategy,
                "seed": self.config.seed,
                "data": self.record["data"],
                "metrics": {"success": self.success(stage)},
                "commit": provenance.commit(),
                "versions": provenance.versions(),
            },
            precision=precision,
            overwrite=overwrite,
        )

    def drift(self) -> list[list[dict[str, Any]]]:
        """Drift of old latents after each stage: row ``stage``, an entry for the last task of each stage up to it,
        modality -> figures."""
        probes = {}
        for stage in range(0 if self.joint else self.stages):
            if self.trained(stage):
                if not samples.have(self.stage_folder(stage)):  # a run made before they were kept
                    self.put_aside(stage, self.data(self.learned(stage) - 1))
                probes[stage] = (self.policy(stage), samples.probes(self.stage_folder(stage)))
        table = []
        for stage in probes:
            row = []
            for before in range(stage + 1):
                then, probe = probes[before]
                now = probes[self.answering(stage, self.learned(before) - 1)][0]
                row.append({name: dataclasses.asdict(d) for name, d in latent_drift(then, now, probe).items()})
            table.append(row)
        return table


def _done(stage_folder: Path) -> int:
    """Steps of a stage that its partial checkpoint holds."""
    partial = stage_folder / "partial.json"
    return int(read_json(partial)["step"]) if partial.exists() else 0


def share_first_stage(source: LifelongRun, target: LifelongRun) -> bool:
    """Copy a trained first stage into a run that would train the very same one; False where it would not.

    No strategy has an old task to hold on to in the first stage, so runs that differ in strategy, memory or
    distillation alone begin with the same weights.
    """

    def key(run: LifelongRun) -> dict[str, Any]:
        # An extended run's first stage was trained as the run said that it began from.
        kept = run.extends[0]["config"] if run.extends else to_dict(run.config)
        return {
            **{k: kept[k] for k in ("suite", "episodes", "image_size", "text_encoder", "seed", "network", "augment")},
            "tasks": kept["tasks"][: run.config.first_tasks],
            "optim": {
                k: v for k, v in kept["optim"].items() if k not in ("later_lr", "checkpoint_seconds", "recompute")
            },
            **{k: kept["evaluation"][k] for k in ("points", "choose_on", "ties")},
            "contract": run.contract.to_dict(),
        }

    if (
        not all(run.config.strategy_class.shares_first_stage for run in (source, target))
        or target.joint
        or source.joint
        or target.trained(0)
        or not source.trained(0)
        or key(source) != key(target)
    ):
        return False
    parts = target._parts(0)
    if any(source.record["data"].get(str(i)) != target.record["data"][str(i)] for i in range(len(parts))):
        return False
    data: Demonstrated = JointData(parts) if len(parts) > 1 else parts[0]
    folder = target.stage_folder(0)
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.stage_folder(0).glob("point_*.safetensors"):
        shutil.copy2(path, folder / path.name)
    record = read_json(source.stage_folder(0) / "points.json")
    strategy = make_strategy(target.config, target.memory(0), target.contract.history)
    point = read_json(source.stage_folder(0) / "stage.json")["point"]
    end_stage(source.point_policy(0, point), strategy, data, target.config, 0)
    write_json(folder / "points.json", {**record, **target.keep(0, parts, strategy, point)})
    target.choose(0, point)
    if to_dict(source.config)["evaluation"] == to_dict(target.config)["evaluation"]:
        # The same weights on the same states: evaluated once is enough. Each file says that what comes before it is
        # there: killed in between, the rest is evaluated again.
        at, to = source.folder / "evaluation", target.folder / "evaluation"
        to.mkdir(exist_ok=True)
        for path in at.glob("stage_0*.jsonl"):
            shutil.copy2(path, to / path.name)
        for old, new in (
            (source.stage_folder(0) / "selection.json", folder / "selection.json"),
            (at / "stage_0_curve.json", to / "stage_0_curve.json"),
            (at / "stage_0.json", to / "stage_0.json"),
        ):
            if old.exists():
                write_json(new, read_json(old))
    return True
