"""The head of the network, and its output: a mixture of Gaussians.

Follows LIBERO's ``policy_head.GMMHead``: mean = tanh, standard deviation = softplus + floor, diagonal components.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.config import NetworkConfig


class Mixture(NamedTuple):
    """A mixture of M diagonal Gaussians over A action entries, batched over leading axes.

    Attributes:
        logits: Unnormalised log weights of the modes (..., M).
        means: Means (..., M, A), in [-1, 1].
        scales: Standard deviations (..., M, A), positive.
    """

    logits: Tensor
    means: Tensor
    scales: Tensor

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return the log density (S..., ...) of actions (S..., ..., A), where S... are optional leading sample axes."""
        z = (actions.unsqueeze(-2) - self.means) / self.scales
        component = (-0.5 * z.square() - self.scales.log() - 0.5 * math.log(2 * math.pi)).sum(-1)
        return torch.logsumexp(component + torch.log_softmax(self.logits, dim=-1), dim=-1)

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Sample ``count`` actions of each mixture: (count, ..., A), without gradient."""
        with torch.no_grad():
            batch, modes = self.logits.shape[:-1], self.logits.shape[-1]
            weights = torch.softmax(self.logits, dim=-1).reshape(-1, modes)
            chosen = torch.multinomial(weights, count, replacement=True, generator=generator).T  # (count, rows)
            index = chosen.reshape(count, *batch, 1, 1).expand(count, *batch, 1, self.means.shape[-1])
            means = self.means.expand(count, *self.means.shape).gather(-2, index).squeeze(-2)
            scales = self.scales.expand(count, *self.scales.shape).gather(-2, index).squeeze(-2)
            noise = torch.empty_like(means).normal_(generator=generator)
            return means + scales * noise

    def floored(self, floor: float) -> Mixture:
        """Return the mixture with no standard deviation below ``floor``."""
        return Mixture(self.logits, self.means, self.scales.clamp_min(floor)) if floor > 0 else self

    def select(self, index: slice) -> Mixture:
        """Return the rows ``index`` of the first axis."""
        return Mixture(self.logits[index], self.means[index], self.scales[index])

    def detach(self) -> Mixture:
        """Return the mixture without gradient."""
        return Mixture(self.logits.detach(), self.means.detach(), self.scales.detach())


class MixtureHead(nn.Module):
    """The head of the network: features (..., embed) -> a :class:`Mixture` over ``actions`` entries."""

    def __init__(self, config: NetworkConfig, actions: int) -> None:
        super().__init__()
        hidden = config.head_hidden
        # LIBERO's "two layers" are two hidden layers and a third linear layer without activation.
        self.trunk = nn.Sequential(
            nn.Linear(config.embed, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
        )
        self.means = nn.Linear(hidden, config.modes * actions)
        self.scales = nn.Linear(hidden, config.modes * actions)
        self.logits = nn.Linear(hidden, config.modes)
        self.modes, self.actions, self.min_std = config.modes, actions, config.min_std

    def forward(self, x: Tensor) -> Mixture:
        h = self.trunk(x)
        shape = (*x.shape[:-1], self.modes, self.actions)
        means = torch.tanh(self.means(h)).reshape(shape)
        scales = F.softplus(self.scales(h)).reshape(shape) + self.min_std
        return Mixture(self.logits(h).float(), means.float(), scales.float())
