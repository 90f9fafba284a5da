"""Export a stage of a run as a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from m2distill_policy import provenance
from training.export import Parity, Precision, export_bundle
from training.lifelong.run import LifelongRun
from training.models.resnet_t import ResNetT


def export_stage(
    run: LifelongRun,
    stage: int,
    path: Path,
    *,
    policy: ResNetT | None = None,
    precision: Precision = "fp32",
    overwrite: bool = False,
) -> Parity:
    """Write the bundle of a trained stage.

    Args:
        run: The run.
        stage: Number of the stage, from 0.
        path: Folder of the bundle.
        policy: Network to export; None: the network at the end of the stage.
        precision: See :data:`training.export.Precision`. ``int8`` is calibrated on the last task of the stage, because
            the demonstrations of earlier tasks may no longer be available.
        overwrite: Replace a bundle at ``path``.

    Returns:
        The largest differences between ONNX Runtime and torch.
    """
    network = (policy or run.policy(stage)).cpu()
    known = [task for task in range(run.learned(stage)) if run.answering(stage, task) == stage]
    return export_bundle(
        network,
        path,
        tasks=[{"name": run.tasks[i].name, "instruction": run.tasks[i].instruction} for i in known],
        embeddings=np.stack([run.embedding(index) for index in known]),
        check_on=[run.episode(stage)],
        provenance={
            "run": run.folder.name,
            "stage": stage,
            "strategy": run.config.strategy,
            "seed": run.config.seed,
            "data": run.record.data,
            "metrics": {"success": run.success(stage)},
            "commit": provenance.commit(),
            "versions": provenance.versions(),
        },
        precision=precision,
        overwrite=overwrite,
    )
