"""The folder where derived files (decimated meshes, converted initial states) are kept between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir(name: str) -> Path | None:
    """The folder ``name`` in the user's cache, made if need be; None where it cannot be written.

    ``M2DISTILL_CACHE`` names another place than ``$XDG_CACHE_HOME/m2distill`` (or ``~/.cache/m2distill``).
    A cache only saves time: callers go on without it.
    """
    named, general = os.environ.get("M2DISTILL_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        folder = Path(named) if named else (Path(general) if general else Path.home() / ".cache") / "m2distill"
        folder /= name
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a user without a home is a RuntimeError
        return None
    return folder if os.access(folder, os.W_OK) else None
