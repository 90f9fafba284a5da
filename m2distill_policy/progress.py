"""Progress bars: live in a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

#: s; time between two lines of a bar that is written to a log.
LOG_SECONDS = 15.0


class ProgressBar(tqdm):
    """A bar of tqdm on standard error. If that is not a terminal, it writes a line every :data:`LOG_SECONDS`."""

    def __init__(self, **settings: Any) -> None:
        self._live, self._shown = sys.stderr.isatty(), -LOG_SECONDS
        super().__init__(file=sys.stderr, dynamic_ncols=self._live, **settings)

    def refresh(self, *args: Any, **settings: Any) -> bool | None:
        now = time.monotonic()
        if not self._live and now - self._shown < LOG_SECONDS:
            return None
        self._shown = now
        return super().refresh(*args, **settings)
