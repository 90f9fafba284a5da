"""The policy node and the simulated robot on plain Cyclone DDS, with ROS 2's wire types and topic names."""
