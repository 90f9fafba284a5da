"""Hooks of MkDocs: Sphinx roles in docstrings, such as ``:class:`Policy```, are shown as plain code."""

from __future__ import annotations

import re

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):<code>~?")


def on_page_content(html: str, **_: object) -> str:
    """Return a page without Sphinx roles, and without the second colon in front of an example."""
    return _ROLE.sub("<code>", html).replace("::</p>", ":</p>")
