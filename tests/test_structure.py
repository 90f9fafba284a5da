"""The structure of the code: no circular imports, files that can be read in one sitting, a true map."""

from __future__ import annotations

import ast
import graphlib
import re
from pathlib import Path

from scripts.module_map import PAGE, ROOT, module_files, with_module_map

#: Lines of a file. A longer one has a comment that begins with REASON.
LONGEST, REASON = 400, "# Longer than 400 lines because"


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path, modules: set[str]) -> set[str]:
    """Our modules that ``path`` imports, at any level of indentation but for type checkers only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules else node.module)
    return (found & modules) - {name_of(path)}


def test_no_module_imports_itself_through_others() -> None:
    files = module_files()
    modules = {name_of(path) for path in files}
    graph = {name_of(path): imports_of(path, modules) for path in files}
    assert len(graph) > 100 and sum(map(len, graph.values())) > 300
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def package_of(name: str) -> str:
    """The package of a module; empty for the modules directly in ``m2distill_policy``."""
    top, *rest = name.split(".")
    return top if top == "training" else rest[0] if rest and (ROOT / top / rest[0]).is_dir() else ""


def test_packages_import_what_the_map_says() -> None:
    rows = re.findall(r"^\| `(\w+)`[^|]*\|[^|]*\| ([^|]*) ?\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    listed = {package: set(re.findall(r"`(\w+)`", imports)) for package, imports in rows}
    files = module_files()
    modules = {name_of(path) for path in files}
    found: dict[str, set[str]] = {package_of(name): set() for name in modules}
    for path in files:
        package = package_of(name_of(path))
        found[package] |= {package_of(name) for name in imports_of(path, modules)} - {package, ""}
    for package in ("", "commands", "pretrained"):
        found.pop(package, None)
        listed.pop(package, None)
    assert listed == found, "the packages in docs/architecture.md"


def test_files_are_short_or_say_why_not() -> None:
    long = {}
    for path in module_files():
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > LONGEST and REASON not in text:
            long[name_of(path)] = text.count("\n")
    assert not long, f"split them by job, or write why not in a comment '{REASON} ...': {long}"


def test_the_map_lists_every_module() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_module_map(page), "run: python -m scripts.module_map"
