"""Settings of an arm and of the policy node: one table, from which everything else follows.

:mod:`m2distill_policy.settings.table` lists each setting with its type, range, default and unit. From it come the
parameters that the node on ROS 2 declares, the files for ``--config``, the option ``--set``, and the table in
docs/ros2.md. Needs no ROS.
"""
