"""All tasks at once: the upper bound that lifelong learning is measured against, as in LIBERO.

Nothing is learned in turn: one stage, as long as the stages of all tasks together, and nothing is kept of old tasks
because there are none.
"""

from __future__ import annotations

from training.lifelong.strategies.sequential import Sequential


class Multitask(Sequential):
    """Behaviour cloning on the demonstrations of all tasks."""

    name = "multitask"
    learns_jointly = True
    shares_first_stage = False
