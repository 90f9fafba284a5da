"""Experience replay (Chaudhry et al. 2019, https://arxiv.org/abs/1902.10486): old demonstrations in every batch."""

from __future__ import annotations

from training.lifelong.sequential import Sequential


class ExperienceReplay(Sequential):
    """Behaviour cloning on the new task and on the kept demonstrations of old ones."""

    name = "er"
    uses_exemplars = True
