"""Tests that need LIBERO's meshes and textures, which are not part of its package."""

from __future__ import annotations

import pytest

from m2distill_policy.errors import SimulationError
from m2distill_policy.sim.libero import files


def _missing() -> str:
    try:
        files.assets_folder()
    except SimulationError as error:
        return str(error)
    return ""


_SENTENCE = _missing()
needs_scenes = pytest.mark.skipif(bool(_SENTENCE), reason=_SENTENCE or "LIBERO's scenes are here")
