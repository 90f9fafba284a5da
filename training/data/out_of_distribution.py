"""Out-of-distribution augmentation of observations: exchange colour channels and add noise to the proprioception.

The demonstrations of a new task never show how the hand closes over an old task's object. Distillation on these
demonstrations alone therefore does not constrain the policy in such states. The previous policy has an output for any
input, and distillation on inputs far from the data constrains the whole function better than distillation on the data
(Beyer et al. 2022, "Knowledge distillation: a good teacher is patient and consistent",
https://arxiv.org/abs/2106.05237).
"""

from __future__ import annotations

import dataclasses
from itertools import permutations

import numpy as np

from training.data.task_data import WindowBatch

_ORDERS = np.array(list(permutations(range(3))))


def perturb_single_steps(batch: WindowBatch, rng: np.random.Generator, share: float, noise: float) -> WindowBatch:
    """Augment the single steps of a batch; windows are not changed.

    In a changed step, the colour channels of each view are put in a random order, sampled for each view, and normal
    noise is added to every number of the proprioception. The actions are not changed, because a changed step is used
    for distillation, not for imitation.

    Args:
        batch: Batch whose single steps are augmented; it is not changed.
        rng: Source of every random choice.
        share: Probability that a step is changed, 0 to 1.
        noise: Standard deviation of the noise of a number, as a multiple of the number's standard deviation over the
            single steps of the batch.
    """
    rows = np.flatnonzero(batch.single_steps)
    if len(rows) == 0:
        return batch
    shape = (len(rows), batch.actions.shape[1])
    taken = rng.random(shape) < share
    images, proprioception = {}, {}
    for name, frames in batch.images.items():
        order = np.where(taken[..., None], _ORDERS[rng.integers(0, len(_ORDERS), size=shape)], _ORDERS[0])
        images[name] = frames.copy()
        images[name][rows] = np.take_along_axis(frames[rows], order[:, :, None, None, :], axis=-1)
    for name, values in batch.proprioception.items():
        steps = values[rows]
        moved = rng.standard_normal(steps.shape) * noise * steps.std(axis=(0, 1)) * taken[..., None]
        proprioception[name] = values.copy()
        proprioception[name][rows] = steps + moved.astype(values.dtype)
    return dataclasses.replace(batch, images=images, proprioception=proprioception)
