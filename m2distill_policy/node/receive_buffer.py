"""Whether images fit through this process's receive buffers.

Images travel as datagrams, and one that finds the buffer full is lost, and the image with it, unless somebody asks
for it again. Measured on Cyclone DDS: with Linux's default of 208 KiB images of 128 x 128 all arrive, of 320 x 240
most, of 640 x 480 hardly any. Of two views of 640 x 480 that come at once, a policy answered 123 pairs of 300 with
Cyclone's own 1 MiB, and 12,000 of 12,000 with 4 MiB.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

#: s without an image or an announcement after which a camera's images are not expected any more.
SILENT_AFTER = 3.0


def largest_receive_buffer() -> int | None:
    """Bytes of the largest receive buffer among this process's UDP sockets; None where it has none, or not on Linux."""
    found = []
    for entry in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError, ValueError):  # gone meanwhile, or no socket
            if not str(entry.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as one:
                if one.type == socket.SOCK_DGRAM and one.family in (socket.AF_INET, socket.AF_INET6):
                    # Linux answers with twice what it was asked for: the other half is its own.
                    found.append(one.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2)
    return max(found, default=None)


class ReceiveBuffer:
    """Looks at the buffers whenever the largest image that comes is of another size than before.

    views: how many cameras there are, whose images come at once. tell: takes the message, or None where the buffers
    are large enough.
    """

    def __init__(self, views: int, tell: Callable[[str | None], None]) -> None:
        self._views = views
        self._tell = tell
        #: Of each view: bytes of an image, and when that was heard last, monotonic s.
        self._images: dict[str, tuple[int, float]] = {}
        self._announced: dict[str, tuple[int, float]] = {}
        self._largest = 0

    def expect(self, image_bytes: int, view: str = "", now: float | None = None) -> None:
        """An image of ``view`` of this size has come; what its camera announced before counts no more."""
        self._images[view] = (image_bytes, time.monotonic() if now is None else now)
        self._judge(max(size for size, _ in {**self._announced, **self._images}.values()))

    def announce(self, image_bytes: int, view: str = "", now: float | None = None) -> None:
        """The camera of ``view`` says that its images are of this size: of too large ones, none may come."""
        self._announced[view] = (image_bytes, time.monotonic() if now is None else now)
        self._judge(max(size for size, _ in {**self._announced, **self._images}.values()))

    def forget_silent(self, now: float | None = None) -> None:
        """Forget what has not been heard for :data:`SILENT_AFTER` s; call it once a second."""
        oldest = (time.monotonic() if now is None else now) - SILENT_AFTER
        for heard in (self._images, self._announced):
            for view in [view for view, (_, at) in heard.items() if at < oldest]:
                del heard[view]
        self._judge(max((size for size, _ in {**self._announced, **self._images}.values()), default=0))

    def _judge(self, largest: int) -> None:
        if largest == self._largest:
            return
        self._largest = largest
        # Two of them even from one camera: the next may come before the last was read.
        at_once = max(2, self._views)
        buffer, needed = largest_receive_buffer(), at_once * largest
        if buffer is None or buffer >= needed:
            self._tell(None)
            return
        self._tell(
            f"the receive buffer holds {buffer} bytes and {at_once} images of {largest} bytes may come at "
            f"once, so some will be lost; allow more (sudo sysctl -w net.core.rmem_max={max(2 * needed, 8 << 20)}) "
            "and have Cyclone DDS ask for it (CYCLONEDDS_URI=file:///path/to/config/cyclonedds.xml), or ask for lost "
            "images again (reliable_input)"
        )
