"""Experience replay (Chaudhry et al. 2019, https://arxiv.org/abs/1902.10486): old demonstrations in every batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from m2distill_policy.errors import ConfigError
from training.lifelong.strategies.sequential import Sequential

if TYPE_CHECKING:
    from training.run_config import RunConfig


class ExperienceReplay(Sequential):
    """Behaviour cloning on the new task and on the kept demonstrations of old ones."""

    name = "er"
    label = "experience replay"
    uses_memory = True

    @classmethod
    def check(cls, config: RunConfig) -> None:
        """Refuse a configuration that keeps no demonstrations."""
        if not config.memory.demonstrations:
            raise ConfigError(
                "strategy=er replays demonstrations, and memory.episodes is 0; set memory.episodes above 0 (or "
                "memory.windows=1000, LIBERO's rule), or use strategy=sequential"
            )
