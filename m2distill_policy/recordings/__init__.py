"""Convert recordings of a robot (rosbag2) to demonstrations (HDF5 in LIBERO's layout), without ROS."""
