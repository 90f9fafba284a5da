"""Collecting demonstrations in parallel processes: successes only, resumable, the same however often interrupted."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from m2distill_policy.demonstrations import (
    DemonstrationFile,
    DemonstrationWriter,
    Episode,
    Recording,
    demonstration_path,
)
from m2distill_policy.errors import DemonstrationError, M2DistillError, SimulationError, closest
from m2distill_policy.lock import only_writer
from m2distill_policy.observation import Observation
from m2distill_policy.sim.disturbances import Disturbance, DisturbedEnv
from m2distill_policy.sim.env import Task
from m2distill_policy.sim.gl import choose_gl
from m2distill_policy.sim.seeds import demonstration_seed
from m2distill_policy.sim.suites import SUITES_WITH_EXPERTS, make_sim_env, suite_contract, suite_task
from m2distill_policy.sim.visuals import VISUALS_VERSION, visual_profile

if TYPE_CHECKING:
    from m2distill_policy.sim.arm_env import ArmEnv

#: Raised whenever a suite's experts, their noise or what is stored of an episode change: a collection of another
#: version is not taken for this one. tabletop 2: pushes, and the executed actions beside the clean ones.
_EXPERTS_VERSION = {"tabletop": 2}
#: Seconds within which some attempt must end; one takes about one second.
_PATIENCE = 300.0
#: How many times the workers are started anew after one of them died, in one collection.
_RESTARTS = 3
#: Give up when fewer than one attempt in this many succeeds.
_HOPELESS = 4


@dataclass(frozen=True)
class Collection:
    """What to collect: ``episodes`` successes for each of ``tasks`` (indices) of ``suite``, into ``folder``.

    size: pixels a side of the views. noise: times the standard disturbance of the executed action. randomise: kinds of
    :mod:`m2distill_policy.sim.disturbances`, each at a level drawn anew for every episode.
    force: collect anew where a finished file of other settings, or a damaged one, is there.
    """

    folder: Path
    tasks: tuple[int, ...]
    suite: str = "tabletop"
    episodes: int = 40
    size: int = 64
    visuals: str = "fast"
    seed: int = 0
    workers: int = 2
    noise: float = 1.0
    randomise: tuple[str, ...] = ()
    force: bool = False

    def __post_init__(self) -> None:
        if self.suite not in SUITES_WITH_EXPERTS:
            raise SimulationError(
                f"scripted experts know the suites {', '.join(SUITES_WITH_EXPERTS)}; got '{self.suite}'"
                f"{closest(self.suite, SUITES_WITH_EXPERTS)}"
            )
        if self.episodes < 1 or self.workers < 1 or not self.tasks:
            raise SimulationError(
                f"at least one task, one episode and one worker are needed; got {len(self.tasks)}, {self.episodes} "
                f"and {self.workers}"
            )
        visual_profile(self.visuals)
        if not 16 <= self.size <= 1024:
            raise SimulationError(f"views of {self.size} x {self.size} pixels were asked for; allowed are 16 to 1024")
        if not 0.0 <= self.noise <= 3.0:
            raise SimulationError(f"noise is {self.noise} times the standard disturbance; allowed are 0 to 3")
        for kind in self.randomise:
            Disturbance(kind, 1.0)
        if len(set(self.randomise)) != len(self.randomise):
            raise SimulationError(f"a disturbance is named twice in {', '.join(self.randomise)}")
        if len(set(self.tasks)) != len(self.tasks):
            raise SimulationError(f"a task is named twice in {self.tasks}")


def collect(collection: Collection, progress: Callable[[int, int, str], None] | None = None) -> list[DemonstrationFile]:
    """Collect what is still missing and return the files, in the order of ``collection.tasks``.

    ``progress(done, total, note)`` is called as episodes come. The seeds tried are 0, 1, 2.. of each task's own
    sequence, and the first ``episodes`` successes in that order are kept, so workers and interruptions change nothing.
    A worker that dies is started anew, a few times. Raises :class:`SimulationError` when one fails, with what it said,
    or goes on dying, and :class:`StorageError` where another process collects into the same folder.
    """
    names = [suite_task(collection.suite, index).name for index in collection.tasks]
    finished = all(demonstration_path(collection.folder, name).exists() for name in names)
    with only_writer(collection.folder) if collection.force or not finished else contextlib.nullcontext():
        return _collect(collection, progress)


def _collect(collection: Collection, progress: Callable[[int, int, str], None] | None) -> list[DemonstrationFile]:
    plans = [_Plan(collection, suite_task(collection.suite, index)) for index in collection.tasks]
    total = collection.episodes * len(plans)

    def report(note: str) -> None:
        if progress is not None:
            progress(sum(plan.have() for plan in plans), total, note)

    open_plans = [plan for plan in plans if plan.file is None]
    try:
        for plan in open_plans:  # only now: a file of another task that cannot be used is known by here
            plan.begin()
        report("")
        if open_plans:
            _run(collection, open_plans, report)
    except BaseException:  # what holds nothing must not block the command with other settings
        for plan in open_plans:
            plan.discard_if_empty()
        raise
    files: list[DemonstrationFile] = []
    for plan in plans:
        assert plan.file is not None, "every plan ends with a file or an error"
        files.append(plan.file)
    return files


class _Plan:
    """What was tried for one task, and what to try next."""

    def __init__(self, collection: Collection, task: Task) -> None:
        self.collection = collection
        self.task = task
        self.path = demonstration_path(collection.folder, task.name)
        self.file = self._existing()
        self.writer: DemonstrationWriter | None = None
        self.results: dict[int, bool] = {}
        self._submitted = 0

    def begin(self) -> None:
        """Make the folder of parts, or go on with the one that is there."""
        self.writer = _writer(self.collection, self.task)
        self.writer.clean()
        self.results = self.writer.attempts()

    def discard_if_empty(self) -> None:
        """Remove the folder of parts if it was begun and nothing is in it."""
        if self.writer is not None:
            self.writer.discard_if_empty()

    def _existing(self) -> DemonstrationFile | None:
        """The finished file of an earlier run, if it is what this collection would make."""
        if not self.path.exists():
            return None
        try:
            file = DemonstrationFile(self.path)
            if len(file) == self.collection.episodes and (file.contract, file.settings) == (
                suite_contract(self.collection.suite, self.collection.size),
                _settings(self.collection, self.task),
            ):
                return file
        except DemonstrationError:
            if not self.collection.force:
                raise
        else:
            if not self.collection.force:
                raise DemonstrationError(
                    f"{self.path} is there already, with {len(file)} episodes collected under other settings; "
                    "give --force to collect anew, or another --out"
                )
        self.path.unlink()
        return None

    def seed(self, attempt: int) -> int:
        return demonstration_seed(self.collection.seed, self.task.index, attempt)

    def next_seed(self) -> int:
        """The next seed that nobody has tried."""
        while True:
            seed = self.seed(self._submitted)
            self._submitted += 1
            if seed not in self.results:
                return seed

    def kept(self) -> tuple[list[int], int]:
        """The first successes in the order of attempts, without gaps, and how many attempts they took."""
        seeds: list[int] = []
        attempt = 0
        while len(seeds) < self.collection.episodes and self.seed(attempt) in self.results:
            if self.results[self.seed(attempt)]:
                seeds.append(self.seed(attempt))
            attempt += 1
        return seeds, attempt

    def have(self) -> int:
        if self.file is not None:
            return self.collection.episodes
        return min(self.collection.episodes, sum(self.results.values()))

    def finish_if_enough(self) -> bool:
        seeds, tried = self.kept()
        if len(seeds) == self.collection.episodes:
            assert self.writer is not None
            self.file = self.writer.finish(seeds, tried)
            return True
        if tried >= 20 and len(seeds) * _HOPELESS < tried:
            raise SimulationError(
                f"the expert of '{self.task.name}' succeeded in only {len(seeds)} of {tried} attempts; "
                f"lower --noise (now {self.collection.noise})"
            )
        return False

    def wanted_more(self, in_flight: int) -> bool:
        """Whether another attempt could be needed, if all that are under way succeed.

        With none under way one is: enough may have succeeded, and an attempt among the first of them is still untried.
        """
        short = sum(self.results.values()) + in_flight < self.collection.episodes
        return self.file is None and (short or not in_flight)


def _settings(collection: Collection, task: Task) -> dict[str, Any]:
    """What robomimic calls ``env_args``: how the episodes came about."""
    settings = {
        "seed": collection.seed,
        "size": collection.size,
        "visuals": collection.visuals,
        "visuals_version": VISUALS_VERSION,
        "experts_version": _EXPERTS_VERSION.get(task.suite, 1),
        "noise": collection.noise,
        **({"randomise": list(collection.randomise)} if collection.randomise else {}),
    }
    return {"env_name": f"{task.suite}/{task.name}", "env_version": "1.4.0", "type": 1, "env_kwargs": settings}


def _writer(collection: Collection, task: Task) -> DemonstrationWriter:
    return DemonstrationWriter(
        demonstration_path(collection.folder, task.name),
        instruction=task.instruction,
        contract=suite_contract(collection.suite, collection.size),
        suite=task.suite,
        env_args=_settings(collection, task),
    )


def _workers(collection: Collection) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        collection.workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(collection,)
    )


def _run(collection: Collection, plans: list[_Plan], report: Callable[[str], None]) -> None:
    choose_gl()
    # A worker a core: threads inside workers would only fight.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    plans = [plan for plan in plans if not plan.finish_if_enough()]
    pool = _workers(collection)
    owed: list[tuple[_Plan, int]] = []
    running: dict[Future[bool], tuple[_Plan, int]] = {}
    deaths = 0
    try:
        while plans or running or owed:
            for plan in plans:
                while len(running) + len(owed) < 2 * collection.workers and plan.wanted_more(
                    sum(p is plan for p, _ in (*running.values(), *owed))
                ):
                    owed.append((plan, plan.next_seed()))
            if not running and not owed:
                raise SimulationError("collection has nothing left to try and is not done; this is a bug")
            try:
                while owed:
                    future = pool.submit(_attempt, owed[0][0].task.index, owed[0][1])
                    running[future] = owed.pop(0)
                done, _ = wait(running, timeout=_PATIENCE, return_when=FIRST_COMPLETED)
                for future in done:
                    plan, seed = running[future]
                    plan.results[seed] = _result(future, plan.task, seed)
                    del running[future]
                    if plan in plans and plan.file is None and plan.finish_if_enough():
                        plans.remove(plan)
                    report(f"{plan.task.name}: {sum(plan.results.values())} of {len(plan.results)} tried")
            except BrokenProcessPool as error:
                # One death takes all of a pool's workers with it.
                deaths += 1
                died = "a collecting process died (out of memory, or killed)"
                if deaths > _RESTARTS:
                    raise SimulationError(
                        f"{died}, {deaths} times in all; what was collected so far is kept, run again to go on"
                    ) from error
                pool.shutdown(wait=True, cancel_futures=True)
                pool = _workers(collection)
                owed = [*running.values(), *owed]
                running.clear()
                report(f"{died}; started anew, {deaths} of {_RESTARTS}")
                continue
            if not done:
                for process in multiprocessing.active_children():  # or leaving would wait for the one that hangs
                    process.kill()
                raise SimulationError(
                    f"no worker finished an episode within {_PATIENCE:.0f} s; "
                    "what was collected so far is kept, run again to go on"
                )
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _result(future: Future[bool], task: Task, seed: int) -> bool:
    """Whether an attempt succeeded; :class:`BrokenProcessPool` where a worker died."""
    try:
        return future.result()
    except (M2DistillError, BrokenProcessPool):
        raise
    except Exception as error:
        raise SimulationError(
            f"collecting '{task.name}' from seed {seed} failed: {type(error).__name__}: {error}"
        ) from error


# ---- in a worker ----------------------------------------------------------------------------------------------

_collection: Collection | None = None
_env: ArmEnv | None = None


def _start_worker(collection: Collection) -> None:
    """Remember what is collected. The world is made by the first attempt, whose error reaches the parent."""
    global _collection
    _collection = collection
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A pool's worker does not notice that its parent was killed: it would wait for work for ever, or go on with what
    is queued while another call collects the same."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _attempt(task_index: int, seed: int) -> bool:
    """Try one episode and commit its part; whether it succeeded."""
    global _env
    assert _collection is not None, "the pool's initializer ran"
    collection, task = _collection, suite_task(_collection.suite, task_index)
    if _env is not None and _env.task != task and not _env.serve(task):
        _env.close()
        _env = None
    if _env is None:
        _env = make_sim_env(task, size=collection.size, visuals=collection.visuals)
    writer = _writer(collection, task)
    writer.contract.require_same(_env.contract, "the collection", f"the world of '{task.name}'")
    try:
        recording = record(_env, seed, noise=collection.noise, randomise=collection.randomise)
    except (SimulationError, np.linalg.LinAlgError) as error:
        # It would end so every time: this seed is one that failed, not the end of the collection.
        print(f"{task.name}, seed {seed}, counts as failed: {error}", file=sys.stderr)
        recording = None
        _env.close()
        _env = None
    if recording is None:
        writer.add_failure(seed)
        return False
    writer.add(recording)
    return True


def record(env: ArmEnv, seed: int, *, noise: float = 1.0, randomise: Sequence[str] = ()) -> Recording | None:
    """One episode of ``world.task`` by its expert, or None where it failed.

    It is simulated first and drawn afterwards, so failures cost no drawing. ``noise`` scales the disturbance of the
    executed action; the action stored is the expert's own. ``randomise``: kinds of disturbance, each at a level from 0
    to 1 that ``seed`` draws.
    """
    from m2distill_policy.sim.experts.episode import run_expert
    from m2distill_policy.sim.experts.noise import Noise

    rng = np.random.default_rng([78, seed])
    wrong = DisturbedEnv(env, [Disturbance(kind, float(rng.random())) for kind in randomise])
    wrong.begin(seed)
    try:
        told = wrong.told if randomise else None
        run = run_expert(env, seed, noise=Noise().scaled(noise) if noise > 0 else None, told=told)
        if not run.success:
            return None
        seen = []
        for index, state in enumerate(run.states):
            readings = {name: values[index] for name, values in run.proprioception.items()}
            seen.append(wrong.seen(Observation(env.views(state), readings, index * env.contract.period)))
    finally:
        wrong.restore()
    episode = Episode(
        images={name: np.stack([o.images[name] for o in seen]) for name in env.contract.camera_names},
        proprioception={name: np.stack([o.proprioception[name] for o in seen]) for name in run.proprioception},
        actions=run.actions.astype(np.float32),
        ee=run.ee.astype(np.float32),
        seed=seed,
        init_state=run.states[0],
        executed=run.executed.astype(np.float32),
    )
    return Recording(episode, run.states, run.robot_states, env.model_xml())


def parse_tasks(text: str, suite: str) -> tuple[int, ...]:
    """Task indices from ``0,1,2`` or ``all``. Raises :class:`SimulationError` for anything else."""
    from m2distill_policy.sim.suites import suite_tasks

    if text.strip() == "all":
        return tuple(range(len(suite_tasks(suite))))
    try:
        indices = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise SimulationError(f"tasks are indices such as 0,1,2 or the word all; got '{text[:60]}'") from error
    for index in indices:
        suite_task(suite, index)
    return indices
