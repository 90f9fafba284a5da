"""The cache folder for derived files, such as decimated meshes."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir(name: str) -> Path | None:
    """Return folder ``name`` of the user's cache, or None if it cannot be written. It is created if necessary.

    The cache is ``$M2DISTILL_CACHE``, or else ``$XDG_CACHE_HOME/m2distill``, or else ``~/.cache/m2distill``. It only
    saves time, so callers work without it.
    """
    named, general = os.environ.get("M2DISTILL_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(named) if named else (Path(general) if general else Path.home() / ".cache") / "m2distill"
        folder /= name
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home folder
        return None
    return folder if os.access(folder, os.W_OK) else None
