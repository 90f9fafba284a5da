"""The folder where derived files (decimated meshes, converted initial states) are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir(name: str) -> Path | None:
    """The folder ``name`` in the user's cache, made if need be; None where it cannot be written.

    ``M2DISTILL_CACHE`` names another place than ``$XDG_CACHE_HOME/m2distill`` (or ``~/.cache/m2distill``).
    A cache only saves time: callers go on without it.
    """
    named = os.environ.get("M2DISTILL_CACHE")
    general = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = (Path(named) if named else general / "m2distill") / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None
