"""From a robot's recordings back to demonstrations: rosbag2 files in, LIBERO's HDF5 layout out. Needs no ROS."""
