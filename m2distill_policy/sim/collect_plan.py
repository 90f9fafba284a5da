"""The attempts at one task of a collection: finished attempts, the next attempt, and whether more are needed."""

from __future__ import annotations

from m2distill_policy.demonstration_writer import DemonstrationWriter
from m2distill_policy.demonstrations import DemonstrationFile, demonstration_path
from m2distill_policy.errors import DemonstrationError, SimulationError
from m2distill_policy.sim.collection import Collection, collection_settings, open_writer
from m2distill_policy.sim.env import Task
from m2distill_policy.sim.seeds import demonstration_seed
from m2distill_policy.sim.suites import suite_contract

#: A collection fails if, after ``_FIRST_ATTEMPTS`` attempts or more, fewer than one in ``_ATTEMPTS_PER_SUCCESS``
#: attempts succeeded.
_ATTEMPTS_PER_SUCCESS = 4
_FIRST_ATTEMPTS = 20


class TaskPlan:
    """The attempts at one task.

    Args:
        collection: Settings of the collection.
        task: The task.

    Attributes:
        file: The finished file, or None while episodes are missing.
        results: Seed of each finished attempt -> whether it succeeded.

    Raises:
        DemonstrationError: The task's file exists, but is damaged or was collected with other settings.
    """

    def __init__(self, collection: Collection, task: Task) -> None:
        self.collection = collection
        self.task = task
        self.path = demonstration_path(collection.folder, task.name)
        self.results: dict[int, bool] = {}
        self._writer: DemonstrationWriter | None = None
        self._attempts = 0
        #: A finished file with too few episodes, to which episodes are added.
        self._shorter: DemonstrationFile | None = None
        self.file = self._find_file()

    def open(self) -> None:
        """Create the folder for single episodes, or continue with the folder of an earlier call."""
        self._writer = open_writer(self.collection, self.task)
        self._writer.clean()
        if self._shorter is not None:
            self._writer.reopen(self._shorter, [self.seed(attempt) for attempt in range(self._shorter.tried)])
        self.results = self._writer.attempts()

    def discard_if_empty(self) -> None:
        """Remove the folder for single episodes if it is empty."""
        if self._writer is not None:
            self._writer.discard_if_empty()

    def _find_file(self) -> DemonstrationFile | None:
        """Return the finished file of an earlier call with the same settings, or None if episodes are missing."""
        if not self.path.exists():
            return None
        wanted = self.collection.episodes
        try:
            file = DemonstrationFile(self.path)
            expected = suite_contract(self.collection.suite, self.collection.size)
            if (file.contract, file.settings) == (expected, collection_settings(self.collection, self.task)):
                if len(file) == wanted:
                    return file
                if self.collection.extend and len(file) < wanted:
                    self._shorter = file
                    return None
        except DemonstrationError:
            if not self.collection.force:
                raise
        else:
            if not self.collection.force:
                raise DemonstrationError(
                    f"{self.path} has {len(file)} episodes that were collected with other settings; use --extend to "
                    "add episodes with the same settings, --force to overwrite the file, or another --out"
                )
        self.path.unlink()
        return None

    def seed(self, attempt: int) -> int:
        """Return the seed of attempt ``attempt``."""
        return demonstration_seed(self.collection.seed, self.task.index, attempt)

    def next_seed(self) -> int:
        """Return the seed of the next attempt, skipping attempts that are finished."""
        while True:
            seed = self.seed(self._attempts)
            self._attempts += 1
            if seed not in self.results:
                return seed

    def kept_seeds(self) -> tuple[list[int], int]:
        """Return the seeds of the first successful attempts, and the number of attempts considered.

        Attempts are considered in order, until there are enough successes or an attempt is not finished yet.
        """
        seeds: list[int] = []
        attempt = 0
        while len(seeds) < self.collection.episodes and self.seed(attempt) in self.results:
            if self.results[self.seed(attempt)]:
                seeds.append(self.seed(attempt))
            attempt += 1
        return seeds, attempt

    def successes(self) -> int:
        """Return the number of successful episodes, but at most the number that is needed."""
        if self.file is not None:
            return self.collection.episodes
        return min(self.collection.episodes, sum(self.results.values()))

    def finish_if_enough(self) -> bool:
        """Write the file and return True if there are enough successes; return False otherwise.

        Raises:
            SimulationError: Too few attempts succeed.
        """
        seeds, tried = self.kept_seeds()
        if len(seeds) == self.collection.episodes:
            assert self._writer is not None
            self.file = self._writer.finish(seeds, tried)
            return True
        if tried >= _FIRST_ATTEMPTS and len(seeds) * _ATTEMPTS_PER_SUCCESS < tried:
            raise SimulationError(
                f"the expert of '{self.task.name}' succeeded in only {len(seeds)} of {tried} attempts; "
                f"use a lower --noise than {self.collection.noise}"
            )
        return False

    def needs_attempt(self, running: int) -> bool:
        """Return whether to start another attempt.

        It is needed if there are too few successes, counting the ``running`` attempts as successes. It is also needed
        if no attempt is running: there can be enough successes although an earlier attempt has not been made.
        """
        short = sum(self.results.values()) + running < self.collection.episodes
        return self.file is None and (short or not running)
