"""Which domain, and what its buffers hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from m2distill_policy.dds import domain
from m2distill_policy.dds.domain import domain_id, reserve_domain
from m2distill_policy.errors import ConfigError


def test_domain_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROS_DOMAIN_ID", raising=False)
    assert domain_id() == 0 and domain_id(17) == 17
    monkeypatch.setenv("ROS_DOMAIN_ID", "42")
    assert domain_id() == 42 and domain_id(17) == 17
    monkeypatch.setenv("ROS_DOMAIN_ID", "many")
    with pytest.raises(ConfigError, match="ROS_DOMAIN_ID is 'many'"):
        domain_id()
    with pytest.raises(ConfigError, match="domain id is '233'; allowed are 0 to 232"):
        domain_id(233)


def test_small_receive_buffers_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit = tmp_path / "rmem_max"
    monkeypatch.setattr(domain, "_RECEIVE_LIMIT", limit)
    assert domain.receive_buffer_trouble(921_600) is None  # not known
    limit.write_text("212992\n")
    assert domain.receive_buffer_trouble(128 * 128 * 3) is None
    trouble = domain.receive_buffer_trouble(640 * 480 * 3)
    assert trouble is not None and "212992" in trouble and "--reliable-input" in trouble
    limit.write_text("4194304\n")
    assert domain.receive_buffer_trouble(640 * 480 * 3) is None


def test_reserved_domains_differ() -> None:
    with reserve_domain() as first, reserve_domain() as second:
        assert first != second and min(first, second) >= 1 and max(first, second) <= 101
