"""A worker process of a collection: it runs attempts and writes each successful episode to its own file."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading

import numpy as np

from m2distill_policy.errors import SimulationError
from m2distill_policy.sim.arm_env import ArmEnv
from m2distill_policy.sim.collection import Collection, open_writer
from m2distill_policy.sim.record import record_episode
from m2distill_policy.sim.suites import make_sim_env, suite_task

_collection: Collection | None = None
_env: ArmEnv | None = None


def start_worker(collection: Collection) -> None:
    """Store the settings. The environment is made in the first attempt, so that the parent process gets its errors."""
    global _collection
    _collection = collection
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent has ended.

    A worker of a process pool does not notice that its parent was killed. It would wait for ever, or write files while
    the next collection writes, too.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def run_attempt(task_index: int, seed: int) -> bool:
    """Run one attempt. Write the episode if it succeeded, and return whether it did."""
    global _env
    assert _collection is not None, "the pool's initializer ran"
    collection, task = _collection, suite_task(_collection.suite, task_index)
    if _env is not None and _env.task != task and not _env.switch_task(task):
        _env.close()
        _env = None
    if _env is None:
        _env = make_sim_env(task, size=collection.size, visuals=collection.visuals)
    writer = open_writer(collection, task)
    writer.contract.require_same(_env.contract, "the collection", f"the environment of '{task.name}'")
    try:
        recording = record_episode(_env, seed, noise=collection.noise, randomise=collection.randomise)
    except (SimulationError, np.linalg.LinAlgError) as error:
        # The same seed would fail again, so this counts as a failed attempt and does not end the collection.
        print(f"{task.name}, seed {seed}, counts as failed: {error}", file=sys.stderr)
        recording = None
        _env.close()
        _env = None
    if recording is None:
        writer.add_failure(seed)
        return False
    writer.add(recording)
    return True
