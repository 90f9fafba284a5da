"""The one invariant of every door.

An input is accepted, or refused with one of our own errors in a message that a person can read; within a stated time
and memory; and no command that comes of it is not finite or outside its limits.
"""

from __future__ import annotations

import contextlib
import enum
import json
import threading
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.errors import M2DistillError
from tests.fuzz.door import Door

ROOT = Path(__file__).resolve().parent.parent.parent
#: Characters that the message of a refusal may have: a status repeats it every cycle.
LONGEST_MESSAGE = 10_000


class Violation(AssertionError):
    """A command, or another result of an accepted input, that must not be."""


class Outcome(enum.Enum):
    """What became of an input."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    FOUND = "found"


@dataclass(frozen=True)
class Finding:
    """A broken invariant.

    kind: ``error`` (not ours), ``command``, ``message``, ``time``, ``memory``, ``crash`` or ``hang``. where: what tells
    one fault from another. text: for people, with the traceback.
    """

    door: str
    kind: str
    where: str
    text: str

    @property
    def key(self) -> str:
        """The same for two inputs that show the same fault."""
        return f"{self.kind}: {self.where}"

    @property
    def line(self) -> str:
        """One line, for the terminal."""
        return f"{self.door}: {self.key}"


def check(door: Door, data: bytes) -> tuple[Outcome, Finding | None]:
    """Let one input through a door and look at what comes of it."""
    memory = _Memory()
    began = time.process_time()
    outcome, found = Outcome.ACCEPTED, None
    try:
        with memory:
            door.run(data)
    except M2DistillError as error:
        outcome = Outcome.REFUSED
        found = _message(door, error)
        if not door.refuses:
            found = Finding(door.name, "error", f"{type(error).__name__} at {_place(error)}", _trace(error))
    except Violation as error:
        found = Finding(door.name, "command", str(error).partition(":")[0], _trace(error))
    except Exception as error:
        found = Finding(door.name, "error", f"{type(error).__name__} at {_place(error)}", _trace(error))
    used, grown = time.process_time() - began, memory.grown / 1024
    if found is None and used > door.seconds:
        found = Finding(door.name, "time", "too slow", f"{used:.1f} s of {door.seconds:g} s ({outcome.value})")
    if found is None and grown > door.mebibytes:
        found = Finding(door.name, "memory", "too much", f"{grown:.0f} MiB of {door.mebibytes} ({outcome.value})")
    return (outcome if found is None else Outcome.FOUND), found


def _message(door: Door, error: M2DistillError) -> Finding | None:
    text = str(error)
    if not text.strip():
        return Finding(door.name, "message", f"empty at {_place(error)}", _trace(error))
    if len(text) > LONGEST_MESSAGE:
        return Finding(door.name, "message", f"long at {_place(error)}", f"{len(text)} characters: {text[:2000]}")
    return None


class _Memory:
    """How far this process grows inside ``with``, in KiB (``grown``), whatever it took before.

    Linux keeps the peak and lets it be reset. Where it does not (some sandboxes), a thread looks every few ms.
    """

    def __init__(self) -> None:
        self.grown = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def __enter__(self) -> None:
        self._before = _kibibytes("VmRSS")
        self._reset = _reset_peak()
        if not self._reset:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        if self._reset:
            self.grown = _kibibytes("VmHWM") - self._before
        else:
            self._ended.set()
            self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.005):
            self.grown = max(self.grown, _kibibytes("VmRSS") - self._before)


def _reset_peak() -> bool:
    """Whether the peak was set back to what is in use now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _kibibytes("VmHWM") < 1.05 * _kibibytes("VmRSS")
    except OSError:
        return False


def _kibibytes(what: str) -> float:
    """A line of ``/proc/self/status``, such as ``VmRSS``; 0 where there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{what}:"):
                return float(line.split()[1])
    return 0.0


def _trace(error: BaseException) -> str:
    lines = traceback.format_exception(error)
    text = "".join(lines)
    return text if len(text) < 20_000 else text[:10_000] + "\n[...]\n" + text[-10_000:]


def _place(error: BaseException) -> str:
    """The innermost line of our own code, and the innermost one of all where that is another's."""
    return place_of(error.__traceback__)


def place_of(trace: TracebackType | None) -> str:
    """See :func:`_place`."""
    ours = last = "nowhere"
    for frame in traceback.extract_tb(trace):
        path = Path(frame.filename)
        inside = path.is_relative_to(ROOT) and ".venv" not in path.parts
        name = f"{path.relative_to(ROOT) if inside else path.name}:{frame.name}"
        if inside and "tests" not in path.relative_to(ROOT).parts:
            ours = f"{name}:{frame.lineno}"
        last = name
    return ours if ours.startswith(last) or ours.endswith(last) else f"{ours} ({last})"


# --- commands --------------------------------------------------------------------------------------------------------


Bound = float | NDArray[np.float64]


def finite(what: str, values: NDArray[np.floating[Any]] | None, low: Bound, high: Bound) -> None:
    """:class:`Violation` where ``values`` are not finite or not from ``low`` to ``high``; None passes."""
    if values is None:
        return
    found = np.asarray(values, dtype=np.float64)
    if not np.isfinite(found).all():
        raise Violation(f"{what} is not finite: {found.tolist()}")
    if np.any(found < np.asarray(low) - 1e-6) or np.any(found > np.asarray(high) + 1e-6):
        raise Violation(f"{what} is outside its limits: {found.tolist()}, {np.asarray(low)} to {np.asarray(high)}")


def require(condition: bool, what: str, detail: object = "") -> None:
    """:class:`Violation` ``what`` where ``condition`` does not hold."""
    if not condition:
        raise Violation(f"{what}: {detail}")


# --- keeping ---------------------------------------------------------------------------------------------------------


class Findings:
    """Findings on disk: a folder each, with the smallest input that shows it and a report."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def known(self) -> dict[str, int]:
        """Key -> size of the smallest input."""
        found = {}
        for report in self.folder.glob("*/*/report.json"):
            try:
                data = json.loads(report.read_text())
                found[data["door"] + "/" + data["key"]] = (report.parent / "input").stat().st_size
            except (OSError, ValueError, KeyError):
                continue  # being written by another process
        return found

    def keep(self, finding: Finding, data: bytes) -> bool:
        """Keep ``finding``; True where it is a new one. The file ``seen`` says when it was last met."""
        place = self.folder / finding.door / _slug(finding.key)
        new = not (place / "report.json").exists()
        place.mkdir(parents=True, exist_ok=True)
        (place / "seen").touch()
        old = place / "input"
        if not old.exists() or old.stat().st_size > len(data):
            old.write_bytes(data)
            (place / "report.json").write_text(json.dumps({"key": finding.key, **asdict(finding)}, indent=2))
        return new


def _slug(text: str) -> str:
    import hashlib
    import re

    return re.sub(r"\W+", "_", text)[:80] + "-" + hashlib.sha256(text.encode()).hexdigest()[:8]
