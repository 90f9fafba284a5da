"""Where a camera stands, beside where it stood in training."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from m2distill_policy.bundle import open_bundle
from m2distill_policy.cli import main
from m2distill_policy.errors import BundleError
from m2distill_policy.node.viewpoint import describe, misalignment, overlay
from tests.bundles import toy_contract, write_toy

CAMERA = dataclasses.replace(toy_contract(96).cameras[0], fov_y=45.0)


def _picture(seed: int = 0, size: int = 96) -> NDArray[np.uint8]:
    """Smooth blobs, as a table with things on it."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), dtype=np.uint8)


def _moved(picture: NDArray[np.uint8], right: float, down: float, turned: float, larger: float) -> NDArray[np.uint8]:
    """What is in ``picture``, shifted (pixels), turned (degrees, clockwise) about its centre, and larger."""
    height, width = picture.shape[:2]
    warp = np.asarray(cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -turned, larger))
    warp = warp + np.array([[0.0, 0.0, right], [0.0, 0.0, down]])
    return np.asarray(cv2.warpAffine(picture, warp, (width, height), borderMode=cv2.BORDER_REFLECT), dtype=np.uint8)


@pytest.mark.parametrize(
    ("right", "down", "turned", "larger"),
    [(0, 0, 0, 1), (8, 0, 0, 1), (-6, 4, 0, 1), (0, 0, 6, 1), (0, 0, 0, 1.08), (4, -3, -4, 0.95)],
)
def test_the_motion_is_found(right: float, down: float, turned: float, larger: float) -> None:
    picture = _picture()
    live = _moved(picture, right, down, turned, larger)
    live[60:70, 20:30] = 255  # something lies elsewhere
    found = misalignment(picture, live)
    assert found is not None
    assert (found.right, found.down) == pytest.approx((right, down), abs=0.8)
    assert found.turned == pytest.approx(turned, abs=1.2)
    assert found.larger == pytest.approx(larger, abs=0.02)
    assert found.correlation > 0.9


def test_description_says_what_to_do() -> None:
    picture = _picture()
    assert "fits the training image" in describe(CAMERA, misalignment(picture, picture))
    right = describe(CAMERA, misalignment(picture, _moved(picture, 10, 0, 0, 1)))
    degrees = math.degrees(math.atan(10 / (48 / math.tan(math.radians(22.5)))))
    assert "turn it right by" in right and f"by {degrees:.1f} degrees" in right and "roll" not in right
    assert "turn it up by" in describe(CAMERA, misalignment(picture, _moved(picture, 0, -6, 0, 1)))
    assert "roll it clockwise by 5.0" in describe(CAMERA, misalignment(picture, _moved(picture, 0, 0, 5, 1)))
    assert "move it back: things are 1.10 times" in describe(
        CAMERA, misalignment(picture, _moved(picture, 0, 0, 0, 1.1))
    )
    assert "too different from the training image" in describe(CAMERA, misalignment(picture, _picture(1)))
    blank = np.zeros_like(picture)
    assert misalignment(picture, blank) is None


def test_the_overlay_is_large_and_shows_both() -> None:
    box = _picture()
    box[30:60, 40:70] = (250, 20, 20)
    shown = overlay(box, _picture(1))
    assert shown.shape == (480, 480, 3) and shown.dtype == np.uint8
    assert np.any(np.all(shown == (0, 255, 0), axis=2)), "training's edges"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contract = toy_contract(96)
    views = {camera.name: _picture(seed) for seed, camera in enumerate(contract.cameras)}
    bundle = write_toy(tmp_path / "toy", contract=contract, views=views)
    assert open_bundle(bundle).view(contract.camera_names[0]).shape == (96, 96, 3)
    cv2.imwrite(str(tmp_path / "live.png"), cv2.cvtColor(_moved(_picture(), 6, 0, 0, 1), cv2.COLOR_RGB2BGR))
    words = ["viewpoint", str(bundle), str(tmp_path / "live.png"), "--out", str(tmp_path / "o" / "over.png")]
    assert main(words) == 0
    assert "turn it right by" in capsys.readouterr().out
    assert cv2.imread(str(tmp_path / "o" / "over.png")).shape == (480, 480, 3)
    assert main([*words[:2], str(tmp_path / "none.png"), *words[3:]]) == 2
    assert "none.png' cannot be read" in capsys.readouterr().err
    assert main([*words[:4], str(tmp_path / "over.txt")]) == 2
    assert "name a .png or .jpg file" in capsys.readouterr().err


def test_bundle_without_images_is_reported(tmp_path: Path) -> None:
    bundle = open_bundle(write_toy(tmp_path / "toy"))
    with pytest.raises(BundleError, match=r"has no training image of 'agentview_rgb'; export it again"):
        bundle.view("agentview_rgb")
    with pytest.raises(BundleError, match="holds views"):
        write_toy(tmp_path / "wrong", views={"agentview_rgb": _picture()})


def test_a_camera_of_the_simulator_that_was_turned() -> None:
    """Objects lie elsewhere and the camera looks 4 degrees to the side: that is what is said."""
    pytest.importorskip("robosuite")
    mujoco = pytest.importorskip("mujoco")
    from m2distill_policy.sim.osc import rotation_from_vector
    from m2distill_policy.sim.suites import suite_task
    from m2distill_policy.sim.tabletop.env import TabletopEnv

    env = TabletopEnv(suite_task("tabletop", 0), size=64)
    camera = env.contract.cameras[0]
    reference = env.reset(0).images[camera.name]
    model = env.render_model
    index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, "agentview")
    for degrees, way in ((-4.0, "left"), (4.0, "right")):
        before = model.cam_quat[index].copy()
        turn, turned = np.zeros(4), np.zeros(4)
        mujoco.mju_mat2Quat(turn, rotation_from_vector(np.radians(degrees) * np.array([0.0, 1.0, 0.0])).ravel())
        mujoco.mju_mulQuat(turned, before, turn)
        model.cam_quat[index] = turned
        said = describe(camera, misalignment(reference, env.reset(5).images[camera.name]))
        model.cam_quat[index] = before
        found = re.search(rf"turn it {way} by ([0-9.]+) degrees", said)
        assert found is not None and float(found[1]) == pytest.approx(4.0, abs=0.7), said
    env.close()
