"""Write a video of a rollout as an MP4 file that browsers play."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Height and width of a video in pixels. The codec needs multiples of 16.
VIDEO_SIZE = 256


class VideoWriter:
    """Writer of RGB frames to an MP4 file. The file has a temporary name until it is closed.

    It uses the ffmpeg program that imageio-ffmpeg contains, so no system package is needed.

    Args:
        path: The file. Its folder is created if it does not exist.
        rate_hz: Frames per second.
    """

    def __init__(self, path: Path, rate_hz: float) -> None:
        import imageio

        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._unfinished = path.with_name(f".{path.stem}.part{path.suffix}")
        self._writer: Any = imageio.get_writer(self._unfinished, format="FFMPEG", fps=rate_hz, quality=7)  # type: ignore[arg-type, unused-ignore]

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Append one frame, (VIDEO_SIZE, VIDEO_SIZE, 3) uint8 RGB."""
        self._writer.append_data(frame)

    def close(self) -> None:
        """Finish the file and rename it to ``path``."""
        try:
            self._writer.close()
            self._unfinished.replace(self.path)
        finally:  # the unfinished file still exists only if something above failed
            self._unfinished.unlink(missing_ok=True)

    def discard(self) -> None:
        """Stop and delete the unfinished file."""
        self._writer.close()
        self._unfinished.unlink(missing_ok=True)
