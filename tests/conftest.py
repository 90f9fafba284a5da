"""What must happen before any test: a test process both draws and learns, which no process of the product does."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from m2distill_policy.installation import missing_modules

# CUDA builds of torch bring triton, and both triton and Mesa's software renderer carry an LLVM of their own. Loaded
# after Mesa, triton takes some of Mesa's symbols and the process dies; loaded before it, both work.
with contextlib.suppress(ImportError):
    import triton  # type: ignore[import-not-found, unused-ignore]  # noqa: F401

if TYPE_CHECKING:
    from tests.sides import Side


def _promised_roles() -> list[str]:
    """What ``make`` says that this environment was made for: there a missing module is an error."""
    record = Path(sys.prefix) / ".roles"
    return record.read_text(encoding="utf-8").split() if record.is_file() else []


# Fast DDS's shared memory keeps the locks of a process that was killed, as tests do, and a later process can wait for
# them for ever (https://github.com/eProsima/Fast-DDS/issues/5469). The tests' participants use UDP alone.
os.environ.setdefault("FASTDDS_BUILTIN_TRANSPORTS", "UDPv4")

#: Where scripts/test.sh adds up the outcomes of two runs; not for a pytest that a test starts.
COUNTS = os.environ.pop("M2DISTILL_TEST_COUNTS", "")
#: Module -> role, of what this machine is not for: a robot's has no torch and no simulator.
OTHER_ROLES = {
    module: role for role in ("train", "sim") if role not in _promised_roles() for module in missing_modules(role)
}


def _of_another_role(module: str | None) -> str | None:
    """Why a test that fails for want of ``module`` is left out; None where it should be here."""
    root = (module or "").split(".")[0]
    return f"{root} is not installed: for machines of role '{OTHER_ROLES[root]}'" if root in OTHER_ROLES else None


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--ros`` and ``--no-ros``: only what runs on ROS 2, or all the rest."""
    parser.addoption("--ros", action="store_true", help="run only the tests that need ROS 2 (make test-ros)")
    parser.addoption("--no-ros", action="store_true", help="leave out the tests that need ROS 2")


def _needs_ros(item: pytest.Item) -> bool:
    """Whether the test runs on rclpy: by its file, or as the ROS 2 side of a test of both transports."""
    parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    by_file = item.path.name.startswith("test_ros_") and item.path.name != "test_ros_found.py"
    return by_file or parameters.get("side") == "ros" or item.get_closest_marker("ros") is not None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked as another role's, and what ``--ros`` or ``--no-ros`` says."""
    if config.getoption("--ros") or config.getoption("--no-ros"):
        chosen = [item for item in items if _needs_ros(item) == config.getoption("--ros")]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen
    for item in items:
        for marker in item.iter_markers("role"):
            if marker.args[0] in OTHER_ROLES.values():
                lacking = ", ".join(module for module, role in OTHER_ROLES.items() if role == marker.args[0])
                item.add_marker(pytest.mark.skip(reason=f"for machines of role '{marker.args[0]}' (no {lacking})"))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A file whose imports are another role's is skipped, and said so."""
    report = yield
    found = (
        re.search(r"ModuleNotFoundError: No module named '([\w.]+)'", str(report.longrepr)) if report.failed else None
    )
    reason = _of_another_role(found[1]) if found else None
    if reason:
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, f"Skipped: {reason}")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that imports another role's module on its way is skipped, and said so."""
    report = yield
    error = call.excinfo.value if call.excinfo is not None else None
    reason = _of_another_role(error.name) if isinstance(error, ModuleNotFoundError) else None
    if reason:
        report.outcome = "skipped"
        report.longrepr = (str(item.path), item.location[1] or 0, f"Skipped: {reason}")
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """How many of the tests that need ROS 2 ran on it, and why the others did not; the counts for scripts/test.sh."""
    stats = terminalreporter.stats
    if COUNTS:
        outcomes = ("failed", "passed", "skipped", "deselected", "xfailed", "xpassed", "warnings", "error")
        with Path(COUNTS).open("a", encoding="utf-8") as counts:
            counts.write(json.dumps({outcome: len(stats.get(outcome, [])) for outcome in outcomes}) + "\n")
    if not config.getoption("--ros"):
        return
    ran = sum(len(stats.get(outcome, [])) for outcome in ("passed", "failed", "xfailed", "xpassed"))
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in stats.get("skipped", []))
    why = "; ".join(f"{count} {reason}" for reason, count in reasons.items())
    terminalreporter.write_line(f"ROS tests: {ran} ran, {reasons.total()} skipped" + (f" ({why})" if why else ""))


@pytest.fixture
def own_domain(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A domain of this test's own, met from this machine only: what has just gone is still found for a while."""
    from m2distill_policy.dds.domain import reserve_domain

    with reserve_domain() as domain:
        monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
        monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")  # Iron and later
        yield domain


@pytest.fixture(params=["dds", "ros"])
def side(request: pytest.FixtureRequest, tmp_path: Path, own_domain: int) -> Side:
    """Each way to the policy in turn, in a domain of its own; ROS 2 where one is sourced."""
    if request.param == "ros":
        pytest.importorskip("rclpy", reason="ROS 2 is not sourced")
        pytest.importorskip("m2distill_msgs", reason="ros2_ws is not built and sourced")
        from tests.ros_side import RosSide

        return RosSide(tmp_path, own_domain)
    from tests.dds_side import DdsSide

    return DdsSide(tmp_path, own_domain)
