"""Noticing new bundles in a folder."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from m2distill_policy.bundle import MANIFEST
from m2distill_policy.errors import BundleError, M2DistillError
from m2distill_policy.runtime.hotswap import SwapError

logger = logging.getLogger(__name__)

#: Name, size and time of change (ns) of every file of a bundle.
_Files = tuple[tuple[str, int, int], ...]


class FolderWatcher:
    """Notices bundles that appear in a folder by rename, the way :func:`write_bundle` puts them there.

    What lay there at the start is left alone. Names that begin with a dot or end in ``.tmp`` or ``.old`` are
    unfinished. Each is tried once: a bundle that was refused is not tried again until its files change, as those of
    one that is copied slowly do.

    on_bundle: called with the path of the newest new bundle, from the watcher's thread (or from :meth:`poll`).
    """

    def __init__(self, folder: str | Path, on_bundle: Callable[[Path], object], *, interval: float = 0.5) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise BundleError(f"'{self.folder}' is not a folder, so it cannot be watched for bundles; make it first")
        self.interval = interval
        #: A message when the folder could not be looked at last time, else "".
        self.problem = ""
        self._on_bundle = on_bundle
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._tried = {files for _, files, _ in self._bundles()}

    def poll(self) -> Path | None:
        """Look once; hands over and returns the newest bundle that was not there before, or None."""
        fresh = [entry for entry in self._bundles() if entry[1] not in self._tried]
        if not fresh:
            return None
        self._tried |= {files for _, files, _ in fresh}
        path = max(fresh)[2]
        self._on_bundle(path)
        return path

    def start(self) -> None:
        """Look every ``interval`` s in a thread of its own: a slow disk must not hold up the control loop."""
        self._thread = threading.Thread(target=self._run, name="bundle-watcher", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """End the thread; raises :class:`SwapError` if it does not end within ``timeout`` s."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                raise SwapError(f"the watcher of '{self.folder}' did not end within {timeout:g} s; its disk may hang")

    def _run(self) -> None:
        while not self._stop.wait(self.interval):
            try:
                self.poll()
                self.problem = ""
            except (OSError, M2DistillError) as error:
                if not self.problem:
                    logger.warning("watching '%s': %s", self.folder, error)
                self.problem = f"The folder '{self.folder}' cannot be watched: {error}"

    def _bundles(self) -> list[tuple[int, _Files, Path]]:
        """(when its manifest changed, what is there, folder) of each bundle."""
        found = []
        for entry in self.folder.iterdir():
            if entry.name.startswith(".") or entry.name.endswith((".tmp", ".old")) or not entry.is_dir():
                continue
            try:
                changed = (entry / MANIFEST).stat().st_mtime_ns
                stats = [(file.name, file.stat()) for file in entry.iterdir()]
                files = tuple(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))
                found.append((changed, files, entry))
            # Not a bundle, or removed while we looked: neither is news.
            except (OSError, BundleError):
                continue
        return found
