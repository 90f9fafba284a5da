"""Is a stream in one frame, and in the right one? Names of frames are compared, and nothing is transformed."""

from __future__ import annotations

from m2distill_policy.errors import shorten

#: Characters of a frame's name that a message repeats.
_LONGEST_SHOWN = 64


class FrameCheck:
    """Judge the ``frame_id`` of each message of one stream.

    An empty name says nothing and is always taken. A slash before a name, as tf wrote it once, makes no difference.

    Args:
        wanted: the frame that all messages must be in; empty where only a change is wrong.
    """

    def __init__(self, wanted: str = "") -> None:
        self._wanted = _plain(wanted)
        self._first = ""

    def clear(self) -> None:
        """Forget what has come: the next message is compared with ``wanted`` alone."""
        self._first = ""

    @property
    def frame(self) -> str:
        """The first frame that was named and taken; empty where none was."""
        return self._first

    def problem(self, frame_id: str) -> str | None:
        """Why a message in ``frame_id`` cannot be used: a part of a message; None where it can."""
        frame = _plain(frame_id)
        if not frame:
            return None
        if self._wanted and frame != self._wanted:
            return f"its frame is {shown_frame(frame)}, and pose.base_frame is {shown_frame(self._wanted)}"
        if self._first and frame != self._first:
            return f"its frame is {shown_frame(frame)}, and before it was {shown_frame(self._first)}"
        self._first = frame
        return None


def _plain(frame: str) -> str:
    return frame.removeprefix("/")


def shown_frame(frame: str) -> str:
    """The name of a frame for messages, in quotes and of bounded length."""
    return shorten(repr(frame), _LONGEST_SHOWN)
