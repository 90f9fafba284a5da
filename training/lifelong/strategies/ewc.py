"""Elastic weight consolidation (Kirkpatrick et al. 2017, https://arxiv.org/abs/1612.00796), as LIBERO runs it.

After a stage every weight gets an importance, its Fisher information: the mean square of its gradient. The loss of the
next stage has a penalty: the sum over all weights of the importance times the square of the weight's change. After each
stage the importance for older stages is multiplied by a factor (``ewc.fade``). The run therefore keeps one number for
each weight, and no data.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from m2distill_policy.config_keys import require_ranges, setting
from m2distill_policy.options import MANY
from training.lifelong.memory import Memory
from training.lifelong.strategies.sequential import Sequential
from training.lifelong.strategy import Composed, Imitate, Targets
from training.models.resnet_t import Inputs, Output, ResNetT


@dataclass(frozen=True)
class EwcConfig:
    """Elastic weight consolidation (strategy=ewc).

    As in LIBERO, the Fisher information is the mean square of a batch's gradient, not of a single demonstration's.
    """

    weight: float = setting(50_000.0, "Factor on the penalty; LIBERO's e_lambda.", low=0, high=1e12)
    fade: float = setting(
        0.9, "Factor on the importance of weights for older stages, applied after each stage; LIBERO's gamma.",
        low=0, high=10.0,
    )  # fmt: skip
    batches: int = setting(
        200,
        "Batches of a stage's demonstrations from which the Fisher information is estimated; LIBERO takes one pass "
        "over the data.",
        unit="batches",
        low=1,
        high=MANY,
    )

    def __post_init__(self) -> None:
        require_ranges(self, "ewc.")


class Ewc(Sequential):
    """Behaviour cloning on the new task, and a quadratic penalty on the change of every weight.

    Attributes:
        state: Parameter -> importance of its weights.
    """

    name = "ewc"
    label = "EWC"
    config_class = EwcConfig
    config: EwcConfig
    requires_state = True

    def __init__(
        self, memory: Memory, history: int, config: EwcConfig | None = None, single_steps: float = 0.0
    ) -> None:
        super().__init__(memory, history, config, single_steps)
        #: Each parameter, its value at the start of the stage, and its importance.
        self._anchored: list[tuple[Tensor, Tensor, Tensor]] = []

    @classmethod
    def quick(cls, config: EwcConfig) -> EwcConfig:
        """Return the section with one batch for the Fisher information."""
        return dataclasses.replace(config, batches=1)

    def begin_stage(self, policy: ResNetT, stage: int) -> None:
        """Save the weights at the start of the stage, from which the penalty measures the change."""
        self._anchored = [
            (p, p.detach().clone(), self.state[name].to(p.device))
            for name, p in policy.named_parameters()
            if name in self.state
        ]

    def loss(
        self, composed: Composed, inputs: Inputs, output: Output, targets: Targets, generator: torch.Generator
    ) -> dict[str, Tensor]:
        terms = super().loss(composed, inputs, output, targets, generator)
        if not self._anchored:
            return terms
        penalty = torch.stack([(fisher * (p - before).square()).sum() for p, before, fisher in self._anchored]).sum()
        return {**terms, "penalty": penalty.detach(), "total": terms["bc"] + self.config.weight * penalty}

    def end_stage(self, policy: ResNetT, imitate: Imitate) -> None:
        """Estimate the stage's Fisher information in training mode, with frozen statistics of batch norms."""
        policy.train()
        policy.freeze_batch_norm()
        named = dict(policy.named_parameters())
        fisher = {name: torch.zeros_like(p) for name, p in named.items()}
        for number in range(self.config.batches):
            policy.zero_grad(set_to_none=True)
            imitate(number).backward()
            for name, p in named.items():
                if p.grad is not None:
                    fisher[name] += p.grad.square() / self.config.batches
        policy.zero_grad(set_to_none=True)
        older = self.state
        self.state = {n: f + self.config.fade * older[n].to(f.device) if older else f for n, f in fisher.items()}
        self._anchored = []
