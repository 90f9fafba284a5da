"""The configuration of a run: data, network, optimisation, strategy, memory and evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from m2distill_policy import config_keys
from m2distill_policy.config import open_sections
from m2distill_policy.config_keys import require_ranges, section, setting
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

#: Settings that affect only the time that a run takes, not its results.
_NO_RESULT = ("evaluation.workers", "optim.checkpoint_seconds", "optim.recompute")
T = TypeVar("T")


@dataclass(frozen=True)
class OptimConfig:
    """Optimisation: AdamW with a linear warm-up of the learning rate and a cosine decay."""

    steps: int = setting(2500, "Optimiser steps of a stage.", unit="steps", low=1, high=100 * MANY)
    epochs: float = setting(
        0.0,
        "Length of a stage in epochs; 0: use optim.steps instead. One epoch samples as many time steps as "
        "the demonstrations of the stage have, so a task with longer demonstrations takes more optimiser "
        "steps. An epoch of LIBERO samples every step once for each window that contains it: with a history of 10, "
        "ten times as many.",
        unit="epochs",
        low=0,
        high=MANY,
    )
    first_epochs: float = setting(
        0.0,
        "The value of optim.epochs for the first stage, which starts from random weights; 0: the same.",
        unit="epochs",
        low=0,
        high=MANY,
    )
    batch: int = setting(32, "Windows of the new task in every batch.", unit="windows", low=1, high=LARGEST_BATCH)
    single_steps: float = setting(
        0.0,
        "History dropout: share of rows of a batch that are single steps without history instead of windows. With "
        "history a network can predict an action from the past motion alone and ignore the images (the copycat "
        "problem, de Haan et al. 2019, https://arxiv.org/abs/1905.11979).",
    )
    lr: float = setting(1e-4, "Highest learning rate.", low=1e-12, high=10.0)
    lr_end: float = setting(1e-5, "Learning rate of the last step; 0 to optim.lr.")
    later_lr: float | None = setting(
        None, "Highest learning rate of the stages after the first; null: optim.lr.", low=1e-12, high=10.0
    )
    text_lr_factor: float = setting(
        1.0,
        "Factor on the learning rate of the layers that read the text embedding. A step of Adam changes every weight "
        "by about the learning rate. FiLM's scales are weighted sums over hundreds of entries of the embedding, so a "
        "step changes them by hundreds of times the learning rate. At a learning rate of 1e-3 they grow to 16, the "
        "spatial softmax saturates, and a second task is not learned.",
        low=1e-9,
        high=1e9,
    )
    warmup: int = setting(
        0, "Steps in which the learning rate rises to its highest.", unit="steps", low=0, high=100 * MANY
    )
    weight_decay: float = setting(1e-4, "Weight decay of AdamW.", low=0, high=100.0)
    clip: float = setting(100.0, "Largest norm of the gradient; a larger one is scaled down.", low=1e-9, high=1e12)
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "auto", "Precision of the forward pass. auto: bf16 where the hardware computes in it, else fp32."
    )
    recompute: bool | Literal["auto"] = setting(
        "auto",
        "Recompute the feature maps of the image encoders in the backward pass instead of storing them: less memory, "
        "the same weights, about a third more time. auto: if a batch's feature maps need more than half of the free "
        "memory, or on a CPU more than 4.5 GiB.",
    )
    threads: int = setting(
        0,
        "Threads of torch on the CPU; 0: torch's default. The weights depend on the number, because it changes the "
        "order of sums.",
        unit="threads",
        low=0,
        high=MOST_PROCESSES,
    )
    checkpoint_seconds: float = setting(
        60.0,
        "Time between partial checkpoints: at most this much work is lost when the process is killed.",
        unit="s",
        low=0,
        high=1e9,
    )

    def __post_init__(self) -> None:
        require_ranges(self, "optim.")
        for name in ("lr", "later_lr"):
            highest = getattr(self, name)
            if highest is not None and not 0 <= self.lr_end <= highest:
                raise ConfigError(f"optim.lr_end is {self.lr_end}; allowed are 0 to optim.{name} = {highest}")
        if not 0 <= self.single_steps <= 1:
            raise ConfigError(f"optim.single_steps is {self.single_steps}; allowed is a share, 0 to 1")
        if self.first_epochs and not self.epochs:
            raise ConfigError(
                f"optim.first_epochs is {self.first_epochs:g} and optim.epochs 0, so the length of stages is "
                "optim.steps; set optim.epochs too, or leave out optim.first_epochs"
            )

    def stage_epochs(self, stage: int) -> float:
        """Return the length of a stage in epochs; 0 means that ``steps`` sets the length."""
        return self.first_epochs or self.epochs if stage == 0 else self.epochs

    def stage_steps(self, stage: int, demonstrated: int, history: int, tasks: int = 1) -> int:
        """Return the number of optimiser steps of a stage.

        Args:
            stage: Number of the stage, from 0.
            demonstrated: Number of time steps in the stage's demonstrations.
            history: Number of steps in a window.
            tasks: Number of tasks that the stage learns.
        """
        epochs = self.stage_epochs(stage)
        return max(1, round(epochs * demonstrated / (self.batch * history))) if epochs else tasks * self.steps

    def stage_lr(self, stage: int) -> float:
        """Return the highest learning rate of a stage."""
        return self.later_lr if stage > 0 and self.later_lr is not None else self.lr


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation after every stage, and the choice among a stage's checkpoint candidates."""

    rollouts: int = setting(
        20, "Rollouts of each task after each stage, from held-out initial states; 0: none.", unit="rollouts", low=0,
        high=MANY,
    )  # fmt: skip
    candidates: int = setting(
        1,
        "Evenly spaced checkpoints of a stage that are evaluated; the best one is the result of the stage. 1: only "
        "the last checkpoint.",
        unit="checkpoints",
        low=1,
        high=10_000,
    )
    choose_on: Literal["selection", "reported"] = setting(
        "selection",
        "Initial states on which candidates are compared. selection: states that are used for nothing else. reported: "
        "those of the results, as in LIBERO, which makes the results look better than they are.",
    )
    ties: Literal["earliest", "latest"] = setting(
        "earliest",
        "Which of several equally good candidates is the result of the stage. earliest: LIBERO's rule. latest: "
        "better with few rollouts, because ties are frequent then, and the earliest candidate has had little training.",
    )
    sampling: Literal["sample", "low_noise", "mode"] = setting(
        "low_noise",
        "How an action is chosen from the mixture. sample: a random sample. low_noise: the mean of a random mode. "
        "mode: the mean of the most likely mode.",
    )
    workers: int = setting(2, "Processes that run rollouts in parallel.", unit="processes", low=1, high=MOST_PROCESSES)
    visuals: Literal["fast", "stock"] = setting(
        "fast", "How the simulator renders: fast, or with robosuite's own textures and shadows (stock)."
    )
    cross_instruction: int = setting(
        0,
        "Cross-instruction evaluation at the end of the run: rollouts of each environment with the instruction of "
        "every other task; 0: none.",
        unit="rollouts",
        low=0,
        high=MANY,
    )
    horizon: int = setting(
        0, "Control steps after which a rollout fails, if fewer than the task's own limit; 0: the task's own limit.",
        unit="control steps", low=0, high=MANY,
    )  # fmt: skip

    def __post_init__(self) -> None:
        require_ranges(self, "evaluation.")


@dataclass(frozen=True)
class RunConfig:
    """One lifelong run: data, network, optimisation, strategy, memory and evaluation."""

    suite: str = setting(
        "tabletop", "Suite of the simulated tasks. With 'files', the tasks are your own files; there are no rollouts."
    )
    tasks: tuple[int, ...] = setting(
        (0, 1, 2),
        "Task numbers of the suite, in the order in which they are learned. With suite = files: numbers of the files, "
        "sorted by name, from 0 on.",
    )
    jointly: int = setting(
        1,
        "Number of tasks, counted from the first, that are learned jointly in the first stage. LOTUS "
        "(https://arxiv.org/abs/2311.02058) and M2Distill's own evaluation learn 6 of 10 tasks jointly.",
        unit="tasks",
    )
    episodes: int = setting(
        40, "Demonstrations of each task, from the start of its file.", unit="demonstrations", low=1,
        high=MANY,
    )  # fmt: skip
    later_episodes: int = setting(
        0,
        "The value of episodes for tasks after the first stage; 0: the same.",
        unit="demonstrations",
        low=0,
        high=MANY,
    )
    image_size: int = setting(
        128, "Height and width of the camera images.", unit="pixels", low=IMAGE_SIDE[0], high=IMAGE_SIDE[1]
    )
    text_encoder: str = setting(
        "auto", "Model that embeds instructions: minilm, bert-base-cased, a folder, or auto (minilm)."
    )
    strategy: str = setting("m2distill", "Name of the lifelong learning strategy; --import loads one of your own.")
    seed: int = setting(0, "Seed of everything that is random in the run.", low=0, high=RUN_SEEDS - 1)
    network: NetworkConfig = section(NetworkConfig, "The sizes of the network, ResNet-T.")
    augment: AugmentConfig = section(AugmentConfig, "The augmentation of images, sampled for each window.")
    optim: OptimConfig = section(OptimConfig, "Optimisation with AdamW.")
    memory: MemoryConfig = section(
        MemoryConfig, "The replay buffer: what it keeps of old tasks, and how many old windows are in a batch."
    )
    evaluation: EvaluationConfig = section(EvaluationConfig, "Evaluation after every stage.")
    #: Sections of strategies: those that the configuration gives, and always that of ``strategy``, if it has one.
    sections: tuple[Any, ...] = open_sections(sections)

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ConfigError("tasks is empty; name at least one task of the suite, such as tasks=[0,1,2]")
        if len(set(self.tasks)) != len(self.tasks):
            raise ConfigError(f"tasks is {list(self.tasks)}, and names a task twice; name each task once")
        for task in self.tasks:
            require_within("a number in tasks", task, 0, MANY)
        require_ranges(self)
        require_within("augment.shift", self.augment.shift, 0, self.image_size, "pixels")
        for name in ("episodes", "later_episodes"):
            if self.memory.episodes > (getattr(self, name) or self.episodes):
                raise ConfigError(
                    f"memory.episodes is {self.memory.episodes} and {name} is {getattr(self, name)}; set "
                    f"memory.episodes to at most {getattr(self, name)}"
                )
        if not 1 <= self.jointly <= len(self.tasks):
            raise ConfigError(f"jointly is {self.jointly}; allowed are 1 to {len(self.tasks)}, the number of tasks")
        self._add_own_section()
        self.strategy_class.check(self)
        if self.memory.out_of_distribution and not self.optim.single_steps:
            raise ConfigError(
                f"memory.out_of_distribution is {self.memory.out_of_distribution} and optim.single_steps is 0, but "
                "only single steps are changed; set optim.single_steps above 0, or memory.out_of_distribution=0"
            )
        if not self.optim.epochs and self.evaluation.candidates > self.optim.steps:
            raise ConfigError(
                f"evaluation.candidates is {self.evaluation.candidates} and optim.steps is {self.optim.steps}; "
                f"allowed are 1 to {self.optim.steps}, one a step"
            )
        self._require_states()
        if self.suite == FILES and (self.evaluation.rollouts or self.evaluation.cross_instruction):
            raise ConfigError(
                f"suite={FILES} has no environment to roll a policy out in; set evaluation.rollouts=0 and "
                "evaluation.cross_instruction=0"
            )

    def _require_states(self) -> None:
        """Refuse more rollouts than there are initial states. States that select a candidate cannot be reported."""
        states = count_initial_states(self.suite)
        if states is None:
            return
        chosen = self.evaluation.candidates > 1 and self.evaluation.choose_on == "selection"
        most = states // 2 if chosen else states
        if self.evaluation.rollouts > most:
            why = " and half of them select a candidate: set evaluation.candidates=1, or" if chosen else ":"
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
        """The class of the strategy that ``strategy`` names."""
        return strategy_class(self.strategy)

    def section(self, kind: type[T]) -> T:
        """Return the configuration's section of the type ``kind``; if it was not given, ``kind`` with its defaults."""
        return next((section for section in self.sections if type(section) is kind), None) or kind()

    @property
    def first_tasks(self) -> int:
        """The number of tasks of the first stage."""
        return len(self.tasks) if self.strategy_class.learns_jointly else self.jointly

    @property
    def stages(self) -> int:
        """The number of stages: one for the first tasks, and one for each task after them."""
        return 1 + len(self.tasks) - self.first_tasks

    def learned(self, stage: int) -> int:
        """Return how many tasks have been learned after a stage."""
        return self.first_tasks + stage

    def new_tasks(self, stage: int) -> range:
        """Return the positions in ``tasks`` of a stage's new tasks."""
        return range(self.learned(stage) - 1 if stage else 0, self.learned(stage))

    def stage_of(self, task: int) -> int:
        """Return the stage that learns the task at a position in ``tasks``."""
        return max(0, task + 1 - self.first_tasks)

    def episodes_of(self, task: int) -> int:
        """Return the number of demonstrations of the task at a position in ``tasks``."""
        return self.later_episodes or self.episodes if self.stage_of(task) else self.episodes


def reference() -> str:
    """Return the reference of all configuration keys as Markdown: ``docs/reference/configuration.md``."""
    return config_keys.reference(
        RunConfig,
        "Training configuration",
        "Every key of a configuration for `m2distill train`. This page is generated by `m2distill config --markdown` "
        "from the code. A configuration is a TOML or YAML file. "
        '`extends = "other.toml"` starts from another file, given by its path relative to this one. On the command '
        "line a key is changed by `section.key=value`. The section of a strategy is used by that strategy only.",
    )


def _unread_sections(strategies: set[str]) -> set[str]:
    """Return the names of the sections that none of ``strategies`` uses; empty if ``strategies`` is empty."""
    if not strategies:
        return set()
    classes = [strategy_class(name) for name in strategies]
    return set(sections()) - {found.section for found in classes if found.config_class is not None}


def first_difference(made: Mapping[str, Any], wanted: Mapping[str, Any], within: str = "") -> str | None:
    """Compare two configurations, as dictionaries.

    Settings that do not affect results are ignored. So are sections of strategies that neither configuration names.

    Args:
        made: Configuration of an existing run.
        wanted: Configuration to compare it with.
        within: Prefix of the keys in the result, such as ``evaluation.``.

    Returns:
        A phrase about the first setting that differs; None if no setting differs.
    """
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
