"""The temporal transformer: pre-norm, causal over time; the tokens of a step attend to one another.

Follows LIBERO's ``transformer_modules`` (https://github.com/Lifelong-Robot-Learning/LIBERO).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.models.config import NetworkConfig


def position_table(steps: int, width: int) -> Tensor:
    """Return sinusoidal positions (steps, width): sines, then cosines, of wavelengths 2 pi x 10^(2i / width)."""
    frequencies = 1.0 / (10.0 ** (torch.arange(0, width, 2, dtype=torch.float32) / width))
    angles = torch.arange(steps, dtype=torch.float32)[:, None] * frequencies[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def causal_mask(steps: int, tokens: int) -> Tensor:
    """Return a mask (steps x tokens, steps x tokens): True if a query (row) attends to a key (column).

    A query attends to the keys of its own step and of earlier steps.
    """
    time = torch.arange(steps).repeat_interleave(tokens)
    return time[:, None] >= time[None, :]


def step_mask(steps: int, tokens: int) -> Tensor:
    """Return a mask like :func:`causal_mask`, but a query attends only to the keys of its own step."""
    time = torch.arange(steps).repeat_interleave(tokens)
    return time[:, None] == time[None, :]


_ALL = slice(None)


class Attention(nn.Module):
    """Multi-head self-attention, (B, S, E) -> (B, Q, E), for the Q tokens in ``queries``. The head size is free."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.heads, self.head_size = config.heads, config.head_size
        self.qkv = nn.Linear(config.embed, 3 * config.heads * config.head_size, bias=False)
        self.out = nn.Linear(config.heads * config.head_size, config.embed)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor, queries: slice) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, self.head_size).permute(2, 0, 3, 1, 4)
        scores = (qkv[0][:, :, queries] @ qkv[1].transpose(-2, -1)) * self.head_size**-0.5
        # A large negative number, not -inf, because a query with all keys masked (an empty slot) must not become NaN.
        weights = torch.softmax(scores.masked_fill(~mask[..., queries, :], -1e9), dim=-1)
        mixed = (weights @ qkv[2]).transpose(1, 2).reshape(batch, -1, self.heads * self.head_size)
        return self.dropout(self.out(mixed))


class StochasticDepth(nn.Module):
    """Stochastic depth: a branch is skipped for random samples in training.

    Huang et al. 2016, https://arxiv.org/abs/1603.09382.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0.0:
            return x
        keep = 1.0 - self.probability
        return x * (torch.rand(x.shape[0], 1, 1, device=x.device) < keep).to(x.dtype) / keep


class TransformerLayer(nn.Module):
    """Attention and a feed-forward network, each with a layer norm before it and a residual connection."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.embed)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.embed)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.embed, config.mlp),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.mlp, config.embed),
            nn.Dropout(config.dropout),
        )
        self.drop_path = StochasticDepth(config.drop_path)
        self.drop_attention = StochasticDepth(config.drop_path if config.drop_path_both else 0.0)

    def forward(self, x: Tensor, mask: Tensor, queries: slice = _ALL) -> Tensor:
        x = x[:, queries] + self.drop_attention(self.attention(self.norm1(x), mask, queries))
        out: Tensor = x + self.drop_path(self.feed_forward(self.norm2(x)))
        return out


class TemporalTransformer(nn.Module):
    """The layers of the transformer: tokens (B, L, T, E) with positions added -> (B, L, T, E).

    The mask broadcasts to (B, heads, L x T, L x T).
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([TransformerLayer(config) for _ in range(config.layers)])

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = tokens.flatten(1, 2)
        for layer in self.layers:
            x = layer(x, mask)
        return x.reshape(tokens.shape)

    def newest(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the first token of the last step (B, E). The last layer computes only this token."""
        x = tokens.flatten(1, 2)
        first = x.shape[1] - tokens.shape[2]
        for i, layer in enumerate(self.layers):
            x = layer(x, mask, slice(first, first + 1) if i + 1 == len(self.layers) else _ALL)
        return x[:, 0]
