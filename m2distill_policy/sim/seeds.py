"""Ranges of seeds by purpose: demonstrations, checkpoint selection and reported results never share a seed.

============== ================================= =========================================================
purpose        seeds of ``SimEnv.reset``         used for
============== ================================= =========================================================
demonstrations 1,000,000 .. 1,000,999,999        collecting demonstrations, see :func:`demonstration_seed`
reported       1,100,000,000 .. 1,599,999,999    every result that is reported, see :func:`state_seed`
selection      1,600,000,025 .. 2,100,000,024    choosing among checkpoints, see :func:`state_seed`
============== ================================= =========================================================

Seeds below 1,000,000 are free for other uses. Each of the last two ranges is divided among the run seeds: run seed
``s`` has 100,000 seeds, which begin ``s x 100,000`` after the start of the range. So runs with different seeds use
different initial states. All seeds are below 2^31, because some simulators accept no larger seeds.

LIBERO has 50 fixed initial states for each task. There, the seed modulo 50 is the number of the state. So all run seeds
use the same states, as in LIBERO's own protocol. The selection range begins at state 25. So up to 25 selection rollouts
and 25 reported rollouts use different states. Another run seed gives no new states on LIBERO: tune settings on tasks
that you do not report.
"""

from __future__ import annotations

from typing import Literal

from m2distill_policy.errors import ConfigError, SimulationError

#: Smallest seed of demonstrations.
DEMONSTRATIONS_FROM = 1_000_000
_ATTEMPTS_PER_TASK = 10_000
_TASKS = 100
_COLLECTION_SEEDS = 1000

Purpose = Literal["reported", "selection"]

#: Number of run seeds. Run seeds are 0 to ``RUN_SEEDS - 1``.
RUN_SEEDS = 5_000
#: Number of initial states of each task of LIBERO's suites, whose names begin with ``libero_``.
LIBERO_STATES = 50
_ROLLOUTS_PER_RUN = 100_000
_START = {"reported": 1_100_000_000, "selection": 1_600_000_025}


def demonstration_seed(collection_seed: int, task_index: int, attempt: int) -> int:
    """Return the seed of one attempt at a demonstration.

    Args:
        collection_seed: Seed of the collection, 0 to 999.
        task_index: Index of the task in its suite, 0 to 99.
        attempt: Number of the attempt, 0 to 9999.

    Raises:
        SimulationError: A number is out of range.
    """
    if not (
        0 <= collection_seed < _COLLECTION_SEEDS and 0 <= task_index < _TASKS and 0 <= attempt < _ATTEMPTS_PER_TASK
    ):
        raise SimulationError(
            f"collection seed {collection_seed}, task {task_index}, attempt {attempt}: allowed are 0 to "
            f"{_COLLECTION_SEEDS - 1}, 0 to {_TASKS - 1} and 0 to {_ATTEMPTS_PER_TASK - 1}"
        )
    return DEMONSTRATIONS_FROM + (collection_seed * _TASKS + task_index) * _ATTEMPTS_PER_TASK + attempt


def is_demonstration_seed(seed: int) -> bool:
    """Return whether :func:`demonstration_seed` can return ``seed``."""
    return DEMONSTRATIONS_FROM <= seed < DEMONSTRATIONS_FROM + _COLLECTION_SEEDS * _TASKS * _ATTEMPTS_PER_TASK


def count_initial_states(suite: str) -> int | None:
    """Return the number of initial states of a task of ``suite``, or None if every seed gives a different state."""
    return LIBERO_STATES if suite.startswith("libero_") else None


def state_seed(purpose: Purpose, seed: int, episode: int) -> int:
    """Return the seed of a rollout's initial state.

    Args:
        purpose: ``reported`` or ``selection``.
        seed: Run seed, 0 to 4,999.
        episode: Number of the rollout, 0 to 99,999.

    Raises:
        ConfigError: The purpose is unknown, or a number is out of range.
    """
    if purpose not in _START:
        raise ConfigError(f"the purpose of a rollout is '{purpose}'; choose one of {sorted(_START)}")
    if not 0 <= seed < RUN_SEEDS:
        raise ConfigError(f"evaluation seed is {seed}; allowed are 0 to {RUN_SEEDS - 1}")
    if not 0 <= episode < _ROLLOUTS_PER_RUN:
        raise ConfigError(f"rollout number is {episode}; allowed are 0 to {_ROLLOUTS_PER_RUN - 1}")
    return _START[purpose] + seed * _ROLLOUTS_PER_RUN + episode
