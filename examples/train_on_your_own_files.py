"""Train on demonstration files of your own, and load the bundle that results.

    python -m examples.train_on_your_own_files data/mine runs/mine optim.steps=600

``data/mine`` holds one file ``<task>_demo.hdf5`` for each task, in LIBERO's layout (docs/reference/demonstrations.md).
The tasks are learned one after another, in the order of the file names. The same command continues an interrupted run.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import m2distill_policy as m2
import training
from m2distill_policy.config import load_config
from m2distill_policy.demonstrations import DemonstrationFile


def main(folder: str, out: str, *overrides: str) -> None:
    """Train and export, then compare the policy's actions with one demonstration of each task."""
    files = [DemonstrationFile(path) for path in sorted(Path(folder).glob("*_demo.hdf5"))]
    if not files:
        raise SystemExit(f"{folder} holds no file named <task>_demo.hdf5")

    # config/tiny.toml gives the network and its optimisation. The files determine the other settings.
    settings = [
        "suite=files",  # the tasks are the files of a folder
        f"tasks={list(range(len(files)))}",
        f"episodes={min(len(file) for file in files)}",
        f"image_size={files[0].contract.cameras[0].height}",
        "evaluation.rollouts=0",  # these tasks have no simulator
    ]
    config = load_config(training.RunConfig, "config/tiny.toml", [*settings, *overrides])
    trained = training.train(config, folder, out)
    print("bundle:", trained.bundle)

    policy = m2.load(trained.bundle, sampling="mode")
    for file in files:
        episode = file.episode(0)
        policy.reset(file.instruction)
        errors = []
        for step in range(len(episode)):
            images = {view: frames[step] for view, frames in episode.images.items()}
            proprioception = {group: values[step] for group, values in episode.proprioception.items()}
            errors.append(np.abs(policy.act(images, proprioception).values - episode.actions[step]))
        print(f"{file.instruction}: actions differ by {np.mean(errors):.2f} on average; they are within -1 and 1")


if __name__ == "__main__":
    main(*sys.argv[1:])
