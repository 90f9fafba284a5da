"""The errors a user can meet.

Every message is one clear sentence: what is wrong, what was got, what is allowed, what to do.
The command line prints the sentence alone, without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class M2DistillError(Exception):
    """Base of every error that this project raises on purpose. exit_code: what a command that it ends returns."""

    exit_code = 2


class ConfigError(M2DistillError):
    """A configuration has an unknown key or a value that is not allowed."""


class ContractError(M2DistillError):
    """Two ends of the road disagree on what is observed, acted or said."""


class DemonstrationError(M2DistillError):
    """A demonstration file is missing, damaged or not of the contract's form."""


class BundleError(M2DistillError):
    """A bundle is missing a file, was tampered with, or is of a format that is not known."""


class StorageError(M2DistillError):
    """A disk has no room for what is to be written, or another process is writing there."""


class UnknownInstructionError(M2DistillError):
    """An instruction was asked for that the bundle was not made for."""


class ObservationError(M2DistillError):
    """One observation has a missing view, a wrong shape, a wrong dtype, or a value that is not finite."""


class SimulationError(M2DistillError):
    """A world, task or scene cannot be made, or a worker died."""


class TrainingError(M2DistillError):
    """A run cannot start, go on or be resumed."""


class DivergedError(TrainingError):
    """A loss is not finite. With the same settings a new run would fail too."""

    exit_code = 3


class ExportError(M2DistillError):
    """The exported graphs do not agree with the network they came from."""


class RecordingError(M2DistillError):
    """A robot's recording cannot be read, or does not hold what a demonstration needs."""


class TransportError(M2DistillError):
    """A peer was silent, or a message could not be read."""


#: Characters of a text from outside that a message repeats.
LONGEST_SHOWN = 200


def shorten(text: str, most: int = LONGEST_SHOWN) -> str:
    """Return ``text``, or its first ``most`` characters and how long it is: messages go out with every status."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def printable(text: str) -> str:
    """Return ``text`` with whatever is not printable escaped, as ``\\n`` or ``\\udce9``.

    Names of files and texts from other processes may hold half of a UTF-8 sequence, which no message can carry, or
    what moves a terminal's cursor.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def closest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name nearest to ``name``, or an empty string.

    cutoff: from 0 to 1, how similar the two must be.
    """
    if len(name) > LONGEST_SHOWN:  # no slip of the pen, and comparing it would take minutes
        return ""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean '{matches[0]}'?" if matches else ""
