"""Files for tools that are not run here parse, and agree with the rest of the project."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from m2distill_policy import __version__
from m2distill_policy.commands import SUMMARIES
from m2distill_policy.config import read_file

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", [".pre-commit-config.yaml", ".github/workflows/ci.yml", "CITATION.cff"])
def test_yaml_files_parse(name: str) -> None:
    assert isinstance(yaml.safe_load((ROOT / name).read_text(encoding="utf-8")), dict)


def test_pyproject_parses() -> None:
    assert read_file(ROOT / "pyproject.toml")["build-system"]["build-backend"] == "setuptools.build_meta"


def test_the_citation_has_the_version() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == __version__


def test_the_workflow_uses_the_supported_pythons_and_existing_targets() -> None:
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    pythons = yaml.safe_load(workflow)["jobs"]["tests"]["strategy"]["matrix"]["python"]
    lowest, beyond = re.findall(r"3\.(\d+)", (ROOT / "setup.py").read_text().split("python_requires")[1].split("\n")[0])
    assert pythons == [f"3.{minor}" for minor in range(int(lowest), int(beyond))]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"\bmake ([a-z-]+)", workflow):
        assert f"\n{target}:" in makefile


@pytest.mark.parametrize("file", ["docker/robot.Dockerfile", "docker/trainer.Dockerfile"])
def test_dockerfiles_install_what_exists(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    minor = int(re.findall(r"FROM python:3\.(\d+)", text)[0])
    assert 10 <= minor <= 12
    for name in re.findall(r"requirements/[\w-]+\.txt", text):
        assert (ROOT / name).is_file()
    for extra in ",".join(re.findall(r'"\.\[([\w,]+)\]"', text)).split(","):
        assert not extra or f'"{extra}": requirements(' in (ROOT / "setup.py").read_text()
    for command in re.findall(r"m2distill (\w+) ", text):
        assert command in SUMMARIES
    assert not re.findall(r"==", text), "versions are in requirements/"
