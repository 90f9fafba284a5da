"""M2Distill (Roy et al. 2024, https://arxiv.org/abs/2410.00064): the previous policy holds the present one.

Each of the four terms is evaluated in up to three places: on the new task's windows (the paper), on kept
demonstrations of old tasks, and on the new task's observations under the old tasks' instructions. The network is
driven by language, so without the last two nothing ever asks it an old question.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from m2distill_policy.errors import ConfigError
from m2distill_policy.options import MANY
from m2distill_policy.ranges import require_within
from training.lifelong.memory import Memory
from training.lifelong.strategy import Composed, Imitate, Strategy, Targets, imitation
from training.losses.terms import latent_distance, policy_divergence, reverse_divergence, subspace_distance
from training.models.resnet_t import Inputs, Output, ResNetT

if TYPE_CHECKING:
    from training.run_config import RunConfig

#: The paper's terms, each a section of :class:`DistillConfig`.
TERMS = ("image", "text", "extra", "policy")


@dataclass(frozen=True)
class TermConfig:
    """A term's weight, and its switch for ablations."""

    weight: float
    on: bool = True

    def __post_init__(self) -> None:
        require_within("a distillation weight", self.weight, 0, 1e9)

    @property
    def value(self) -> float:
        """The weight, or 0 when switched off."""
        return self.weight if self.on else 0.0


@dataclass(frozen=True)
class DistillConfig:
    """Weights of the four terms; the published ones are not known, so these are our own.

    samples: N of the Monte Carlo estimate. floor: least standard deviation within the KL term alone.
    new_policy, new_latents: factors on the terms where they are taken on the new task's windows under the new
    instruction: there the previous policy knows features worth keeping but no action worth repeating.
    rank: hold latents only within so many directions, those that the previous policy uses most; 0 holds all.
    confident: of the ``samples`` compare only so many, those that the previous policy thinks likeliest; 0 compares all.
    direction: of the divergence. ``forward`` is the paper's, KL(previous || present); ``reverse`` the other, whose
    samples are the present policy's.

    A distance is summed over a token's entries; a mean over them would be the same at a weight so many times smaller.
    """

    image: TermConfig = field(default_factory=lambda: TermConfig(0.1))
    text: TermConfig = field(default_factory=lambda: TermConfig(0.1))
    extra: TermConfig = field(default_factory=lambda: TermConfig(0.1))
    policy: TermConfig = field(default_factory=lambda: TermConfig(0.5))
    samples: int = 4
    floor: float = 0.03
    new_policy: float = 0.1
    new_latents: float = 1.0
    rank: int = 0
    confident: int = 0
    direction: Literal["forward", "reverse"] = "forward"

    def __post_init__(self) -> None:
        if self.direction == "reverse" and self.confident:
            raise ConfigError(
                f"distill.confident is {self.confident} and distill.direction reverse, whose samples are the present "
                "policy's; set distill.confident=0"
            )
        require_within("distill.samples", self.samples, 1, 4096)
        if not 0 <= self.confident <= self.samples:
            raise ConfigError(
                f"distill.confident is {self.confident}; allowed are 0 (all) to distill.samples = {self.samples}"
            )
        require_within("distill.floor", self.floor, 0, 10.0)
        for name in ("new_policy", "new_latents"):
            require_within(f"distill.{name}", getattr(self, name), 0, 1e9)
        require_within("distill.rank", self.rank, 0, MANY)


class M2Distill(Strategy):
    """Behaviour cloning plus the four terms against the frozen policy of the previous stage."""

    name = "m2distill"
    label = "M2Distill"
    config_class = DistillConfig
    section = "distill"
    config: DistillConfig
    uses_memory = True
    uses_old_instructions = True

    def __init__(self, memory: Memory, history: int, config: DistillConfig | None = None, apart: float = 0.0) -> None:
        super().__init__(memory, history, config, apart)
        self.teacher: ResNetT | None = None

    @classmethod
    def check(cls, config: RunConfig) -> None:
        """Refuse more directions than a token has entries."""
        rank = config.section(DistillConfig).rank
        if rank > config.network.embed:
            raise ConfigError(
                f"distill.rank is {rank}, and a token has network.embed = {config.network.embed} entries; set a "
                "smaller distill.rank, or 0 for all directions"
            )

    @classmethod
    def describe(cls, config: RunConfig) -> str:
        """Add the terms that are switched off."""
        distill = config.section(DistillConfig)
        off = [term for term in TERMS if not getattr(distill, term).on]
        return super().describe(config) + (f" without {', '.join(off)}" if off else "")

    def begin_stage(self, policy: ResNetT, stage: int) -> None:
        """Freeze the policy as it stands: from the second stage on it is the teacher."""
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
            held = self.teacher(inputs)
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
                    then, now = held.tokens[rows, :, part], output.tokens[rows, :, part]
                    distance = (
                        subspace_distance(then, now, valid, config.rank)
                        if config.rank
                        else latent_distance(then, now, valid)
                    )
                    terms[f"{name}/{place}"] = distance.detach()
                    total = total + weights[name] * latent_factor * distance
            if weights["policy"] and policy_factor:
                mixtures = held.mixture.select(rows), output.mixture.select(rows)
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
        """Let the teacher go; the next stage makes its own."""
        self.teacher = None
