"""Save the views of a suite's first task in both visual profiles, fast and stock.

``python -m training.report.camera_views SUITE FOLDER``
"""

from __future__ import annotations

import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np

from m2distill_policy.sim.suites import make_sim_env, suite_task

SIZE = 256


def main(suite: str, folder: Path) -> None:
    """Write ``fast.png`` and ``stock.png``, each with all views side by side."""
    folder.mkdir(parents=True, exist_ok=True)
    for visuals in ("fast", "stock"):
        env = make_sim_env(suite_task(suite, 0), size=SIZE, visuals=visuals)
        try:
            observation = env.reset(0)
            views = [observation.images[name] for name in env.contract.camera_names]
            imageio.imwrite(folder / f"{visuals}.png", np.concatenate(views, axis=1))
        finally:
            env.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
