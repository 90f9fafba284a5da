"""Add a strategy in one file: keep the weights close to those at the end of the previous stage.

Train with it, without changing the project:

    m2distill train --import examples/add_a_strategy.py strategy=anchor anchor.weight=10 \
        --config config/tiny.toml --data data/tabletop --out runs/anchor
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from m2distill_policy.ranges import require_within
from training.lifelong.strategies.sequential import Sequential
from training.lifelong.strategy import Composed, Targets
from training.models.resnet_t import Inputs, Output, ResNetT


@dataclass(frozen=True)
class AnchorConfig:
    """The configuration section [anchor]. weight: Factor on the squared distance to the previous stage's weights."""

    weight: float = 1.0

    def __post_init__(self) -> None:
        require_within("anchor.weight", self.weight, 0, 1e9)


class Anchor(Sequential):
    """Behaviour cloning on the new task, with a penalty on the distance from the previous stage's weights."""

    name = "anchor"  # strategy=anchor
    label = "weight anchor"  # in tables and charts
    config_class = AnchorConfig  # anchor.weight=...
    config: AnchorConfig

    def begin_stage(self, policy: ResNetT, stage: int) -> None:
        """Store the weights of the previous stage. In the first stage there are none."""
        self._anchored = [(p, p.detach().clone()) for p in policy.parameters()] if stage > 0 else []

    def loss(
        self, composed: Composed, inputs: Inputs, output: Output, targets: Targets, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the terms of the loss. All are logged; ``total`` is minimised."""
        terms = super().loss(composed, inputs, output, targets, generator)
        if not self._anchored:
            return terms
        distance = torch.stack([(p - before).square().sum() for p, before in self._anchored]).sum()
        return {**terms, "distance": distance.detach(), "total": terms["bc"] + self.config.weight * distance}
