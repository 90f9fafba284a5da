"""The image encoder: ResNet-18's stem and first two layers, FiLM after each block, spatial softmax, a linear layer.

Follows LIBERO's ``rgb_modules.ResnetEncoder`` (https://github.com/Lifelong-Robot-Learning/LIBERO); residual blocks
as in He et al. 2016 (https://arxiv.org/abs/1512.03385), FiLM as in Perez et al. 2018 (https://arxiv.org/abs/1709.07871),
spatial softmax as in Finn et al. 2016 (https://arxiv.org/abs/1509.06113).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training import distributed
from training.models.config import NetworkConfig

#: Whether a part of an encoder is being recomputed in the backward pass.
_recomputing = False


@contextlib.contextmanager
def _recomputation() -> Iterator[None]:
    global _recomputing
    _recomputing = True
    try:
        yield
    finally:
        _recomputing = False


def _recomputed(part: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Return ``part(*inputs)`` and store only the inputs; intermediate results are recomputed in the backward pass."""
    result: Tensor = checkpoint(
        part, *inputs, use_reentrant=False, preserve_rng_state=False,
        context_fn=lambda: (contextlib.nullcontext(), _recomputation()),
    )  # fmt: skip
    return result


def normed(convolution: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """Return ``norm(convolution(x))`` for an ``nn.Conv2d`` without bias and an ``nn.BatchNorm2d``.

    A batch norm with frozen statistics multiplies each channel by a factor and adds a shift. Both are folded into the
    convolution. This saves one pass over every feature map in the forward pass and two in the backward pass. Gradients
    are the same up to rounding.
    """
    assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None
    if norm.training:
        y: Tensor = convolution(x)
        if distributed.is_sharing():
            return _normed_over_processes(norm, y)
        if _recomputing:  # the running statistics contain this batch already, so copies are updated
            running = norm.running_mean.clone(), norm.running_var.clone()
            return F.batch_norm(y, *running, norm.weight, norm.bias, True, norm.momentum or 0.0, norm.eps)
        result: Tensor = norm(y)
        return result
    factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    weight = convolution.weight * factor[:, None, None, None]
    shift = norm.bias - norm.running_mean * factor
    return F.conv2d(x, weight, shift, convolution.stride, convolution.padding)


def _normed_over_processes(norm: nn.BatchNorm2d, y: Tensor) -> Tensor:
    """Apply a batch norm in training mode, with statistics over all processes; torch's SyncBatchNorm needs GPUs."""
    assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
    wide = y.float()
    mean, square = distributed.average_with_gradient(torch.stack([wide.mean((0, 2, 3)), wide.square().mean((0, 2, 3))]))
    variance = (square - mean.square()).clamp_min(0)
    with torch.no_grad():
        count = y.numel() // y.shape[1] * distributed.world_size()
        if not _recomputing:  # see normed
            norm.running_mean.lerp_(mean, norm.momentum)
            norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.add_(1)
    factor = norm.weight * torch.rsqrt(variance + norm.eps)
    shift = norm.bias - mean * factor
    return torch.addcmul(shift[:, None, None], wide, factor[:, None, None]).to(y.dtype)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm and a shortcut: (N, in, H, W) -> (N, out, H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else normed(self.downsample[0], self.downsample[1], x)
        h = normed(self.conv1, self.bn1, x).relu_()
        return normed(self.conv2, self.bn2, h).add_(shortcut).relu_()


class SpatialSoftmax(nn.Module):
    """The expected position of each keypoint, from -1 to 1 along both axes: (N, C, H, W) -> (N, 2 x keypoints).

    As in LIBERO, the first half of the result holds positions along the height, the second half along the width.
    """

    def __init__(self, channels: int, height: int, width: int, keypoints: int, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature
        self.conv = nn.Conv2d(channels, keypoints, 1)
        first, second = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        positions = torch.stack([first.reshape(-1), second.reshape(-1)], dim=1)
        self.register_buffer("positions", positions, persistent=False)
        self.positions: Tensor

    def forward(self, x: Tensor) -> Tensor:
        attention = torch.softmax(self.conv(x).flatten(2).float() / self.temperature, dim=-1)
        keypoints = attention @ self.positions  # (N, K, 2)
        return keypoints.transpose(1, 2).flatten(1)


class ImageEncoder(nn.Module):
    """The encoder of one view, conditioned on text.

    It maps frames (N, 3, H, W) in [0, 1] and FiLM terms (N, F) to tokens (N, embed).
    """

    def __init__(self, config: NetworkConfig, height: int, width: int, text_size: int) -> None:
        super().__init__()
        first, second = config.channels
        stem: list[nn.Module] = [
            nn.Conv2d(3, first, config.stem_kernel, config.stem_stride, config.stem_kernel // 2, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(inplace=True),
        ]
        if config.stem_pool:
            stem.append(nn.MaxPool2d(3, 2, 1))
        self.stem = nn.Sequential(*stem)
        self.blocks = nn.ModuleList(
            [
                ResidualBlock(first, first, 1),
                ResidualBlock(first, first, 1),
                ResidualBlock(first, second, config.layer2_stride),
                ResidualBlock(second, second, 1),
            ]
        )
        self.block_channels = (first, first, second, second)
        self.film = nn.ModuleList([nn.Linear(text_size, 2 * c) for c in self.block_channels])
        was_training = self.training
        #: Whether to store only the inputs of the stem and the blocks for the backward pass (``optim.recompute``).
        self.recompute = False
        self.eval()  # the probe must not change the statistics of batch norms
        with torch.no_grad():
            probe = self._trunk(torch.zeros(1, 3, height, width), [(torch.zeros(1), torch.zeros(1))] * 4)
        self.train(was_training)
        self.softmax = SpatialSoftmax(
            second, probe.shape[2], probe.shape[3], config.keypoints, config.softmax_temperature
        )
        self.projection = nn.Linear(2 * config.keypoints, config.embed)

    @property
    def film_size(self) -> int:
        """Number of FiLM terms of this view: a shift and a scale for each channel after each of the four blocks."""
        return 2 * sum(self.block_channels)

    def film_terms(self, embedding: Tensor) -> Tensor:
        """Return FiLM terms (B, film_size) of text embeddings (B, text size): for each block, shifts, then scales."""
        return torch.cat([layer(embedding) for layer in self.film], dim=-1)

    def _stem(self, x: Tensor) -> Tensor:
        h: Tensor = self.stem[2:](normed(self.stem[0], self.stem[1], x))
        return h

    def _trunk(self, x: Tensor, terms: list[tuple[Tensor, Tensor]]) -> Tensor:
        again = self.recompute and torch.is_grad_enabled()
        h = _recomputed(self._stem, x) if again else self._stem(x)
        for block, (shift, scale) in zip(self.blocks, terms, strict=True):
            h = torch.addcmul(shift, 1 + scale, _recomputed(block, h) if again else block(h))
        return h

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        parts = torch.split(film[:, :, None, None], [c for c in self.block_channels for _ in range(2)], dim=1)
        terms = list(zip(parts[::2], parts[1::2], strict=True))  # shift and scale of each block
        token: Tensor = self.projection(self.softmax(self._trunk(x, terms)))
        return token
