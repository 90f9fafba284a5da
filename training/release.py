"""The release criteria: when the bundle of an extended run is published to robots."""

from __future__ import annotations

from dataclasses import dataclass

from m2distill_policy.errors import ConfigError


@dataclass(frozen=True)
class ReleaseCriteria:
    """Conditions for publishing the bundle of an extended run, and the folder to publish it to.

    Attributes:
        margin: Share of rollouts by which success on an old task may drop, 0 to 1.
        publish: Folder that the bundle is copied into; None: it is not published.
        untested: Whether to publish even if the old tasks were not evaluated.
    """

    margin: float = 0.2
    publish: str | None = None
    untested: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.margin <= 1:
            raise ConfigError(f"the margin is {self.margin}; allowed is a share of rollouts, 0 to 1")
