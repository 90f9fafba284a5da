"""Which OpenGL library draws: decided before mujoco or robosuite is imported, because both read it at import."""

from __future__ import annotations

import ctypes.util
import importlib
import os
import platform
from pathlib import Path
from typing import Any


def choose_gl() -> str:
    """Set ``MUJOCO_GL`` where it is unset and return it: ``egl`` where a GPU and the library are seen, else ``osmesa``.

    Safe to call often; a value that the user set always wins.
    """
    chosen = os.environ.get("MUJOCO_GL")
    if not chosen:
        has_gpu = Path("/dev/nvidia0").exists() or any(Path("/dev/dri").glob("render*"))
        chosen = "egl" if has_gpu and ctypes.util.find_library("EGL") else "osmesa"
        os.environ["MUJOCO_GL"] = chosen
    if chosen == "osmesa":
        # PyOpenGL picks its own platform unless told.
        os.environ.setdefault("PYOPENGL_PLATFORM", "osmesa")
        # Mesa draws in a thread a core by default. A view is so small that its corners are what costs, which are worked
        # out in one thread anyway; handing the pixels to others takes half as long again where every core is busy.
        os.environ.setdefault("LP_NUM_THREADS", "0")
    return chosen


def gl_context(size: int) -> Any:
    """An OpenGL context with ``size`` x ``size`` pixels, of the library that ``MUJOCO_GL`` names now.

    mujoco itself goes by what the variable said when it was first imported, perhaps by somebody else.
    """
    chosen = choose_gl().lower()
    if platform.system() == "Linux" and chosen in ("osmesa", "egl"):
        return importlib.import_module(f"mujoco.{chosen}").GLContext(size, size)
    import mujoco

    return mujoco.GLContext(size, size)
