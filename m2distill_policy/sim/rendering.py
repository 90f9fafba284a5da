"""Render a scene off screen: small images for policies, and large ones for videos."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.errors import SimulationError
from m2distill_policy.sim.gl import choose_gl, gl_context
from m2distill_policy.sim.visuals import VisualProfile


class Renderer:
    """Renderer of the cameras of one model. Not thread-safe. It keeps OpenGL contexts until :meth:`close`.

    Args:
        model: The MuJoCo model.
        profile: The visual profile.
        sites: Whether to render markers (MuJoCo sites).
    """

    def __init__(self, model: Any, profile: VisualProfile, *, sites: bool = False) -> None:
        choose_gl()
        import mujoco

        self._mujoco = mujoco
        self.model = model
        self.data = mujoco.MjData(model)
        self.profile = profile
        self._scene = mujoco.MjvScene(model, maxgeom=2000)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = profile.shadows
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = profile.reflections
        self._option = mujoco.MjvOption()
        self._option.geomgroup[0] = 0  # collision shapes
        if not sites:  # LIBERO shows the glow of a stove with a site
            self._option.sitegroup[:] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        #: Size -> OpenGL context and buffers. Each size has its own, because clearing and reading a buffer that is
        #: larger than needed would be slow.
        self._contexts: dict[int, tuple[Any, Any]] = {}

    def pose(self, qpos: NDArray[np.float64]) -> None:
        """Move the rendered scene to the joint positions ``qpos`` (nq,)."""
        self.data.qpos[:] = qpos
        self._mujoco.mj_kinematics(self.model, self.data)
        self._mujoco.mj_camlight(self.model, self.data)

    def render(self, camera: str, height: int, width: int) -> NDArray[np.uint8]:
        """Return the upright image (height, width, 3) uint8 RGB of a camera.

        Raises:
            SimulationError: There is no such camera, or OpenGL cannot render here.
        """
        mujoco = self._mujoco
        index = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        if index < 0:
            known = [self.model.camera(i).name for i in range(self.model.ncam)]
            raise SimulationError(f"the scene has no camera '{camera}'; choose one of {known}")
        factor = self.profile.supersample if max(height, width) <= self.profile.supersample_up_to else 1
        context = self._context(factor * max(height, width))
        self._camera.fixedcamid = index
        mujoco.mjv_updateScene(
            self.model, self.data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        view = mujoco.MjrRect(0, 0, width * factor, height * factor)
        mujoco.mjr_render(view, self._scene, context)
        frame = np.empty((height * factor, width * factor, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(frame, None, view, context)
        if factor == 1:
            return np.ascontiguousarray(frame[::-1])
        return _halve(frame)

    def _context(self, size: int) -> Any:
        """Return MuJoCo's rendering context with buffers of ``size`` x ``size`` pixels, and make it current."""
        mujoco = self._mujoco
        if size in self._contexts:
            gl, context = self._contexts[size]
            gl.make_current()
            return context
        self.model.vis.global_.offwidth = size
        self.model.vis.global_.offheight = size
        try:
            gl = gl_context(size)
            gl.make_current()
            context = mujoco.MjrContext(self.model, mujoco.mjtFontScale.mjFONTSCALE_100)
        except Exception as error:
            raise SimulationError(
                f"OpenGL cannot render here ({type(error).__name__}: {error}); set MUJOCO_GL=osmesa and install "
                "libosmesa6, or set MUJOCO_GL=egl on a machine with a GPU"
            ) from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
        self._contexts[size] = (gl, context)
        return context

    def close(self) -> None:
        """Free the OpenGL contexts."""
        for gl, context in self._contexts.values():
            gl.make_current()
            context.free()
            gl.free()
        self._contexts.clear()


def _halve(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Flip a bottom-up frame to upright, and halve its size by averaging 2 x 2 pixels."""
    wide = frame[::-1].astype(np.uint16)
    total = wide[0::2, 0::2] + wide[0::2, 1::2] + wide[1::2, 0::2] + wide[1::2, 1::2]
    return ((total + 2) >> 2).astype(np.uint8)
