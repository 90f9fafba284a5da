"""Progress bars: live in a terminal, and from time to time in a log."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

#: Smallest number of seconds between two states of a bar in a log.
LOG_SECONDS = 15.0


class ProgressBar(tqdm):
    """tqdm's bar on stderr. If that is not a terminal, it prints once every :data:`LOG_SECONDS`."""

    def __init__(self, **settings: Any) -> None:
        self._live, self._shown = sys.stderr.isatty(), -LOG_SECONDS
        super().__init__(file=sys.stderr, dynamic_ncols=self._live, **settings)

    def refresh(self, *args: Any, **settings: Any) -> bool | None:
        now = time.monotonic()
        if not self._live and now - self._shown < LOG_SECONDS:
            return None
        self._shown = now
        return super().refresh(*args, **settings)
