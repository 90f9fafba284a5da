"""Simulated worlds: suites of tasks, scripted experts, fast visuals."""

from m2distill_policy.sim.gl import choose_gl
from m2distill_policy.sim.libraries import prepare_libraries

# Before anything here can import mujoco, which reads the choice once and for all.
choose_gl()
prepare_libraries()
