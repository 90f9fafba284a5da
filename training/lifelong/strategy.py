"""The base class of lifelong learning strategies, which define the batches of a stage and their loss.

A subclass with a ``name`` is registered under it, with its configuration section, label and properties; nothing else
has to be changed (see :mod:`training.lifelong.strategies`).

The hooks are called in this order by :mod:`training.lifelong.stage`: ``begin_stage`` once, then for every step
``before_step``, ``compose``, ``loss`` and ``after_step``, then ``end_stage`` once. Tensors that a strategy passes from
stage to stage are in ``state``. The run folder saves them and restores them before ``begin_stage``.
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

    new: windows of the new task. memory: windows of kept demonstrations. old_instructions: observations of the new task
    under instructions of old tasks; their actions are not demonstrated.
    """

    batch: WindowBatch
    new: slice
    memory: slice
    old_instructions: slice

    def take(self, rows: NDArray[np.int64]) -> Composed:
        """Return the batch of these rows, in ascending order; each stays in its part."""
        ends = [int(np.searchsorted(rows, place.stop)) for place in (self.new, self.memory, self.old_instructions)]
        return Composed(self.batch.take(rows), slice(0, ends[0]), slice(ends[0], ends[1]), slice(ends[1], ends[2]))

    @property
    def demonstrated(self) -> slice:
        """Rows with actions to imitate."""
        return slice(0, self.memory.stop)


@dataclass
class Targets:
    """The targets of the loss: actions (B, L, A), and valid (B, L), which marks the steps that count."""

    actions: Tensor
    valid: Tensor


#: Number -> the behaviour cloning loss, with gradients, of another batch of the stage's demonstrations. The same number
#: gives the same batch.
Imitate: TypeAlias = Callable[[int], Tensor]


class Strategy(ABC):
    """The base of every strategy.

    A subclass sets the class attributes below where they differ, and defines :meth:`loss`. It needs no ``__init__``.

    Attributes:
        name: what ``strategy=...`` selects. A class without a name of its own is not registered.
        label: the name for people, in tables and charts. Default: ``name``.
        config_class: the frozen dataclass of its configuration section, or None. It is read into ``self.config``.
        section: the name of that section in a configuration. Default: ``name``.
        learns_jointly: all tasks are learned together, in one stage.
        uses_memory: the batch holds windows of the kept demonstrations of old tasks.
        uses_old_instructions: the batch holds new observations under the instructions of old tasks.
        network_per_task: each task always uses the network as it was at the end of its own stage.
        needs_task_identity: the policy needs to know the task when it acts; the instruction is not enough.
        shares_first_stage: its first stage is plain behaviour cloning, so that runs of several strategies can train it
            once and share it.
        requires_state: a later stage cannot start without the ``state`` of the stage before it.
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
            memory: what is kept of old tasks.
            history: steps in a window.
            config: its configuration section; None means the defaults.
            single_steps: share of rows that are single steps instead of windows.
        """
        self.memory, self.history, self.single_steps = memory, history, single_steps
        self.config: Any = self.config_class() if config is None and self.config_class is not None else config
        #: Tensors that are passed from stage to stage; empty for most strategies.
        self.state: dict[str, Tensor] = {}

    @classmethod
    def check(cls, config: RunConfig) -> None:
        """Check the settings of other sections; most strategies have no such rule.

        Raises:
            ConfigError: they do not fit this strategy.
        """
        return

    @classmethod
    def quick(cls, config: Any) -> Any:
        """Return its section with the work at the end of a stage cut to a minimum, for timing a training step."""
        return config

    @classmethod
    def describe(cls, config: RunConfig) -> str:
        """Return the label with what the run keeps of old tasks, for tables and charts."""
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
        """Called before the first step of stage ``stage``, counted from 0."""

    def before_step(self, policy: ResNetT, step: int, steps: int) -> None:  # noqa: B027 - see begin_stage
        """Called before step ``step`` (from 0) of ``steps``, in training mode."""

    def after_step(self, policy: ResNetT) -> None:  # noqa: B027 - see begin_stage
        """Called after the optimiser has changed the weights."""

    def compose(self, new: WindowBatch, rng: np.random.Generator) -> Composed:
        """Make a batch: new windows, and from memory what the strategy uses.

        Args:
            new: windows of the new task.
            rng: source of every random choice.
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
            composed: the batch and its parts.
            inputs: the batch as input of the network, after image augmentation.
            output: of the network for ``inputs``.
            targets: actions and valid steps.
            generator: source of random samples in the loss.

        Returns:
            Terms by name, to be logged. ``total`` is the loss whose gradient is used.
        """

    def end_stage(self, policy: ResNetT, imitate: Imitate) -> None:  # noqa: B027 - see begin_stage
        """Called after the last step of a stage; it must not change the policy's weights or statistics."""


def imitation(composed: Composed, output: Output, targets: Targets) -> Tensor:
    """Return the behaviour cloning loss of the demonstrated rows."""
    rows = composed.demonstrated
    return behaviour_cloning(output.mixture.select(rows), targets.actions[rows], targets.valid[rows])
