"""What must happen before any test: a test process both draws and learns, which no process of the product does."""

from __future__ import annotations

import contextlib

# CUDA builds of torch bring triton, and both triton and Mesa's software renderer carry an LLVM of their own. Loaded
# after Mesa, triton takes some of Mesa's symbols and the process dies; loaded before it, both work.
with contextlib.suppress(ImportError):
    import triton  # type: ignore[import-not-found, unused-ignore]  # noqa: F401
