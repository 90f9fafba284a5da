"""Show how the latents of a run have moved, as in the paper's first figure.

Each task has two sets of tokens: from the policy that had just learned the task, and from the policy at the end of the
run. scikit-learn's t-SNE (van der Maaten & Hinton 2008) projects them to two dimensions, jointly for all tasks and
separately for each modality. If the two sets of a task are separate in the chart, the task's latents have moved. Text
is omitted, because a task has a single text token.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.manifold import TSNE

from m2distill_policy.errors import TrainingError
from training.drift import modalities
from training.lifelong.run import LifelongRun
from training.lifelong.stage import to_inputs
from training.report.charts import scatter_chart

#: Tokens (N, E) of a task: from the policy that had just learned it, and from the policy at the end of the run.
Moved = tuple[NDArray[np.float32], NDArray[np.float32]]


def latents(run: LifelongRun) -> dict[str, list[Moved]]:
    """Compute the tokens of the last task of every stage, on the windows that the stage saved.

    Returns:
        Modality (without text) -> one :data:`Moved` for each stage.

    Raises:
        TrainingError: The run is not finished, or it learned all tasks jointly.
    """
    if run.joint:
        raise TrainingError(f"{run.folder} learned all tasks jointly, so there is no old task whose latents could move")
    for stage in range(run.stages):
        if not run.trained(stage):
            raise TrainingError(f"{run.folder} has trained {stage} of {run.stages} stages; finish it with --resume")
    last = run.stages - 1
    found: dict[str, list[Moved]] = {}
    for learned in range(run.stages):
        task = run.learned(learned) - 1
        probe = run.probes(learned)
        inputs, valid = to_inputs(probe, torch.device("cpu")), torch.from_numpy(probe.valid)
        times = []
        for stage in (learned, run.answering(last, task)):
            policy = run.policy(stage).cpu().eval()
            with torch.no_grad():
                tokens = policy(inputs).tokens
            times.append(
                {name: tokens[:, :, part].flatten(2)[valid].numpy() for name, part in modalities(policy).items()}
            )
        for name in times[0]:
            if name != "text":
                found.setdefault(name, []).append((times[0][name], times[1][name]))
    return found


def flatten(moved: list[Moved], seed: int = 0) -> list[Moved]:
    """Project the tokens of one modality to two dimensions with t-SNE."""
    parts = [part for pair in moved for part in pair]
    tokens = np.concatenate(parts)
    flat = TSNE(perplexity=min(30.0, (len(tokens) - 1) / 3), init="pca", random_state=seed).fit_transform(tokens)
    split = np.split(flat.astype(np.float32), np.cumsum([len(part) for part in parts])[:-1])
    return list(zip(split[::2], split[1::2], strict=True))


def latent_charts(run: LifelongRun, label: str) -> list[str]:
    """Return one chart for each modality."""
    names = [run.tasks[run.learned(stage) - 1].instruction for stage in range(run.stages)]
    return [scatter_chart(flatten(moved), names, f"{label}: {name}") for name, moved in latents(run).items()]
