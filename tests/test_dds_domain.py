"""Choice of the DDS domain."""

from __future__ import annotations

import pytest

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
    with pytest.raises(ConfigError, match="domain id is '233'; 0 to 232 is allowed"):
        domain_id(233)


def test_reserved_domains_differ() -> None:
    with reserve_domain() as first, reserve_domain() as second:
        assert first != second and min(first, second) >= 1 and max(first, second) <= 101
