"""Write the list of modules in docs/architecture.md: ``python -m scripts.module_map``.

The line of a module is the first sentence of its docstring, so the list always agrees with the code.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- modules -->\n", "<!-- /modules -->\n"
TOPS = ("m2distill_policy", "training")


def module_files() -> list[Path]:
    """Return the files of all modules, sorted by folder and then by name."""
    files = [path for top in TOPS for path in (ROOT / top).rglob("*.py")]
    return sorted(files, key=lambda path: (path.parent.relative_to(ROOT).as_posix(), path.name))


def summary(path: Path) -> str:
    """Return the first sentence of a module's docstring, without its full stop.

    Raises:
        SystemExit: The module has no docstring.
    """
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not text:
        raise SystemExit(f"{path.relative_to(ROOT)} has no docstring; say in one line what it is for")
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<!et al)\. ", paragraph)[0].rstrip(".:")


def module_map() -> str:
    """Return the list of modules as Markdown, with a table for each package."""
    lines: list[str] = []
    folder = None
    for path in module_files():
        if path.name == "__main__.py" or (path.name == "__init__.py" and not path.read_text(encoding="utf-8").strip()):
            continue
        if path.parent != folder:
            folder = path.parent
            lines += ["", f"### `{folder.relative_to(ROOT).as_posix()}/`", ""]
            package = folder / "__init__.py"
            if package.exists() and package.read_text(encoding="utf-8").strip():
                lines += [f"{summary(package)}.", ""]
            lines += ["| module | job |", "|---|---|"]
        if path.name != "__init__.py":
            lines.append(f"| `{path.stem}` | {summary(path).replace('|', chr(92) + '|')} |")
    return "\n".join(lines[1:]) + "\n"


def with_module_map(page: str) -> str:
    """Return the text ``page`` with the list of modules between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{module_map()}\n{END}{after}"


if __name__ == "__main__":
    found = with_module_map(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(found, encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}", file=sys.stderr)
