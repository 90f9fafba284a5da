"""The documentation: complete navigation, links that resolve, commands and settings that exist, generated pages."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from m2distill_policy.cli import _parser
from m2distill_policy.commands import SUMMARIES
from m2distill_policy.contract import Contract, libero_contract
from m2distill_policy.sim.env import Task
from m2distill_policy.sim.tabletop.scene import OBJECTS
from m2distill_policy.sim.tabletop.tasks import GOALS, SUITE, TASKS
from scripts.cli_reference import PAGE as CLI_PAGE
from scripts.cli_reference import cli_reference

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [
    *sorted(DOCS.rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")),
]
#: The target of a link: a file, and a section after '#'.
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s#]*)(?:#([^)\s]*))?\)")


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """Names of a page's sections, as GitHub and MkDocs make them."""
    text = re.sub(r"^```.*?^```", "", read(page), flags=re.MULTILINE | re.DOTALL)
    plain = [
        re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    ]
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in plain}


def navigation(entry: Any) -> Iterator[str]:
    """Every page under an entry of ``nav``."""
    if isinstance(entry, str):
        yield entry
    else:
        for value in entry.values() if isinstance(entry, dict) else entry:
            yield from navigation(value)


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command line of ``m2distill`` in a page's code blocks, from the subcommand on."""
    code = "\n".join(re.findall(r"^    .*$", read(page), re.MULTILINE)).replace("\\\n", " ")
    for line in re.findall(r"^ *(?:m2distill|torchrun .* -m m2distill_policy) (.*)$", code, re.MULTILINE):
        yield shlex.split(line, comments=True)


def test_every_page_is_in_the_navigation_once() -> None:
    pages = list(navigation(yaml.safe_load(read(ROOT / "mkdocs.yml"))["nav"]))
    assert sorted(pages) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    for target, anchor in _LINK.findall(read(page)):
        if target.startswith(("http:", "https:")):
            continue
        found = (page.parent / target).resolve() if target else page
        assert found.exists(), f"{name_of(page)}: {target}"
        if anchor:
            assert anchor in anchors(found), f"{name_of(page)}: {target}#{anchor}"
        if DOCS in page.parents:
            assert DOCS in found.parents, f"{name_of(page)}: {target} is not on the website; name the path instead"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_options_exist(page: Path) -> None:
    for name, *words in commands(page):
        assert name in SUMMARIES, f"{name_of(page)}: m2distill {name}"
        parser = _parser(name)[1]
        assert parser is not None
        known = {option for action in parser._actions for option in action.option_strings}
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert used <= known, f"{name_of(page)}: m2distill {name} {sorted(used - known)}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_modules_to_run_exist(page: Path) -> None:
    for module in re.findall(
        r"python -m ((?:benchmarks|examples|scripts|tests|m2distill_policy|training)[\w.]*)", read(page)
    ):
        path = ROOT / module.rstrip(".").replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), f"{name_of(page)}: {module}"


def test_there_are_commands_to_check() -> None:
    assert sum(1 for page in PAGES for _ in commands(page)) > 40


def test_the_command_line_reference_is_up_to_date() -> None:
    assert read(CLI_PAGE) == cli_reference(), "run: python -m scripts.cli_reference"


def test_the_example_of_a_contract_is_one() -> None:
    (example,) = re.findall(r"```json\n(.*?)```", read(DOCS / "reference" / "contract.md"), re.DOTALL)
    assert Contract.from_dict(json.loads(example)) == libero_contract(64)


def test_the_code_of_the_strategy_tutorial_is_the_example() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", read(DOCS / "tutorials" / "add_a_strategy.md"), re.DOTALL)
    example = read(ROOT / "examples" / "add_a_strategy.py").splitlines()
    assert not [line for line in code.splitlines() if line not in example]


def test_the_task_of_the_guide_is_possible() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", read(DOCS / "how_to" / "add_a_task.md"), re.DOTALL)
    task = eval(code.strip().removesuffix(","), {"Task": Task, "SUITE": SUITE})  # noqa: S307 - a page of this project
    assert (task.index, task.suite) == (len(TASKS), SUITE)
    assert task.kind in GOALS
    assert set(task.targets) <= {item.name for item in OBJECTS}


def test_the_front_page_is_short() -> None:
    lines = read(ROOT / "README.md").splitlines()
    assert len(lines) <= 120
    assert not [line for line in lines if len(line) > 120 and not line.startswith("|")]
