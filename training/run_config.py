"""What a run is: data, network, optimisation, strategy, memory, evaluation. Frozen, typed, written into the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from m2distill_policy.config import open_sections
from m2distill_policy.contract import IMAGE_SIDE
from m2distill_policy.errors import ConfigError
from m2distill_policy.options import MANY, MOST_PROCESSES
from m2distill_policy.ranges import require_within
from m2distill_policy.sim.env import FILES
from m2distill_policy.sim.seeds import RUN_SEEDS, count_initial_states
from training.data.augment import AugmentConfig
from training.lifelong.memory import LARGEST_BATCH, MemoryConfig
from training.lifelong.strategies import sections, strategy_class
from training.lifelong.strategy import Strategy
from training.models.config import NetworkConfig

#: Settings that change how long a result takes, not what it is.
_NO_RESULT = ("evaluation.workers", "optim.checkpoint_seconds", "optim.recompute")
#: Setting of a section -> smallest and largest: more than anybody needs, less than a slip of the pen asks for.
_OPTIM_RANGES = {
    "steps": (1, 100 * MANY),
    "epochs": (0, MANY),
    "first_epochs": (0, MANY),
    "batch": (1, LARGEST_BATCH),
    "lr": (1e-12, 10.0),
    "text_lr_factor": (1e-9, 1e9),
    "warmup": (0, 100 * MANY),
    "weight_decay": (0, 100.0),
    "clip": (1e-9, 1e12),
    "threads": (0, MOST_PROCESSES),
    "checkpoint_seconds": (0, 1e9),
}
_EVALUATION_RANGES = {
    "rollouts": (0, MANY),
    "points": (1, 10_000),
    "workers": (1, MOST_PROCESSES),
    "told": (0, MANY),
    "horizon": (0, MANY),
}
T = TypeVar("T")


@dataclass(frozen=True)
class OptimConfig:
    """steps a stage, batch windows a step; AdamW with a cosine from lr to lr_end after ``warmup`` linear steps.

    epochs: in place of ``steps`` where above 0: a stage reads every demonstrated step so many times, so a task of
    longer demonstrations is learned for longer. LIBERO's epoch has a window begin at every step, and so reads each
    ``history`` times: one of its epochs is ten of these.
    first_epochs: ``epochs`` of the first stage, which begins with a random network; 0: as many.
    later_lr: highest rate of the later stages, or None for ``lr``.
    apart: share of rows that are no windows but as many unrelated steps, each read without history. In a window the way
    that the arm has come gives the target away, and the network goes on as it began instead of looking ("copycat", de
    Haan et al. 2019, https://arxiv.org/abs/1905.11979); a step alone has to be answered from what is seen and said.
    text_lr_factor: times the rate for the layers that read the text embedding. Adam moves every weight by about the
    rate whatever the gradient, and hundreds of entries of order 1 add up: at 1e-3 one step moves a FiLM term by 0.3,
    scales walk to +-16, the spatial softmax saturates, and a second task is not learned any more.
    clip: largest gradient norm. precision: ``auto`` is bf16 where the hardware computes in it, else fp32.
    recompute: true keeps the inputs of the encoders' stem and blocks alone for the backward pass and computes the
    rest again: a fraction of the memory, the same weights, about a third more time. ``auto`` does so where a batch's
    feature maps would take more than half of the memory that is free, on a CPU also above 4.5 GiB.
    threads: of torch on the CPU; 0 leaves torch's own choice. Part of the configuration, because sums depend on it.
    checkpoint_seconds: how much work a kill may cost at most.
    """

    steps: int = 2500
    epochs: float = 0.0
    first_epochs: float = 0.0
    batch: int = 32
    apart: float = 0.0
    lr: float = 1e-4
    lr_end: float = 1e-5
    later_lr: float | None = None
    text_lr_factor: float = 1.0
    warmup: int = 0
    weight_decay: float = 1e-4
    clip: float = 100.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    recompute: bool | Literal["auto"] = "auto"
    threads: int = 0
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name, (low, high) in _OPTIM_RANGES.items():
            require_within(f"optim.{name}", getattr(self, name), low, high)
        if self.later_lr is not None:
            require_within("optim.later_lr", self.later_lr, *_OPTIM_RANGES["lr"])
        for name in ("lr", "later_lr"):
            highest = getattr(self, name)
            if highest is not None and not 0 <= self.lr_end <= highest:
                raise ConfigError(f"optim.lr_end is {self.lr_end}; allowed are 0 to optim.{name} = {highest}")
        if not 0 <= self.apart <= 1:
            raise ConfigError(f"optim.apart is {self.apart}; it is a share, 0 to 1")
        if self.first_epochs and not self.epochs:
            raise ConfigError(
                f"optim.first_epochs is {self.first_epochs:g} and optim.epochs 0: stages are counted in optim.steps; "
                "set optim.epochs too, or leave out optim.first_epochs"
            )

    def stage_epochs(self, stage: int) -> float:
        """How many passes over its demonstrations stage ``stage`` is; 0: it is counted in steps."""
        return self.first_epochs or self.epochs if stage == 0 else self.epochs

    def stage_steps(self, stage: int, demonstrated: int, history: int, tasks: int = 1) -> int:
        """Steps of stage ``stage``, whose demonstrations, of so many tasks, have ``demonstrated`` steps, read in
        windows of ``history``."""
        epochs = self.stage_epochs(stage)
        return max(1, round(epochs * demonstrated / (self.batch * history))) if epochs else tasks * self.steps

    def stage_lr(self, stage: int) -> float:
        """Highest learning rate of stage ``stage``."""
        return self.later_lr if stage > 0 and self.later_lr is not None else self.lr


@dataclass(frozen=True)
class EvaluationConfig:
    """rollouts a cell, on held-out initial states; points: checkpoints of a stage among which the best is chosen on
    selection states (1: the last alone, nothing to choose). sampling: how actions are drawn from the mixture.

    choose_on: the states that choose: ``selection`` ones, which nothing else sees, or the ``reported`` ones, which is
    LIBERO's own rule and flatters.
    ties: which of several points that do equally well is taken: the ``earliest``, which is LIBERO's rule, or the
    ``latest``. With few rollouts a point, equals are the rule, and the earliest of them ends a stage while its rate is
    still high: the new task is done by then, but what was held of the old ones has not settled again.
    horizon: control steps after which a rollout has failed, where that is sooner than the task says; 0: the task's own.
    told: also tell every world each other task's instruction, at the end of the run, with so many rollouts a pair.
    """

    rollouts: int = 20
    points: int = 1
    choose_on: Literal["selection", "reported"] = "selection"
    ties: Literal["earliest", "latest"] = "earliest"
    sampling: Literal["sample", "low_noise", "mode"] = "low_noise"
    workers: int = 2
    visuals: Literal["fast", "stock"] = "fast"
    told: int = 0
    horizon: int = 0

    def __post_init__(self) -> None:
        for name, (low, high) in _EVALUATION_RANGES.items():
            require_within(f"evaluation.{name}", getattr(self, name), low, high)


@dataclass(frozen=True)
class RunConfig:
    """One lifelong run. ``tasks`` are indices into the suite, in the order in which they are learned.

    suite: of simulated worlds, or ``files``: demonstrations of one's own, in order of file name, learned without
    rollouts. episodes: how many of each task's file are learned from, the first ones.
    jointly: how many of the tasks, from the first on, are learned together in the first stage, as a policy is trained
    before it meets its first new task; LOTUS (https://arxiv.org/abs/2311.02058) and M2Distill's own evaluation have 6
    of 10. later_episodes: ``episodes`` of the tasks after those; 0: as many.
    """

    suite: str = "tabletop"
    tasks: tuple[int, ...] = (0, 1, 2)
    jointly: int = 1
    episodes: int = 40
    later_episodes: int = 0
    image_size: int = 128
    text_encoder: str = "auto"
    strategy: str = "m2distill"
    seed: int = 0
    network: NetworkConfig = field(default_factory=NetworkConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    #: Sections of strategies: those that were given, and the one of ``strategy`` in any case.
    sections: tuple[Any, ...] = open_sections(sections)

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ConfigError("tasks is empty; name at least one task of the suite, such as tasks=[0,1,2]")
        if len(set(self.tasks)) != len(self.tasks):
            raise ConfigError(f"tasks names one twice: {list(self.tasks)}")
        for task in self.tasks:
            require_within("a number in tasks", task, 0, MANY)
        require_within("image_size", self.image_size, *IMAGE_SIDE, "pixels")
        require_within("episodes", self.episodes, 1, MANY)
        require_within("later_episodes", self.later_episodes, 0, MANY)
        require_within("augment.shift", self.augment.shift, 0, self.image_size, "pixels")
        if not 0 <= self.seed < RUN_SEEDS:
            raise ConfigError(f"seed is {self.seed}; 0 to {RUN_SEEDS - 1} are allowed")
        for name in ("episodes", "later_episodes"):
            if self.memory.episodes > (getattr(self, name) or self.episodes):
                raise ConfigError(
                    f"memory.episodes is {self.memory.episodes} of only {name} = {getattr(self, name)}; keep fewer, "
                    "learn more"
                )
        if not 1 <= self.jointly <= len(self.tasks):
            raise ConfigError(f"jointly is {self.jointly}; allowed are 1 to {len(self.tasks)}, the number of tasks")
        self._add_own_section()
        self.strategy_class.check(self)
        if self.memory.widen and not self.optim.apart:
            raise ConfigError(
                f"memory.widen is {self.memory.widen} and optim.apart is 0: windows are not widened; set optim.apart "
                "above 0, or memory.widen=0"
            )
        if not self.optim.epochs and self.evaluation.points > self.optim.steps:
            raise ConfigError(
                f"evaluation.points is {self.evaluation.points} in optim.steps = {self.optim.steps}; ask for fewer"
            )
        self._require_states()
        if self.suite == FILES and (self.evaluation.rollouts or self.evaluation.told):
            raise ConfigError(
                f"suite={FILES} has no world to roll a policy out in; set evaluation.rollouts=0 evaluation.told=0"
            )

    def _require_states(self) -> None:
        """Enough initial states for the rollouts, and none of them both to choose a point and to report."""
        states = count_initial_states(self.suite)
        if states is None:
            return
        chosen = self.evaluation.points > 1 and self.evaluation.choose_on == "selection"
        most = states // 2 if chosen else states
        if self.evaluation.rollouts > most:
            why = " and half of them choose a point: set evaluation.points=1, or" if chosen else ":"
            raise ConfigError(
                f"evaluation.rollouts is {self.evaluation.rollouts}; a task of {self.suite} has {states} initial "
                f"states{why} ask for at most {most}"
            )

    def _add_own_section(self) -> None:
        kind = self.strategy_class.config_class
        if kind is not None and not any(type(section) is kind for section in self.sections):
            names = {kind: name for name, kind in sections().items()}
            added = sorted((*self.sections, kind()), key=lambda section: names[type(section)])
            object.__setattr__(self, "sections", tuple(added))

    @property
    def strategy_class(self) -> type[Strategy]:
        """The class of the strategy."""
        return strategy_class(self.strategy)

    def section(self, kind: type[T]) -> T:
        """Return a strategy's section by its dataclass; its defaults where it was not given."""
        return next((section for section in self.sections if type(section) is kind), None) or kind()

    @property
    def first_tasks(self) -> int:
        """How many tasks the first stage learns."""
        return len(self.tasks) if self.strategy_class.learns_jointly else self.jointly

    @property
    def stages(self) -> int:
        """How many stages there are: one for the first tasks, and one a task after them."""
        return 1 + len(self.tasks) - self.first_tasks

    def learned(self, stage: int) -> int:
        """How many of the tasks, from the first on, have been learned when stage ``stage`` has ended."""
        return self.first_tasks + stage

    def new_tasks(self, stage: int) -> range:
        """Positions in ``tasks`` of those that stage ``stage`` learns."""
        return range(self.learned(stage) - 1 if stage else 0, self.learned(stage))

    def stage_of(self, task: int) -> int:
        """The stage that learns the task at this position."""
        return max(0, task + 1 - self.first_tasks)

    def episodes_of(self, task: int) -> int:
        """How many demonstrations the task at this position is learned from."""
        return self.later_episodes or self.episodes if self.stage_of(task) else self.episodes


def _unread_sections(strategies: set[str]) -> set[str]:
    """Sections that none of ``strategies`` reads; empty where no strategy is named."""
    if not strategies:
        return set()
    classes = [strategy_class(name) for name in strategies]
    return set(sections()) - {found.section for found in classes if found.config_class is not None}


def first_difference(made: Mapping[str, Any], wanted: Mapping[str, Any], within: str = "") -> str | None:
    """The first setting in which two configurations, as dictionaries, differ in a way that changes results: not in one
    that only another strategy reads."""
    strategies = {config["strategy"] for config in (made, wanted) if "strategy" in config}
    unread = _unread_sections(strategies)
    for key in sorted({*made, *wanted}):
        name = f"{within}{key}"
        if name in _NO_RESULT or name in unread:
            continue
        ours, theirs = made.get(key), wanted.get(key)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            found = first_difference(ours, theirs, f"{name}.")
            if found is not None:
                return found
        elif ours != theirs:
            return f"{name} is {ours} there and {theirs} here"
    return None
