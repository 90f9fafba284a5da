"""The process in which inputs are tried. It may die or hang: what it works on lies in a file that survives it."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import faulthandler
import hashlib
import importlib.util
import logging
import mmap
import os
import resource
import signal
import struct
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.fuzz.door import Door
    from tests.fuzz.invariant import Finding

#: inputs, accepted, refused, found; when the present input began (s, monotonic; 0 between inputs), its size.
_HEAD = struct.Struct("<QQQQdQ")
#: Longest input that is kept.
CAPACITY = 8 << 20
#: Packages whose code counts as new when an input reaches it.
COVERED = ("m2distill_policy", "training.run_config", "rosbags", "yaml", "tomllib", "mcap")


class Current:
    """The input under way and the counts so far, in a file that two processes share."""

    def __init__(self, path: Path, *, new: bool = False) -> None:
        if new:
            with path.open("wb") as file:
                file.truncate(_HEAD.size + CAPACITY)
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.inputs = self.accepted = self.refused = self.found = 0

    def begin(self, data: bytes) -> None:
        """An input is about to be tried."""
        size = min(len(data), CAPACITY)
        self._map[_HEAD.size : _HEAD.size + size] = data[:size]
        self._write(time.monotonic(), size)

    def end(self, outcome: str) -> None:
        """It was tried; ``outcome`` is the value of an :class:`tests.fuzz.invariant.Outcome`."""
        self.inputs += 1
        self.accepted += outcome == "accepted"
        self.refused += outcome == "refused"
        self.found += outcome == "found"
        self._write(0.0, 0)

    def _write(self, began: float, size: int) -> None:
        _HEAD.pack_into(self._map, 0, self.inputs, self.accepted, self.refused, self.found, began, size)

    def read(self) -> tuple[tuple[int, int, int, int], float, bytes]:
        """(inputs, accepted, refused, found), when the present input began (0: none is under way), and the input."""
        *counts, began, size = _HEAD.unpack_from(self._map, 0)
        data = bytes(self._map[_HEAD.size : _HEAD.size + size]) if began else b""
        return (counts[0], counts[1], counts[2], counts[3]), began, data


class _New(Exception):
    """An input shows a fault that was not known: hypothesis reduces it."""


class Worker:
    """Tries inputs of one door until a time or a number is reached."""

    def __init__(self, door: Door, current: Current, findings: Path, until: float, count: int | None) -> None:
        from tests.fuzz.invariant import Findings

        self.door = door
        self.current = current
        self._findings = Findings(findings)
        self._until, self._count = until, count
        #: Where inputs go that took too long while every line was counted: they are tried again without.
        self._slow: Path | None = None
        self._known = {key for key in self._findings.known() if key.startswith(f"{door.name}/")}

    @property
    def over(self) -> bool:
        """Whether it is time to end."""
        return time.monotonic() >= self._until or (self._count is not None and self.current.inputs >= self._count)

    def tried(self, data: bytes) -> Finding | None:
        """Try one input; a finding is kept on disk."""
        from tests.fuzz.invariant import check

        self.current.begin(data)
        outcome, finding = check(self.door, data)
        self.current.end(outcome.value)
        if finding is not None and finding.kind == "time" and self._slow is not None:
            self._slow.mkdir(parents=True, exist_ok=True)
            (self._slow / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
        elif finding is not None:
            self._findings.keep(finding, data)
        return finding

    def slow(self, work: Path) -> None:
        """What took too long under the coverage-guided engine, at its usual speed."""
        for file in sorted((work / "slow").glob("*")):
            self.tried(file.read_bytes())
            file.unlink()

    def pool(self, corpus: Path | None) -> list[bytes]:
        """What inputs are made of."""
        kept = sorted(corpus.glob("*")) if corpus is not None and corpus.is_dir() else []
        return [*self.door.committed(), *self.door.seeds(), *(file.read_bytes() for file in kept)]

    def seeds(self) -> None:
        """Every seed once."""
        for data in self.pool(None):
            self.tried(data)

    def slice(self, count: int, seed: int) -> None:
        """Every seed, ``count`` changed ones and a quarter as many that hypothesis draws: always the same ones."""
        self.seeds()
        self._count = self.current.inputs + count
        self.mutate(None, seed)
        self._count = self.current.inputs + max(5, count // 4)
        self.hypothesis(None, seed)

    def mutate(self, corpus: Path | None, seed: int) -> None:
        """Change seeds without looking at coverage."""
        from tests.fuzz.choice import RandomChoice

        pool, turn = self.pool(corpus), 0
        while not self.over:
            choice = RandomChoice(seed * 1_000_003 + turn)
            turn += 1
            self.tried(self.door.change(choice, choice.pick(pool)))

    def hypothesis(self, corpus: Path | None, seed: int) -> None:
        """Inputs drawn by hypothesis; one that shows a fault not known before is reduced."""
        import hypothesis
        from hypothesis import strategies as st

        from tests.fuzz.choice import DrawnChoice

        pool = self.pool(corpus)

        def one(data: st.DataObject) -> None:
            if self.over:
                return
            choice = DrawnChoice(data)
            finding = self.tried(self.door.change(choice, choice.pick(pool)))
            if finding is not None and f"{self.door.name}/{finding.key}" not in self._known:
                raise _New(finding.key)

        turn = 0
        while not self.over:
            settings = hypothesis.settings(
                max_examples=100 if self._count is None else self._count - self.current.inputs,
                deadline=None,
                database=None,
                phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
                suppress_health_check=list(hypothesis.HealthCheck),
                print_blob=False,
                report_multiple_bugs=False,
                verbosity=hypothesis.Verbosity.quiet,
            )
            # What was found is kept already; hypothesis's own: slow once and not the next time, too large to draw.
            with contextlib.suppress(_New, hypothesis.errors.HypothesisException):
                hypothesis.seed(seed * 1_000_003 + turn)(settings(hypothesis.given(st.data())(one)))()
            self._known |= {key for key in self._findings.known() if key.startswith(f"{self.door.name}/")}
            turn += 1

    def atheris(self, corpus: Path, work: Path, seed: int) -> None:
        """Coverage-guided; ends the process."""
        import atheris

        from tests.fuzz.choice import RandomChoice

        self._slow = work / "slow"
        seeds = work / "seeds"
        for folder in (corpus, seeds):
            folder.mkdir(parents=True, exist_ok=True)
        for index, data in enumerate(self.pool(None)):
            (seeds / f"{index:03d}").write_bytes(data)

        def one(data: bytes) -> None:
            self.tried(data)

        def change(data: bytes, most: int, number: int) -> bytes:
            changed = self.door.change(RandomChoice(number), data)
            return changed[:most]

        left = max(1, int(self._until - time.monotonic()))
        flags = [f"-{name}=0" for name in ("handle_segv", "handle_abrt", "handle_bus", "handle_fpe", "handle_ill")]
        flags += ["-rss_limit_mb=0", "-timeout=100000", "-verbosity=0", "-len_control=0", "-reload=0"]
        flags += [f"-max_total_time={left}", f"-max_len={CAPACITY}", f"-seed={1 + seed % (2**31)}"]
        flags += [f"-artifact_prefix={work}/"]
        atheris.Setup([sys.argv[0], *flags, str(corpus), str(seeds)], one, custom_mutator=change)
        atheris.Fuzz()


def _end_with_parent() -> None:
    """A process that hangs in C must not outlive whoever started it (Linux)."""
    if sys.platform == "linux":
        death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(death_signal, signal.SIGKILL, 0, 0, 0)


def _limit_memory(mebibytes: int) -> None:
    """No more address space than the process has now and ``mebibytes`` beyond, and half a gibibyte to say so in."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        most = pages * os.sysconf("SC_PAGE_SIZE") + (mebibytes + 512) * (1 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main() -> None:
    """``python -m tests.fuzz.worker``: started by ``python -m tests.fuzz``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("door")
    parser.add_argument("engine", choices=("seeds", "hypothesis", "atheris", "mutate", "slice", "slow"))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--findings", type=Path, required=True)
    parser.add_argument("--fresh", action="store_true", help="do not use what earlier runs kept")
    args = parser.parse_args()

    _end_with_parent()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    log = (args.work / "stack").open("w")
    faulthandler.enable(log, all_threads=True)
    faulthandler.register(signal.SIGUSR1, log, all_threads=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    until = time.monotonic() + args.seconds
    if args.engine == "atheris":
        import atheris

        # Never left: modules that are imported later count as well.
        atheris.instrument_imports(include=list(COVERED)).__enter__()
    from tests.fuzz.door import make

    door = make(args.door)
    worker = Worker(door, Current(args.work / "current"), args.findings, until, args.count)
    door.seeds()
    _limit_memory(door.mebibytes)
    corpus = None if args.fresh else args.work / "corpus"
    if args.engine == "seeds":
        worker.seeds()
    elif args.engine == "slow":
        worker.slow(args.work)
    elif args.engine == "slice":
        worker.slice(args.count or 0, args.seed)
    elif args.engine == "hypothesis":
        worker.hypothesis(corpus, args.seed)
    elif args.engine == "mutate":
        worker.mutate(corpus, args.seed)
    else:
        worker.atheris(args.work / "corpus", args.work, args.seed)
    sys.stdout.flush()
    os._exit(0)  # threads of libraries must not keep it


def has_atheris() -> bool:
    """Whether the coverage-guided engine is there."""
    return importlib.util.find_spec("atheris") is not None


if __name__ == "__main__":
    main()
