"""Watch a folder for new bundles."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from m2distill_policy.bundle import MANIFEST
from m2distill_policy.errors import BundleError, M2DistillError
from m2distill_policy.runtime.hotswap import SwapError

logger = logging.getLogger(__name__)

#: Name, size and modification time (ns) of every file of a bundle.
_Files = tuple[tuple[str, int, int], ...]


class FolderWatcher:
    """Finds bundles that appear in a folder by rename, as :func:`write_bundle` creates them.

    Bundles that are there at the start are ignored. Names that begin with a dot or end in ``.tmp`` or ``.old`` are
    unfinished. Each bundle is loaded once. A bundle that was refused is tried again only when its files change, as they
    do while it is being copied.

    Args:
        folder: Folder to watch.
        on_bundle: Called with the path of the newest new bundle, in the watcher's thread (or by :meth:`poll`).
        interval: Seconds between two checks.

    Raises:
        BundleError: ``folder`` is not a folder.
    """

    def __init__(self, folder: str | Path, on_bundle: Callable[[Path], object], *, interval: float = 0.5) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise BundleError(f"'{self.folder}' is not a folder, so it cannot be watched for bundles; create it first")
        self.interval = interval
        #: Message if the last check of the folder failed, else "".
        self.problem = ""
        self._on_bundle = on_bundle
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._tried = {files for _, files, _ in self._bundles()}

    def poll(self) -> Path | None:
        """Check once. Pass the newest new bundle to ``on_bundle`` and return it, or None."""
        fresh = [entry for entry in self._bundles() if entry[1] not in self._tried]
        if not fresh:
            return None
        self._tried |= {files for _, files, _ in fresh}
        path = max(fresh)[2]
        self._on_bundle(path)
        return path

    def start(self) -> None:
        """Check every ``interval`` s in a separate thread, so that a slow disk does not delay the control loop."""
        self._thread = threading.Thread(target=self._run, name="bundle-watcher", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """End the thread.

        Raises:
            SwapError: It does not end within ``timeout`` s.
        """
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
        """Return (modification time of the manifest, files, folder) of each bundle."""
        found = []
        for entry in self.folder.iterdir():
            if entry.name.startswith(".") or entry.name.endswith((".tmp", ".old")) or not entry.is_dir():
                continue
            try:
                changed = (entry / MANIFEST).stat().st_mtime_ns
                stats = [(file.name, file.stat()) for file in entry.iterdir()]
                files = tuple(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))
                found.append((changed, files, entry))
            # Not a bundle, or removed meanwhile.
            except (OSError, BundleError):
                continue
        return found
