"""Observations that nobody demonstrated: colours exchanged, readings moved.

The demonstrations of a new task never show the hand closing over an old task's object, so matching the previous policy
on them alone leaves it free to change just there. A previous policy can be asked about anything, seen or not, and
matching it on inputs far beyond the data holds the whole function better than matching it on the data (Beyer et al.
2022, "Knowledge distillation: a good teacher is patient and consistent", https://arxiv.org/abs/2106.05237).
"""

from __future__ import annotations

import dataclasses
from itertools import permutations

import numpy as np

from training.data.task_data import WindowBatch

_ORDERS = np.array(list(permutations(range(3))))


def widen(batch: WindowBatch, rng: np.random.Generator, share: float, noise: float) -> WindowBatch:
    """Widen each step of the rows that are no windows (``apart``) with chance ``share``; windows stay as they were.

    A widened step has its colour channels in a random order, one for each view, and normal noise on every reading, of
    ``noise`` times that reading's standard deviation over the rows that are no windows. The actions stay: they answer
    the observation as it was, so a widened step is for asking a teacher, not for imitation.
    """
    loose = np.flatnonzero(batch.apart)
    if len(loose) == 0:
        return batch
    shape = (len(loose), batch.actions.shape[1])
    taken = rng.random(shape) < share
    images, proprioception = {}, {}
    for name, frames in batch.images.items():
        order = np.where(taken[..., None], _ORDERS[rng.integers(0, len(_ORDERS), size=shape)], _ORDERS[0])
        images[name] = frames.copy()
        images[name][loose] = np.take_along_axis(frames[loose], order[:, :, None, None, :], axis=-1)
    for name, values in batch.proprioception.items():
        steps = values[loose]
        moved = rng.standard_normal(steps.shape) * noise * steps.std(axis=(0, 1)) * taken[..., None]
        proprioception[name] = values.copy()
        proprioception[name][loose] = steps + moved.astype(values.dtype)
    return dataclasses.replace(batch, images=images, proprioception=proprioception)
