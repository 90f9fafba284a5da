"""Fine-tuning on each task in turn: the lower bound that other strategies are compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from training.lifelong.strategy import Composed, Strategy, Targets, imitation
from training.models.resnet_t import Inputs, Output


class Sequential(Strategy):
    """Behaviour cloning on the new task alone."""

    name = "sequential"
    label = "sequential fine-tuning"

    def loss(
        self, composed: Composed, inputs: Inputs, output: Output, targets: Targets, generator: torch.Generator
    ) -> dict[str, Tensor]:
        bc = imitation(composed, output, targets)
        return {"bc": bc, "total": bc}
