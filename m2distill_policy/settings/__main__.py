"""``python -m m2distill_policy.settings``: print the table of docs/ros2.md."""

from __future__ import annotations

from m2distill_policy.settings.definitions import markdown

if __name__ == "__main__":
    print(markdown())
