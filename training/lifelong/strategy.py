"""A strategy: what a stage's batch is made of and what its loss is.

The hooks are a closed list, called in this order by :mod:`training.lifelong.stage`:
``begin_stage`` once, then for every step ``before_step``, ``compose``, ``loss`` and ``after_step``, then ``end_stage``
once. What a strategy keeps from stage to stage beside the memory is in ``kept``, which the run folder holds and gives
back before ``begin_stage``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.task_data import WindowBatch, concatenate
from training.lifelong.memory import Memory
from training.losses.terms import behaviour_cloning
from training.models.resnet_t import Inputs, Output, ResNetT


@dataclass(frozen=True)
class Composed:
    """One batch made of up to three places, and the rows of each.

    ``demonstrated`` is new and memory together: the rows whose actions are what somebody did under that instruction.
    """

    batch: WindowBatch
    new: slice
    memory: slice
    old_instructions: slice

    def take(self, rows: NDArray[np.int64]) -> Composed:
        """These rows, which ascend; each stays in its place."""
        ends = [int(np.searchsorted(rows, place.stop)) for place in (self.new, self.memory, self.old_instructions)]
        return Composed(self.batch.take(rows), slice(0, ends[0]), slice(ends[0], ends[1]), slice(ends[1], ends[2]))

    @property
    def demonstrated(self) -> slice:
        """Rows with actions to imitate."""
        return slice(0, self.memory.stop)


@dataclass
class Targets:
    """What the loss compares with: actions (B, L, A) and valid (B, L)."""

    actions: Tensor
    valid: Tensor


#: Number -> the behaviour cloning loss, with gradients, of a batch of the stage's data beyond those it was trained on;
#: the same number gives the same batch.
Imitate: TypeAlias = Callable[[int], Tensor]


class Strategy(ABC):
    """Base of every strategy; a subclass says ``name``, which places it uses and what its loss is."""

    name: ClassVar[str]
    #: Whether the strategy draws from kept demonstrations and asks old instructions.
    uses_exemplars: ClassVar[bool] = False
    uses_instructions: ClassVar[bool] = False
    #: Whether a task is answered by a network of its own, for ever: the one that its stage ended with.
    own_network: ClassVar[bool] = False

    def __init__(self, memory: Memory, history: int, apart: float = 0.0) -> None:
        self.memory, self.history, self.apart = memory, history, apart
        #: What is kept from stage to stage beside the memory: nothing, for most.
        self.kept: dict[str, Tensor] = {}

    def begin_stage(self, policy: ResNetT, stage: int) -> None:  # noqa: B027 - a hook with nothing to do is a choice
        """Called before the first step of stage ``stage`` (0 is the first task)."""

    def before_step(self, policy: ResNetT, step: int, steps: int) -> None:  # noqa: B027 - see begin_stage
        """Called before step ``step`` (from 0) of the stage's ``steps``, in training mode."""

    def after_step(self, policy: ResNetT) -> None:  # noqa: B027 - see begin_stage
        """Called when the optimiser has moved the weights."""

    def compose(self, new: WindowBatch, rng: np.random.Generator) -> Composed:
        """Add old windows and old questions to the new ones, as the memory and the strategy allow."""
        parts, count = [new], len(new)
        replay = self.memory.replay(rng, self.history, self.apart) if self.uses_exemplars else None
        asked = self.memory.ask_old(new, rng) if self.uses_instructions else None
        if replay is not None:
            parts.append(replay)
        end_memory = count + (len(replay) if replay is not None else 0)
        if asked is not None:
            parts.append(asked)
        end = end_memory + (len(asked) if asked is not None else 0)
        return Composed(
            concatenate(parts) if len(parts) > 1 else new,
            slice(0, count),
            slice(count, end_memory),
            slice(end_memory, end),
        )

    @abstractmethod
    def loss(
        self, composed: Composed, inputs: Inputs, output: Output, targets: Targets, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Named terms, among them ``total``, which is what gradients flow from."""

    def end_stage(self, policy: ResNetT, imitate: Imitate) -> None:  # noqa: B027 - see begin_stage
        """Called after the last step of a stage; leaves the policy's weights and statistics as they are."""


def imitation(composed: Composed, output: Output, targets: Targets) -> Tensor:
    """Behaviour cloning over the demonstrated rows."""
    rows = composed.demonstrated
    return behaviour_cloning(output.mixture.select(rows), targets.actions[rows], targets.valid[rows])
