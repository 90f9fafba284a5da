"""The base class of lifelong learning strategies, which define the batches of a stage and their loss.

A subclass that sets ``name`` is registered under this name, with its configuration section, label and properties. No
other file has to be changed (see :mod:`training.lifelong.strategies`).

The hooks are called in this order by :mod:`training.lifelong.stage`: ``begin_stage`` once, then for every step
``before_step``, ``compose``, ``loss`` and ``after_step``, then ``end_stage`` once. Tensors that a strategy passes from
stage to stage are in ``state``. They are saved in the run folder and restored before ``begin_stage``.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.task_data import WindowBatch, concatenate
from training.lifelong.memory import Memory
from training.losses import behaviour_cloning
from training.models.resnet_t import Inputs, Output, ResNetT

if TYPE_CHECKING:
    from training.run_config import RunConfig

#: Every strategy by its name.
REGISTERED: dict[str, type[Strategy]] = {}


@dataclass(frozen=True)
class Composed:
    """A batch with up to three parts, and the rows of each part.

    Attributes:
        batch: The whole batch.
        new: Rows with windows of the new task.
        memory: Rows with windows of kept demonstrations.
        old_instructions: Rows with observations of the new task under instructions of old tasks. Their actions are not
            demonstrations of these instructions.
    """

    batch: WindowBatch
    new: slice
    memory: slice
    old_instructions: slice

    def take(self, rows: NDArray[np.int64]) -> Composed:
        """Return the batch of ``rows``, which are in ascending order. Each row stays in its part."""
        ends = [int(np.searchsorted(rows, place.stop)) for place in (self.new, self.memory, self.old_instructions)]
        return Composed(self.batch.take(rows), slice(0, ends[0]), slice(ends[0], ends[1]), slice(ends[1], ends[2]))

    @property
    def demonstrated(self) -> slice:
        """The rows with actions to imitate."""
        return slice(0, self.memory.stop)


@dataclass
class Targets:
    """The targets of the loss: actions (B, L, A), and a mask valid (B, L) of the steps that count."""

    actions: Tensor
    valid: Tensor


#: Function of a number, which returns the behaviour cloning loss, with gradients, of a batch of the stage's
#: demonstrations. Each number has its own batch, which is always the same.
Imitate: TypeAlias = Callable[[int], Tensor]


class Strategy(ABC):
    """The base class of every strategy.

    A subclass sets the class attributes below if they differ from the defaults, and defines :meth:`loss`. It needs no
    ``__init__``.

    Attributes:
        name: Name that ``strategy=...`` selects. A class without a name of its own is not registered.
        label: Name in tables and charts. Default: ``name``.
        config_class: Frozen dataclass of the strategy's configuration section, or None. The section is read into
            ``self.config``.
        section: Name of that section in a configuration. Default: ``name``.
        learns_jointly: Whether all tasks are learned together, in one stage.
        uses_memory: Whether a batch holds windows of the kept demonstrations of old tasks.
        uses_old_instructions: Whether a batch holds observations of the new task under the instructions of old tasks.
        network_per_task: Whether each task always uses the network as it was at the end of the task's own stage.
        needs_task_identity: Whether the policy needs to know the task when it acts, because the instruction is not
            enough.
        shares_first_stage: Whether the first stage is plain behaviour cloning, so that runs of several strategies can
            train it once and share it.
        requires_state: Whether a later stage needs the ``state`` of the stage before it.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    config_class: ClassVar[type[Any] | None] = None
    section: ClassVar[str]
    learns_jointly: ClassVar[bool] = False
    uses_memory: ClassVar[bool] = False
    uses_old_instructions: ClassVar[bool] = False
    network_per_task: ClassVar[bool] = False
    needs_task_identity: ClassVar[bool] = False
    shares_first_stage: ClassVar[bool] = True
    requires_state: ClassVar[bool] = False

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Register a subclass that has a name of its own."""
        super().__init_subclass__(**arguments)
        own = cls.__dict__
        name = own.get("name")
        if name is None:
            return
        if re.fullmatch(r"[a-z][a-z0-9_]*", name) is None:
            raise TypeError(f"{cls.__name__}.name is {name!r}; a name has small letters, digits and underscores")
        other = REGISTERED.get(name)
        if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"{cls.__qualname__} and {other.__qualname__} are both named '{name}'; rename one of them")
        if "label" not in own:
            cls.label = name
        if own.get("config_class") is not None and "section" not in own:
            cls.section = name
        REGISTERED[name] = cls

    def __init__(self, memory: Memory, history: int, config: Any = None, single_steps: float = 0.0) -> None:
        """Make the strategy of one run.

        Args:
            memory: Replay buffer of the run.
            history: Number of steps in a window.
            config: Configuration section of the strategy; None means the defaults.
            single_steps: Share of rows that are single steps instead of windows.
        """
        self.memory, self.history, self.single_steps = memory, history, single_steps
        self.config: Any = self.config_class() if config is None and self.config_class is not None else config
        #: Tensors that are passed from stage to stage; empty for most strategies.
        self.state: dict[str, Tensor] = {}

    @classmethod
    def check(cls, config: RunConfig) -> None:
        """Check that the settings of other sections fit this strategy. By default, all settings do.

        Raises:
            ConfigError: A setting does not fit this strategy.
        """
        return

    @classmethod
    def quick(cls, config: Any) -> Any:
        """Return a configuration section for timing single steps: with little work at the end of a stage."""
        return config

    @classmethod
    def describe(cls, config: RunConfig) -> str:
        """Return the label for tables and charts, with the contents of the replay buffer in parentheses."""
        parts = []
        if cls.uses_memory and config.memory.episodes:
            parts.append(f"{config.memory.episodes} demos")
        if cls.uses_memory and config.memory.windows:
            parts.append(f"first {config.memory.windows} windows")
        if cls.uses_old_instructions and config.memory.instructions:
            parts.append("instructions")
        if cls.needs_task_identity:
            parts.append("task identity")
        if not parts and (cls.uses_memory or cls.uses_old_instructions):
            parts.append("no memory")
        return f"{cls.label} ({' + '.join(parts)})" if parts else cls.label

    def begin_stage(self, policy: ResNetT, stage: int) -> None:  # noqa: B027 - a hook may do nothing
        """Prepare for stage ``stage``, counted from 0. Called before the first step of the stage."""

    def before_step(self, policy: ResNetT, step: int, steps: int) -> None:  # noqa: B027 - see begin_stage
        """Prepare for step ``step`` (from 0) of ``steps``. Called when the policy is in training mode."""

    def after_step(self, policy: ResNetT) -> None:  # noqa: B027 - see begin_stage
        """Correct the weights. Called after the optimiser has changed them."""

    def compose(self, new: WindowBatch, rng: np.random.Generator) -> Composed:
        """Make a batch of new windows and, if the strategy uses them, windows of memory and of old instructions.

        Args:
            new: Windows of the new task.
            rng: Source of every random choice.
        """
        parts, count = [new], len(new)
        replay = self.memory.replay(rng, self.history, self.single_steps) if self.uses_memory else None
        distilled = self.memory.with_old_instructions(new, rng) if self.uses_old_instructions else None
        if replay is not None:
            parts.append(replay)
        end_memory = count + (len(replay) if replay is not None else 0)
        if distilled is not None:
            parts.append(distilled)
        end = end_memory + (len(distilled) if distilled is not None else 0)
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
        """Compute the loss of a batch.

        Args:
            composed: The batch and its parts.
            inputs: The batch as input of the network, after image augmentation.
            output: Output of the network for ``inputs``.
            targets: Actions and valid steps.
            generator: Source of random samples in the loss.

        Returns:
            Name -> term of the loss, for the log. ``total`` is the loss whose gradient is used.
        """

    def end_stage(self, policy: ResNetT, imitate: Imitate) -> None:  # noqa: B027 - see begin_stage
        """Save what later stages need. Called after the last step of a stage.

        It must not change the policy's weights or the statistics of its batch norms.
        """


def imitation(composed: Composed, output: Output, targets: Targets) -> Tensor:
    """Return the behaviour cloning loss of the demonstrated rows."""
    rows = composed.demonstrated
    return behaviour_cloning(output.mixture.select(rows), targets.actions[rows], targets.valid[rows])
