"""Train with several processes, on one or more machines.

    torchrun --nproc-per-node 2 -m m2distill_policy train ...

Every process samples the same batch and computes its share of the rows. Gradients, the number of valid steps and the
statistics of batch norms are averaged over the processes. Up to rounding, the weights are therefore the same as if one
process computed the whole batch. Only dropout and Monte Carlo samples differ, because each process samples its own.

Only the first process writes, exports and evaluates. The others read its files, so all machines need access to the
run's folder.
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

#: The other processes wait while the first one evaluates, which can take days.
_TIMEOUT = datetime.timedelta(days=30)

_sharing = False


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Join the process group of ``torchrun`` for the duration of the block. In a single process, do nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=_TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, counted from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Return whether this process is the one that writes files."""
    return rank() == 0


def wait() -> None:
    """Wait until every process has called this."""
    if world_size() > 1:
        dist.barrier()


@contextlib.contextmanager
def sharing() -> Iterator[None]:
    """Split batches between the processes, and average over the processes, for the duration of the block.

    Every process must enter the block.
    """
    global _sharing
    _sharing = world_size() > 1
    try:
        yield
    finally:
        _sharing = False


def shared_rows(places: tuple[slice, ...]) -> NDArray[np.int64] | None:
    """Return the rows of a batch that this process computes; None outside :func:`sharing`.

    Args:
        places: Rows of the three parts of a batch: new windows, memory, and old instructions. Each process takes an
            equal share of each part.

    Raises:
        TrainingError: A part cannot be divided evenly between the processes.
    """
    if not _sharing:
        return None
    for place, name in zip(places, ("optim.batch", "memory.replay_batch", "memory.instruction_batch"), strict=True):
        if (place.stop - place.start) % world_size():
            raise TrainingError(
                f"{name} is {place.stop - place.start} and {world_size()} processes share it; set a multiple of "
                f"{world_size()}"
            )
    return np.concatenate([np.arange(place.start + rank(), place.stop, world_size()) for place in places])


def average(values: Tensor) -> Tensor:
    """Return the mean over the processes, without gradient; outside :func:`sharing` return ``values``."""
    if not _sharing:
        return values
    summed = values.detach().clone()
    dist.all_reduce(summed)
    return summed / world_size()


def average_with_gradient(values: Tensor) -> Tensor:
    """Return the mean over the processes, with gradients to all of them; outside :func:`sharing` return ``values``."""
    if not _sharing:
        return values
    mean: Tensor = all_reduce(values.contiguous()) / world_size()
    return mean


def is_sharing() -> bool:
    """Return whether several processes share the current batch."""
    return _sharing


def data_parallel(network: nn.Module) -> nn.Module:
    """Return ``network`` with gradients averaged over the processes; unchanged for a single process.

    Statistics of batch norms are averaged elsewhere, in :func:`training.models.image_encoder.normed`.
    """
    if world_size() < 2:
        return network
    return nn.parallel.DistributedDataParallel(network, broadcast_buffers=False)
