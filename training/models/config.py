"""Sizes of the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from m2distill_policy.errors import ConfigError
from m2distill_policy.ranges import require_within

#: Setting -> smallest and largest: far more than a policy of this kind needs, far less than a slip of the pen asks for.
_RANGES = {
    "stem_kernel": (1, 31),
    "stem_stride": (1, 16),
    "layer2_stride": (1, 16),
    "keypoints": (1, 4096),
    "softmax_temperature": (1e-3, 1e3),
    "embed": (2, 8192),
    "layers": (1, 128),
    "heads": (1, 256),
    "head_size": (1, 1024),
    "mlp": (1, 65_536),
    "head_hidden": (1, 65_536),
    "modes": (1, 1024),
    "min_std": (1e-9, 1.0),
}


@dataclass(frozen=True)
class NetworkConfig:
    """ResNet-T's sizes; the defaults are LIBERO's ``bc_transformer_policy`` (the ``paper`` profile).

    stem_kernel, stem_stride, stem_pool: first convolution, and whether a 3 x 3 max-pool of stride 2 follows it.
    channels: of the stem with layer 1, and of layer 2. layer2_stride: 1 keeps the map's resolution.
    keypoints: of the spatial softmax (2 numbers each). softmax_temperature: divides its logits (robomimic's name for
    it); below 1 a later task was learned sooner. embed: width of a token.
    head_hidden: width of the mixture head's two hidden layers. min_std: floor under every standard deviation.
    batch_norm: ``train`` follows the batch in every stage, as LIBERO does; ``frozen_after_first`` keeps the first
    stage's statistics ever after, which closes a path of forgetting that no loss on tokens sees.
    normalise: bring every reading to mean 0 and deviation 1 over the first task's demonstrations before its linear
    layer. LIBERO feeds them raw: fingers move by 0.02 m, and the network has to learn that this is much.
    drop_path: stochastic depth on the feed-forward branch, where LIBERO applies it alone; drop_path_both: on the
    attention's too.
    """

    stem_kernel: int = 7
    stem_stride: int = 2
    stem_pool: bool = True
    channels: tuple[int, int] = (64, 128)
    layer2_stride: int = 2
    keypoints: int = 32
    softmax_temperature: float = 1.0
    embed: int = 64
    layers: int = 4
    heads: int = 6
    head_size: int = 64
    mlp: int = 256
    dropout: float = 0.1
    drop_path: float = 0.1
    drop_path_both: bool = False
    head_hidden: int = 1024
    modes: int = 5
    min_std: float = 1e-4
    batch_norm: Literal["train", "frozen_after_first"] = "train"
    normalise: bool = False

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            require_within(f"network.{name}", getattr(self, name), low, high)
        for index, channels in enumerate(self.channels):
            require_within(f"network.channels[{index}]", channels, 1, 2048)
        if self.embed % 2:
            raise ConfigError(f"network.embed is {self.embed}; it must be even (sines and cosines)")
        for name in ("dropout", "drop_path"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"network.{name} is {getattr(self, name)}; allowed are 0 up to, not including, 1")
