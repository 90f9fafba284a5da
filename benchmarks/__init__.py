"""Measurements: each module is one command and writes JSON with machine, versions and commit."""
