"""ROS 2: the policy as a lifecycle node, and the simulated robot as a node. Needs a sourced ROS 2."""
