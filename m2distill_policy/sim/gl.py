"""Which OpenGL library draws: decided before mujoco or robosuite is imported, because both read it at import."""

from __future__ import annotations

import logging
import os
from pathlib import Path


def choose_gl() -> str:
    """Set ``MUJOCO_GL`` where it is unset and return it: ``egl`` where a GPU's device file is seen, else ``osmesa``.

    Safe to call often; a value that the user set always wins.
    """
    chosen = os.environ.get("MUJOCO_GL")
    if not chosen:
        has_gpu = Path("/dev/nvidia0").exists() or any(Path("/dev/dri").glob("render*"))
        chosen = "egl" if has_gpu else "osmesa"
        os.environ["MUJOCO_GL"] = chosen
    if chosen == "osmesa":
        # PyOpenGL picks its own platform unless told.
        os.environ.setdefault("PYOPENGL_PLATFORM", "osmesa")
    # robosuite asks at every import, in every process, for a file of personal settings that nothing here needs.
    logging.getLogger("robosuite_logs").addFilter(_wanted)
    return chosen


def _wanted(record: logging.LogRecord) -> bool:
    """Whether a line of robosuite's log is worth showing."""
    return "macro" not in record.getMessage()
