"""Demonstration files: written data are read back, upright, and errors name the problem."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from m2distill_policy.contract import Contract, libero_contract
from m2distill_policy.demonstration_writer import DemonstrationWriter
from m2distill_policy.demonstrations import (
    DemonstrationFile,
    Episode,
    Recording,
    demonstration_path,
    instruction_from,
)
from m2distill_policy.errors import DemonstrationError, StorageError

SIZE = 16


def recording(seed: int, length: int = 7, size: int = SIZE) -> Recording:
    """Return an episode with random valid contents."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (length, 7)).astype(np.float32)
    states = rng.normal(size=(length, 20))
    episode = Episode(
        images={
            name: rng.integers(0, 256, (length, size, size, 3), dtype=np.uint8)
            for name in ("agentview_rgb", "eye_in_hand_rgb")
        },
        proprioception={
            "joint_states": rng.uniform(-2, 2, (length, 7)).astype(np.float32),
            "gripper_states": rng.uniform(-0.04, 0.04, (length, 2)).astype(np.float32),
        },
        actions=actions,
        ee=rng.normal(size=(length, 6)).astype(np.float32),
        seed=seed,
        init_state=states[0],
    )
    return Recording(episode, states, rng.normal(size=(length, 9)), "<mujoco/>")


def writer(folder: Path, contract: Contract | None = None) -> DemonstrationWriter:
    return DemonstrationWriter(
        demonstration_path(folder, "lift_the_red_box"),
        instruction="lift the red box",
        contract=contract or libero_contract(SIZE),
        suite="tabletop",
        env_args={"env_name": "tabletop/lift_the_red_box", "type": 1, "env_kwargs": {}},
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of two episodes."""
    out = writer(tmp_path)
    for seed in (3, 5):
        out.add(recording(seed))
    return out.finish([3, 5], 4).path


def test_round_trip(path: Path) -> None:
    file = DemonstrationFile(path)
    assert len(file) == 2 and file.instruction == "lift the red box" and file.task_name == "lift_the_red_box"
    assert file.contract == libero_contract(SIZE) and file.tried == 4 and file.suite == "tabletop"
    for seed, episode in zip((3, 5), file, strict=True):
        wanted = recording(seed).episode
        assert episode.seed == seed
        assert np.array_equal(episode.actions, wanted.actions) and episode.actions.dtype == np.float32
        for name, frames in wanted.images.items():
            assert np.array_equal(episode.images[name], frames)
        for name, values in wanted.proprioception.items():
            assert np.allclose(episode.proprioception[name], values)
        assert episode.ee is not None and wanted.ee is not None and np.allclose(episode.ee, wanted.ee)
        states = recording(seed).states
        assert states is not None and np.array_equal(file.states(0 if seed == 3 else 1), states)
    with pytest.raises(IndexError):
        file.episode(2)


def test_layout_is_liberos(path: Path) -> None:
    with h5py.File(path) as raw:
        data = raw["data"]
        assert data.attrs["num_demos"] == 2 and data.attrs["total"] == 14
        assert data.attrs["macros_image_convention"] == "opengl"
        assert json.loads(data.attrs["problem_info"])["language_instruction"] == "lift the red box"
        assert json.loads(data.attrs["env_args"])["type"] == 1
        demo = data["demo_0"]
        assert demo.attrs["num_samples"] == 7 and demo.attrs["model_file"] == "<mujoco/>"
        assert np.array_equal(demo.attrs["init_state"], demo["states"][0])
        assert demo["actions"].dtype == np.float64 and demo["dones"].dtype == np.uint8
        assert list(demo["dones"][()]) == [0] * 6 + [1] and list(demo["rewards"][()]) == [0] * 6 + [1]
        assert demo["robot_states"].shape == (7, 9)
        assert set(demo["obs"]) == {
            *("agentview_rgb", "eye_in_hand_rgb", "joint_states", "gripper_states", "ee_states", "ee_pos", "ee_ori")
        }
        # Rows lie bottom-up in the file.
        assert np.array_equal(demo["obs/agentview_rgb"][0][::-1], recording(3).episode.images["agentview_rgb"][0])


def test_hash_is_of_what_is_demonstrated(path: Path, tmp_path: Path) -> None:
    first = DemonstrationFile(path).sha256()
    again = tmp_path / "again"
    out = writer(again)
    for seed in (5, 3):  # collected in another order, merged in the same
        out.add(recording(seed))
    assert out.finish([3, 5], 2).sha256() == first
    with h5py.File(path, "r+") as raw:
        raw["data/demo_1/actions"][0, 0] = 0.123
    assert DemonstrationFile(path).sha256() != first


def test_published_files_are_read(path: Path) -> None:
    """LIBERO's own files: no contract, no seed, extra attributes, float64 proprioception, instruction in quotes."""
    with h5py.File(path, "r+") as raw:
        data = raw["data"]
        for name in ("m2distill_contract", "m2distill_suite", "m2distill_tried", "env_args"):
            del data.attrs[name]
        data.attrs["problem_info"] = json.dumps({"language_instruction": ["lift", " the red", " box"]})
        data.attrs["bddl_file_name"] = "x.bddl"
        for demo in ("demo_0", "demo_1"):
            del data[demo].attrs["seed"]
    file = DemonstrationFile(path)
    assert file.contract == libero_contract(SIZE) and file.instruction == "lift the red box"
    assert file.episode(0).seed is None and file.settings == {}


def test_upright_files_are_not_flipped(path: Path) -> None:
    before = DemonstrationFile(path).episode(0).images["agentview_rgb"]
    with h5py.File(path, "r+") as raw:
        raw["data"].attrs["macros_image_convention"] = "opencv"
    assert np.array_equal(DemonstrationFile(path).episode(0).images["agentview_rgb"], before[:, ::-1])


def _replace(key: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[h5py.File], None]:
    def do(raw: h5py.File) -> None:
        values = raw[f"data/demo_1/{key}"][()]
        del raw[f"data/demo_1/{key}"]
        raw[f"data/demo_1/{key}"] = change(values)

    return do


def _delete(key: str) -> Callable[[h5py.File], None]:
    def do(raw: h5py.File) -> None:
        del raw[f"data/demo_1/{key}"]

    return do


def _poke(key: str, value: float) -> Callable[[h5py.File], None]:
    def do(raw: h5py.File) -> None:
        raw[f"data/demo_1/{key}"][2, 0] = value

    return do


@pytest.mark.parametrize(
    ("damage", "key", "words"),
    [
        (_delete("obs/eye_in_hand_rgb"), "obs/eye_in_hand_rgb", "is missing"),
        (_delete("actions"), "actions", "is missing"),
        (_delete("obs/joint_states"), "obs/joint_states", "is missing"),
        (_replace("obs/agentview_rgb", lambda v: v.astype(np.float32)), "obs/agentview_rgb", "uint8 is needed"),
        (_replace("obs/agentview_rgb", lambda v: v[:, :8]), "obs/agentview_rgb", "has shape"),
        (_replace("obs/agentview_rgb", lambda v: v[:-1]), "obs/agentview_rgb", "has 6 steps; 'actions' has 7"),
        (_replace("obs/joint_states", lambda v: v[:, :6]), "obs/joint_states", "(L, 7) is needed"),
        (_replace("actions", lambda v: v[:, :6]), "actions", "(L, 7) is needed"),
        (_replace("actions", lambda v: v[:0]), "actions", "holds no step"),
        (_replace("actions", lambda v: v.astype(np.int64)), "actions", "a float is needed"),
        (_poke("actions", 1.01), "actions", "holds 1.01; allowed are -1 to 1"),
        (_poke("actions", np.nan), "actions", "not finite"),
        (_poke("obs/joint_states", np.inf), "obs/joint_states", "not finite"),
        (_poke("obs/joint_states", 50.0), "obs/joint_states", "leaves the contract's range"),
        (_poke("obs/ee_states", np.nan), "obs/ee_states", "not finite"),
    ],
)
def test_errors_name_the_problem(path: Path, damage: Callable[[h5py.File], None], key: str, words: str) -> None:
    with h5py.File(path, "r+") as raw:
        damage(raw)
    file = DemonstrationFile(path)
    file.episode(0)
    with pytest.raises(DemonstrationError) as caught:
        file.episode(1)
    message = str(caught.value)
    assert str(path) in message and "'demo_1'" in message and f"'{key}'" in message and words in message


def test_rounding_errors_are_accepted(path: Path) -> None:
    with h5py.File(path, "r+") as raw:
        raw["data/demo_1/actions"][2, 0] = 1.0 + 5e-7
    assert DemonstrationFile(path).episode(1).actions.max() <= 1.0


def test_files_that_are_not_demonstrations(path: Path, tmp_path: Path) -> None:
    with pytest.raises(DemonstrationError, match="there is no demonstration file"):
        DemonstrationFile(tmp_path / "absent.hdf5")
    (tmp_path / "text.hdf5").write_text("not HDF5")
    with pytest.raises(DemonstrationError, match="cannot be read as HDF5"):
        DemonstrationFile(tmp_path / "text.hdf5")
    (tmp_path / "cut.hdf5").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DemonstrationError, match="cannot be read as HDF5"):
        DemonstrationFile(tmp_path / "cut.hdf5")
    with h5py.File(tmp_path / "empty.hdf5", "w"):
        pass
    with pytest.raises(DemonstrationError, match="group 'data' is missing"):
        DemonstrationFile(tmp_path / "empty.hdf5")
    with h5py.File(tmp_path / "none.hdf5", "w") as raw:
        raw.create_group("data")
    with pytest.raises(DemonstrationError, match="holds no episode"):
        DemonstrationFile(tmp_path / "none.hdf5")


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [
        ("problem_info", "no json", "'problem_info' is not JSON"),
        ("problem_info", json.dumps({"language_instruction": " "}), "the instruction is"),
        ("m2distill_contract", "{}", "m2distill_contract"),
        ("macros_image_convention", "sideways", "known are 'opengl'"),
    ],
)
def test_attributes_that_are_wrong(path: Path, attribute: str, value: str, words: str) -> None:
    with h5py.File(path, "r+") as raw:
        raw["data"].attrs[attribute] = value
    with pytest.raises(DemonstrationError, match=words):
        DemonstrationFile(path)


def test_writer_refuses_what_the_reader_would(tmp_path: Path) -> None:
    out = writer(tmp_path)
    with pytest.raises(DemonstrationError, match="view 'agentview_rgb' is uint8"):
        out.add(recording(1, size=32))
    bad = recording(1)
    bad.episode.actions[0, 0] = 2.0
    with pytest.raises(DemonstrationError, match=r"outside \[-1, 1\]"):
        out.add(bad)
    bad = recording(1)
    bad.episode.proprioception["gripper_states"][0, 0] = 3.0
    with pytest.raises(DemonstrationError, match=r"'gripper_states' leaves the contract's range -0.1 to 0.1 m"):
        out.add(bad)
    bad = recording(1)
    assert bad.episode.ee is not None
    bad.episode.ee[0, 0] = np.nan
    with pytest.raises(DemonstrationError, match=r"'ee' is \(\d+, 6\); finite"):
        out.add(bad)
    with pytest.raises(DemonstrationError, match="no episode was collected"):
        out.finish([], 3)
    assert out.attempts() == {}


@pytest.mark.parametrize("seed", range(200))
def test_an_instruction_is_read_back_or_refused_before_anything_is_written(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pieces = [
        "lift",
        "the box",
        " ",
        "  ",
        '"',
        "'",
        "\n",
        "\t",
        "\x1b",
        "\0",
        "caf\xe9",
        "\udce9",
        "\u2028",
        "\xa0",
        "x" * 400,
    ]
    text = "".join(str(piece) for piece in rng.choice(pieces, int(rng.integers(0, 7))))
    place = demonstration_path(tmp_path / "out", "a")
    try:
        words = instruction_from(text)
    except DemonstrationError:
        words = None
    if words is not None:
        assert instruction_from(words) == words and words in text
    if words != text:
        with pytest.raises(DemonstrationError):
            DemonstrationWriter(place, instruction=text, contract=libero_contract(SIZE))
        assert not (tmp_path / "out").exists()
    if words is None:
        return
    out = DemonstrationWriter(place, instruction=words, contract=libero_contract(SIZE))
    if seed % 10 == 0:
        out.add(recording(1))
        assert out.finish([1], 1).instruction == words


@pytest.mark.parametrize("name", ["a.hdf5", ".hdf5", "a_demo.hdf5.hdf5"])
def test_a_task_name_that_would_be_read_as_another_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DemonstrationError):
        demonstration_path(tmp_path, name)


@pytest.mark.parametrize(
    "settings",
    [{"control_freq": 10}, {"bags": ["\udce9"]}, {"slop": float("nan")}, {"seed": 2**64}, {"a": {"robots": 1}}],
)
def test_settings_that_the_reader_would_refuse_are_refused_before_anything_is_written(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    place = demonstration_path(tmp_path / "out", "a")
    if "a" in settings:  # of others, and read by nobody
        DemonstrationWriter(place, instruction="lift", contract=libero_contract(SIZE), env_args=settings)
        return
    with pytest.raises(DemonstrationError):
        DemonstrationWriter(place, instruction="lift", contract=libero_contract(SIZE), env_args=settings)
    assert not (tmp_path / "out").exists()


def test_writer_continues_only_the_same_collection(tmp_path: Path) -> None:
    first = writer(tmp_path)
    first.add(recording(3))
    first.add_failure(4)
    (first.parts / ".5.hdf5").write_bytes(b"half an episode")  # what a kill leaves behind
    second = writer(tmp_path)
    second.clean()
    assert second.attempts() == {3: True, 4: False}
    assert not list(second.parts.glob(".5*"))
    with pytest.raises(DemonstrationError, match="unfinished collection"):
        writer(tmp_path, libero_contract(32))
    assert len(second.finish([3], 2)) == 1
    assert not second.parts.exists()


def test_a_full_disk_costs_the_episode_being_written_alone(tmp_path: Path) -> None:
    unfinished = writer(tmp_path)
    unfinished.add(recording(0))
    (unfinished.parts / ".1.hdf5").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"disk is full, so .*\.1\.hdf5 cannot be written; finished work is kept"):
        unfinished.add(recording(1))
    assert [part.name for part in unfinished.parts.glob("*.hdf5")] == ["0.hdf5"]
    unfinished.add(recording(1))
    merged = tmp_path / f".{unfinished.path.name}"
    merged.symlink_to("/dev/full")
    with pytest.raises(StorageError, match="disk is full"):
        unfinished.finish([0, 1], 2)
    assert not unfinished.path.exists() and len(writer(tmp_path).finish([0, 1], 2)) == 2


@pytest.mark.parametrize(
    "pieces",
    [["lift", "the", "red", "box"], ["lift", " the red", " box"], ["lift the red box"], list("lift the red box")],
)
def test_instruction_in_pieces_is_joined(path: Path, pieces: list[str]) -> None:
    with h5py.File(path, "r+") as raw:
        raw["data"].attrs["problem_info"] = json.dumps({"language_instruction": pieces})
    assert DemonstrationFile(path).instruction == "lift the red box"
