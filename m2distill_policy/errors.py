"""The errors a user can meet.

A message says what is wrong, with the value, what is allowed, and what to do. The command line prints the message
alone, without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class M2DistillError(Exception):
    """Base of every error that this project raises on purpose.

    Attributes:
        exit_code: Exit code of a command that the error ends.
    """

    exit_code = 2


class ConfigError(M2DistillError):
    """A configuration has an unknown key or a value that is not allowed."""


class ContractError(M2DistillError):
    """Two contracts differ in observations, actions or text."""


class DemonstrationError(M2DistillError):
    """A demonstration file is missing, damaged, or does not fit its contract."""


class BundleError(M2DistillError):
    """A bundle lacks a file, was changed after it was written, or has an unknown format."""


class StorageError(M2DistillError):
    """A disk is full, or another process is writing to the same folder."""


class UnknownInstructionError(M2DistillError):
    """The bundle was not trained on this instruction."""


class ObservationError(M2DistillError):
    """One observation has a missing view, a wrong shape, a wrong dtype, or a value that is not finite."""


class SimulationError(M2DistillError):
    """An environment, task or scene cannot be made, or a worker process died."""


class TrainingError(M2DistillError):
    """A run cannot start, continue or be resumed."""


class DivergedError(TrainingError):
    """A loss is not finite. With the same settings it would happen again."""

    exit_code = 3


class ExportError(M2DistillError):
    """The exported graphs give other outputs than the network."""


class RecordingError(M2DistillError):
    """A robot's recording cannot be read, or lacks what a demonstration needs."""


class TransportError(M2DistillError):
    """No message arrived in time, or a message could not be read."""


#: Longest text from outside that a message repeats, in characters.
LONGEST_SHOWN = 200


def shorten(text: str, most: int = LONGEST_SHOWN) -> str:
    """Return ``text``, or its first ``most`` characters and its length if it is longer."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def printable(text: str) -> str:
    """Return ``text`` with characters that are not printable escaped, as ``\\n`` or ``\\udce9``.

    File names and texts from other processes may contain invalid UTF-8, or characters that move a terminal's cursor.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def closest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name that is closest to ``name``, or an empty string.

    Args:
        name: The unknown name.
        known: The allowed names.
        cutoff: Smallest similarity of the two, from 0 to 1.
    """
    if len(name) > LONGEST_SHOWN:  # comparing it would take minutes
        return ""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean '{matches[0]}'?" if matches else ""
