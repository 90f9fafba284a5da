"""Serve a bundle: engine, window, mixture, safety limits, watchdog, policy server and hot swap.

It knows no transport, clock or robot: observations and time are arguments, decisions are return values. It needs numpy,
onnxruntime and cv2, and never torch, ROS or a simulator. Import from its modules; the package itself exports nothing.
"""
