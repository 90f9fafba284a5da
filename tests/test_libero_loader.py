"""LIBERO's own reader of demonstrations reads what is collected here; pictures are upright on both roads.

It runs in a process of its own with what ``scripts/libero_loader.sh`` installed, as ``make test`` does.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("robosuite", reason="the simulator is not installed (requirements/sim.txt)")

from m2distill_policy.demonstrations import DemonstrationFile
from m2distill_policy.sim.collect import collect
from m2distill_policy.sim.collection import Collection
from m2distill_policy.sim.tabletop import scene
from m2distill_policy.sim.tabletop.env import TabletopEnv
from m2distill_policy.sim.tabletop.tasks import TASKS

ROOT = Path(__file__).resolve().parent.parent
LOADER = Path(sys.prefix) / "libero-loader"

READ = """
import importlib.util, sys, json
import numpy as np
np.bool = bool  # robomimic 0.2.0 is older than numpy 1.24
(folder,) = importlib.util.find_spec("libero").submodule_search_locations
spec = importlib.util.spec_from_file_location("libero_datasets", folder + "/lifelong/datasets.py")
datasets = importlib.util.module_from_spec(spec)
spec.loader.exec_module(datasets)
modality = {"rgb": ["agentview_rgb", "eye_in_hand_rgb"], "depth": [], "low_dim": ["gripper_states", "joint_states"]}
dataset, shape = datasets.get_dataset(sys.argv[1], modality, initialize_obs_utils=True, seq_len=10)
rows = [datasets.SequenceVLDataset(dataset, np.zeros(4))[i] for i in range(len(dataset))]
np.savez(
    sys.argv[2],
    views=np.stack([row["obs"]["agentview_rgb"][0] for row in rows]),
    hands=np.stack([row["obs"]["eye_in_hand_rgb"][0] for row in rows]),
    joints=np.stack([row["obs"]["joint_states"][0] for row in rows]),
    actions=np.stack([row["actions"] for row in rows]),
    facts=json.dumps({"shape": {k: list(v) for k, v in shape["all_shapes"].items()}, "n": dataset.n_demos}),
)
"""


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> DemonstrationFile:
    (file,) = collect(Collection(tmp_path_factory.mktemp("demos"), (0,), episodes=2, size=64, workers=1))
    return file


def blue_spot(picture: NDArray[np.floating]) -> NDArray[np.float64]:
    """Row and column of the middle of what is blue."""
    red, green, blue = (picture[..., i].astype(float) for i in range(3))
    return np.argwhere((blue > 2 * green + 10) & (blue > 2 * red + 10)).mean(axis=0)


def expected_spot(env: TabletopEnv, state: NDArray[np.float64]) -> NDArray[np.float64]:
    """Row and column in an upright agentview of 64 x 64 at which the blue box must be, by a pinhole camera."""
    env.reset_to(state)
    camera = env.model.camera("agentview").id
    rotation = env.data.cam_xmat[camera].reshape(3, 3)
    x, y, z = rotation.T @ (env.positions()["blue_box"] - env.data.cam_xpos[camera])
    focal = 32 / np.tan(np.deg2rad(scene.AGENTVIEW_FOV) / 2)
    return np.array([31.5 + focal * y / z, 31.5 - focal * x / z])


def test_pictures_are_upright_in_our_reader(collected: DemonstrationFile) -> None:
    """The box is where a camera that stands upright sees it: neither upside down nor mirrored."""
    env = TabletopEnv(TASKS[0], size=16)
    try:
        for index, episode in enumerate(collected):
            expected = expected_spot(env, collected.states(index)[0])
            assert np.abs(expected - 31.5).max() > 4, "the middle would say nothing"
            found = blue_spot(episode.images["agentview_rgb"][0])
            assert np.linalg.norm(found - expected) < 3, (found, expected)
    finally:
        env.close()


@pytest.mark.skipif(
    not (LOADER / ".stamp").exists(), reason=f"LIBERO's reader is not installed: scripts/libero_loader.sh {sys.prefix}"
)
def test_liberos_reader_reads_what_was_collected(collected: DemonstrationFile, tmp_path: Path) -> None:
    out = tmp_path / "read.npz"
    done = subprocess.run(
        [sys.executable, "-c", READ, str(collected.path), str(out)],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(LOADER), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(out, allow_pickle=False) as read:
        episodes = list(collected)
        steps = sum(len(episode) for episode in episodes)
        assert len(read["actions"]) == steps and read["actions"].shape == (steps, 10, 7)
        assert '"n": 2' in str(read["facts"]) and '"agentview_rgb": [3, 64, 64]' in str(read["facts"])
        actions = np.concatenate([episode.actions for episode in episodes])
        assert np.allclose(read["actions"][:, 0], actions, atol=1e-6)
        joints = np.concatenate([episode.proprioception["joint_states"] for episode in episodes])
        assert np.allclose(read["joints"], joints, atol=1e-6)
        for key, camera in (("views", "agentview_rgb"), ("hands", "eye_in_hand_rgb")):
            ours = np.concatenate([episode.images[camera] for episode in episodes])
            # LIBERO's pictures lie upside down, channels first, in [0, 1].
            theirs = np.round(255 * read[key].transpose(0, 2, 3, 1)[:, ::-1]).astype(np.uint8)
            assert np.array_equal(theirs, ours), camera
