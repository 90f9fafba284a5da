"""PackNet (Mallya & Lazebnik 2018, https://arxiv.org/abs/1711.05769): each task has its own weights in one network.

A stage first trains all free weights. It then prunes: it sets the smallest free weights of each layer to zero, and
trains the others for the rest of its steps. After the stage these others are fixed, and the pruned weights are free for
later tasks. Each task always uses the network as it was at the end of its own stage, where the free weights are zero.
Biases, norms and their statistics are learned with the first task and then fixed, as in the paper. LIBERO's version
leaves them at their random initial values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from m2distill_policy.config_keys import setting
from m2distill_policy.errors import ConfigError
from training.lifelong.memory import Memory
from training.lifelong.strategies.sequential import Sequential
from training.lifelong.strategy import Imitate
from training.models.resnet_t import ResNetT

if TYPE_CHECKING:
    from training.run_config import RunConfig


@dataclass(frozen=True)
class PackNetConfig:
    """Pruning, and separate weights for each task (strategy=packnet)."""

    prune: float = setting(
        0.75,
        "Share of a layer's free weights, between 0 and 1, that a stage sets to zero and leaves free for later "
        "tasks; LIBERO's prune_perc.",
    )
    retrain: float = setting(
        0.5,
        "Share of a stage's steps, between 0 and 1, that come after the pruning. 0.5 is LIBERO's rule: as many "
        "epochs after the pruning as before it.",
    )

    def __post_init__(self) -> None:
        for name in ("prune", "retrain"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(
                    f"packnet.{name} is {getattr(self, name)}; allowed is a share between 0 and 1, without both"
                )


class PackNet(Sequential):
    """Behaviour cloning with the weights that no earlier task owns.

    Attributes:
        state: Parameter -> owner of each of its entries, uint8: 0 for a free entry, otherwise the number of the stage
            that owns it, counted from 1. Only matrices and convolution kernels are in ``state``.
    """

    name = "packnet"
    label = "PackNet"
    config_class = PackNetConfig
    config: PackNetConfig
    network_per_task = True
    needs_task_identity = True
    shares_first_stage = False

    def __init__(
        self, memory: Memory, history: int, config: PackNetConfig | None = None, single_steps: float = 0.0
    ) -> None:
        super().__init__(memory, history, config, single_steps)
        self._stage = 0
        #: Each parameter, its value at the start of the stage, and which of its entries are fixed.
        self._fixed: list[tuple[Tensor, Tensor, Tensor]] = []
        #: Each parameter, and which of its entries stay zero until the stage ends; empty before the pruning.
        self._pruned: list[tuple[Tensor, Tensor]] = []

    @classmethod
    def check(cls, config: RunConfig) -> None:
        """Refuse several checkpoint candidates, because those from before the pruning are not usable policies."""
        if config.evaluation.candidates > 1:
            raise ConfigError(
                f"evaluation.candidates is {config.evaluation.candidates}, and strategy=packnet prunes within a stage, "
                "so an earlier checkpoint is no policy; set evaluation.candidates=1"
            )

    def begin_stage(self, policy: ResNetT, stage: int) -> None:
        """Fix the weights that earlier stages own."""
        self._stage = stage
        self._pruned = []
        self.state = self._owners(policy)
        self._fixed = []
        for name, parameter in policy.named_parameters() if stage else ():
            owned = self.state[name] > 0 if name in self.state else torch.ones_like(parameter, dtype=torch.bool)
            self._fixed.append((parameter, parameter.detach().clone(), owned))

    def before_step(self, policy: ResNetT, step: int, steps: int) -> None:
        """Freeze the statistics of batch norms after the first stage, and prune at the configured step."""
        if self._stage:
            policy.freeze_batch_norm()
        prune_at = min(steps - 1, round(steps * (1 - self.config.retrain)))
        if step == prune_at:
            for name, weight in _weights(policy).items():
                prune(weight, self.state[name] == 0, self.config.prune)
        if step >= prune_at and not self._pruned:  # also when the stage is resumed after the pruning
            self._pruned = [(w, (self.state[n] == 0) & (w == 0)) for n, w in _weights(policy).items()]

    @torch.no_grad()
    def after_step(self, policy: ResNetT) -> None:
        """Restore fixed and pruned weights, which weight decay and momentum of the optimiser have changed."""
        for parameter, before, owned in self._fixed:
            torch.where(owned, before, parameter, out=parameter.data)
        for weight, zero in self._pruned:
            weight.masked_fill_(zero, 0.0)

    def end_stage(self, policy: ResNetT, imitate: Imitate) -> None:
        """Record that this stage owns all free weights that are not zero."""
        self.state = self._owners(policy)
        for name, weight in _weights(policy).items():
            owner = self.state[name]
            self.state[name] = torch.where((owner == 0) & (weight.detach() != 0), self._stage + 1, owner)
        self._fixed, self._pruned = [], []

    def _owners(self, policy: ResNetT) -> dict[str, Tensor]:
        """Return the owner of each entry, on the policy's device; all are free before the first stage."""
        return {
            name: self.state[name].to(weight.device)
            if name in self.state
            else torch.zeros_like(weight, dtype=torch.uint8)
            for name, weight in _weights(policy).items()
        }


def _weights(policy: ResNetT) -> dict[str, Tensor]:
    """Return the parameters that are pruned: convolution kernels and matrices of linear layers."""
    return {name: parameter for name, parameter in policy.named_parameters() if parameter.dim() > 1}


@torch.no_grad()
def prune(weight: Tensor, free: Tensor, share: float) -> None:
    """Set the smallest ``share`` of the ``free`` entries of ``weight`` to zero, in place."""
    sizes = weight[free].abs()
    count = round(share * sizes.numel())
    if count:
        # Entries are chosen by rank and not by a threshold, so that equal entries are not all pruned.
        order = sizes.argsort(stable=True)
        left = weight[free]
        left[order[:count]] = 0.0
        weight[free] = left
