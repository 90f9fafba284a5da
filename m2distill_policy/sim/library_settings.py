"""Set up robosuite and numba before they are imported, so that they write only to folders of the user."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import stat
import sys
import tempfile
import types
from pathlib import Path

from m2distill_policy.sim.cache import cache_dir

_NUMBA = "NUMBA_CACHE_DIR"


def prepare_libraries() -> None:
    """Switch off robosuite's log file, and give numba a cache folder that it can write to."""
    _set_macros()
    _set_numba_cache()


class _Settings(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import hook that provides robosuite's module of personal settings, ``macros_private``.

    Without this module, robosuite warns at every import, and writes to /tmp/robosuite.log, which only the first user of
    a machine can open.
    """

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of ``robosuite.macros_private``; return None for all other modules."""
        return importlib.machinery.ModuleSpec(name, self) if name == "robosuite.macros_private" else None

    def exec_module(self, module: types.ModuleType) -> None:
        """Switch off the log file. robosuite imports this module before any module that logs."""
        importlib.import_module("robosuite.macros").FILE_LOGGING_LEVEL = None  # type: ignore[attr-defined]


def _set_macros() -> None:
    if not any(isinstance(finder, _Settings) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Settings())


def _set_numba_cache() -> None:
    """Set a folder for numba's compiled code if numba cannot write next to the source code.

    If numba can write to no folder, importing the code fails.
    """
    if os.environ.get(_NUMBA) or all(_is_writable(folder) for folder in _code_folders()):
        return
    folder = cache_dir("numba") or private_temporary("numba")
    if folder is not None:
        os.environ[_NUMBA] = str(folder)


def _code_folders() -> list[Path]:
    """Return the source folders of the functions that numba compiles and caches."""
    found = [Path(__file__).parent]
    robosuite = importlib.util.find_spec("robosuite")
    for place in (robosuite.submodule_search_locations or []) if robosuite is not None else []:
        found.append(Path(place) / "utils")
    return found


def _is_writable(folder: Path) -> bool:
    cache = folder / "__pycache__"
    try:
        with tempfile.TemporaryFile(dir=cache if cache.is_dir() else folder):
            return True
    except OSError:
        return False


def private_temporary(name: str) -> Path | None:
    """Return a folder below the temporary folder that only this user can write to; None if it cannot be created.

    The folder is the same in all processes of the user, unless another user already owns a folder of that name.
    Compiled code is run from it, so no other user may be able to write to it.
    """
    try:
        folder = Path(tempfile.gettempdir()) / f"m2distill-{name}-{os.geteuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077:
            return folder
        return Path(tempfile.mkdtemp(prefix=f"m2distill-{name}-"))
    except OSError:
        return None
