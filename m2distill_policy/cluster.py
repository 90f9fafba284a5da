"""Processes on other machines: what :class:`subprocess.Popen` does here, on a Ray cluster (https://docs.ray.io).

Ray is optional. Only what is asked for with ``--ray`` comes here; one machine needs none of it. Every machine of the
cluster has this package installed, and sees the folders of the work under the same paths (NFS or the like).
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from m2distill_policy.errors import ConfigError
from m2distill_policy.installation import install_command

#: A cluster for this call alone, on this machine.
HERE = "local"


class Input(Protocol):
    """A process's standard input."""

    def write(self, data: bytes, /) -> object:
        """Hand over ``data``."""

    def flush(self) -> object:
        """Send what was handed over."""

    def close(self) -> object:
        """Say that nothing more comes."""


class Process(Protocol):
    """What is used of :class:`subprocess.Popen`, here or elsewhere."""

    @property
    def returncode(self) -> int | None:
        """Its exit code, as far as it was asked for; None before."""

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended; :class:`subprocess.TimeoutExpired` after ``timeout`` s."""

    def terminate(self) -> None:
        """Ask it to end."""

    def kill(self) -> None:
        """End it."""


class Piped(Process, Protocol):
    """A process that is told and answers by lines."""

    @property
    def stdin(self) -> Input | None:
        """Where it is told."""

    @property
    def stdout(self) -> Iterator[bytes] | IO[bytes] | None:
        """What it answers."""


class Launcher(Protocol):
    """Starts processes somewhere. ``environment`` is the whole one; ``command[0]`` may be this interpreter, which is
    taken for the interpreter of the machine that it is started on."""

    def piped(self, command: Sequence[str], environment: Mapping[str, str]) -> Piped:
        """A process whose standard input and output are here."""

    def logged(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
        """A process that appends what it says to ``log``, and reads nothing."""


class Here:
    """This machine."""

    def piped(self, command: Sequence[str], environment: Mapping[str, str]) -> Piped:
        """See :class:`Launcher`."""
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def logged(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
        """See :class:`Launcher`."""
        with log.open("ab") as file:
            return subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=environment)


class Ray:
    """Machines of a Ray cluster, one core a process; processes wait until a core is free.

    address: of the cluster's head, such as ``10.0.0.5:6379``; ``auto`` for the one that this machine belongs to;
    ``local`` for one on this machine alone, which ends with this process.

    Raises :class:`ConfigError` where Ray is not installed or no cluster answers.
    """

    def __init__(self, address: str = "auto") -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it sends statistics about its use
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns that it hides GPUs
        try:
            import ray
        except ImportError:
            raise ConfigError(
                "--ray needs the package 'ray', which is not installed; leave --ray out to use this machine alone, or "
                f"install it on every machine of the cluster: {install_command('ray')}"
            ) from None
        self._ray: Any = ray
        if not ray.is_initialized():
            try:
                ray.init(
                    address=None if address == HERE else address,
                    include_dashboard=False if address == HERE else None,
                    log_to_driver=True,  # what a worker says on standard error is seen here, as a local one's is
                    logging_level=logging.ERROR,
                )
            except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
                raise ConfigError(
                    f"no Ray cluster answers at '{address}' ({error}); start one with 'ray start --head', or give "
                    f"--ray {HERE} for one on this machine alone"
                ) from None
        self._host: Any = self._ray.remote(num_cpus=1, max_concurrency=4, max_restarts=0)(_Host)

    def piped(self, command: Sequence[str], environment: Mapping[str, str]) -> Piped:
        """See :class:`Launcher`."""
        return _Remote(self._ray, self._host.remote(_portable(command), _changed(environment), None), piped=True)

    def logged(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
        """See :class:`Launcher`."""
        host = self._host.remote(_portable(command), _changed(environment), str(log.resolve()))
        return _Remote(self._ray, host, piped=False)


def add_option(parser: argparse.ArgumentParser, what: str) -> None:
    """``--ray``; what: in words, that which it spreads."""
    parser.add_argument(
        "--ray",
        nargs="?",
        const="auto",
        metavar="ADDRESS",
        help=f"spread the {what} over the machines of a Ray cluster, which all see these folders under the same paths: "
        f"its head's address, nothing for the cluster that this machine belongs to, or '{HERE}' for one on this "
        "machine alone",
    )


def launcher(ray: str | None) -> Launcher:
    """Where processes start: on the Ray cluster at this address, or on this machine for None."""
    return Here() if ray is None else Ray(ray)


#: Stands for the interpreter until the command has arrived.
_PYTHON = "<python>"
#: Taken along whether or not they were changed for the process.
_TAKEN = ("MUJOCO_GL", "LIBERO_CONFIG_PATH")


def _portable(command: Sequence[str]) -> list[str]:
    return [_PYTHON if word == sys.executable else word for word in command]


def _changed(environment: Mapping[str, str]) -> dict[str, str]:
    """What was set for the process; the rest of this machine's environment says nothing about another's."""
    return {
        name: value
        for name, value in environment.items()
        if os.environ.get(name) != value or name in _TAKEN or name.startswith("M2DISTILL_")
    }


class _Host:
    """Runs on the other machine, in a process of Ray's: one child, its pipes, its end."""

    def __init__(self, command: list[str], environment: dict[str, str], log: str | None) -> None:
        words = [sys.executable if word == _PYTHON else word for word in command]
        # Ray sets these for itself, an empty list of GPUs among them; the child is as free as one started by hand.
        own = {"OMP_NUM_THREADS": None, "CUDA_VISIBLE_DEVICES": ""}
        inherited = {n: v for n, v in os.environ.items() if n not in own or own[n] not in (None, v)}
        everything = {**inherited, **environment}
        if log is None:
            self._child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=everything)
            return
        if not Path(log).parent.is_dir():
            raise FileNotFoundError(
                f"{Path(log).parent} is not there on machine {os.uname().nodename}; the cluster's machines must see "
                "the work's folders under the same paths"
            )
        with Path(log).open("ab") as file:
            self._child = subprocess.Popen(words, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=everything)

    def ready(self) -> None:
        """Answers once there is a child."""

    def wait(self) -> int:
        return self._child.wait()

    def send(self, data: bytes) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(data)
        self._child.stdin.flush()

    def close(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()

    def read(self) -> bytes:
        assert self._child.stdout is not None
        return self._child.stdout.readline()

    def signal(self, name: str) -> None:
        getattr(self._child, name)()


class _Remote:
    """The near end of a :class:`_Host`: has what is used of a Popen."""

    def __init__(self, ray: Any, host: Any, piped: bool) -> None:
        self._ray, self._host, self._piped = ray, host, piped
        self._begun, self._end = host.ready.remote(), host.wait.remote()
        self._unsent: list[bytes] = []
        self._lock = threading.Lock()
        self.returncode: int | None = None
        #: Why its machine or its host failed, where that is how it ended.
        self.lost = ""

    # --- as a process ---

    def poll(self) -> int | None:
        return self._ended(0.0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired("a process of the Ray cluster", timeout or 0.0)
        return code

    def _ended(self, timeout: float | None) -> int | None:
        with self._lock:
            if self.returncode is None and self._ray.wait([self._end], timeout=timeout)[0]:
                try:
                    self.returncode = self._ray.get(self._end)
                except self._ray.exceptions.RayError as error:
                    self.lost = _reason(error)
                    self.returncode = -9
                if not self._piped:  # else its last words are still to be read
                    self._ray.kill(self._host)  # gives its core back
            return self.returncode

    def terminate(self) -> None:
        self._host.signal.remote("terminate")

    def kill(self) -> None:
        # The child first: it would outlive its host. A host that waits for a core has none.
        self._ray.wait([self._host.signal.remote("kill")], timeout=5.0)
        self._ray.kill(self._host)

    @property
    def waiting(self) -> bool:
        """Whether no machine has had a core for it yet."""
        return self.returncode is None and not self._ray.wait([self._begun], timeout=0.0)[0]

    # --- as its own pipes ---

    @property
    def stdin(self) -> Input:
        return self

    @property
    def stdout(self) -> Iterator[bytes]:
        while True:
            try:
                line = self._ray.get(self._host.read.remote())
            except self._ray.exceptions.RayError:
                return
            if not line:
                self._ended(None)
                self._ray.kill(self._host)
                return
            yield line

    def write(self, data: bytes) -> None:
        self._unsent.append(data)

    def flush(self) -> None:
        data, self._unsent = b"".join(self._unsent), []
        try:
            self._ray.get(self._host.send.remote(data))
        except (self._ray.exceptions.RayError, OSError):
            raise BrokenPipeError from None  # as a pipe whose reader is gone

    def close(self) -> None:
        self._host.close.remote()


def why_lost(process: Process) -> str:
    """Why a process's machine or its host failed, where that is how it ended; empty for any other end."""
    return process.lost if isinstance(process, _Remote) else ""


def _reason(error: Exception) -> str:
    """The last line of Ray's report, which is the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
