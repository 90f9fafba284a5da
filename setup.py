"""Install with pip, or with colcon as an ament_python package.

The versions of all dependencies are in ``requirements/``; this file, ``make venv`` and ``m2distill doctor`` read them
there. ``pip install .`` installs what a robot needs, and the extras ``train``, ``sim``, ``ray`` and ``dev`` the rest.

``pyproject.toml`` must not get a ``[project]`` table: setuptools then drops or refuses the dependencies, entry points
and description that are given here, and colcon, which calls this file, does not build the node. (Tried with colcon-core
0.19 and 0.21, setuptools 69.5 and 84.2.)
"""

import re
import sys
from pathlib import Path

from setuptools import find_packages, setup

NAME = "m2distill_policy"
HERE = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / NAME / "__init__.py").read_text(encoding="utf-8"))
if VERSION is None:
    raise SystemExit(f"{NAME}/__init__.py holds no __version__")

# colcon calls this file with these commands, pip with others. On a ROS 2 machine package.xml names the dependencies:
# NumPy and OpenCV come from apt there, and pkg_resources would refuse to start a node whose list pip did not install.
IS_COLCON = bool({"install", "develop"} & set(sys.argv[1:]))


def requirements(role: str) -> "list[str]":
    """Return the requirements of ``requirements/<role>.txt``, and of the files that it includes with ``-r``."""
    found: list[str] = []
    for line in (HERE / "requirements" / f"{role}.txt").read_text(encoding="utf-8").splitlines():
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        if text.startswith("-r "):
            found += requirements(text[3:].strip().removesuffix(".txt"))
        elif text:
            found.append(text)
    return found


def shared(folder: str, *patterns: str) -> "list[tuple[str, list[str]]]":
    """Return the files of ``folder`` for ``share/<package>/<folder>``, in the form of ``data_files``."""
    files = sorted(str(p.relative_to(HERE)) for pattern in patterns for p in (HERE / folder).glob(pattern))
    return [(f"share/{NAME}/{folder}", files)] if files else []


setup(
    name=NAME,
    version=VERSION.group(1),
    packages=find_packages(include=[NAME, f"{NAME}.*", "training", "training.*"]),
    # Not "**": setuptools of Ubuntu 22.04 does not know it.
    package_data={NAME: ["py.typed", "pretrained/*/*"], "training": ["py.typed"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        *shared("config", "*.toml", "*.xml"),
        *shared("config/arms", "*.yaml"),
        *shared("config/sweeps", "*.toml"),
        *shared("launch", "*.launch.py"),
        *shared("requirements", "*.txt"),
    ],
    python_requires=">=3.10,<3.13",
    install_requires=[] if IS_COLCON else requirements("robot"),
    extras_require={
        "train": requirements("train"),
        # Without robosuite, LIBERO and BDDL, whose own lists cannot be met: see requirements/sim-nodeps.txt.
        "sim": requirements("sim"),
        "ray": requirements("ray"),
        "dev": requirements("dev"),
        # colcon runs pytest only for a package that asks for it; without this 'colcon test' runs nothing and says OK.
        "test": ["pytest"],
    },
    entry_points={
        "console_scripts": [
            "m2distill = m2distill_policy.cli:main",
            "policy_node = m2distill_policy.ros.main:main",
            "sim_robot = m2distill_policy.ros.sim_robot:main",
            "viewpoint_check = m2distill_policy.ros.viewpoint_check:main",
        ]
    },
    zip_safe=False,
    maintainer="the m2distill maintainers",
    maintainer_email="maintainers@m2distill.invalid",
    description="Lifelong imitation learning by multi-modal distillation, from demonstrations to a robot",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
)
