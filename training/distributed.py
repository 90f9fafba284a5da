"""Several processes that learn as one, on one machine or more.

    torchrun --nproc-per-node 2 -m m2distill_policy train ...

Every process draws the same batch and takes its share of the rows; gradients, the count of valid steps and the batch
norms' statistics are averaged over all, so that the weights are those of one process with the whole batch, to rounding
(dropout and Monte Carlo samples, which every process draws by itself, apart). The first process alone writes, exports
and evaluates; the others read what it wrote, so several machines need the run's folder in common.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from m2distill_policy.errors import TrainingError

#: The others wait while the first process evaluates, which can take days.
_PATIENCE = datetime.timedelta(days=30)

_sharing = False


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the processes that ``torchrun`` started; alone, nothing happens."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def world() -> int:
    """How many processes learn together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number among them."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def wait() -> None:
    """Until every process is here."""
    if world() > 1:
        dist.barrier()


@contextlib.contextmanager
def sharing() -> Iterator[None]:
    """Within it a batch's rows are shared out and means are means over all processes; every one must be in it."""
    global _sharing
    _sharing = world() > 1
    try:
        yield
    finally:
        _sharing = False


def shared_rows(places: tuple[slice, ...]) -> NDArray[np.int64] | None:
    """This process's rows of a batch: of each place every ``world``-th. None where nothing is shared.

    Raises :class:`TrainingError` where a place cannot be shared out evenly.
    """
    if not _sharing:
        return None
    for place, name in zip(places, ("optim.batch", "memory.replay_batch", "memory.instruction_batch"), strict=True):
        if (place.stop - place.start) % world():
            raise TrainingError(
                f"{name} is {place.stop - place.start} and {world()} processes share it; make it a multiple of that"
            )
    return np.concatenate([np.arange(place.start + rank(), place.stop, world()) for place in places])


def average(values: Tensor) -> Tensor:
    """Mean over the processes, without gradient; within :func:`sharing` alone."""
    if not _sharing:
        return values
    summed = values.detach().clone()
    dist.all_reduce(summed)
    return summed / world()


def average_with_gradient(values: Tensor) -> Tensor:
    """Mean over the processes, through which gradients flow to all of them; within :func:`sharing` alone."""
    if not _sharing:
        return values
    mean: Tensor = all_reduce(values.contiguous()) / world()
    return mean


def is_sharing() -> bool:
    """Whether this is within :func:`sharing`, among several processes."""
    return _sharing


def together(network: nn.Module) -> nn.Module:
    """``network``, whose gradients are averaged over the processes where there are several.

    Its batch norms keep their own statistics alike (see :func:`training.models.image_encoder.normed`).
    """
    if world() < 2:
        return network
    return nn.parallel.DistributedDataParallel(network, broadcast_buffers=False)
