"""The policy that ships with the package: it is whole and small, and the commands use it where no bundle is given."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from m2distill_policy import cli
from m2distill_policy.arguments import find_bundle
from m2distill_policy.bundle import Bundle, open_bundle
from m2distill_policy.installation import PRETRAINED
from tests.dds_side import DdsSide, command

INSTRUCTIONS = ("lift the red box", "lift the green box", "lift the blue box")
ROOT = Path(__file__).resolve().parent.parent


def test_it_is_whole_and_small() -> None:
    bundle = open_bundle(PRETRAINED)  # verifies the hashes
    assert bundle.instructions == INSTRUCTIONS
    assert sum(file.stat().st_size for file in PRETRAINED.iterdir()) < 5e6


def test_info_shows_where_it_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    made = open_bundle(PRETRAINED).provenance
    assert cli.main(["info", str(PRETRAINED), "--json"]) == 0
    shown = capsys.readouterr().out
    facts = json.loads(shown)
    assert facts["commit"] == made["commit"] and "stage 2 of run m2distill" in facts["made from"]
    assert len(made["data"]) == len(INSTRUCTIONS)
    for value in (*made["data"].values(), *(f"{name} {version}" for name, version in made["versions"].items())):
        assert value in shown


def test_one_command_rebuilds_it() -> None:
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").split("\npretrained:")[1].split("\n\n")[0]
    assert "m2distill demo" in recipe and str(PRETRAINED.relative_to(ROOT)) in recipe


def test_it_is_used_where_no_bundle_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert find_bundle(None) == PRETRAINED
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "simulated tabletop only" in said.err


def test_serve_and_sim_use_it(tmp_path: Path, own_domain: int) -> None:
    pytest.importorskip("robosuite", reason="the simulator is not installed (requirements/sim.txt)")
    side = DdsSide(tmp_path, own_domain)
    with command(tmp_path, "serve", "--lockstep", "--domain", own_domain) as policy:
        with side.sim("--lockstep") as robot:
            assert robot.wait(60) == 0, robot.output
        assert policy.end() == 0
    assert re.search(r"^1 of 1 rollouts", robot.output, re.MULTILINE)
    for child in (policy, robot):
        assert child.output.count("using the pretrained policy") == 1
    assert "shadow" not in policy.output


def test_sim_does_not_need_it_for_another_policy(tmp_path: Path, own_domain: int) -> None:
    """With --size, images are of that size whatever is served."""
    pytest.importorskip("robosuite", reason="the simulator is not installed (requirements/sim.txt)")
    with DdsSide(tmp_path, own_domain).sim("--size", 32, "--timeout", 0.1) as robot:
        assert robot.wait(60) != 0
    assert "pretrained" not in robot.output


@pytest.mark.parametrize(
    ("words", "enabled"),
    [([], False), (["--lockstep"], True), ([str(PRETRAINED)], True), ([str(PRETRAINED), "--shadow"], False)],
    ids=["no bundle", "no bundle, lockstep", "bundle", "bundle, shadow"],
)
def test_without_a_bundle_serve_drives_no_arm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], enabled: bool
) -> None:
    class Made(Exception):
        pass

    def server(bundle: Bundle, **options: object) -> None:
        assert bundle.path == PRETRAINED and options["enabled"] == enabled
        raise Made

    monkeypatch.setattr("m2distill_policy.runtime.server.PolicyServer", server)
    with pytest.raises(Made):
        cli.main(["serve", *words])
    assert ("starting in shadow mode" in capsys.readouterr().err) == (not words)


def test_evaluate_uses_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("robosuite", reason="the simulator is not installed (requirements/sim.txt)")
    words = ["--tasks", "0", "--rollouts", "1", "--workers", "1", "--out", str(tmp_path / "out")]
    assert cli.main(["evaluate", *words]) == 0
    said = capsys.readouterr()
    assert "using the pretrained policy" in said.err and "lift_the_red_box" in said.out
