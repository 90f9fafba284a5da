"""A bar in a log says its state now and then, not ten times a second."""

from __future__ import annotations

import pytest

from m2distill_policy import progress


def test_log_gets_few_states_and_the_last(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with progress.ProgressBar(total=60, mininterval=0.0, miniters=1) as bar:
        for _ in range(60):
            bar.update()
    states = [state for state in capsys.readouterr().err.replace("\n", "\r").split("\r") if state]
    assert 2 <= len(states) <= 3 + 60 / progress.LOG_SECONDS
    assert "60/60" in states[-1]
