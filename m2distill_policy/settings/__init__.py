"""Settings of an arm and of the policy node, all in one table.

:mod:`m2distill_policy.settings.definitions` lists each setting with its type, range, default and unit. The parameters
that the node on ROS 2 declares, the files for ``--config``, the option ``--set`` and the table in docs/ros2.md all come
from this list. The package does not need ROS.
"""
