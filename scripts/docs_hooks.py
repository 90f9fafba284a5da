"""Hooks of MkDocs that show Sphinx roles in docstrings, such as ``:class:`Policy```, as plain code."""

from __future__ import annotations

import re

_ROLE = re.compile(r":(?:class|func|meth|mod|data|attr):<code>~?")


def on_page_content(html: str, **_: object) -> str:
    """Return the HTML of a page without Sphinx roles, and with one colon instead of two before an example."""
    return _ROLE.sub("<code>", html).replace("::</p>", ":</p>")
