"""Which seeds are whose: a layout that was demonstrated is never one that is measured."""

from __future__ import annotations

from m2distill_policy.errors import SimulationError

#: Seeds below this are free for evaluation; demonstrations start here.
DEMONSTRATIONS_FROM = 1_000_000
_PER_TASK = 10_000
_TASKS = 100
_RUNS = 1000


def demonstration_seed(run_seed: int, task_index: int, attempt: int) -> int:
    """The seed of attempt 0..9999 at task 0..99 of the collection with seed ``run_seed`` (0..999)."""
    if not (0 <= run_seed < _RUNS and 0 <= task_index < _TASKS and 0 <= attempt < _PER_TASK):
        raise SimulationError(
            f"collection seed {run_seed}, task {task_index}, attempt {attempt}: allowed are 0 to 999, "
            f"0 to {_TASKS - 1} and 0 to {_PER_TASK - 1}"
        )
    return DEMONSTRATIONS_FROM + (run_seed * _TASKS + task_index) * _PER_TASK + attempt


def is_demonstration(seed: int) -> bool:
    """Whether ``seed`` is one that :func:`demonstration_seed` gives."""
    return DEMONSTRATIONS_FROM <= seed < DEMONSTRATIONS_FROM + _RUNS * _TASKS * _PER_TASK
