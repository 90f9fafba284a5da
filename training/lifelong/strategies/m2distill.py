"""M2Distill (Roy et al. 2024, https://arxiv.org/abs/2410.00064): the previous policy is distilled into the current one.

Each of the four terms is computed on up to three kinds of rows: windows of the new task (as in the paper), kept
demonstrations of old tasks, and observations of the new task under the instructions of old tasks. The policy depends on
the instruction. Without the last two kinds, nothing constrains it under an old instruction.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from m2distill_policy.config_keys import require_ranges, section, setting
from m2distill_policy.errors import ConfigError
from m2distill_policy.options import MANY
from training.lifelong.memory import Memory
from training.lifelong.strategy import Composed, Imitate, Strategy, Targets, imitation
from training.losses import latent_distance, policy_divergence, reverse_divergence, subspace_distance
from training.models.resnet_t import Inputs, Output, ResNetT

if TYPE_CHECKING:
    from training.run_config import RunConfig

#: The terms of the paper. Each is a section of :class:`DistillConfig`.
TERMS = ("image", "text", "extra", "policy")


@dataclass(frozen=True)
class TermConfig:
    """One term of the distillation."""

    weight: float = setting(0.1, "Factor on the term.", low=0, high=1e9)
    on: bool = setting(True, "Use the term; false leaves it out, for ablations.")

    def __post_init__(self) -> None:
        require_ranges(self, "a distillation ")

    @property
    def value(self) -> float:
        """The weight of the term, or 0 if the term is switched off."""
        return self.weight if self.on else 0.0


@dataclass(frozen=True)
class DistillConfig:
    """Distillation from the previous policy (strategy=m2distill).

    The paper does not publish its weights, so the defaults are our own. A distance is the sum over the entries of a
    token. A mean over n entries with weight w is the same as this sum with weight w / n.
    """

    image: TermConfig = section(TermConfig, "The term on image latents.")
    text: TermConfig = section(TermConfig, "The term on text latents.")
    extra: TermConfig = section(TermConfig, "The term on proprioception latents.")
    policy: TermConfig = section(TermConfig, "The term on the distribution of actions (a divergence).", weight=0.5)
    samples: int = setting(4, "Monte Carlo samples of the divergence.", unit="samples", low=1, high=4096)
    floor: float = setting(
        0.03, "Lower limit of the mixture's standard deviations, used only in the divergence.", low=0, high=10.0
    )
    new_policy: float = setting(
        0.1,
        "Factor on the policy term for windows of the new task. The previous policy has not learned this task, so its "
        "actions there are of little use.",
        low=0,
        high=1e9,
    )
    new_latents: float = setting(
        1.0,
        "Factor on the latent terms for windows of the new task. With 0, latents are distilled only on demonstrations "
        "in memory and on new observations with old instructions.",
        low=0,
        high=1e9,
    )
    rank: int = setting(
        0,
        "Compare latents only along this many directions: the singular vectors of the previous policy's latents "
        "with the largest singular values. 0: all directions.",
        unit="directions",
        low=0,
        high=MANY,
    )
    confident: int = setting(
        0,
        "Use only this many of the distill.samples samples: those that are most probable under the previous "
        "policy. 0: all samples.",
        unit="samples",
    )
    direction: Literal["forward", "reverse"] = setting(
        "forward",
        "Direction of the divergence. forward: KL(previous || current), as in the paper. reverse: KL(current || "
        "previous), with samples of the current policy.",
    )

    def __post_init__(self) -> None:
        if self.direction == "reverse" and self.confident:
            raise ConfigError(
                f"distill.confident is {self.confident}, and distill.direction=reverse takes samples of the current "
                "policy; set distill.confident=0"
            )
        require_ranges(self, "distill.")
        if not 0 <= self.confident <= self.samples:
            raise ConfigError(
                f"distill.confident is {self.confident}; allowed are 0 (all) to distill.samples = {self.samples}"
            )


class M2Distill(Strategy):
    """Behaviour cloning, and distillation from the frozen policy of the previous stage (the teacher) by four terms."""

    name = "m2distill"
    label = "M2Distill"
    config_class = DistillConfig
    section = "distill"
    config: DistillConfig
    uses_memory = True
    uses_old_instructions = True

    def __init__(
        self, memory: Memory, history: int, config: DistillConfig | None = None, single_steps: float = 0.0
    ) -> None:
        super().__init__(memory, history, config, single_steps)
        self.teacher: ResNetT | None = None

    @classmethod
    def check(cls, config: RunConfig) -> None:
        """Refuse a ``distill.rank`` that is larger than the number of entries of a token."""
        rank = config.section(DistillConfig).rank
        if rank > config.network.embed:
            raise ConfigError(
                f"distill.rank is {rank}, and a token has network.embed = {config.network.embed} entries; set a "
                "smaller distill.rank, or 0 for all directions"
            )

    @classmethod
    def describe(cls, config: RunConfig) -> str:
        """Return the label for tables and charts, with the names of terms that are switched off."""
        distill = config.section(DistillConfig)
        off = [term for term in TERMS if not getattr(distill, term).on]
        return super().describe(config) + (f" without {', '.join(off)}" if off else "")

    def begin_stage(self, policy: ResNetT, stage: int) -> None:
        """Freeze a copy of the policy as the teacher, from the second stage on."""
        if stage > 0:
            self.teacher = copy.deepcopy(policy).eval().requires_grad_(False)

    def loss(
        self, composed: Composed, inputs: Inputs, output: Output, targets: Targets, generator: torch.Generator
    ) -> dict[str, Tensor]:
        bc = imitation(composed, output, targets)
        terms = {"bc": bc, "total": bc}
        config = self.config
        weights = {name: getattr(config, name).value for name in TERMS}
        if self.teacher is None or not any(weights.values()):
            return terms
        with torch.no_grad():
            teacher = self.teacher(inputs)
        groups = len(self.teacher.groups)
        tokens = {"text": slice(0, 1), "extra": slice(1, 1 + groups), "image": slice(1 + groups, None)}
        places = (
            ("new", composed.new, config.new_latents, config.new_policy),
            ("memory", composed.memory, 1.0, 1.0),
            ("old_instructions", composed.old_instructions, 1.0, 1.0),
        )
        total = bc
        for place, rows, latent_factor, policy_factor in places:
            if rows.stop == rows.start:
                continue
            valid = targets.valid[rows]
            for name, part in tokens.items():
                if weights[name] and latent_factor:
                    earlier, current = teacher.tokens[rows, :, part], output.tokens[rows, :, part]
                    distance = (
                        subspace_distance(earlier, current, valid, config.rank)
                        if config.rank
                        else latent_distance(earlier, current, valid)
                    )
                    terms[f"{name}/{place}"] = distance.detach()
                    total = total + weights[name] * latent_factor * distance
            if weights["policy"] and policy_factor:
                mixtures = teacher.mixture.select(rows), output.mixture.select(rows)
                if config.direction == "forward":
                    divergence = policy_divergence(
                        *mixtures, valid, config.samples, config.floor, generator, config.confident
                    )
                else:
                    divergence = reverse_divergence(*mixtures, valid, config.samples, config.floor, generator)
                terms[f"policy/{place}"] = divergence.value.detach()
                terms[f"floored/{place}"] = divergence.floored
                total = total + weights["policy"] * policy_factor * divergence.value
        terms["total"] = total
        return terms

    def end_stage(self, policy: ResNetT, imitate: Imitate) -> None:
        """Release the teacher; the next stage makes its own."""
        self.teacher = None
