"""Write the charts of the documentation as small SVG files."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

_NUMBER = re.compile(r"-?\d+\.\d{3,}")


@contextlib.contextmanager
def svg_settings() -> Iterator[None]:
    """Within the block, make matplotlib write text instead of glyph paths, and the same identifiers in every run."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "m2distill"}):
        yield


def write_svg(path: Path, text: str) -> None:
    """Write an SVG without metadata and white space, with one group per line and coordinates with two decimals.

    Args:
        path: Path of the file.
        text: SVG, as matplotlib makes it.
    """
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'(<g) id="[\w.]*"', r"\1", text)
    text = re.sub(r"\s+", " ", text).replace("> <", "><").replace(' "', '"')
    text = _NUMBER.sub(lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace("<g><g><path", "\n<g><g><path").strip() + "\n", encoding="utf-8")
