"""LIBERO's suites: their files, environments and scripted experts.

``files.py`` reads LIBERO's package as data. ``build.py`` builds a scene with LIBERO's environment, and ``env.py`` has
the environment. ``shapes.py``, ``grasps.py``, ``skills.py`` and ``expert.py`` demonstrate any task from its goal alone.
"""
