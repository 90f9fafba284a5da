"""Serving a bundle: preprocessing, window, engine, mixture, safety, server, hot swap.

Pure: observations and time are handed in, decisions come out. Needs numpy, onnxruntime and cv2; never torch, ROS or a
simulator. Import what you need from its own file; this package imports nothing by itself.
"""
