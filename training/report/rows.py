"""Read a run's ``metrics.jsonl``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def loss_rows(run_folder: Path) -> list[dict[str, Any]]:
    """Return the logged training steps of a run, in order."""
    path = run_folder / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
