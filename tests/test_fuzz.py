"""A bounded slice of ``make fuzz``: every seed of ``tests/corpus``, and the same few inputs every time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz import __main__ as fuzz_main
from tests.fuzz import door as doors
from tests.fuzz import invariant
from tests.fuzz.__main__ import Supervisor
from tests.fuzz.choice import RandomChoice
from tests.fuzz.faulty_door import SEED
from tests.fuzz.invariant import ROOT, Findings, check
from tests.fuzz.plants import PLANTS
from tests.fuzz.worker import has_atheris

#: Doors with faults that are being closed.
OPEN: tuple[str, ...] = ()
#: Door -> inputs of the engine without coverage; hypothesis makes a quarter of as many.
INPUTS = {"bundle": 30, "demonstration": 60, "recording": 30, "configuration": 120, "dds": 12, "ros": 12}


def fuzz(*arguments: str, work: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz", f"--work={work}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.mark.parametrize(
    "door",
    [
        pytest.param(
            door,
            marks=[
                *([pytest.mark.xfail(strict=False)] if door in OPEN else []),
                *([pytest.mark.ros] if door == "ros" else []),
            ],
        )
        for door in doors.DOORS
    ],
)
def test_nothing_bad_comes_through(door: str, tmp_path: Path) -> None:
    lacking = doors.missing(door)
    if lacking:
        pytest.skip(f"{', '.join(lacking)} not installed")
    done = fuzz(f"--door={door}", f"--count={INPUTS[door]}", "--seconds=120", work=tmp_path)
    reports = [json.loads(path.read_text())["text"] for path in tmp_path.glob("findings/*/*/report.json")]
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n" + "\n".join(reports)
    (summary,) = json.loads((tmp_path / "summary.json").read_text())
    assert summary["inputs"] >= INPUTS[door] and summary["accepted"] and not summary["findings"]
    assert summary["engines"] == ["slice"]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"error", "error"), (b"not-finite", "command"), (b"outside", "command"), (b"long-message", "message"),
        (b"slow", "time"), (b"large", "memory"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("resets", [True, False])
def test_every_kind_is_found(data: bytes, kind: str, resets: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not resets:  # as in a sandbox whose kernel does not let the peak be reset
        monkeypatch.setattr(invariant, "_reset_peak", lambda: False)
    np.ones(400 << 20, dtype=np.uint8)  # what was taken before does not count
    outcome, finding = check(doors.make("faulty"), data)
    assert outcome.value == "found" and finding is not None and finding.kind == kind


def test_what_is_right_is_no_finding() -> None:
    assert [check(doors.make("faulty"), data)[0].value for data in (b"fine", b"refused")] == ["accepted", "refused"]


def test_the_smallest_input_of_a_finding_is_kept(tmp_path: Path) -> None:
    findings = Findings(tmp_path)
    _, finding = check(doors.make("faulty"), b"error 123")
    assert finding is not None
    kept = [findings.keep(finding, data) for data in (b"error 123", b"error", b"error 1234")]
    assert kept == [True, False, False]
    (file,) = tmp_path.glob("faulty/*/input")
    assert file.read_bytes() == b"error" and findings.known() == {f"faulty/{finding.key}": 5}


def test_a_generator_repeats_itself() -> None:
    door = doors.make("demonstration")
    seeds = door.seeds()
    again = [door.change(RandomChoice(7), data) for data in seeds]
    assert again == [door.change(RandomChoice(7), data) for data in seeds] and again != seeds


def test_folders_survive_packing() -> None:
    files = {"a": b"1", "b.onnx": bytes(range(256))}
    assert doors.unpack(doors.pack(files)) == files and doors.pack(files) == doors.pack(dict(reversed(files.items())))
    assert doors.unpack(b"no archive") is None


# --- faults that are planted into the product -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "door", [pytest.param(door, marks=[pytest.mark.ros] if door == "ros" else []) for door in doors.DOORS]
)
def test_planted_faults_are_found(door: str) -> None:
    lacking = doors.missing(door)
    if lacking:
        pytest.skip(f"{', '.join(lacking)} not installed")
    command = [sys.executable, "-m", "tests.fuzz.plants", door, "--inputs=100"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    tried = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["plant"] for one in tried] == [plant.name for plant in PLANTS if door in plant.doors] and tried
    assert all(one["found"] for one in tried), [one for one in tried if not one["found"]]


# --- processes that die or hang --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "kind"), [("dies", "crash"), ("spins", "hang"), ("sleeps", "hang")])
def test_a_process_that_dies_or_hangs_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: str, kind: str
) -> None:
    monkeypatch.setenv(SEED, seed)
    supervisor = Supervisor("faulty", tmp_path / "work", tmp_path / "findings", fresh=True)
    supervisor.slice("seeds", 60)
    (report,) = (tmp_path / "findings").glob("faulty/*/report.json")
    assert json.loads(report.read_text())["kind"] == kind and (report.parent / "input").read_text() == seed
    assert len(supervisor.result.findings) == 1 and supervisor.result.inputs == 1


def test_each_engine_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SEED, "error xxxx")
    engines = ["mutate", "hypothesis", *(["atheris"] if has_atheris() else [])]
    for engine in engines:
        supervisor = Supervisor("faulty", tmp_path / engine, tmp_path / f"{engine}-findings", fresh=True)
        supervisor.slice(engine, 3)
        assert [key for key in supervisor.result.findings if key.startswith("error: KeyError")], engine


def test_a_process_that_took_long_to_begin_is_no_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SEED, "fine")
    monkeypatch.setattr(fuzz_main, "GRACE", -60.0)  # it is too late from the start
    supervisor = Supervisor("faulty", tmp_path / "work", tmp_path / "findings", fresh=True)
    supervisor.slice("seeds", 60)
    assert not supervisor.result.findings and not list((tmp_path / "findings").glob("faulty/*/report.json"))
    assert supervisor.result.seconds < 30
