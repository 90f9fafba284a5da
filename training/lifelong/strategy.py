"""The base class of lifelong learning strategies: what a stage's batch is made of, and what its loss is.

A subclass with a ``name`` is registered under it, with its configuration section, label and properties; nothing else
has to be changed (see :mod:`training.lifelong.strategies`).

The hooks are called in this order by :mod:`training.lifelong.stage`: ``begin_stage`` once, then for every step
``before_step``, ``compose``, ``loss`` and ``after_step``, then ``end_stage`` once. Tensors that a strategy carries from
stage to stage beside the memory are in ``state``: the run folder stores them and restores them before ``begin_stage``.
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
from training.losses.terms import behaviour_cloning
from training.models.resnet_t import Inputs, Output, ResNetT

if TYPE_CHECKING:
    from training.run_config import RunConfig

#: Every strategy by its name.
REGISTERED: dict[str, type[Strategy]] = {}


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
        network_per_task: each task is answered for ever by the network as its own stage left it.
        needs_task_identity: when it acts, somebody has to tell which task it is; the instruction is not enough.
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
            single_steps: share of rows that are no windows but single steps.
        """
        self.memory, self.history, self.single_steps = memory, history, single_steps
        self.config: Any = self.config_class() if config is None and self.config_class is not None else config
        #: Tensors that are carried from stage to stage beside the memory; empty for most strategies.
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
        """Called before the first step of stage ``stage`` (0 is the first task)."""

    def before_step(self, policy: ResNetT, step: int, steps: int) -> None:  # noqa: B027 - see begin_stage
        """Called before step ``step`` (from 0) of the stage's ``steps``, in training mode."""

    def after_step(self, policy: ResNetT) -> None:  # noqa: B027 - see begin_stage
        """Called when the optimiser has moved the weights."""

    def compose(self, new: WindowBatch, rng: np.random.Generator) -> Composed:
        """Add old windows and old questions to the new ones, as the memory and the strategy allow."""
        parts, count = [new], len(new)
        replay = self.memory.replay(rng, self.history, self.single_steps) if self.uses_memory else None
        asked = self.memory.with_old_instructions(new, rng) if self.uses_old_instructions else None
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
