"""Simulated worlds: suites of tasks, scripted experts, fast visuals."""
