"""Errors that are shown to the user.

Every message says what is wrong, with the value, what is allowed, and what to do, in one or two sentences. The command
line prints only the message, without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class M2DistillError(Exception):
    """Base class of all errors of this project. exit_code: Exit status of a command that ends with the error."""

    exit_code = 2


class ConfigError(M2DistillError):
    """A configuration has an unknown key or a value that is not allowed."""


class ContractError(M2DistillError):
    """A contract is not valid, or two contracts differ."""


class DemonstrationError(M2DistillError):
    """A demonstration file is missing, damaged or does not fit the contract."""


class BundleError(M2DistillError):
    """A bundle is incomplete, was changed, or has an unknown format."""


class StorageError(M2DistillError):
    """A disk is full, or another process is writing in the same folder."""


class UnknownInstructionError(M2DistillError):
    """The bundle does not know an instruction."""


class ObservationError(M2DistillError):
    """An observation has a missing view, a wrong shape, a wrong dtype, or a value that is not finite."""


class SimulationError(M2DistillError):
    """An environment, task or scene cannot be created, or a worker process died."""


class TrainingError(M2DistillError):
    """A run cannot start, continue or be resumed."""


class DivergedError(TrainingError):
    """A loss is not finite. With the same settings a new run would fail too."""

    exit_code = 3


class ExportError(M2DistillError):
    """The exported graphs do not agree with the network that they were made from."""


class RecordingError(M2DistillError):
    """A robot's recording cannot be read, or lacks what a demonstration needs."""


class TransportError(M2DistillError):
    """A peer did not answer, or a message could not be read."""


#: Largest number of characters of an external text that a message repeats.
LONGEST_SHOWN = 200


def shorten(text: str, most: int = LONGEST_SHOWN) -> str:
    """Return ``text``, or its first ``most`` characters and its length if it is longer than that."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def printable(text: str) -> str:
    """Return ``text`` with characters that are not printable escaped, as ``\\n`` or ``\\udce9``.

    File names and texts from other processes may contain an incomplete UTF-8 sequence, which cannot be printed, or
    codes that move a terminal's cursor.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def closest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name most similar to ``name``, or an empty string.

    Args:
        name: The unknown name.
        known: The known names.
        cutoff: Smallest similarity for a suggestion, 0 to 1.
    """
    if len(name) > LONGEST_SHOWN:  # not a typing error, and the comparison would take minutes
        return ""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean '{matches[0]}'?" if matches else ""
