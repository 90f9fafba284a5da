"""Check whether images fit into this process's receive buffers.

Images travel as datagrams. A datagram that arrives while the buffer is full is lost, and the image with it, unless lost
data is sent again. Measured on Cyclone DDS with Linux's default buffer of 208 KiB: all images of 128 x 128 pixels
arrive, most images of 320 x 240, and hardly any of 640 x 480. When two views of 640 x 480 were sent at once, a policy
answered 123 of 300 pairs with 1 MiB, which is Cyclone's own default, and 12,000 of 12,000 pairs with 4 MiB.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

#: Seconds without an image or an announcement after which no more images are expected from a camera.
SILENT_AFTER = 3.0


def largest_receive_buffer() -> int | None:
    """Return the bytes of this process's largest UDP receive buffer; None without a UDP socket, or if not on Linux."""
    found = []
    for entry in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError, ValueError):  # closed meanwhile, or not a socket
            if not str(entry.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as one:
                if one.type == socket.SOCK_DGRAM and one.family in (socket.AF_INET, socket.AF_INET6):
                    # Linux reports twice the requested size; the other half is for its own use.
                    found.append(one.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2)
    return max(found, default=None)


class ReceiveBuffer:
    """Checks the buffers whenever the size of the largest image changes.

    Args:
        views: Number of cameras, whose images may arrive at once.
        tell: Called with a message if the buffers are too small, or with None if they are large enough.
    """

    def __init__(self, views: int, tell: Callable[[str | None], None]) -> None:
        self._views = views
        self._tell = tell
        #: For each view: bytes of an image, and when it was last received or announced, monotonic s.
        self._images: dict[str, tuple[int, float]] = {}
        self._announced: dict[str, tuple[int, float]] = {}
        self._largest = 0

    def expect(self, image_bytes: int, view: str = "", now: float | None = None) -> None:
        """Record the size of a received image of ``view``. It replaces the size that its camera announced."""
        self._images[view] = (image_bytes, time.monotonic() if now is None else now)
        self._check(max(size for size, _ in {**self._announced, **self._images}.values()))

    def announce(self, image_bytes: int, view: str = "", now: float | None = None) -> None:
        """Record the size that the camera of ``view`` announces, because images that are too large may never arrive."""
        self._announced[view] = (image_bytes, time.monotonic() if now is None else now)
        self._check(max(size for size, _ in {**self._announced, **self._images}.values()))

    def forget_silent(self, now: float | None = None) -> None:
        """Forget views without an image or announcement for :data:`SILENT_AFTER` s. Call it once a second."""
        oldest = (time.monotonic() if now is None else now) - SILENT_AFTER
        for heard in (self._images, self._announced):
            for view in [view for view, (_, at) in heard.items() if at < oldest]:
                del heard[view]
        self._check(max((size for size, _ in {**self._announced, **self._images}.values()), default=0))

    def _check(self, largest: int) -> None:
        if largest == self._largest:
            return
        self._largest = largest
        # At least two images, even with one camera, because the next one may arrive before the last one was read.
        at_once = max(2, self._views)
        buffer, needed = largest_receive_buffer(), at_once * largest
        if buffer is None or buffer >= needed:
            self._tell(None)
            return
        self._tell(
            f"the receive buffer holds {buffer} bytes, but {at_once} images of {largest} bytes may arrive at once, so "
            f"some will be lost; increase it (sudo sysctl -w net.core.rmem_max={max(2 * needed, 8 << 20)}) and let "
            "Cyclone DDS use it (CYCLONEDDS_URI=file:///path/to/config/cyclonedds.xml), or let lost images be sent "
            "again (reliable_input)"
        )
