"""Run linear algebra on one thread, so that the same actions move the arm the same way in every process."""

from __future__ import annotations


def use_one_thread() -> None:
    """Limit BLAS to one thread in this process.

    With several threads, a matrix product adds its terms in another order. The last digits of the controller then
    differ, and after some thirty steps the actions differ by more than 1e-6. The matrices here are small, so one thread
    is as fast.
    """
    import threadpoolctl  # not needed to list the tasks

    threadpoolctl.threadpool_limits(limits=1, user_api="blas")
