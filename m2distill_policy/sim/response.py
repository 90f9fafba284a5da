"""Fit from demonstrations which velocity an action causes, for arms that are driven by velocity.

An action is a set-point ahead of the arm, and the arm follows it with a lag. A velocity-driven arm needs the speed that
the demonstrated arm reached, see :class:`m2distill_policy.contract.VelocityResponse`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from m2distill_policy.contract import VelocityResponse
from m2distill_policy.demonstrations import Episode
from m2distill_policy.errors import DemonstrationError
from m2distill_policy.sim.osc import rotation_from_vector, vector_from_rotation

#: Absolute values of an action at which the speed is fitted. Between them, the response is linear.
LEVELS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
#: Smallest number of steps for a fit of six axes.
_FEWEST_STEPS = 50
#: Weight of the default response, as a number of steps. It determines the result where there is no data, such as the
#: speed of rotation of a hand that never turns.
_PRIOR_STEPS = 3.0


def fit_velocity_response(episodes: Iterable[Episode], *, rate_hz: float = 20.0) -> VelocityResponse:
    """Fit the speed of each axis as an increasing, piecewise linear function of the absolute value of the action.

    The fit is non-negative least squares on the motion of the end effector in the control period of each executed
    action. The default response is added with a small weight, so that actions that no demonstration contains get a
    plausible speed.

    Args:
        episodes: The demonstrations, with end-effector poses.
        rate_hz: Control rate in Hz.

    Returns:
        The response, with speeds in m/s and rad/s.

    Raises:
        DemonstrationError: A demonstration has no end-effector poses, or there are too few steps.
    """
    actions, velocities = [], []
    for episode in episodes:
        if episode.ee is None:
            raise DemonstrationError(
                "a demonstration has no end-effector poses ('obs/ee_states'); a velocity response needs them"
            )
        if len(episode) < 2:
            continue
        done = episode.actions if episode.executed is None else episode.executed
        between = done[1:] if episode.seen_after else done[:-1]
        actions.append(np.asarray(between[:, :6], dtype=np.float64))
        velocities.append(_velocities(episode.ee, rate_hz))
    steps = sum(len(a) for a in actions)
    if steps < _FEWEST_STEPS:
        raise DemonstrationError(
            f"a velocity response needs at least {_FEWEST_STEPS} demonstrated steps; there are {steps}"
        )
    action, velocity = np.concatenate(actions), np.concatenate(velocities)
    guess = VelocityResponse.default()
    rows = []
    for axis in range(6):
        expected = np.interp(LEVELS, guess.levels, guess.velocities[axis])
        rows.append(_fit_axis(action[:, axis], velocity[:, axis], np.asarray(expected)))
    return VelocityResponse(LEVELS, tuple(rows), steps)


def _velocities(ee: NDArray[np.floating], rate_hz: float) -> NDArray[np.float64]:
    """Return the twists (L-1, 6) between successive poses (L, 6), in m/s and rad/s."""
    pose = np.asarray(ee, dtype=np.float64)
    linear = np.diff(pose[:, :3], axis=0)
    rotations = [rotation_from_vector(vector) for vector in pose[:, 3:]]
    turns = np.array([vector_from_rotation(b @ a.T) for a, b in itertools.pairwise(rotations)])
    return np.concatenate([linear, turns], axis=1) * rate_hz


def _fit_axis(
    action: NDArray[np.float64], velocity: NDArray[np.float64], expected: NDArray[np.float64]
) -> tuple[float, ...]:
    """Return the speeds at :data:`LEVELS` from the actions and velocities (n,) of one axis."""
    size, along = np.abs(action), np.sign(action) * velocity
    # Column k is the share of the k-th interval that an action covers, 0 to 1. The coefficient of the column is the
    # increase of speed over that interval.
    edges = np.asarray(LEVELS)
    low, width = edges[:-1], np.diff(edges)
    design = np.clip((size[:, None] - low) / width, 0.0, 1.0)
    prior = np.clip((edges[1:, None] - low) / width, 0.0, 1.0) * np.sqrt(_PRIOR_STEPS)
    rises, _ = nnls(np.concatenate([design, prior]), np.concatenate([along, expected[1:] * np.sqrt(_PRIOR_STEPS)]))
    return (0.0, *(float(v) for v in np.cumsum(rises)))
