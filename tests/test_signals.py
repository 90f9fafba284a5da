"""A node that a launch file started ends with its launcher, however that ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

NODE = """
import sys, time
from pathlib import Path
from m2distill_policy.signals import stop_on_signals

stopped = []
stop_on_signals(stopped.append)
Path(sys.argv[1], "up").touch()
end = time.monotonic() + 20
while not stopped and time.monotonic() < end:
    time.sleep(0.02)
Path(sys.argv[1], "why").write_text(stopped[0] if stopped else "nobody said so")
"""
LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], sys.argv[2]])"


def _there(path: Path, patience: float) -> bool:
    end = time.monotonic() + patience
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.02)
    return path.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the signal at a parent's end is Linux's")
@pytest.mark.parametrize("asked", [True, False])
def test_a_node_ends_with_its_launcher_where_it_was_asked_to(tmp_path: Path, asked: bool) -> None:
    environment = {**os.environ, **({"M2DISTILL_END_WITH_PARENT": "1"} if asked else {})}
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, NODE, str(tmp_path)], env=environment, start_new_session=True
    )
    try:
        assert _there(tmp_path / "up", 20)
        launcher.kill()
        launcher.wait()
        assert _there(tmp_path / "why", 10 if asked else 1) is asked
        if asked:
            time.sleep(0.1)
            assert (tmp_path / "why").read_text() == "the process got SIGTERM"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)


STUBBORN = """
import sys, time
from pathlib import Path
from m2distill_policy.signals import stop_on_signals

stop_on_signals(lambda why: None, grace=2.0)
Path(sys.argv[1], "up").touch()
time.sleep(30)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_does_not_end_can_be_interrupted_after_its_time(tmp_path: Path, number: signal.Signals) -> None:
    child = subprocess.Popen([sys.executable, "-c", STUBBORN, str(tmp_path)], stderr=subprocess.PIPE, text=True)
    try:
        assert _there(tmp_path / "up", 20)
        child.send_signal(number)
        begin = time.monotonic()
        while child.poll() is None:
            assert time.monotonic() - begin < 10
            time.sleep(0.3)
            child.send_signal(signal.SIGTERM)
            child.send_signal(signal.SIGINT)
        assert time.monotonic() - begin > 1.9
        said = child.communicate()[1]
        assert "KeyboardInterrupt" in said and "ending already" in said
    finally:
        child.kill()
        child.wait()
