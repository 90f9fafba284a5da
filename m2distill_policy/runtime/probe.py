"""Load a bundle in a separate process first, so that a bundle that hangs, uses all memory or crashes does so there.

ONNX Runtime optimises a graph while it loads it. This cannot be interrupted, and a graph may request any amount of
memory. So a bundle is opened, loaded and run once in a process with limits, before the process that drives the arm
loads it. The manifest's sha256 is compared, so both processes load the same bytes.
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

#: Seconds between two checks of the process.
_POLL = 0.02
#: Niceness (Unix) of the process, so that the control loop comes first.
_NICENESS = 10
#: Digests of bundles that were loaded successfully, by this process or a probe.
_proved: set[str] = set()
_MOST_PROVED = 256


class AbandonedError(M2DistillError):
    """The loading of a bundle was cancelled."""


@dataclass(frozen=True)
class ProbeLimits:
    """What a bundle may use until its first answer.

    Attributes:
        timeout: Seconds, including the start of the process.
        memory: Bytes of address space, of which ONNX Runtime itself needs about half a gigabyte.
    """

    timeout: float = 30.0
    memory: int = 4 * 2**30


def mark_proved(bundle: Bundle) -> None:
    """Record that ``bundle`` loads and answers, so that it is not probed again."""
    if len(_proved) >= _MOST_PROVED:
        _proved.clear()
    _proved.add(bundle.digest)


def prove(bundle: Bundle, limits: ProbeLimits, *, threads: int = 1, cancelled: threading.Event | None = None) -> None:
    """Load ``bundle`` in a separate process on the CPU and compute one answer. Does nothing if that is already known.

    Args:
        bundle: An opened bundle. The process reads it from the same folder again and compares the digest.
        limits: Limits of time and memory.
        threads: Threads of one operator.
        cancelled: Ends the process as soon as it is set.

    Raises:
        BundleError: The bundle does not load, does not answer, or uses more than ``limits``.
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
            f"no process could be started to test bundle '{bundle.path}': {error}; free memory or processes, "
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
            f"the test process of bundle '{bundle.path}' ended before the first answer ({_how(process.returncode)}); "
            f"a bundle may use at most {limits.memory / 2**30:g} GiB of memory; export the bundle again"
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
    """Open a bundle as :func:`open_bundle` does, and test it as :func:`prove` does; for the start of a node."""
    bundle = open_bundle(path, public_key=public_key)
    prove(bundle, limits or ProbeLimits(), threads=threads)
    return bundle


def _wait(
    process: subprocess.Popen[bytes], bundle: Bundle, limits: ProbeLimits, cancelled: threading.Event | None
) -> None:
    deadline = time.monotonic() + limits.timeout
    while process.poll() is None:
        if cancelled is not None and cancelled.wait(_POLL):
            raise AbandonedError(f"the loading of bundle '{bundle.path}' was cancelled")
        if cancelled is None:
            time.sleep(_POLL)
        if time.monotonic() > deadline:
            raise BundleError(
                f"bundle '{bundle.path}' gave no answer within {limits.timeout:g} s; check whether this machine is too "
                "busy, then load it again, or export the bundle again"
            )


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        return f"signal {-code}, {signal.Signals(-code).name}" if -code in set(signal.Signals) else f"signal {-code}"
    return f"exit status {code}"


# --- in the separate process -----------------------------------------------------------------------------------------


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    with contextlib.suppress(ValueError, OSError):  # a limit that is already lower stays
        resource.setrlimit(kind, (value, value if hard == resource.RLIM_INFINITY else min(value, hard)))


def main(arguments: list[str]) -> int:
    """Open, load and run the bundle named in the arguments; print why it is refused, or "", as JSON."""
    path, digest, timeout, memory, threads = arguments
    # The parent may have been killed, so this process ends by itself.
    signal.alarm(int(float(timeout)) + 5)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_AS, int(memory))
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    # Libraries may print; only the answer must be on stdout.
    out = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        refusal = _try(path, digest, int(threads))
    except M2DistillError as error:
        refusal = str(error)
    except Exception as error:  # any error here is caused by the bundle, so the bundle is refused
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
    os._exit(code)  # without clean-up, which may crash after a damaged graph
