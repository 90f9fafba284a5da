"""All tasks jointly: the upper bound that lifelong learning is measured against, as in LIBERO.

There is a single stage, which is as long as the stages of all tasks together. There is no old task.
"""

from __future__ import annotations

from training.lifelong.strategies.sequential import Sequential


class Multitask(Sequential):
    """Behaviour cloning on the demonstrations of all tasks."""

    name = "multitask"
    learns_jointly = True
    shares_first_stage = False
