"""What a file says of itself: settings that contradict the contract are refused, LIBERO's own and ours are read."""

from __future__ import annotations

import copy
import json
import logging
import math
import random
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from m2distill_policy.contract import libero_contract
from m2distill_policy.demonstration_settings import check_settings, words_of
from m2distill_policy.demonstrations import DemonstrationFile
from m2distill_policy.errors import DemonstrationError
from tests.test_demonstrations import SIZE, recording, writer

#: As LIBERO's published files have it.
LIBEROS: dict[str, Any] = {
    "type": 1,
    "env_name": "Libero_Tabletop_Manipulation",
    "problem_name": "libero_tabletop_manipulation",
    "bddl_file": "libero/libero/bddl_files/libero_goal/open_the_middle_drawer_of_the_cabinet.bddl",
    "env_kwargs": {
        "robots": ["Panda"],
        "controller_configs": {
            "type": "OSC_POSE",
            "input_max": 1,
            "input_min": -1,
            "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
            "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
            "kp": 150,
            "damping_ratio": 1,
            "impedance_mode": "fixed",
            "kp_limits": [0, 300],
            "damping_ratio_limits": [0, 10],
            "position_limits": None,
            "orientation_limits": None,
            "uncouple_pos_ori": True,
            "control_delta": True,
            "interpolation": None,
            "ramp_ratio": 0.2,
        },
        "bddl_file_name": "x.bddl",
        "has_renderer": False,
        "has_offscreen_renderer": True,
        "ignore_done": True,
        "use_camera_obs": True,
        "camera_depths": False,
        "camera_names": ["robot0_eye_in_hand", "agentview"],
        "reward_shaping": True,
        "control_freq": 20,
        "camera_heights": 128,
        "camera_widths": 128,
        "camera_segmentations": None,
    },
}
#: As robosuite 1.5 writes the same controller.
COMPOSITE = {
    "type": "BASIC",
    "body_parts": {
        "right": {
            "type": "OSC_POSE",
            "input_max": 1,
            "input_min": -1,
            "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
            "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
            "input_type": "delta",
            "input_ref_frame": "base",
            "impedance_mode": "fixed",
            "gripper": {"type": "GRIP"},
        }
    },
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = writer(tmp_path_factory.mktemp("whole"))
    out.add(recording(3, length=12))
    return out.finish([3], 1).path


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(whole, tmp_path / whole.name))


def _with(path: Path, settings: dict[str, Any], name: str = "env_args", *, ours: bool = False) -> DemonstrationFile:
    with h5py.File(path, "r+") as raw:
        if not ours:
            for key in ("m2distill_contract", "m2distill_suite", "m2distill_tried", "env_args"):
                raw["data"].attrs.pop(key, None)
        raw["data"].attrs[name] = json.dumps(settings)
    return DemonstrationFile(path)


def _changed(field: str, value: Any, controller: dict[str, Any] | None = None) -> dict[str, Any]:
    settings = copy.deepcopy(LIBEROS)
    if controller is not None:
        settings["env_kwargs"]["controller_configs"] = copy.deepcopy(controller)
    at: Any = settings["env_kwargs"]
    *parts, last = field.split(".")
    for part in parts:
        at = at[part]
    at[last] = value
    return settings


@pytest.mark.parametrize("ours", [True, False])
def test_liberos_own_settings_are_read(path: Path, ours: bool) -> None:
    file = _with(path, LIBEROS, ours=ours)
    assert file.settings == LIBEROS and len(file) == 1
    composite = _changed("controller_configs", COMPOSITE)
    assert _with(path, composite, ours=ours).settings == composite
    assert _with(path, _changed("controller_configs", [COMPOSITE]), ours=ours).instruction == "lift the red box"


CONTRADICTIONS: list[tuple[str, Any]] = [
    ("control_freq", 10),
    ("control_freq", 20.5),
    ("control_freq", "20"),
    ("control_freq", True),
    ("robots", ["UR5e"]),
    ("robots", ["Panda", "Panda"]),
    ("robots", "Sawyer"),
    ("robots", []),
    ("controller_configs.control_delta", False),
    ("controller_configs.control_delta", 1),
    ("controller_configs.type", "JOINT_POSITION"),
    ("controller_configs.type", "OSC_POSITION"),
    ("controller_configs.type", "IK_POSE"),
    ("controller_configs.impedance_mode", "variable"),
    ("controller_configs.output_max", [0.1, 0.1, 0.1, 0.5, 0.5, 0.5]),
    ("controller_configs.output_max", [0.05, 0.05, 0.05, 0.5, 0.5, 1.0]),
    ("controller_configs.output_max", 0.05),
    ("controller_configs.output_max", [0.05] * 3),
    ("controller_configs.output_min", [-0.05, -0.05, -0.05, -0.5, -0.5, 0.5]),
    ("controller_configs.input_max", 2),
    ("controller_configs.input_min", [-1, -1, -1, -1, -1, 0]),
    ("controller_configs.input_min", 0),
    ("controller_configs", "OSC_POSE"),
]


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize(("field", "value"), CONTRADICTIONS)
def test_what_contradicts_the_contract_is_refused_by_its_field(path: Path, field: str, value: Any, ours: bool) -> None:
    with pytest.raises(DemonstrationError) as caught:
        _with(path, _changed(field, value), ours=ours)
    assert f"env_args.env_kwargs.{field} is " in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("controller_configs.body_parts.right.input_type", "absolute"),
        ("controller_configs.body_parts.right.type", "JOINT_VELOCITY"),
        ("controller_configs.body_parts.right.output_max", [0.2] * 6),
        ("controller_configs.body_parts.right.input_ref_frame", "eef"),
        ("control_freq", 50),
    ],
)
def test_robosuites_newer_form_is_understood(path: Path, field: str, value: Any) -> None:
    with pytest.raises(DemonstrationError, match="env_args.env_kwargs." + field.replace(".", r"\.")):
        _with(path, _changed(field, value, COMPOSITE))


def test_settings_elsewhere_are_looked_at_too(path: Path) -> None:
    with pytest.raises(DemonstrationError, match=r"env_info\.control_freq"):
        _with(path, {"control_freq": 10}, "env_info")
    with h5py.File(path, "r+") as raw:
        del raw["data"].attrs["env_info"]
    with pytest.raises(DemonstrationError, match=r"env_args\.robots"):
        _with(path, {"robots": ["IIWA"]})


@pytest.mark.parametrize("settings", [{}, {"env_kwargs": None}, {"env_kwargs": {}}, {"env_kwargs": {"robots": None}}])
def test_what_is_not_said_contradicts_nothing(path: Path, settings: dict[str, Any]) -> None:
    assert len(_with(path, settings)) == 1


def test_every_change_of_a_field_of_the_contract_is_noticed() -> None:
    """Whatever number is put anywhere into the fields that the contract decides."""
    rng = random.Random(1)
    contract = libero_contract(SIZE)
    for _ in range(600):
        settings = copy.deepcopy(LIBEROS)
        kwargs = settings["env_kwargs"]
        controller = kwargs["controller_configs"]
        field = rng.choice(["control_freq", "output_max", "output_min", "input_max", "input_min"])
        value = rng.choice([0, -1.0, 1e-3, 1e9, math.pi, -math.inf, math.nan, None, "0.05", True, [], [None] * 6])
        if field == "control_freq":
            before, kwargs[field] = kwargs[field], value
        elif field.startswith("output") and rng.random() < 0.7:
            at = rng.randrange(6)
            before, controller[field][at] = controller[field][at], value
        else:
            before, controller[field] = controller[field], value
        same = value is None or (not isinstance(value, bool) and value == before)
        if field.startswith("output") and isinstance(controller[field], list) and value is None:
            same = False
        if same:
            check_settings(settings, contract)
        else:
            with pytest.raises(DemonstrationError, match=field):
                check_settings(settings, contract)


# --- files without attributes ----------------------------------------------------------------------------------------


def _openvlas(path: Path, name: str) -> Path:
    """As OpenVLA's script writes it: the same data, and no attribute at all."""
    with h5py.File(path, "r+") as raw:
        for group in ("data", "data/demo_0"):
            for key in list(raw[group].attrs):
                del raw[group].attrs[key]
    return path.rename(path.with_name(name))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pick_up_the_red_box_demo.hdf5", "pick up the red box"),
        ("KITCHEN_SCENE10_close_the_top_drawer_of_the_cabinet_demo.hdf5", "close the top drawer of the cabinet"),
        ("LIVING_ROOM_SCENE1_pick_up_the_ketchup_demo.hdf5", "pick up the ketchup"),
        ("STUDY_SCENE4_pick_up_the_book_demo.hdf5", "pick up the book"),
    ],
)
def test_the_words_are_taken_from_the_name_and_said(
    path: Path, name: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = _openvlas(path, name)
    with caplog.at_level(logging.WARNING):
        file = DemonstrationFile(made)
        assert DemonstrationFile(made).instruction == file.instruction == words
    assert [record.args[1] for record in caplog.records if record.args] == [words]  # type: ignore[index]
    episode = file.episode(0)
    assert not episode.seen_after and episode.seed is None
    assert np.allclose(episode.actions, recording(3, length=12).episode.actions)
    assert np.array_equal(episode.images["agentview_rgb"], recording(3, length=12).episode.images["agentview_rgb"])


@pytest.mark.parametrize("name", ["data.hdf5", "._demo.hdf5", "12_demo.hdf5", "_demo.hdf5", "a b_demo.hdf5"])
def test_a_name_that_holds_no_words_is_refused(path: Path, name: str) -> None:
    with pytest.raises(DemonstrationError, match="problem_info"):
        DemonstrationFile(_openvlas(path, name))


def test_a_file_with_other_attributes_and_no_instruction_is_refused(path: Path) -> None:
    with h5py.File(path, "r+") as raw:
        del raw["data"].attrs["problem_info"]
    with pytest.raises(DemonstrationError, match="problem_info"):
        DemonstrationFile(path)


def test_words_follow_liberos_rule() -> None:
    assert words_of("KITCHEN_SCENE3_turn_on_the_stove") == "turn on the stove"
    assert words_of("KITCHEN_SCENE3_") is None and words_of("") is None and words_of("..") is None
