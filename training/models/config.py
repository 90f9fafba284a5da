"""Sizes of the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from m2distill_policy.config_keys import require_ranges, setting
from m2distill_policy.errors import ConfigError


@dataclass(frozen=True)
class NetworkConfig:
    """The sizes of the network, ResNet-T. The defaults are LIBERO's (``bc_transformer_policy``, config/paper.toml)."""

    stem_kernel: int = setting(7, "Width of the first convolution.", unit="pixels", low=1, high=31)
    stem_stride: int = setting(2, "Stride of the first convolution.", unit="pixels", low=1, high=16)
    stem_pool: bool = setting(True, "Add a 3 x 3 max-pool of stride 2 after the first convolution.")
    channels: tuple[int, int] = setting(
        (64, 128), "Channels of the stem with layer 1, and of layer 2.", low=1, high=2048
    )
    layer2_stride: int = setting(2, "Stride of layer 2; 1 keeps the resolution of the map.", low=1, high=16)
    keypoints: int = setting(32, "Keypoints of the spatial softmax; each gives two numbers.", low=1, high=4096)
    softmax_temperature: float = setting(
        1.0,
        "Divisor of the logits of the spatial softmax, as in robomimic. With values below 1, later tasks were "
        "learned faster.",
        low=1e-3,
        high=1e3,
    )
    embed: int = setting(64, "Width of a token; an even number.", low=2, high=8192)
    layers: int = setting(4, "Layers of the transformer.", low=1, high=128)
    heads: int = setting(6, "Attention heads of a layer.", low=1, high=256)
    head_size: int = setting(64, "Width of an attention head.", low=1, high=1024)
    mlp: int = setting(256, "Width of the feed-forward branch of a layer.", low=1, high=65_536)
    dropout: float = setting(0.1, "Share of activations that dropout sets to zero; 0 up to, not including, 1.")
    drop_path: float = setting(
        0.1,
        "Probability that stochastic depth skips a feed-forward branch (LIBERO applies it to that branch only); 0 up "
        "to, not including, 1.",
    )
    drop_path_both: bool = setting(False, "Apply stochastic depth to the attention branch too.")
    head_hidden: int = setting(1024, "Width of the two hidden layers of the mixture head.", low=1, high=65_536)
    modes: int = setting(5, "Modes of the Gaussian mixture.", low=1, high=1024)
    min_std: float = setting(1e-4, "Lower limit of every standard deviation of the mixture.", low=1e-9, high=1.0)
    batch_norm: Literal["train", "frozen_after_first"] = setting(
        "train",
        "train: the statistics of batch norms are updated in every stage, as in LIBERO. frozen_after_first: they are "
        "fixed after the first stage, because an update changes the outputs for old tasks, and no term "
        "of the loss limits this change.",
    )
    normalise: bool = setting(
        False,
        "Scale every number of the proprioception to mean 0 and deviation 1 over the first stage's demonstrations. "
        "LIBERO does not scale: its network has to learn that a finger motion of 0.02 m is large.",
    )

    def __post_init__(self) -> None:
        require_ranges(self, "network.")
        if self.embed % 2:
            raise ConfigError(f"network.embed is {self.embed}; it must be even (sines and cosines)")
        for name in ("dropout", "drop_path"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"network.{name} is {getattr(self, name)}; allowed are 0 up to, not including, 1")
