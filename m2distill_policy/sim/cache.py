"""The cache folder for derived files, such as decimated meshes."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir(name: str) -> Path | None:
    """Return folder ``name`` in the user's cache folder, or None if it cannot be written. Create it if necessary.

    The cache folder is ``$M2DISTILL_CACHE``; if that is not set, ``$XDG_CACHE_HOME/m2distill``; otherwise
    ``~/.cache/m2distill``. The cache only saves time: callers must also work without it.
    """
    named, general = os.environ.get("M2DISTILL_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(named) if named else (Path(general) if general else Path.home() / ".cache") / "m2distill"
        folder /= name
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home folder
        return None
    return folder if os.access(folder, os.W_OK) else None
