"""Progress bars: live in a terminal, and from time to time in a log."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

#: Shortest time between two lines of a progress bar in a log, s.
LOG_SECONDS = 15.0


class ProgressBar(tqdm):
    """tqdm's bar on standard error. If that is not a terminal, a line is printed every :data:`LOG_SECONDS`."""

    def __init__(self, **settings: Any) -> None:
        self._live, self._shown = sys.stderr.isatty(), -LOG_SECONDS
        super().__init__(file=sys.stderr, dynamic_ncols=self._live, **settings)

    def refresh(self, *args: Any, **settings: Any) -> bool | None:
        now = time.monotonic()
        if not self._live and now - self._shown < LOG_SECONDS:
            return None
        self._shown = now
        return super().refresh(*args, **settings)
