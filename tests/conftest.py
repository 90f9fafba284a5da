"""What must happen before any test: a test process both draws and learns, which no process of the product does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# CUDA builds of torch bring triton, and both triton and Mesa's software renderer carry an LLVM of their own. Loaded
# after Mesa, triton takes some of Mesa's symbols and the process dies; loaded before it, both work.
with contextlib.suppress(ImportError):
    import triton  # type: ignore[import-not-found, unused-ignore]  # noqa: F401

if TYPE_CHECKING:
    from tests.sides import Side


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
