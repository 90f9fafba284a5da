"""A film of a rollout, as an MP4 that browsers play."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Height and width of a film in pixels; multiples of 16, which the codec wants.
FILM_SIZE = 256


class FilmWriter:
    """Writes (FILM_SIZE, FILM_SIZE, 3) uint8 RGB frames to ``path``; the file appears under its name when closed.

    Uses the ffmpeg inside imageio-ffmpeg's wheel: no system package is needed.
    """

    def __init__(self, path: Path, rate_hz: float) -> None:
        import imageio

        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._unfinished = path.with_name(f".{path.stem}.part{path.suffix}")
        self._writer: Any = imageio.get_writer(self._unfinished, format="FFMPEG", fps=rate_hz, quality=7)  # type: ignore[arg-type, unused-ignore]

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Append one frame."""
        self._writer.append_data(frame)

    def close(self) -> None:
        """Finish the file and give it its name."""
        try:
            self._writer.close()
            self._unfinished.replace(self.path)
        finally:  # there only if something failed above
            self._unfinished.unlink(missing_ok=True)

    def discard(self) -> None:
        """Stop and leave nothing behind."""
        self._writer.close()
        self._unfinished.unlink(missing_ok=True)
