"""``python -m m2distill_policy``: the same as ``m2distill``."""

import sys

from m2distill_policy.cli import main

if __name__ == "__main__":
    sys.exit(main())
