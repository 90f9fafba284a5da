"""A folder has one writer, and the hold ends with its process, however that ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from m2distill_policy.errors import StorageError
from m2distill_policy.lock import only_writer

HOLD = """
import sys, time, pathlib
from m2distill_policy.lock import only_writer
with only_writer(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_that_is_being_written_is_refused_until_its_writer_is_gone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(StorageError, match=f"is being written by process {other.pid} on"), only_writer(tmp_path):
            pass
        other.send_signal(signal.SIGKILL)
    with only_writer(tmp_path), pytest.raises(StorageError, match="being written"), only_writer(tmp_path):
        pass
    with only_writer(tmp_path / "new"):
        assert (tmp_path / "new").is_dir()
