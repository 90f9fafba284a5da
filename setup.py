"""Installs with pip and, as an ament_python package, with colcon.

There is no pyproject.toml on purpose: a ``[project]`` table beside this file makes recent setuptools ignore what is
said here, and the node's executable is then missing under colcon. Dependencies are not listed here either: they
depend on the machine's role (see ``requirements/``), and ROS 2 machines take theirs from ``package.xml``.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

NAME = "m2distill_policy"
HERE = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / NAME / "__init__.py").read_text(encoding="utf-8"))
if VERSION is None:
    raise SystemExit(f"{NAME}/__init__.py holds no __version__")


def shared(folder: str, *patterns: str) -> "list[tuple[str, list[str]]]":
    """Files of ``folder`` for share/<package>/<folder>, as data_files wants them; nothing where there are none."""
    files = sorted(str(p.relative_to(HERE)) for pattern in patterns for p in (HERE / folder).glob(pattern))
    return [(f"share/{NAME}/{folder}", files)] if files else []


setup(
    name=NAME,
    version=VERSION.group(1),
    packages=find_packages(include=[NAME, f"{NAME}.*", "training", "training.*"]),
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        *shared("config", "*.toml", "*.xml"),
        *shared("config/arms", "*.yaml"),
        *shared("launch", "*.launch.py"),
        # 'm2distill doctor' compares what is installed with them.
        *shared("requirements", "*.txt"),
    ],
    python_requires=">=3.10,<3.13",
    # colcon runs pytest only for a package that asks for it; without this 'colcon test' runs nothing and says OK.
    extras_require={"test": ["pytest"]},
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
    license="Apache-2.0",
)
