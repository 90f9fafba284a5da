"""The five terms of M2Distill's loss, each a pure function of tensors.

M2Distill (Roy et al. 2024, https://arxiv.org/abs/2410.00064), section III: latents of image, text and proprioception
are held by the squared L2 distance to the frozen previous policy, the action distribution by a Monte Carlo estimate of
KL(previous || present). The teacher's tensors carry no gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from training import distributed
from training.models.mixture import Mixture

#: Of the largest eigenvalue of a moment: below it a direction is not used, but left over by rounding.
_UNUSED = 1e-5


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of values (..., B, L) over the steps that valid (B, L) marks; 0 if it marks none.

    Where several processes share the batch, each divides by the mean of their counts: the mean of what they return is
    the mean over the whole batch.
    """
    weight = valid.to(values.dtype).expand_as(values)
    return (values * weight).sum() / distributed.average(weight.sum()).clamp_min(1.0)


def behaviour_cloning(mixture: Mixture, actions: Tensor, valid: Tensor) -> Tensor:
    """Negative log-likelihood of actions (B, L, A) under mixture (B, L), nats, mean over valid steps."""
    return -masked_mean(mixture.log_prob(actions), valid)


def latent_distance(teacher: Tensor, student: Tensor, valid: Tensor) -> Tensor:
    """Squared L2 distance of tokens (B, L, T, E): summed over the T tokens and E entries, mean over valid steps."""
    return masked_mean((teacher.detach() - student).square().sum(dim=(-2, -1)), valid)


def subspace_distance(teacher: Tensor, student: Tensor, valid: Tensor, rank: int) -> Tensor:
    """:func:`latent_distance` within the ``rank`` directions of E that carry most of the teacher's tokens, for each of
    the T tokens by itself: what the teacher hardly uses may move.

    After SPREAD (Roy et al. 2026, https://arxiv.org/abs/2603.08763), which aligns dominant subspaces by singular value
    decomposition; here the directions are the teacher's right singular vectors over the batch's valid steps, of all
    processes. Where those steps span fewer than ``rank`` directions (an instruction's token is one), it is those.
    """
    with torch.autocast(teacher.device.type, enabled=False):  # half the digits give no eigenvectors
        teacher = teacher.detach().float()
        weight = valid.to(teacher.dtype)[..., None, None]
        moment = torch.einsum("blte,bltf->tef", teacher * weight, teacher)
        sizes, directions = torch.linalg.eigh(distributed.average(moment))  # sizes ascend
        used = sizes[..., -rank:] > _UNUSED * sizes[..., -1:]
        directions = directions[..., -rank:] * used[..., None, :]
        difference = torch.einsum("blte,ter->bltr", teacher - student.float(), directions)
    return masked_mean(difference.square().sum(dim=(-2, -1)), valid)


class PolicyDivergence(NamedTuple):
    """value: the divergence in nats; floored: share of the student's deviations raised to the floor."""

    value: Tensor
    floored: Tensor


def _floored(teacher: Mixture, student: Mixture, floor: float) -> tuple[Mixture, Mixture, Tensor]:
    """Both with no deviation below ``floor``, the teacher without gradient, and the share of the student's raised."""
    share = (student.scales < floor).float().mean().detach()
    return teacher.detach().floored(floor), student.floored(floor), share


def policy_divergence(
    teacher: Mixture,
    student: Mixture,
    valid: Tensor,
    samples: int,
    floor: float,
    generator: torch.Generator | None = None,
    confident: int = 0,
) -> PolicyDivergence:
    """Monte Carlo KL(teacher || student): mean of log pi_t(a) - log pi_s(a) over ``samples`` actions a ~ pi_t.

    ``confident``: of each step's samples take only so many, those that the teacher thinks likeliest, as SPREAD does
    (https://arxiv.org/abs/2603.08763); 0 takes all. What remains is no estimate of the whole divergence any more.

    ``floor`` raises the standard deviations of both mixtures for this term alone: with a floor of 1e-4 in the
    network, one sample ten deviations off would outweigh the rest of the batch.
    """
    teacher, student, share = _floored(teacher, student, floor)
    actions = teacher.sample(samples, generator)
    then, now = teacher.log_prob(actions), student.log_prob(actions)
    if confident:
        then, likeliest = then.topk(confident, dim=0)
        now = now.gather(0, likeliest)
    return PolicyDivergence(masked_mean(then - now, valid), share)


def reverse_divergence(
    teacher: Mixture,
    student: Mixture,
    valid: Tensor,
    samples: int,
    floor: float,
    generator: torch.Generator | None = None,
) -> PolicyDivergence:
    """Monte Carlo KL(student || teacher): mean of log pi_s(a) - log pi_t(a) over ``samples`` actions a ~ pi_s, floored
    as :func:`policy_divergence` is.

    The student stays where the teacher would act and need not cover all of it. Actions of a mixture cannot be moved
    along with its parameters, so the gradient is the score function's, E_s[(log pi_s - log pi_t) grad log pi_s]
    (Williams 1992), of which the samples' mean difference is taken away: that changes its spread and not its mean.
    """
    teacher, student, share = _floored(teacher, student, floor)
    actions = student.detach().sample(samples, generator)
    now = student.log_prob(actions)
    difference = (now - teacher.log_prob(actions)).detach()
    if samples > 1:  # each sample beside the mean of the others
        others = (difference.sum(0, keepdim=True) - difference) / (samples - 1)
    else:
        others = torch.zeros_like(difference)
    score = (difference - others) * now
    return PolicyDivergence(masked_mean(difference + score - score.detach(), valid), share)
