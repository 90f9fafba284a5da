"""LIBERO's suites: where its files lie, its worlds, and what scripted experts do in them.

``files.py`` reads LIBERO's package as data; ``world.py`` lets its environment build a scene and judge the goal;
``shapes.py``, ``grasps.py``, ``skills.py`` and ``expert.py`` demonstrate, from the goal of the task alone.
"""
