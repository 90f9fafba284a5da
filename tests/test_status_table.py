"""The guide says for every status what the operator does."""

from __future__ import annotations

import re
from pathlib import Path

from m2distill_policy.runtime.status import StatusCode

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "ros2.md"


def test_the_guide_says_for_every_status_what_the_operator_does() -> None:
    rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \| ([^|]+) \|", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [(int(code), name) for code, name, _ in rows] == [(code.value, code.name) for code in StatusCode]
    assert all(todo.strip() for _, _, todo in rows)
