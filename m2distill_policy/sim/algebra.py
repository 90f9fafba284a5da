"""Linear algebra of a world: on one thread, so that the same actions move the arm alike in every process."""

from __future__ import annotations

import threadpoolctl


def use_one_thread() -> None:
    """Let BLAS work on one thread in this process from now on.

    A product of matrices is summed up in another order by several threads. The controller's digits then differ from
    those of a process with one, and within some thirty steps its actions do, by more than 1e-6. The matrices here are
    small: no time is lost.
    """
    threadpoolctl.threadpool_limits(limits=1, user_api="blas")
