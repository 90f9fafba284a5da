"""Augment the images of a batch with colour jitter and shifts.

Jitter and shift are sampled once per window: all frames of a window, and by default all views, are changed in the same
way. This is LIBERO's augmentation (``data_augmentation.py``: BatchWiseImgColorJitterAug, then TranslationAug) without
torchvision. The jitter uses the formulas of torchvision's ``ColorJitter``: blend with black, with the mean grey value,
and with the grey image; rotate the hue in HSV.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from m2distill_policy.config_keys import require_ranges, setting


@dataclass(frozen=True)
class AugmentConfig:
    """The augmentation of images: colour jitter and shifts, sampled for each window."""

    brightness: float = setting(0.3, "x: brightness is multiplied by a factor from [1 - x, 1 + x].", low=0, high=1)
    contrast: float = setting(0.3, "x: contrast is multiplied by a factor from [1 - x, 1 + x].", low=0, high=1)
    saturation: float = setting(0.3, "x: saturation is multiplied by a factor from [1 - x, 1 + x].", low=0, high=1)
    hue: float = setting(
        0.3,
        "x: hue is rotated by -x to x. LIBERO's 0.3 is a third of the circle. Set it near 0 if instructions name "
        "objects by colour.",
        unit="full circles",
        low=0,
        high=0.5,
    )
    skip: float = setting(0.1, "Share of windows whose colours are not changed.", low=0, high=1)
    shift: int = setting(
        8, "Range of the random shift: up to half of it in each direction.", unit="pixels", low=0, high=4096
    )
    together: bool = setting(
        True, "Change all views of a window alike, as in LIBERO; false: change each view independently."
    )

    def __post_init__(self) -> None:
        require_ranges(self, "augment.")


_GREY = (0.299, 0.587, 0.114)


def _grey(frames: Tensor) -> Tensor:
    r, g, b = frames.unbind(2)
    return (_GREY[0] * r + _GREY[1] * g + _GREY[2] * b).unsqueeze(2)


def _turn_hue(frames: Tensor, turn: Tensor) -> Tensor:
    """Rotate the hue of frames (B, L, 3, H, W) in [0, 1] by ``turn`` (B,), in full circles."""
    r, g, b = frames.unbind(2)
    top, bottom = frames.amax(2), frames.amin(2)
    chroma = top - bottom
    safe = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    hue = torch.where(top == r, (g - b) / safe, torch.where(top == g, 2 + (b - r) / safe, 4 + (r - g) / safe))
    hue = hue / 6 + turn.view(-1, 1, 1, 1)
    # HSV to RGB in closed form: f(n) = v - c * max(0, min(k, 4 - k, 1)) with k = (n + 6 h) mod 6
    channels = []
    for n in (5.0, 3.0, 1.0):
        k = (n + 6 * hue) % 6
        channels.append(top - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, dim=2)


def augment(
    views: dict[str, Tensor],
    config: AugmentConfig,
    rng: np.random.Generator,
    of: tuple[int, NDArray[np.int64]] | None = None,
) -> dict[str, Tensor]:
    """Apply colour jitter and a shift to every window.

    Args:
        views: View -> frames (B, L, 3, H, W) in [0, 1]; they are not changed.
        config: Settings of the augmentation.
        rng: Source of every random choice.
        of: (count, rows) if ``views`` holds only these rows of a larger batch of ``count`` windows. Every row is then
            changed in the same way as in the larger batch. None: ``views`` holds the whole batch.

    Returns:
        View -> changed frames.
    """
    if not config.together and len(views) > 1:
        return {name: augment({name: frames}, config, rng, of)[name] for name, frames in views.items()}
    batch, rows = of or (next(iter(views.values())).shape[0], slice(None))
    device = next(iter(views.values())).device

    def uniform(amount: float, centre: float) -> Tensor:
        values = rng.uniform(centre - amount, centre + amount, size=batch)
        return torch.as_tensor(values[rows], dtype=torch.float32, device=device)

    factors = {
        name: uniform(getattr(config, name), 1.0).clamp_min(0) for name in ("brightness", "contrast", "saturation")
    }
    turn = uniform(config.hue, 0.0)
    skip = torch.as_tensor((rng.random(batch) < config.skip)[rows], device=device)
    for factor in factors.values():
        factor[skip] = 1.0
    turn[skip] = 0.0
    order = rng.permutation(4)
    half = config.shift // 2
    offsets = rng.integers(0, 2 * half + 1, size=(batch, 2))[rows] if half else None
    result = {}
    for name, frames in views.items():
        for step in order:
            if step == 0 and config.brightness:
                frames = (frames * factors["brightness"].view(-1, 1, 1, 1, 1)).clamp(0, 1)
            elif step == 1 and config.contrast:
                mean = _grey(frames).mean(dim=(2, 3, 4), keepdim=True)
                factor = factors["contrast"].view(-1, 1, 1, 1, 1)
                frames = (frames * factor + mean * (1 - factor)).clamp(0, 1)
            elif step == 2 and config.saturation:
                factor = factors["saturation"].view(-1, 1, 1, 1, 1)
                frames = (frames * factor + _grey(frames) * (1 - factor)).clamp(0, 1)
            elif step == 3 and config.hue:
                frames = _turn_hue(frames, turn)
        if offsets is not None:
            height, width = frames.shape[-2:]
            padded = F.pad(frames.flatten(1, 2), (half,) * 4, mode="replicate")
            frames = torch.stack(
                [padded[i, :, y : y + height, x : x + width] for i, (y, x) in enumerate(offsets)]
            ).reshape(frames.shape)
        result[name] = frames
    return result
