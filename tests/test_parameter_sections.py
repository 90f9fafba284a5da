"""Which sections of a ROS 2 parameter file are one node's, and what is given twice, without ROS 2."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from m2distill_policy.cli import main
from m2distill_policy.errors import ConfigError
from m2distill_policy.settings.arm import load_arm
from m2distill_policy.settings.parameter_files import given_by_name, matches
from tests.bundles import write_toy

NODE = "m2distill_policy"
NAMESPACES = ("", "/left", "/right", "/left/arm")
#: Section -> the namespaces of ``NAMESPACES`` whose node it is for, as rclpy has it (tests/test_ros_sections.py).
SECTIONS = {
    "/**": ("", "/left", "/right", "/left/arm"),
    "**": ("", "/left", "/right", "/left/arm"),
    "/*": ("",),
    "*": ("",),
    "/left/**": ("/left", "/left/arm"),
    "/left/*": ("/left",),
    "/**/m2distill_policy": ("", "/left", "/right", "/left/arm"),
    "/*/m2distill_policy": ("/left", "/right"),
    "/m2distill_policy": ("",),
    "m2distill_policy": ("",),
    "/left/m2distill_policy": ("/left",),
    "left/m2distill_policy": ("/left",),
    "/right/m2distill_policy": ("/right",),
    "/left/arm/m2distill_policy": ("/left/arm",),
    "/left/*/m2distill_policy": ("/left/arm",),
    "/left/**/m2distill_policy": ("/left", "/left/arm"),
    "/**/left/m2distill_policy": ("/left",),
    "/*/*": ("/left", "/right"),
    "/other": (),
    "/left/other": (),
}


def write(path: Path, *found: tuple[str, float]) -> Path:
    """A parameter file in which every section gives another time to halt in."""
    path.write_text(
        "".join(f"'{section}':\n  ros__parameters:\n    safety: {{halt_time: {t}}}\n" for section, t in found)
    )
    return path


@pytest.mark.parametrize("namespace", NAMESPACES)
@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_is_for_the_nodes_whose_full_name_it_matches(tmp_path: Path, section: str, namespace: str) -> None:
    ours = namespace in SECTIONS[section]
    assert matches(section, f"{namespace}/{NODE}") == ours
    file = write(tmp_path / "p.yaml", (section, 0.5))
    if ours:
        assert load_arm(file, (), namespace)[0].safety.halt_time == 0.5
    else:
        with pytest.raises(ConfigError, match="no section applies to the node"):
            load_arm(file, (), namespace)


@pytest.mark.parametrize("first", SECTIONS)
def test_the_later_section_of_a_file_is_over_the_earlier_one(tmp_path: Path, first: str) -> None:
    for second, namespace in itertools.product(SECTIONS.keys() - {first}, NAMESPACES):
        file = write(tmp_path / "p.yaml", (first, 0.25), (second, 0.75))
        ours = [t for section, t in ((first, 0.25), (second, 0.75)) if namespace in SECTIONS[section]]
        if not ours or first.strip("/") == second.strip("/"):
            with pytest.raises(ConfigError):
                load_arm(file, (), namespace)
        else:
            assert load_arm(file, (), namespace)[0].safety.halt_time == ours[-1]


@pytest.mark.parametrize(
    ("sections", "namespace"),
    [
        (("/left/m2distill_policy", "/right/m2distill_policy"), None),
        (("/right/m2distill_policy", "/left/m2distill_policy"), None),
        (("/m2distill_policy", "/left/m2distill_policy"), None),
        (("/left/**", "/right/m2distill_policy"), None),
        (("/**", "/left/*", "/right/*"), None),
        (("/*/m2distill_policy",), None),
        (("/left/m2distill_policy",), "/left"),
        (("/**", "/left/m2distill_policy"), "/left"),
        (("/left/**",), "/left"),
        (("/**", "/m2distill_policy"), ""),
        (("/**/m2distill_policy",), ""),
        (("/left/other",), "/left"),
    ],
)
def test_without_a_namespace_a_file_of_one_arm_is_taken_and_of_several_refused(
    tmp_path: Path, sections: tuple[str, ...], namespace: str | None
) -> None:
    file = write(tmp_path / "p.yaml", *((section, 0.1 * (i + 1)) for i, section in enumerate(sections)))
    if namespace is None:
        with pytest.raises(ConfigError) as caught:
            load_arm(file)
        named = [section for section in sections if not section.startswith("/**")]
        assert all(section in str(caught.value) for section in named) and "--namespace" in str(caught.value)
    else:
        assert load_arm(file)[0].safety.halt_time == pytest.approx(0.1 * len(sections))


def test_commands_take_the_section_of_their_namespace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "two.yaml", ("/left/m2distill_policy", 0.5), ("/right/m2distill_policy", 0.25))
    bundle = write_toy(tmp_path / "toy")
    serve = ["serve", str(bundle), "--config", str(tmp_path / "two.yaml")]
    imported = ["import-bag", str(tmp_path / "bag"), "--instruction", "x", "--contract", str(bundle)]
    imported += ["--out", str(tmp_path / "data"), "--config", str(tmp_path / "two.yaml")]
    for words in (serve, imported):
        assert main(words) == 2
        assert "--namespace" in capsys.readouterr().err
        assert main([*words, "--namespace", "/middle"]) == 2
        assert "/middle/m2distill_policy" in capsys.readouterr().err
    assert main([*imported, "--namespace", "/left"]) == 2
    assert str(tmp_path / "bag") in capsys.readouterr().err, "the settings were taken, the recording is not there"


@pytest.mark.parametrize("section", ["//left/m2distill_policy", "/l*/m2distill_policy", "/left/m2-distill", "/***"])
def test_invalid_node_name_is_refused(tmp_path: Path, section: str) -> None:
    with pytest.raises(ConfigError, match="is not a node's name"):
        load_arm(write(tmp_path / "p.yaml", (section, 0.5)))


# --- given twice ------------------------------------------------------------------------------------------------------

#: Parameters of a section in which one is given twice, and its name.
TWICE = [
    ("{safety: {halt_time: 0.5}, safety.halt_time: 0.25}", "safety.halt_time"),
    ("{safety.halt_time: 0.25, safety: {halt_time: 0.5}}", "safety.halt_time"),
    ("{joints.names: [a], joints: {names: [a]}}", "joints.names"),
    ("{x: {y: {z: 1}, y.z: 2}}", "x.y.z"),
    ("{x.y: {z: 1}, x: {y.z: 1}}", "x.y.z"),
]


@pytest.mark.parametrize("section", ["/**", "m2distill_policy", "/left/m2distill_policy"])
@pytest.mark.parametrize(("parameters", "name"), TWICE)
def test_a_parameter_given_twice_is_refused_by_name(tmp_path: Path, section: str, parameters: str, name: str) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(f"'{section}': {{ros__parameters: {parameters}}}\n")
    with pytest.raises(ConfigError, match=f"'{name}' is given twice"):
        load_arm(file)
    node = "/left/m2distill_policy" if section.startswith("/left") else "/m2distill_policy"
    (message,) = given_by_name(["--ros-args", "--params-file", str(file)], node).refused
    assert f"'{name}' is given twice" in message and str(file) in message


def test_what_other_nodes_are_given_is_theirs(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(
        "other: {ros__parameters: {a: {b: 1}, a.b: 2}}\n/**: {ros__parameters: {safety: {halt_time: 0.5}}}\n"
    )
    assert load_arm(file)[0].safety.halt_time == 0.5
    assert not given_by_name(["--ros-args", "--params-file", str(file)], "/m2distill_policy").refused


def test_a_section_given_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(
        "left/m2distill_policy: {ros__parameters: {safety: {halt_time: 0.5}}}\n"
        "left: {m2distill_policy: {ros__parameters: {safety: {halt_time: 0.25}}}}\n"
    )
    with pytest.raises(ConfigError, match="'/left/m2distill_policy' is given twice"):
        load_arm(file)


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (["-p", "m2distill_policy:slop:=1.0"], 1),
        (["-p", "slop:=1.0"], 0),
        (["-p", "other:slop:=1.0"], 0),
    ],
)
def test_what_is_given_to_this_name_without_its_namespace_is_refused(words: list[str], refused: int) -> None:
    assert len(given_by_name(["--ros-args", *words], "/left/m2distill_policy").refused) == refused
