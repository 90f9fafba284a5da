"""Operational space control of a 7-joint arm, equal to robosuite's OSC_POSE, in one compiled function.

robosuite's own controller takes several milliseconds for a control step. In each of the 25 physics steps, it runs three
forward computations, builds the full mass matrix and computes three pseudo-inverses in Python. Here, one compiled call
gives the same torques. :mod:`tests.test_sim_osc` compares the two.

The two rotation functions at the end do not use :mod:`scipy.spatial.transform`. For a single rotation, scipy is
several times slower (figures in docs/architecture.md). Its results differ in the last digits, which would change every
trajectory. robosuite's functions are as fast, but training uses :mod:`m2distill_policy.sim.response`,
which must not need robosuite.

Derivation: O. Khatib, "A unified approach for motion and force control of robot manipulators", 1987. With J the
6 x 7 Jacobian of the grip site, M the 7 x 7 mass matrix and A = J M^-1 J^T, split in position and rotation::

    tau = J^T [ Ap^-1 (kp ep - kd vp) ; Ar^-1 (kp er - kd vr) ] + bias + N^T M u,   u = 10 (q0 - q) - 2 sqrt(10) qd
    N^T M u = M u - J^T A^-1 J u
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Stiffness (1/s^2) of OSC_POSE in robosuite (config/osc_pose.json). The damping ratio is 1.
STIFFNESS = 150.0
#: Stiffness (1/s^2) of the velocity drive. It is high, because a velocity-driven arm follows its set-point closely.
DRIVE_STIFFNESS = 2500.0
#: Gain of the posture task in the null space, robosuite's ``joint_kp``.
POSTURE_STIFFNESS = 10.0


@njit(cache=True)
def _cholesky_solve(a: Array, b: Array) -> Array:
    """Solve ``a x = b`` for a symmetric positive definite ``a`` (n, n) and ``b`` (n, k), with loops for small n."""
    n, k = b.shape
    low = np.zeros((n, n))
    for i in range(n):
        for j in range(i + 1):
            s = a[i, j]
            for p in range(j):
                s -= low[i, p] * low[j, p]
            if i == j:
                low[i, i] = math.sqrt(max(s, 1e-12))
            else:
                low[i, j] = s / low[j, j]
    x = np.empty((n, k))
    for c in range(k):
        for i in range(n):
            s = b[i, c]
            for p in range(i):
                s -= low[i, p] * x[p, c]
            x[i, c] = s / low[i, i]
        for i in range(n - 1, -1, -1):
            s = x[i, c]
            for p in range(i + 1, n):
                s -= low[p, i] * x[p, c]
            x[i, c] = s / low[i, i]
    return x


@njit(cache=True)
def osc_torques(
    full_jacobian: Array,
    full_mass: Array,
    full_bias: Array,
    qpos: Array,
    qvel: Array,
    first_q: int,
    first: int,
    posture: Array,
    position: Array,
    flat_rotation: Array,
    goal_position: Array,
    goal_rotation: Array,
    goal_velocity: Array,
    stiffness: float,
    low: Array,
    high: Array,
) -> Array:
    """Return the joint torques that move the grip site towards the goal, critically damped.

    Positions, rotations and velocities are in the world frame.

    Args:
        full_jacobian: Jacobian (6, nv) of the grip site, for all joints of the scene.
        full_mass: Mass matrix (nv, nv) of the scene, in kg m^2.
        full_bias: Coriolis and gravity torques (nv,) in N m.
        qpos: Joint positions (nq,) of the scene.
        qvel: Joint velocities (nv,) of the scene.
        first_q: Index of the first of the arm's seven joints in ``qpos``.
        first: Index of the first of the arm's seven joints in the other arrays.
        posture: Joint angles (7,) in rad that the null space moves towards.
        position: Position (3,) of the grip site in m.
        flat_rotation: Rotation matrix (9,) of the grip site.
        goal_position: Goal position (3,) in m.
        goal_rotation: Goal rotation (3, 3).
        goal_velocity: Goal velocity (6,) in m/s and rad/s.
        stiffness: Stiffness in 1/s^2.
        low: Smallest torques (7,) in N m.
        high: Largest torques (7,) in N m.

    Returns:
        Torques (7,) in N m, clipped to ``low`` and ``high``.
    """
    jacobian = full_jacobian[:, first : first + 7]
    mass = full_mass[first : first + 7, first : first + 7]
    bias = full_bias[first : first + 7]
    q = qpos[first_q : first_q + 7]
    qd = qvel[first : first + 7]
    rotation = flat_rotation.reshape((3, 3))
    damping = 2.0 * math.sqrt(stiffness)
    # robosuite's orientation error: half the sum of the cross products of the axes.
    error = np.empty(6)
    for i in range(3):
        error[i] = goal_position[i] - position[i]
        error[3 + i] = 0.0
    for c in range(3):
        for i in range(3):
            j = (i + 1) % 3
            k = (i + 2) % 3
            error[3 + i] += 0.5 * (rotation[j, c] * goal_rotation[k, c] - rotation[k, c] * goal_rotation[j, c])
    u = np.empty((7, 1))
    kv = 2.0 * math.sqrt(POSTURE_STIFFNESS)
    for i in range(7):
        u[i, 0] = POSTURE_STIFFNESS * (posture[i] - q[i]) - kv * qd[i]
    minv_jt = _cholesky_solve(mass.copy(), np.ascontiguousarray(jacobian.T))
    a = np.zeros((6, 6))
    ju = np.zeros((6, 1))
    wanted = np.empty((6, 1))
    for i in range(6):
        v = 0.0
        for p in range(7):
            v += jacobian[i, p] * qd[p]
            ju[i, 0] += jacobian[i, p] * u[p, 0]
        for j in range(6):
            for p in range(7):
                a[i, j] += jacobian[i, p] * minv_jt[p, j]
        wanted[i, 0] = stiffness * error[i] + damping * (goal_velocity[i] - v)
    wrench = np.empty(6)
    force = _cholesky_solve(a[:3, :3].copy(), wanted[:3].copy())
    moment = _cholesky_solve(a[3:, 3:].copy(), wanted[3:].copy())
    null = _cholesky_solve(a, ju)
    for i in range(3):
        wrench[i] = force[i, 0] - null[i, 0]
        wrench[3 + i] = moment[i, 0] - null[3 + i, 0]
    torque = np.empty(7)
    for p in range(7):
        t = bias[p]
        for i in range(6):
            t += jacobian[i, p] * wrench[i]
        for j in range(7):
            t += mass[p, j] * u[j, 0]
        torque[p] = min(max(t, low[p]), high[p])
    return torque


def rotation_from_vector(vector: NDArray[np.floating[Any]]) -> Array:
    """Return the rotation matrix (3, 3) of a rotation vector (3,) in rad (Rodrigues' formula)."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = np.asarray(vector, dtype=np.float64) / angle
    c, s, t = math.cos(angle), math.sin(angle), 1.0 - math.cos(angle)
    return np.array(
        [
            [t * x * x + c, t * x * y - s * z, t * x * z + s * y],
            [t * x * y + s * z, t * y * y + c, t * y * z - s * x],
            [t * x * z - s * y, t * y * z + s * x, t * z * z + c],
        ]
    )


def vector_from_rotation(rotation: NDArray[np.floating[Any]]) -> Array:
    """Return the rotation vector (3,) in rad, of length 0 to pi, of a rotation matrix (3, 3)."""
    r = np.asarray(rotation, dtype=np.float64)
    w = np.array([r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]])
    sin2 = float(np.linalg.norm(w))
    angle = math.atan2(sin2, float(np.trace(r)) - 1.0)
    if sin2 > 1e-6:
        return np.asarray(w / sin2 * angle)
    if angle < 1.0:
        return np.asarray(0.5 * w)
    # Half a turn: the axis is the eigenvector of the symmetric part.
    _, vectors = np.linalg.eigh(r + r.T)
    axis = vectors[:, -1]
    if float(axis @ w) < 0 or (sin2 == 0.0 and axis[np.argmax(np.abs(axis))] < 0):
        axis = -axis
    return np.asarray(axis * angle)
