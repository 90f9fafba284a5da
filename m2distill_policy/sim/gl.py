"""Choose the OpenGL library before mujoco or robosuite is imported, because both read the choice at import."""

from __future__ import annotations

import ctypes.util
import importlib
import os
import platform
from pathlib import Path
from typing import Any


def choose_gl() -> str:
    """Set the environment variable ``MUJOCO_GL`` if it is not set, and return it.

    The choice is ``egl`` if there is a GPU and the EGL library, otherwise ``osmesa``. A value set by the user is kept.
    """
    chosen = os.environ.get("MUJOCO_GL")
    if not chosen:
        has_gpu = Path("/dev/nvidia0").exists() or any(Path("/dev/dri").glob("render*"))
        chosen = "egl" if has_gpu and ctypes.util.find_library("EGL") else "osmesa"
        os.environ["MUJOCO_GL"] = chosen
    if chosen == "osmesa":
        # Without this, PyOpenGL would choose another platform.
        os.environ.setdefault("PYOPENGL_PLATFORM", "osmesa")
        # By default, Mesa renders with one thread for each core. For a small image, most of the time is needed for
        # vertices, which Mesa processes in one thread anyway. When all cores are busy, more threads make rendering 1.5
        # times slower.
        os.environ.setdefault("LP_NUM_THREADS", "0")
    return chosen


def gl_context(size: int) -> Any:
    """Return an OpenGL context of ``size`` x ``size`` pixels from the library that ``MUJOCO_GL`` names now.

    On Linux, ``mujoco.GLContext`` is not used for this, because it uses the value that ``MUJOCO_GL`` had when mujoco
    was imported.
    """
    chosen = choose_gl().lower()
    if platform.system() == "Linux" and chosen in ("osmesa", "egl"):
        return importlib.import_module(f"mujoco.{chosen}").GLContext(size, size)
    import mujoco

    return mujoco.GLContext(size, size)
