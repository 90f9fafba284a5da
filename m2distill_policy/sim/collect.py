"""Collect demonstrations in parallel processes.

Only successful episodes are stored. If a collection is interrupted, the same call continues it. Interruptions and the
number of workers do not change the result.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from m2distill_policy.demonstrations import DemonstrationFile, demonstration_path
from m2distill_policy.errors import M2DistillError, SimulationError
from m2distill_policy.lock import only_writer
from m2distill_policy.sim.collect_plan import TaskPlan
from m2distill_policy.sim.collect_worker import run_attempt, start_worker
from m2distill_policy.sim.collection import Collection
from m2distill_policy.sim.env import Task
from m2distill_policy.sim.gl import choose_gl
from m2distill_policy.sim.suites import suite_task

#: Longest time in s in which no attempt ends. An attempt takes about one second.
_ATTEMPT_TIMEOUT = 300.0
#: Largest number of times that the workers of a collection are restarted because one of them died.
_RESTARTS = 3


def collect(collection: Collection, progress: Callable[[int, int, str], None] | None = None) -> list[DemonstrationFile]:
    """Collect the missing episodes and return the files, in the order of ``collection.tasks``.

    Each task has attempts 0, 1, 2, ..., and each attempt has its own seed. A file contains the first successful
    attempts in this order. If a worker dies, the workers are restarted, up to three times.

    Args:
        collection: Settings of the collection.
        progress: Function that is called after each attempt with (number of collected episodes, number of all episodes,
            note).

    Raises:
        DemonstrationError: A file is damaged or was collected with other settings.
        SimulationError: An attempt crashed, a worker hangs or dies too often, or too few attempts succeed.
        StorageError: Another process collects into the same folder, or the disk is full.
    """
    names = [suite_task(collection.suite, index).name for index in collection.tasks]
    finished = all(demonstration_path(collection.folder, name).exists() for name in names)
    may_write = collection.force or collection.extend or not finished
    with only_writer(collection.folder) if may_write else contextlib.nullcontext():
        return _collect(collection, progress)


def _collect(collection: Collection, progress: Callable[[int, int, str], None] | None) -> list[DemonstrationFile]:
    plans = [TaskPlan(collection, suite_task(collection.suite, index)) for index in collection.tasks]
    total = collection.episodes * len(plans)

    def report(note: str) -> None:
        if progress is not None:
            progress(sum(plan.successes() for plan in plans), total, note)

    open_plans = [plan for plan in plans if plan.file is None]
    try:
        # Nothing is written before this point: an unusable file of any task has raised an error above.
        for plan in open_plans:
            plan.open()
        report("")
        if open_plans:
            _run(collection, open_plans, report)
    except BaseException:  # an empty folder of parts would make the next command with other settings fail
        for plan in open_plans:
            plan.discard_if_empty()
        raise
    files: list[DemonstrationFile] = []
    for plan in plans:
        assert plan.file is not None, "every plan ends with a file or an error"
        files.append(plan.file)
    return files


def _start_pool(collection: Collection) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        collection.workers, multiprocessing.get_context("spawn"), initializer=start_worker, initargs=(collection,)
    )


def _run(collection: Collection, plans: list[TaskPlan], report: Callable[[str], None]) -> None:
    """Run attempts until every plan has its file."""
    choose_gl()
    # The workers use the cores. More threads inside a worker would only compete for them.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    plans = [plan for plan in plans if not plan.finish_if_enough()]
    pool = _start_pool(collection)
    waiting: list[tuple[TaskPlan, int]] = []
    running: dict[Future[bool], tuple[TaskPlan, int]] = {}
    deaths = 0
    try:
        while plans or running or waiting:
            for plan in plans:
                while len(running) + len(waiting) < 2 * collection.workers and plan.needs_attempt(
                    sum(p is plan for p, _ in (*running.values(), *waiting))
                ):
                    waiting.append((plan, plan.next_seed()))
            if not running and not waiting:
                raise SimulationError("the collection is not complete and has no attempt left; this is a bug")
            try:
                while waiting:
                    future = pool.submit(run_attempt, waiting[0][0].task.index, waiting[0][1])
                    running[future] = waiting.pop(0)
                done, _ = wait(running, timeout=_ATTEMPT_TIMEOUT, return_when=FIRST_COMPLETED)
                for future in done:
                    plan, seed = running[future]
                    plan.results[seed] = _result(future, plan.task, seed)
                    del running[future]
                    if plan in plans and plan.file is None and plan.finish_if_enough():
                        plans.remove(plan)
                    report(f"{plan.task.name}: {sum(plan.results.values())} of {len(plan.results)} tried")
            except BrokenProcessPool as error:
                # When one worker dies, ProcessPoolExecutor ends all of them.
                deaths += 1
                died = "a worker process died (out of memory, or killed)"
                if deaths > _RESTARTS:
                    raise SimulationError(
                        f"{died}, {deaths} times in all; finished episodes are kept, run the same command to continue"
                    ) from error
                pool.shutdown(wait=True, cancel_futures=True)
                pool = _start_pool(collection)
                waiting = [*running.values(), *waiting]
                running.clear()
                report(f"{died}; restarted, {deaths} of {_RESTARTS}")
                continue
            if not done:
                for process in multiprocessing.active_children():  # otherwise shutdown waits for a hanging worker
                    process.kill()
                raise SimulationError(
                    f"no worker finished an episode within {_ATTEMPT_TIMEOUT:.0f} s; finished episodes are kept, run "
                    "the same command to continue"
                )
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _result(future: Future[bool], task: Task, seed: int) -> bool:
    """Return whether an attempt succeeded. Raise :class:`BrokenProcessPool` if a worker died."""
    try:
        return future.result()
    except (M2DistillError, BrokenProcessPool):
        raise
    except Exception as error:
        raise SimulationError(
            f"collecting '{task.name}' from seed {seed} failed: {type(error).__name__}: {error}"
        ) from error
