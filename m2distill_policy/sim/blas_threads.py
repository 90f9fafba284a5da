"""Run linear algebra on one thread, so that the same actions move the arm the same way in every process."""

from __future__ import annotations


def use_one_thread() -> None:
    """Limit BLAS to one thread in this process.

    With several threads, a matrix product adds its terms in another order. The last digits of the controller's torques
    then differ, and after some thirty steps the actions differ by more than 1e-6. The matrices are small, so one thread
    is as fast as several.
    """
    import threadpoolctl  # imported here, so that listing the tasks does not need it

    threadpoolctl.threadpool_limits(limits=1, user_api="blas")
