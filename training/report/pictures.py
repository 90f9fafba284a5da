"""Pictures of a suite's first task in both visual profiles: ``python -m training.report.pictures SUITE FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np

from m2distill_policy.sim.suites import make_sim_env, suite_task

SIZE = 256


def main(suite: str, folder: Path) -> None:
    """Write ``fast.png`` and ``stock.png``: every view of the contract side by side."""
    folder.mkdir(parents=True, exist_ok=True)
    for visuals in ("fast", "stock"):
        world = make_sim_env(suite_task(suite, 0), size=SIZE, visuals=visuals)
        try:
            observation = world.reset(0)
            views = [observation.images[name] for name in world.contract.camera_names]
            imageio.imwrite(folder / f"{visuals}.png", np.concatenate(views, axis=1))
        finally:
            world.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
