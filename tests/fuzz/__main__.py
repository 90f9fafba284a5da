"""``make fuzz``: try every door for a while; exit status 1 and one line a finding where there is one.

examples:
  make fuzz                               every door for 15 minutes, one after another
  make fuzz DOOR=bundle SECONDS=60        one door, for a minute
  make fuzz JOBS=2                        two doors at a time
  python -m tests.fuzz --try FILE --door bundle      one input, with its traceback
  python -m tests.fuzz --adopt                       findings become seeds in tests/corpus, once they are understood
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.door import CORPUS, DOORS, make, missing
from tests.fuzz.invariant import ROOT, Finding, Findings, check
from tests.fuzz.worker import Current, has_atheris

#: s of one process; then another one goes on, with a memory that nothing has filled.
SLICE = 240.0
#: Names the environment variable that holds the shell commands which make ROS 2 usable, see scripts/ros_env.sh.
ROS = "M2DISTILL_FUZZ_ROS"
#: s between two lines about the progress.
PROGRESS_EVERY = 10.0


@dataclass
class Result:
    """What became of one door."""

    door: str
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    findings: dict[str, str] = field(default_factory=dict)
    engines: set[str] = field(default_factory=set)
    skipped: str = ""


#: s beyond its time after which a process of the fuzzer is ended.
GRACE = 120.0


class Supervisor:
    """Starts processes that try inputs of one door, and notices when one dies or hangs."""

    def __init__(self, door: str, work: Path, findings: Path, *, seed: int = 0, fresh: bool = False) -> None:
        self.result = Result(door)
        self._work = work / door
        self._work.mkdir(parents=True, exist_ok=True)
        self._findings = Findings(findings)
        self._seed, self._fresh = seed, fresh
        self._turn, self._began = 0, time.time() - 1
        # Limits are class attributes, but to make a door imports what it tries: only workers do that.
        self._limit = _seconds_of(door)

    def run(self, seconds: float) -> Result:
        """Try for ``seconds``: every seed, then hypothesis and the coverage-guided engine in turn."""
        end = time.monotonic() + seconds
        self.slice("seeds", seconds * 4 + 60)
        guided = "atheris" if has_atheris() else "mutate"
        short = min(SLICE / 4, seconds / 4)
        while end - time.monotonic() > 1:
            for engine, longest in (("hypothesis", short), (guided, min(SLICE, seconds * 0.75))):
                left = end - time.monotonic()
                if left > 1:
                    self.slice(engine, min(longest, left))
        if any((self._work / "slow").glob("*")):
            self.slice("slow", 600)
        return self.result

    def slice(self, engine: str, seconds: float, count: int | None = None) -> None:
        """One process of one engine; goes on with another one after a crash until the time is up."""
        end = time.monotonic() + seconds
        while True:
            began = time.monotonic()
            # A process that has died at a seed would die again: what is left of the seeds is tried by the others.
            if not self._process(engine, end - began, count) or engine in ("seeds", "slow") or count is not None:
                break
            if end - time.monotonic() < 1:
                break
        self.result.engines.add(engine)

    def _process(self, engine: str, seconds: float, count: int | None) -> bool:
        """Whether it died before its time."""
        self._turn += 1
        current = Current(self._work / "current", new=True)
        command = [*python_of(self.result.door), "-m", "tests.fuzz.worker", self.result.door, engine]
        command += [f"--seconds={seconds}"]
        command += [f"--seed={self._seed + self._turn}", f"--work={self._work}", f"--findings={self._findings.folder}"]
        command += [f"--count={count}"] if count is not None else []
        command += ["--fresh"] if self._fresh else []
        began = time.monotonic()
        with (self._work / "log").open("w") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )  # fmt: skip
            try:
                # To count lines makes everything a few times slower.
                limit = self._limit * (4 if engine == "atheris" else 1)
                died = self._watch(process, current, began + seconds + GRACE, limit)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        counts, _, _ = current.read()
        Current(self._work / "current", new=True)  # counted once
        self.result.inputs += counts[0]
        self.result.accepted += counts[1]
        self.result.refused += counts[2]
        self.result.seconds += time.monotonic() - began
        self.result.findings |= self._met()
        return died

    def _met(self) -> dict[str, str]:
        """Key -> line of what was met since this began, known from earlier or not."""
        found = {}
        for report in (self._findings.folder / self.result.door).glob("*/report.json"):
            with contextlib.suppress(OSError, ValueError):
                if report.with_name("seen").stat().st_mtime < self._began:
                    continue
                data = json.loads(report.read_text())
                found[data["key"]] = f"{self.result.door}: {data['key']}   ({report.parent / 'input'})"
        return found

    def _watch(self, process: subprocess.Popen[bytes], current: Current, latest: float, limit: float) -> bool:
        started, at_start, waited = -1.0, 0.0, 0.0
        before, last = time.monotonic(), None
        while process.poll() is None:
            time.sleep(0.1)
            _, began, _ = current.read()
            now = time.monotonic()
            waited += min(now - before, 1.0)  # a machine that was paused meanwhile is no hang
            before = now
            if began != started:
                started, at_start, waited = began, _processor_time(process.pid), 0.0
            elif began and (_processor_time(process.pid) - at_start > 2 * limit or waited > 10 * limit):
                self._hangs(process, current)
                return True
            # Too late, as where a busy machine took long to begin: end it once the present input has been tried.
            if now > latest:
                last = began if last is None else last
                if not began or began != last:
                    return True
        if process.returncode == 0:
            return False
        _, began, data = current.read()
        log = (self._work / "log").read_text(errors="replace")[-8000:]
        stack = (self._work / "stack").read_text(errors="replace") if (self._work / "stack").exists() else ""
        if not began:
            raise RuntimeError(f"a process of the fuzzer ended with {process.returncode} between two inputs:\n{log}")
        name = signal.Signals(-process.returncode).name if process.returncode < 0 else f"exit {process.returncode}"
        text = f"{name}\n{stack[:8000]}\n{log}"
        self._findings.keep(Finding(self.result.door, "crash", f"{name} at {_top(stack)}", text), data)
        return True

    def _hangs(self, process: subprocess.Popen[bytes], current: Current) -> None:
        _, _, data = current.read()
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.5)
        stack = (self._work / "stack").read_text(errors="replace")
        self._findings.keep(Finding(self.result.door, "hang", f"at {_top(stack)}", stack[:8000]), data)


def python_of(door: str) -> list[str]:
    """The command of the interpreter that tries a door: ROS 2 may have an environment of its own."""
    if door == "ros" and os.environ.get(ROS):
        return ["bash", "-c", f'eval "${ROS}" && exec "$ROS_PYTHON" "$@"', "bash"]
    return [sys.executable]


def _seconds_of(door: str) -> float:
    """The time limit of a door, from its source: see :class:`tests.fuzz.door.Door`."""
    text = (ROOT / "tests" / "fuzz" / f"{door}_door.py").read_text()
    found = re.search(r"^    seconds = ([0-9.]+)", text, re.MULTILINE)
    return float(found[1]) if found else 10.0


def _processor_time(process: int) -> float:
    with contextlib.suppress(OSError, ValueError, IndexError):
        parts = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _top(stack: str) -> str:
    """The innermost frames of the main thread in what faulthandler wrote: ours, and the one where it is."""
    frames = re.findall(r'File "([^"]+)", line (\d+) in (\S+)', stack.rpartition("Current thread")[2] or stack)
    if not frames:
        return "nowhere"
    ours = [f for f in frames if f[0].startswith(f"{ROOT}/m2distill_policy") or f[0].startswith(f"{ROOT}/training")]
    where = ours[0] if ours else frames[0]
    innermost = frames[0]
    return f"{Path(where[0]).name}:{where[2]} ({Path(innermost[0]).name}:{innermost[2]})"


def _try(door: str, file: Path) -> int:
    data = file.read_bytes()
    outcome, finding = check(make(door), gzip.decompress(data) if file.suffix == ".gz" else data)
    print(finding.text if finding is not None else outcome.value)
    if finding is not None:
        print(finding.line)
    return int(finding is not None)


def _adopt(findings: Path, doors: list[str]) -> int:
    for report in sorted(findings.glob("*/*/report.json")):
        door, data = report.parent.parent.name, (report.parent / "input").read_bytes()
        if door in doors:
            place = CORPUS / door / f"{report.parent.name}.gz"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(gzip.compress(data, 9, mtime=0))
            print(f"{place.relative_to(ROOT)}: {place.stat().st_size} bytes")
    return 0


def _table(results: list[Result]) -> str:
    head = f"{'door':<14} {'inputs':>9} {'accepted':>9} {'refused':>9} {'seconds':>8} {'findings':>9}  engines"
    rows = [head, "-" * len(head)]
    for r in results:
        if r.skipped:
            rows.append(f"{r.door:<14} skipped: {r.skipped}")
            continue
        rows.append(
            f"{r.door:<14} {r.inputs:>9} {r.accepted:>9} {r.refused:>9} {r.seconds:>8.0f} {len(r.findings):>9}  "
            + ", ".join(sorted(r.engines))
        )
    return "\n".join(rows)


def main() -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        prog="make fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--door", choices=tuple(DOORS), action="append", help="try this one alone (default: all)")
    parser.add_argument("--seconds", type=float, default=900.0, help="a door (default: %(default)g)")
    parser.add_argument("--jobs", type=int, default=1, help="doors at a time (default: %(default)d)")
    parser.add_argument("--seed", type=int, default=None, help="random seed (default: the time)")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "fuzz", help="where inputs and findings are kept")
    parser.add_argument("--findings", type=Path, help="default: findings in --work")
    parser.add_argument("--count", type=int, help="every seed and so many inputs, always the same ones")
    parser.add_argument("--try", dest="file", type=Path, metavar="FILE", help="try one input and say what it does")
    parser.add_argument("--adopt", action="store_true", help="copy the inputs of all findings to tests/corpus")
    args = parser.parse_args()
    doors = args.door or list(DOORS)
    if args.file is not None:
        return _try(doors[0], args.file)
    findings = args.findings or args.work / "findings"
    if args.adopt:
        return _adopt(findings, doors)
    seed = args.seed if args.seed is not None else 0 if args.count is not None else time.time_ns() // 10**6
    if not has_atheris():
        print("atheris is not installed (it has no wheel for this platform): inputs are made without coverage")

    running: dict[str, Supervisor] = {}

    def one(door: str) -> Result:
        lacking = missing(door)
        if lacking and len(python_of(door)) == 1:
            return Result(door, skipped=f"{', '.join(lacking)} not installed")
        supervisor = running[door] = Supervisor(door, args.work, findings, seed=seed, fresh=args.count is not None)
        if args.count is None:
            return supervisor.run(args.seconds)
        supervisor.slice("slice", args.seconds, args.count)
        return supervisor.result

    done = threading.Event()

    def progress() -> None:
        while not done.wait(PROGRESS_EVERY):
            for door, supervisor in list(running.items()):
                r = supervisor.result
                counts, began, _ = Current(args.work / door / "current").read()
                slow = f", {time.monotonic() - began:.0f} s at one" if began and time.monotonic() - began > 5 else ""
                print(f"{door}: {r.inputs + counts[0]} inputs, {len(r.findings)} findings{slow}", flush=True)

    threading.Thread(target=progress, daemon=True).start()
    with ThreadPoolExecutor(max(1, args.jobs)) as pool:
        results = []
        for future in [pool.submit(one, door) for door in doors]:
            results.append(future.result())
            running.pop(results[-1].door, None)
    done.set()
    print(_table(results))
    lines = [line for r in results for line in sorted(r.findings.values())]
    for line in lines:
        print(line)
    summary = [
        {
            **{key: getattr(r, key) for key in ("door", "inputs", "accepted", "refused", "skipped")},
            "seconds": round(r.seconds, 1),
            "engines": sorted(r.engines),
            "findings": sorted(r.findings),
        }
        for r in results
    ]
    (args.work / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return int(bool(lines))


if __name__ == "__main__":
    raise SystemExit(main())
