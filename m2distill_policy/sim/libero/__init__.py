"""LIBERO's suites: their files, environments and scripted experts.

``files.py`` reads the files of LIBERO's package. ``build.py`` builds a scene with LIBERO's own environment, and
``env.py`` is this project's environment for it. ``shapes.py``, ``grasps.py``, ``skills.py`` and ``expert.py`` are the
scripted expert, which needs only the goal of a task to demonstrate it.
"""
