"""Initial states that never meet: demonstrations, selection and reported figures draw from disjoint ranges of seeds.

============== ================================= ==================================================
purpose        seeds of ``SimEnv.reset``          used for
============== ================================= ==================================================
demonstrations 1,000,000 .. 1,000,999,999        collecting, see ``m2distill_policy/sim/seeds.py``
reported       1,100,000,000 .. 1,599,999,999    every figure that is shown
selection      1,600,000,025 .. 2,100,000,024    choosing among checkpoints
============== ================================= ==================================================

Within a range, run seed ``s`` owns the 100,000 seeds from ``s x 100,000`` on, so that runs with different seeds see
different states too. All are below 2^31, which every simulator takes.

LIBERO ships 50 initial states a task and takes the seed modulo 50: there every run seed sees the same states, as in its
own protocol, and the 25 makes selection begin in the middle, so that up to 25 rollouts meet no reported state. Which
settings are best has to be chosen on other tasks there: another seed is no other state.
"""

from __future__ import annotations

from typing import Literal

from m2distill_policy.errors import ConfigError

Purpose = Literal["reported", "selection"]

_PER_RUN = 100_000
#: Run seeds are 0 to one less than this.
RUN_SEEDS = 5_000
#: Initial states of each task of a suite that begins with ``libero_``.
LIBERO_STATES = 50
_START = {"reported": 1_100_000_000, "selection": 1_600_000_025}


def initial_states(suite: str) -> int | None:
    """How many different initial states a task of ``suite`` has; None for as many as there are seeds."""
    return LIBERO_STATES if suite.startswith("libero_") else None


def state_seed(purpose: Purpose, seed: int, episode: int) -> int:
    """Seed of the initial state of rollout ``episode`` (0..99,999) under run seed ``seed`` (0..4,999)."""
    if purpose not in _START:
        raise ConfigError(f"rollouts are for '{purpose}'; choose one of {sorted(_START)}")
    if not 0 <= seed < RUN_SEEDS:
        raise ConfigError(f"evaluation seed is {seed}; 0 to {RUN_SEEDS - 1} are allowed")
    if not 0 <= episode < _PER_RUN:
        raise ConfigError(f"rollout number is {episode}; 0 to {_PER_RUN - 1} are allowed")
    return _START[purpose] + seed * _PER_RUN + episode
