"""Start processes on the machines of a Ray cluster (https://docs.ray.io), with the interface of subprocess.Popen.

Ray is optional and only used with ``--ray``. Every machine of the cluster must have this package installed, and must
see the folders of demonstrations and runs under the same paths (NFS or similar).
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

#: Value of ``--ray`` for a cluster on this machine that exists only while the command runs.
LOCAL = "local"


class Input(Protocol):
    """A process's standard input."""

    def write(self, data: bytes, /) -> object:
        """Write ``data`` to the buffer."""

    def flush(self) -> object:
        """Send the buffer."""

    def close(self) -> object:
        """Close the input."""


class Process(Protocol):
    """The part of the interface of :class:`subprocess.Popen` that this project uses."""

    @property
    def returncode(self) -> int | None:
        """Exit code found by the last :meth:`poll` or :meth:`wait`; None if the process still ran then."""

    def poll(self) -> int | None:
        """Return the exit code; None while the process runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the process ends; return the exit code. Raise TimeoutExpired after ``timeout`` s."""

    def terminate(self) -> None:
        """Ask the process to end (SIGTERM)."""

    def kill(self) -> None:
        """Kill the process (SIGKILL)."""


class Piped(Process, Protocol):
    """A process with lines on standard input and output."""

    @property
    def stdin(self) -> Input | None:
        """Standard input of the process."""

    @property
    def stdout(self) -> Iterator[bytes] | IO[bytes] | None:
        """Standard output of the process, by line."""


class Launcher(Protocol):
    """Interface that starts processes on this machine or on a cluster.

    ``environment`` contains all environment variables of the process. Where ``command`` contains the path of this
    Python interpreter, a machine of the cluster uses its own interpreter.
    """

    def piped(self, command: Sequence[str], environment: Mapping[str, str]) -> Piped:
        """Start a process whose standard input and output are pipes."""

    def logged(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
        """Start a process that appends its output to ``log`` and has no input."""


class LocalLauncher:
    """Launcher that starts processes on this machine."""

    def piped(self, command: Sequence[str], environment: Mapping[str, str]) -> Piped:
        """Start a process, see :meth:`Launcher.piped`."""
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def logged(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
        """Start a process, see :meth:`Launcher.logged`."""
        with log.open("ab") as file:
            return subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=environment)


class RayLauncher:
    """Launcher that starts processes on a Ray cluster, with one core each. A process waits until a core is free.

    Args:
        address: Address of the cluster's head, such as ``10.0.0.5:6379``; ``auto`` for the cluster that this machine
            belongs to; ``local`` for a new cluster on this machine only, which ends with this process.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers.
    """

    def __init__(self, address: str = "auto") -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise it sends usage statistics
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # otherwise it warns that it hides GPUs
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
                    address=None if address == LOCAL else address,
                    include_dashboard=False if address == LOCAL else None,
                    log_to_driver=True,  # print a worker's standard error here, as with a local one
                    logging_level=logging.ERROR,
                )
            except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
                raise ConfigError(
                    f"no Ray cluster answers at '{address}' ({error}); start one with 'ray start --head', or give "
                    f"--ray {LOCAL} for one on this machine only"
                ) from None
        self._host: Any = self._ray.remote(num_cpus=1, max_concurrency=4, max_restarts=0)(_Host)

    def piped(self, command: Sequence[str], environment: Mapping[str, str]) -> Piped:
        """Start a process, see :meth:`Launcher.piped`."""
        return _Remote(self._ray, self._host.remote(_portable(command), _changed(environment), None), piped=True)

    def logged(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> Process:
        """Start a process, see :meth:`Launcher.logged`."""
        host = self._host.remote(_portable(command), _changed(environment), str(log.resolve()))
        return _Remote(self._ray, host, piped=False)


def add_option(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the option ``--ray``. what: What it distributes, such as "rollouts", for the help."""
    parser.add_argument(
        "--ray",
        nargs="?",
        const="auto",
        metavar="ADDRESS",
        help=f"distribute the {what} over the machines of a Ray cluster, which must see the same folders under the "
        f"same paths. ADDRESS is the address of the head node. Without ADDRESS, the running cluster of this machine "
        f"is used. '{LOCAL}' starts a cluster on this machine alone",
    )


def launcher(ray: str | None) -> Launcher:
    """Return the launcher for the Ray cluster at address ``ray``, or for this machine if ``ray`` is None."""
    return LocalLauncher() if ray is None else RayLauncher(ray)


#: Placeholder in a command for the Python interpreter.
_PYTHON = "<python>"
#: Environment variables that are always passed to the processes.
_TAKEN = ("MUJOCO_GL", "LIBERO_CONFIG_PATH")


def _portable(command: Sequence[str]) -> list[str]:
    return [_PYTHON if word == sys.executable else word for word in command]


def _changed(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables set for the process. Variables inherited from this machine are not passed on."""
    return {
        name: value
        for name, value in environment.items()
        if os.environ.get(name) != value or name in _TAKEN or name.startswith("M2DISTILL_")
    }


class _Host:
    """Ray actor on a machine of the cluster. It starts one child process and connects its pipes."""

    def __init__(self, command: list[str], environment: dict[str, str], log: str | None) -> None:
        words = [sys.executable if word == _PYTHON else word for word in command]
        # Ray sets these two variables, such as an empty list of GPUs. They are removed, so that the child gets the same
        # environment as a process that a user starts.
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
        """Return once the child has been started."""

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
    """The local side of a :class:`_Host`, with the interface of :class:`Piped`."""

    def __init__(self, ray: Any, host: Any, piped: bool) -> None:
        self._ray, self._host, self._piped = ray, host, piped
        self._begun, self._end = host.ready.remote(), host.wait.remote()
        self._unsent: list[bytes] = []
        self._lock = threading.Lock()
        self.returncode: int | None = None
        #: Why the machine or the Ray actor failed, if that ended the process; else "".
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
                if not self._piped:  # the last output of a piped process is still to be read
                    self._ray.kill(self._host)  # frees its core
            return self.returncode

    def terminate(self) -> None:
        self._host.signal.remote("terminate")

    def kill(self) -> None:
        # The child is killed first, because it would outlive its host. A host that waits for a core has no child yet.
        self._ray.wait([self._host.signal.remote("kill")], timeout=5.0)
        self._ray.kill(self._host)

    @property
    def waiting(self) -> bool:
        """Whether the process still waits for a core."""
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
            raise BrokenPipeError from None  # as for a pipe whose reader has ended

    def close(self) -> None:
        self._host.close.remote()


def why_lost(process: Process) -> str:
    """Return why the machine or the Ray actor of a process failed, if that ended the process; else ""."""
    return process.lost if isinstance(process, _Remote) else ""


def _reason(error: Exception) -> str:
    """Return the last line of Ray's report, which is the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
