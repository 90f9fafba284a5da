"""Rollouts of a bundle in parallel worker processes. The workers stay alive from one bundle to the next.

``concurrent.futures`` is not used, for four reasons. If one of its workers dies, the whole pool breaks and every
running job is lost. It cannot end a single job that takes too long. It does not send a job to a worker that already has
the environment. Its workers cannot run on other machines.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from m2distill_policy.bundle import Bundle, open_bundle
from m2distill_policy.cluster import Launcher, LocalLauncher, Piped, why_lost
from m2distill_policy.errors import ConfigError, SimulationError
from m2distill_policy.evaluation.results import Cell, RolloutLog, RolloutResult
from m2distill_policy.runtime.mixture import check_sampling
from m2distill_policy.sim.env import Task
from m2distill_policy.sim.seeds import state_seed

#: Environment variables for one thread in each worker: several such processes are faster than one process with several
#: threads, and results must not depend on the number of cores.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")
#: Time in s that a worker may take to start.
_START_TIMEOUT = 180.0

Message = dict[str, Any]


@dataclass
class _Worker:
    """One worker process and its current job."""

    process: Piped
    ready: bool = False
    job: Message | None = None
    since: float = field(default_factory=time.monotonic)
    env: tuple[Any, ...] = ()


class RolloutPool:
    """Worker processes for rollouts. Use it as a context manager, or call :meth:`close`.

    Each worker is a new Python process with one thread. The workers start at the first evaluation and are kept for the
    next one. A worker that dies is replaced, and its rollout counts as an error.

    Args:
        workers: Number of processes.
        suites: Name of the module with the suites. Like :mod:`m2distill_policy.sim.suites`, it has the functions
            ``suite_tasks(name)`` and ``make_sim_env(task, *, size, visuals)``.
        launcher: Launcher that starts the processes, on this machine or on a cluster. Other machines must see the
            bundle and the video folder under the same paths.

    Raises:
        ConfigError: ``workers`` is below 1.
    """

    def __init__(
        self, workers: int = 2, *, suites: str = "m2distill_policy.sim.suites", launcher: Launcher | None = None
    ) -> None:
        if workers < 1:
            raise ConfigError(f"workers is {workers}; at least 1 is needed")
        self.workers = workers
        self.suites = suites
        self._launcher = launcher or LocalLauncher()
        self._answers: queue.Queue[tuple[_Worker, Message | None]] = queue.Queue()
        self._workers: list[_Worker] = []

    def __enter__(self) -> RolloutPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def evaluate(
        self,
        bundle: str | Path | Bundle,
        cells: Sequence[Cell],
        *,
        sampling: str = "low_noise",
        temperature: float = 1.0,
        visuals: str = "fast",
        log: str | Path | None = None,
        video_folder: str | Path | None = None,
        videos_per_cell: int = 0,
        progress: bool | Callable[[RolloutResult, int, int], None] = False,
        timeout: float = 600.0,
    ) -> list[RolloutResult]:
        """Run every rollout of the cells and return the results in the cells' order.

        The results do not depend on the number of workers.

        Args:
            bundle: A bundle or its folder.
            cells: What to run. A cell is a number of rollouts of one task with one instruction.
            sampling: How actions are sampled: ``sample``, ``low_noise`` or ``mode``.
            temperature: Temperature of ``sample``.
            visuals: Visual profile of the environment.
            log: JSON-lines file to which a line is added for each finished rollout. Rollouts in this file are not run
                again, unless they ended in an error or their video is missing.
            video_folder: Folder for MP4 videos.
            videos_per_cell: Number of rollouts of each cell that are recorded as a video.
            progress: True for a progress bar, or a function that is called after each rollout with (result, number of
                finished rollouts, number of all rollouts).
            timeout: Time limit in s for one rollout.

        Returns:
            One result for each rollout. A rollout that crashed has ``error`` set.

        Raises:
            BundleError: The bundle cannot be opened.
            UnknownInstructionError: The bundle does not know an instruction.
            ConfigError: An argument is out of range.
            SimulationError: A worker cannot start, or the rollouts of a cell cannot run.
        """
        check_sampling(sampling, temperature)
        if videos_per_cell and video_folder is None:
            raise ConfigError(f"videos_per_cell is {videos_per_cell}, but there is no video_folder; give one")
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        jobs = [
            {
                **job,
                "path": str(opened.path.resolve()),
                "bundle": opened.identifier,
                "sampling": sampling,
                "temperature": temperature,
                "visuals": visuals,
            }
            for job in self._expand(
                opened, cells, Path(video_folder) if video_folder is not None else None, videos_per_cell
            )
        ]
        book = RolloutLog(Path(log)) if log is not None else None
        known = book.done() if book is not None else {}
        results: dict[int, RolloutResult] = {}
        todo: list[Message] = []
        for number, job in enumerate(jobs):
            job["number"] = number
            before = known.get(_result(job, {}).key)
            if job["video"] is not None:
                # The name must be unique, because the folder may hold videos of other bundles and settings.
                mark = hashlib.sha256(repr(_result(job, {}).key).encode()).hexdigest()[:6]
                job["video"] = f"{job['video']}-{opened.identifier[:6]}-{mark}.mp4"
            has_video = job["video"] is None or Path(job["video"]).exists()
            if before is not None and has_video:
                results[number] = before
            else:
                todo.append(job)
        report = _Progress(progress, len(jobs), len(results))
        try:
            self._run(todo, timeout, results, book, report)
        finally:
            report.close()
        return [results[number] for number in range(len(jobs))]

    def close(self) -> None:
        """End all workers. Idle workers get up to 5 s to end; workers in a rollout are killed."""
        workers, self._workers = self._workers, []
        for worker in workers:
            if worker.process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):  # the worker has ended already
                    worker.process.stdin.close()
        deadline = time.monotonic() + 5.0
        for worker in workers:
            try:
                worker.process.wait(max(0.1, deadline - time.monotonic()) if worker.job is None else 0.1)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait(10.0)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _expand(
        self, bundle: Bundle, cells: Sequence[Cell], video_folder: Path | None, videos_per_cell: int
    ) -> list[Message]:
        module = importlib.import_module(self.suites)
        suites: dict[str, dict[int, Task]] = {}
        jobs: list[Message] = []
        for cell in cells:
            if cell.suite not in suites:
                suites[cell.suite] = {task.index: task for task in module.suite_tasks(cell.suite)}
            tasks = suites[cell.suite]
            if cell.task not in tasks:
                raise ConfigError(f"suite '{cell.suite}' has no task {cell.task}; choose one of {sorted(tasks)}")
            task = tasks[cell.task]
            instruction = cell.instruction if cell.instruction is not None else task.instruction
            bundle.embedding(instruction)  # raises UnknownInstructionError
            for i in range(cell.rollouts):
                episode = cell.first + i
                name = f"{task.name}-{instruction.replace(' ', '_')}" if instruction != task.instruction else task.name
                if cell.disturbances:
                    name += "-" + "-".join(str(d).replace(" ", "_") for d in cell.disturbances)
                jobs.append(
                    {
                        "suite": cell.suite,
                        "task_index": task.index,
                        "task": task.name,
                        "instruction": instruction,
                        "purpose": cell.purpose,
                        "seed": cell.seed,
                        "episode": episode,
                        "state_seed": state_seed(cell.purpose, cell.seed, episode),
                        "horizon": cell.horizon,
                        "disturbances": [[d.kind, d.level] for d in cell.disturbances],
                        "disturbance": ", ".join(str(d) for d in cell.disturbances),
                        "video": str(video_folder.resolve() / f"{name}-{cell.seed}-{episode}")
                        if video_folder and i < videos_per_cell
                        else None,
                    }
                )
        return jobs

    def _run(
        self,
        todo: list[Message],
        timeout: float,
        results: dict[int, RolloutResult],
        book: RolloutLog | None,
        report: _Progress,
    ) -> None:
        pending: dict[tuple[Any, ...], deque[Message]] = {}
        for job in todo:
            pending.setdefault(_env_key(job), deque()).append(job)
        left = len(todo)

        def finish(worker: _Worker, done: Message) -> None:
            nonlocal left
            job, worker.job = worker.job, None
            assert job is not None
            result = _result(job, done)
            results[job["number"]] = result
            if book is not None:
                book.add(result)
            left -= 1
            report.add(result)

        with contextlib.ExitStack() as unfinished:
            # After an error, the other workers may still be running rollouts that are not needed any more.
            unfinished.callback(self.close)
            while left:
                for worker in self._ready_workers(min(self.workers, left)):
                    self._assign(worker, pending)
                try:
                    worker, message = self._answers.get(timeout=1.0)
                except queue.Empty:
                    self._kill_late(timeout)
                    continue
                if worker not in self._workers:
                    continue  # a late answer of a worker that was replaced
                if message is None:
                    code = worker.process.wait(10.0)
                    self._workers.remove(worker)
                    if not worker.ready:
                        raise SimulationError(
                            f"a rollout worker ended with exit code {code} while it started{_because(worker)}; "
                            f"read its output above, or run '{sys.executable} -m {_WORKER} {self.suites}'"
                        )
                    if worker.job is not None:
                        late = time.monotonic() - worker.since > timeout
                        why = (
                            f"took longer than {timeout:g} s and was ended"
                            if late
                            else f"died with exit code {code}{_because(worker)}"
                        )
                        finish(worker, {"error": f"the worker of this rollout {why}"})
                elif "ready" in message:
                    worker.ready = True
                elif "fatal" in message:
                    worker.job = None
                    raise SimulationError(message["fatal"])
                elif worker.job is not None and message["number"] == worker.job["number"]:
                    finish(worker, message["done"])
            unfinished.pop_all()

    def _ready_workers(self, wanted: int) -> list[_Worker]:
        while len(self._workers) < wanted:
            self._workers.append(self._start())
        return [w for w in self._workers if w.ready and w.job is None]

    def _assign(self, worker: _Worker, pending: dict[tuple[Any, ...], deque[Message]]) -> None:
        """Give ``worker`` a rollout in the environment that it already has, else a rollout of the longest queue."""
        if not pending:
            return
        key = worker.env if worker.env in pending else max(pending, key=lambda k: len(pending[k]))
        job = pending[key].popleft()
        if not pending[key]:
            del pending[key]
        worker.job, worker.env, worker.since = job, key, time.monotonic()
        assert worker.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the worker died; its reader thread will report that
            worker.process.stdin.write(json.dumps(job).encode() + b"\n")
            worker.process.stdin.flush()

    def _start(self) -> _Worker:
        environment = {**os.environ, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        worker = _Worker(self._launcher.piped([sys.executable, "-m", _WORKER, self.suites], environment))
        threading.Thread(target=self._listen, args=(worker,), name="rollout-answers", daemon=True).start()
        return worker

    def _listen(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None
        for line in worker.process.stdout:
            self._answers.put((worker, json.loads(line)))
        self._answers.put((worker, None))

    def _kill_late(self, timeout: float) -> None:
        for worker in self._workers:
            if getattr(worker.process, "waiting", False):  # the cluster has no free core for it yet
                worker.since = time.monotonic()
            limit = timeout if worker.ready else _START_TIMEOUT
            if (worker.job is not None or not worker.ready) and time.monotonic() - worker.since > limit:
                worker.process.kill()  # the reader thread reports the end, and the rollout counts as an error


_WORKER = "m2distill_policy.evaluation.worker"


def _because(worker: _Worker) -> str:
    """Return the cluster's reason for a lost worker, in brackets; "" without one."""
    lost = why_lost(worker.process)
    return f" ({lost})" if lost else ""


def _env_key(job: Message) -> tuple[Any, ...]:
    return job["suite"], job["task_index"], job["visuals"]


def _result(job: Message, done: Message) -> RolloutResult:
    return RolloutResult(
        suite=job["suite"],
        task_index=job["task_index"],
        task=job["task"],
        instruction=job["instruction"],
        purpose=job["purpose"],
        seed=job["seed"],
        episode=job["episode"],
        state_seed=job["state_seed"],
        bundle=job["bundle"],
        sampling=job["sampling"],
        temperature=job["temperature"],
        visuals=job["visuals"],
        success=done.get("success"),
        steps=done.get("steps", 0),
        achieved=tuple(done.get("achieved", ())),
        lifted=tuple(done.get("lifted", ())),
        wrong=tuple(done.get("wrong", ())),
        error=done.get("error"),
        seconds=done.get("seconds", 0.0),
        video=job["video"] if done.get("error") is None else None,
        disturbance=job["disturbance"],
        horizon=job["horizon"],
    )


class _Progress:
    """Progress report of an evaluation, to a progress bar, to a function, or to nobody."""

    def __init__(self, wanted: bool | Callable[[RolloutResult, int, int], None], total: int, done: int) -> None:
        self._call = wanted if callable(wanted) else None
        self._total, self._done, self._good, self._bad, self._seen = total, done, 0, 0, 0
        self._bar: Any = None
        if wanted is True:
            from m2distill_policy.progress import ProgressBar

            self._bar = ProgressBar(total=total, initial=done, unit="rollout", desc="rollouts")

    def add(self, result: RolloutResult) -> None:
        self._done += 1
        self._seen += 1
        self._good += bool(result.success)
        self._bad += result.error is not None
        if self._call is not None:
            self._call(result, self._done, self._total)
        if self._bar is not None:
            self._bar.set_postfix(success=f"{self._good}/{self._seen - self._bad}", errors=self._bad, refresh=False)
            self._bar.update()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
