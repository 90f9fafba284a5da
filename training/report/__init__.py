"""Reports of runs: tables, charts, and a self-contained page."""
