"""Load a bundle in a process of its own first: what never answers, takes all memory or crashes does so there.

ONNX Runtime optimises a graph while it loads it, which cannot be interrupted, and a graph may ask for any amount of
memory. So a bundle is opened, loaded and asked for one answer in a process with limits, before the process that drives
the arm loads it too. The same bytes do the same there: the manifest's sha256 is compared.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from m2distill_policy.bundle import Bundle, open_bundle
from m2distill_policy.bundle_signature import PublicKey
from m2distill_policy.errors import BundleError, M2DistillError, shorten

#: s between two looks at the process.
_POLL = 0.02
#: How much the process gives way to the control loop (Unix niceness).
_NICENESS = 10
#: Digests of bundles that this process has loaded, or that a process of their own has.
_proved: set[str] = set()
_MOST_PROVED = 256


class AbandonedError(M2DistillError):
    """A bundle that was being loaded is not wanted any more."""


@dataclass(frozen=True)
class ProbeLimits:
    """What a bundle may take until its first answer.

    timeout: s, the start of the process included. memory: bytes of address space, ONNX Runtime's own half a gigabyte
    included.
    """

    timeout: float = 30.0
    memory: int = 4 * 2**30


def mark_proved(bundle: Bundle) -> None:
    """Remember that ``bundle`` loads and answers, so that it is not tried in a process of its own again."""
    if len(_proved) >= _MOST_PROVED:
        _proved.clear()
    _proved.add(bundle.digest)


def prove(bundle: Bundle, limits: ProbeLimits, *, threads: int = 1, cancelled: threading.Event | None = None) -> None:
    """Load ``bundle`` in a process of its own and have it answer once, on the CPU. Nothing for one that was proved.

    Args:
        bundle: as opened; the process reads it from the same folder again and compares the digest.
        limits: of time and memory.
        threads: of one operator.
        cancelled: ends the process as soon as it is set.

    Raises:
        BundleError: it does not load, does not answer, or takes more than ``limits``.
        AbandonedError: ``cancelled`` was set.
    """
    if bundle.digest in _proved:
        return
    command = [sys.executable, "-m", "m2distill_policy.runtime.probe", str(bundle.path.absolute()), bundle.digest]
    command += [str(limits.timeout), str(limits.memory), str(threads)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)}
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/",
            env=environment, start_new_session=True,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise BundleError(
            f"bundle '{bundle.path}' could not be tried in a process of its own: {error}; free memory or processes, "
            "then load it again"
        ) from error
    try:
        _wait(process, bundle, limits, cancelled)
        assert process.stdout is not None
        answer = process.stdout.read()
    finally:
        if process.poll() is None:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # its disk may hang
                process.wait(1.0)
        if process.stdout is not None:
            process.stdout.close()
    try:
        refusal = str(json.loads(answer)["refusal"])
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"bundle '{bundle.path}' ended the process that tried it ({_how(process.returncode)}) before its first "
            f"answer; it may take at most {limits.memory / 2**30:g} GiB of memory; export the bundle again"
        ) from error
    if refusal:
        raise BundleError(refusal)
    mark_proved(bundle)


def open_and_prove(
    path: str | os.PathLike[str],
    limits: ProbeLimits | None = None,
    *,
    threads: int = 1,
    public_key: PublicKey | None = None,
) -> Bundle:
    """Open the bundle that a node starts with, as :func:`open_bundle`, and prove it, as :func:`prove`."""
    bundle = open_bundle(path, public_key=public_key)
    prove(bundle, limits or ProbeLimits(), threads=threads)
    return bundle


def _wait(
    process: subprocess.Popen[bytes], bundle: Bundle, limits: ProbeLimits, cancelled: threading.Event | None
) -> None:
    deadline = time.monotonic() + limits.timeout
    while process.poll() is None:
        if cancelled is not None and cancelled.wait(_POLL):
            raise AbandonedError(f"bundle '{bundle.path}' is not wanted any more")
        if cancelled is None:
            time.sleep(_POLL)
        if time.monotonic() > deadline:
            raise BundleError(
                f"bundle '{bundle.path}' gave no answer within {limits.timeout:g} s; see whether its graphs end, or "
                "whether this machine is too busy, then load it again"
            )


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {-code}, {signal.Signals(-code).name}" if -code in set(signal.Signals) else f"signal {-code}"
    return f"exit status {code}"


# --- in the process of its own ---------------------------------------------------------------------------------------


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    with contextlib.suppress(ValueError, OSError):  # a limit that is lower already stays
        resource.setrlimit(kind, (value, value if hard == resource.RLIM_INFINITY else min(value, hard)))


def main(arguments: list[str]) -> int:
    """Open, load and ask the bundle of the arguments; print what speaks against it, or nothing, as JSON."""
    path, digest, timeout, memory, threads = arguments
    # Whoever started this may have been killed: nothing goes on for ever.
    signal.alarm(int(float(timeout)) + 5)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, int(memory))
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    # Libraries may print; what is printed must be the answer alone.
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        refusal = _try(path, digest, int(threads))
    except M2DistillError as error:
        refusal = str(error)
    except Exception as error:  # whatever it is, the bundle is what it comes from, and is refused with it
        refusal = f"bundle '{path}' cannot be loaded: {type(error).__name__}: {error}"
    os.write(out, json.dumps({"refusal": shorten(refusal, 8000)}).encode())
    return 0


def _try(path: str, digest: str, threads: int) -> str:
    from m2distill_policy.runtime.engine import Engine

    bundle = open_bundle(path)
    if bundle.digest != digest:
        return f"bundle '{path}' changed while it was loaded; wait until it is copied, then load it again"
    Engine(bundle, threads=threads)
    return ""


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # what a damaged graph left behind must not end what has been answered
