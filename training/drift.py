"""Measure how far the latents of an old task have moved since it was learned, for each modality."""

from __future__ import annotations

import torch
from torch import Tensor

from training.data.task_data import WindowBatch
from training.lifelong.records import Drift
from training.lifelong.run import LifelongRun
from training.lifelong.stage import to_inputs
from training.losses import masked_mean
from training.models.resnet_t import ResNetT


def modalities(policy: ResNetT) -> dict[str, slice]:
    """Return the position of each modality in the tokens of a step: text, proprioception groups, then views."""
    names = ["text", *policy.contract.proprioception_names, *policy.contract.camera_names]
    return {name: slice(i, i + 1) for i, name in enumerate(names)}


def latent_drift(earlier: ResNetT, current: ResNetT, probe: WindowBatch) -> dict[str, Drift]:
    """Measure the drift of each modality's tokens.

    Args:
        earlier: Policy at the end of the stage that learned the task.
        current: Policy at the end of a later stage. Both policies are put into evaluation mode.
        probe: Windows of the task, on which the tokens of both policies are compared.

    Returns:
        Modality -> drift.
    """
    device = next(current.parameters()).device
    inputs = to_inputs(probe, device)
    valid = torch.from_numpy(probe.valid).to(device)
    with torch.no_grad():
        before, after = earlier.eval()(inputs).tokens, current.eval()(inputs).tokens
    result = {}
    for name, part in modalities(current).items():
        a, b = before[:, :, part].flatten(2), after[:, :, part].flatten(2)
        norm = masked_mean(a.norm(dim=-1), valid).clamp_min(1e-8)
        distance = masked_mean((a - b).norm(dim=-1), valid)
        cosine = masked_mean(torch.cosine_similarity(a, b, dim=-1), valid)
        result[name] = Drift(float(distance), float(distance / norm), float(cosine), linear_cka(a[valid], b[valid]))
    return result


def linear_cka(a: Tensor, b: Tensor) -> float | None:
    """Return the linear centred kernel alignment of two sets of features, 0 to 1.

    Args:
        a: Features (N, p).
        b: Features (N, q) of the same N examples.

    Returns:
        The alignment; None if one of the sets is the same for all examples.
    """
    a, b = ((x - x.mean(0)).double() for x in (a, b))
    scale = (a.T @ a).norm() * (b.T @ b).norm()
    if not scale > 1e-12 * len(a):
        return None
    return float((b.T @ a).norm().square() / scale)


def run_drift(run: LifelongRun) -> tuple[tuple[dict[str, Drift], ...], ...]:
    """Return the drift of old latents after each trained stage of a run.

    Returns:
        One row for each trained stage. The row of a stage has one entry (modality -> drift) for each stage up to it:
        the drift of that stage's last task. Empty for a run that learned all tasks jointly.
    """
    probes = {}
    for stage in range(0 if run.joint else run.stages):
        if run.trained(stage):
            probes[stage] = (run.policy(stage), run.probes(stage))
    return tuple(
        tuple(
            latent_drift(
                probes[before][0],
                probes[run.answering(stage, run.learned(before) - 1)][0],
                probes[before][1],
            )
            for before in range(stage + 1)
        )
        for stage in probes
    )
