"""Simulated environments: suites of tasks, scripted experts and fast rendering."""

from m2distill_policy.sim.gl import choose_gl
from m2distill_policy.sim.library_settings import prepare_libraries

# mujoco and robosuite read these settings when they are imported. So the settings are made here, before any module of
# this package imports one of the two.
choose_gl()
prepare_libraries()
