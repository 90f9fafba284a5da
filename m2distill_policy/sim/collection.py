"""The settings of a collection of demonstrations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m2distill_policy.demonstration_writer import DemonstrationWriter
from m2distill_policy.demonstrations import demonstration_path
from m2distill_policy.errors import SimulationError, closest
from m2distill_policy.sim.disturbances import Disturbance
from m2distill_policy.sim.env import Task
from m2distill_policy.sim.suites import SUITES_WITH_EXPERTS, suite_contract, suite_task, suite_tasks
from m2distill_policy.sim.visuals import VISUALS_VERSION, visual_profile

#: Version of a suite's experts. Increase it when the experts, their noise or the stored data of an episode change.
#: Demonstrations of an older version then count as collected with other settings. Version 2 of tabletop added pushes
#: and the executed actions.
_EXPERTS_VERSION = {"tabletop": 2}


@dataclass(frozen=True)
class Collection:
    """Settings of a collection: successful demonstrations of some tasks of one suite.

    Attributes:
        folder: Folder of the files, one for each task.
        tasks: Indices of the tasks.
        suite: Name of the suite.
        episodes: Number of successful episodes for each task.
        size: Height and width of the views in pixels, 16 to 1024.
        visuals: Visual profile, ``fast`` or ``stock``.
        seed: Seed of the collection, 0 to 999. The seeds of initial states, noise and disturbances follow from it.
        workers: Number of processes.
        noise: Factor on the standard noise of the executed actions, 0 to 3.
        randomise: Kinds of disturbance (see :mod:`m2distill_policy.sim.disturbances`). The level of each is sampled
            anew for every episode.
        extend: Whether to add episodes to a finished file with the same settings that has fewer than ``episodes``.
        force: Whether to overwrite files that are damaged or were collected with other settings.

    Raises:
        SimulationError: A value is out of range.
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
    extend: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        if self.suite not in SUITES_WITH_EXPERTS:
            raise SimulationError(
                f"suite '{self.suite}' has no scripted experts; choose one of {', '.join(SUITES_WITH_EXPERTS)}"
                f"{closest(self.suite, SUITES_WITH_EXPERTS)}"
            )
        if self.episodes < 1 or self.workers < 1 or not self.tasks:
            raise SimulationError(
                f"tasks is {list(self.tasks)}, episodes is {self.episodes} and workers is {self.workers}; at least one "
                "of each is needed"
            )
        visual_profile(self.visuals)
        if not 16 <= self.size <= 1024:
            raise SimulationError(f"size is {self.size} pixels; allowed are 16 to 1024")
        if not 0.0 <= self.noise <= 3.0:
            raise SimulationError(f"noise is {self.noise} times the standard disturbance; allowed are 0 to 3")
        for kind in self.randomise:
            Disturbance(kind, 1.0)
        if len(set(self.randomise)) != len(self.randomise):
            raise SimulationError(f"a disturbance is named twice in {', '.join(self.randomise)}; name each once")
        if len(set(self.tasks)) != len(self.tasks):
            raise SimulationError(f"a task is named twice in {self.tasks}; name each once")


def collection_settings(collection: Collection, task: Task) -> dict[str, Any]:
    """Return the settings under which episodes of ``task`` are collected, in the form of robomimic's ``env_args``."""
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


def open_writer(collection: Collection, task: Task) -> DemonstrationWriter:
    """Return the writer of the demonstrations of ``task``."""
    return DemonstrationWriter(
        demonstration_path(collection.folder, task.name),
        instruction=task.instruction,
        contract=suite_contract(collection.suite, collection.size),
        suite=task.suite,
        env_args=collection_settings(collection, task),
    )


def parse_tasks(text: str, suite: str) -> tuple[int, ...]:
    """Parse task indices: numbers such as ``0,1,2``, or ``all``.

    Raises:
        SimulationError: The text has another form, or the suite has no such task.
    """
    if text.strip() == "all":
        return tuple(range(len(suite_tasks(suite))))
    try:
        indices = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise SimulationError(f"tasks is '{text[:60]}'; give indices such as 0,1,2, or all") from error
    for index in indices:
        suite_task(suite, index)
    return indices
