"""The dependency rules: what may import what, in fresh processes and in the source of every file."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "m2distill_policy"

#: Heavy, or another role's: none of them belongs on a robot that only serves.
HEAVY = {
    *("torch", "rclpy", "robosuite", "mujoco", "onnx", "cyclonedds", "libero", "h5py", "transformers", "tqdm"),
    *("matplotlib", "imageio", "training"),
}


def modules_of(package: str) -> list[str]:
    """Dotted names of every module of a package."""
    files = sorted((ROOT / package).rglob("*.py")) if (ROOT / package).is_dir() else [ROOT / f"{package}.py"]
    names = [".".join(f.relative_to(ROOT).with_suffix("").parts) for f in files]
    return [name.removesuffix(".__init__") for name in names]


def loaded_by(*modules: str) -> set[str]:
    """Top-level packages in ``sys.modules`` of a fresh process after importing ``modules``."""
    code = (
        "import importlib, json, sys\n"
        f"for name in {list(modules)!r}: importlib.import_module(name)\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def present(*names: str) -> list[str]:
    return [name for name in names if (ROOT / f"{name.replace('.', '/')}.py").exists()]


def test_runtime_and_node_are_light() -> None:
    packages = ("images", "runtime", "node")
    loaded = loaded_by(*(name for package in packages for name in modules_of(f"m2distill_policy/{package}")))
    assert not loaded & HEAVY
    assert {"numpy", "onnxruntime", "cv2"} <= loaded


def test_bundle_and_contract_are_lighter() -> None:
    loaded = loaded_by("m2distill_policy.bundle", "m2distill_policy.contract", "m2distill_policy.observation")
    assert not loaded & {*HEAVY, "onnxruntime", "cv2", "yaml", "cryptography"}


def test_evaluation_has_no_torch() -> None:
    loaded = loaded_by(*modules_of("m2distill_policy/evaluation"))
    assert not loaded & {
        "torch",
        "rclpy",
        "cyclonedds",
        "training",
        "robosuite",
        "mujoco",
        "libero",
        "h5py",
        "transformers",
    }


@pytest.mark.skipif(importlib.util.find_spec("cyclonedds") is None, reason="cyclonedds is not installed")
def test_dds_has_no_torch_and_no_simulator_until_asked() -> None:
    modules = modules_of("m2distill_policy/dds")
    if not modules:
        pytest.skip("there is no package dds yet")
    assert not loaded_by(*modules) & {"torch", "rclpy", "training", "robosuite", "mujoco", "libero", "onnx", "h5py"}


def test_command_line_is_light() -> None:
    modules = present("m2distill_policy.cli") + modules_of("m2distill_policy/commands")
    # Every subcommand's module, too: what it needs is imported when it is called.
    assert not loaded_by(*modules) & {*HEAVY, "onnxruntime", "cv2", "yaml"}


# --- every import, in the source --------------------------------------------------------------------------------------

#: Package -> which of our packages and heavy libraries it may import, anywhere in its files (also inside functions).
#: Packages are matched by the longest prefix.
OUTSIDE = {
    *("torch", "rclpy", "robosuite", "mujoco", "onnx", "onnxruntime", "cv2", "cyclonedds", "libero", "bddl", "h5py"),
    *("yaml", "transformers", "tokenizers", "safetensors", "rosbags", "ray", "cryptography"),
}


def _names(*own: str, outside: str = "") -> frozenset[str]:
    return frozenset({*(f"m2distill_policy.{name}" for name in own), *outside.split()})


_CORE = (
    "images",
    "errors",
    "installation",
    "ranges",
    "options",
    "storage",
    "strict_json",
    "contract",
    "observation",
    "provenance",
)
ALLOWED: dict[str, frozenset[str]] = {
    "m2distill_policy.errors": _names(),
    "m2distill_policy.ranges": _names("errors"),
    "m2distill_policy.strict_json": _names("errors"),
    "m2distill_policy.contract_fields": _names("errors"),
    "m2distill_policy.contract": _names("errors", "strict_json", "contract_fields"),
    "m2distill_policy.observation": _names("errors", "contract"),
    "m2distill_policy.provenance": _names("errors"),
    "m2distill_policy.images": _names("errors", "contract", "images", outside="cv2"),
    "m2distill_policy.progress": _names(),
    "m2distill_policy.tables": _names(),
    "m2distill_policy.pins": _names("pins"),
    "m2distill_policy.installation": _names("pins"),
    "m2distill_policy.cluster": _names("errors", "installation", outside="ray"),
    "m2distill_policy.lock": _names("errors"),
    "m2distill_policy.storage": _names("errors"),
    "m2distill_policy.config": _names("errors", "config_text", "strict_json"),
    "m2distill_policy.config_keys": _names("errors", "ranges", "config"),
    "m2distill_policy.config_text": _names("errors", "strict_json", outside="yaml"),
    "m2distill_policy.hdf5": _names("errors"),
    "m2distill_policy.hdf5_reader": _names(outside="h5py"),
    "m2distill_policy.hdf5_writer": _names(outside="h5py"),
    "m2distill_policy.demonstration_settings": _names("errors", "contract"),
    "m2distill_policy.demonstrations": _names(*_CORE, "hdf5", "demonstration_settings"),
    "m2distill_policy.demonstration_writer": _names(
        *_CORE, "hdf5", "hdf5_writer", "demonstration_settings", "demonstrations", outside="h5py"
    ),
    "m2distill_policy.bundle": _names(
        "errors", "contract", "strict_json", "bundle_files", "bundle_arrays", "bundle_graphs", "bundle_signature"
    ),
    "m2distill_policy.bundle_writer": _names("errors", "contract", "bundle", "bundle_files", "bundle_signature"),
    "m2distill_policy.bundle_files": _names("errors"),
    "m2distill_policy.bundle_arrays": _names(),
    "m2distill_policy.bundle_graphs": _names(),
    "m2distill_policy.bundle_signature": _names(
        "errors", "installation", "storage", "bundle_files", outside="cryptography"
    ),
    "m2distill_policy.runtime": _names(*_CORE, "bundle", "bundle_signature", "runtime", outside="onnxruntime cv2"),
    "m2distill_policy.node": _names(*_CORE, "bundle", "runtime", "node", outside="cv2"),
    "m2distill_policy.settings": _names(*_CORE, "config", "bundle", "bundle_files", "runtime", "node", "settings"),
    "m2distill_policy.recordings": _names(
        *_CORE, "bundle", "demonstrations", "runtime", "node", "recordings", outside="rosbags yaml"
    ),
    "m2distill_policy.signals": _names(),
    "m2distill_policy.streams": _names(),
    "m2distill_policy.options": _names("errors"),
    "m2distill_policy.sim_robot": _names(*_CORE, "options", "signals", "bundle", "runtime", "node", "sim", "sim_robot"),
    "m2distill_policy.dds": _names(*_CORE, "bundle", "runtime", "node", "sim_robot", "dds", outside="cyclonedds cv2"),
    "m2distill_policy.ros": _names(
        *_CORE,
        *(
            "signals",
            "streams",
            "bundle",
            "bundle_files",
            "bundle_signature",
            "runtime",
            "node",
            "settings",
            "sim_robot",
            "ros",
        ),
        outside="rclpy cv2",
    ),
    "m2distill_policy.sim": _names(
        *_CORE,
        "config",
        "lock",
        "demonstrations",
        "demonstration_writer",
        "sim",
        outside="robosuite mujoco libero bddl h5py cv2 yaml",
    ),
    "m2distill_policy.evaluation": _names(
        *_CORE, "cluster", "progress", "tables", "bundle", "runtime", "sim", "evaluation", outside="cv2"
    ),
    "training": _names(
        *_CORE,
        *(
            "cluster",
            "lock",
            "progress",
            "config",
            "config_keys",
            "demonstrations",
            "bundle_writer",
            "tables",
            "bundle",
            "runtime",
            "sim",
            "evaluation",
        ),
        outside="training torch onnx onnxruntime cv2 h5py transformers tokenizers safetensors yaml",
    ),
}


def imports_of(file: Path) -> set[str]:
    """Every dotted name that a file imports, anywhere in it."""
    found: set[str] = set()
    package = ".".join(file.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                module = ".".join([*parts, module] if module else parts)
            # 'from m2distill_policy import bundle' imports a module, too.
            found |= {f"{module}.{alias.name}" for alias in node.names} if module == "m2distill_policy" else {module}
    return found


def all_imports() -> list[tuple[str, str, str]]:
    """(package, file, import) for every import of this project's packages or of a heavy library."""
    result = []
    for file in [*sorted(PACKAGE.rglob("*.py")), *sorted((ROOT / "training").rglob("*.py"))]:
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        packages = [package for package in ALLOWED if name == package or name.startswith(f"{package}.")]
        if not packages:
            continue  # the command line sits on top and may import anything, lazily (see above)
        for target in sorted(imports_of(file)):
            if target.split(".")[0] in OUTSIDE | {"m2distill_policy", "training"}:
                result.append((max(packages, key=len), str(file.relative_to(ROOT)), target))
    return result


def test_packages_import_only_what_they_may() -> None:
    wrong = []
    for package, file, target in all_imports():
        if not any(target == allowed or target.startswith(f"{allowed}.") for allowed in ALLOWED[package]):
            if target == "m2distill_policy.__version__":
                continue
            wrong.append(f"{file} imports {target}, which '{package}' may not")
    assert not wrong, "\n".join(wrong)


def test_only_training_imports_torch_and_training_imports_no_robot() -> None:
    for _, file, target in all_imports():
        top = target.split(".")[0]
        if top == "torch":
            assert file.startswith("training/"), file
        if file.startswith("training/"):
            assert top not in ("rclpy", "cyclonedds") and not target.startswith("m2distill_policy.dds"), file


def test_simulators_are_imported_lazily() -> None:
    """robosuite, MuJoCo and LIBERO are not there on a robot or a training machine: only functions import them."""
    for file in sorted((PACKAGE / "sim").rglob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split(".")[0] not in ("robosuite", "mujoco", "libero"), f"{file} imports {name} at its top"


def test_no_pickle_and_no_eval_anywhere() -> None:
    for folder in ("m2distill_policy", "training"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    assert node.func.id not in ("eval", "exec"), f"{file}:{node.lineno} calls {node.func.id}"
                if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                    assert isinstance(node.value, ast.Constant) and node.value.value is False, f"{file}: allow_pickle"
            assert not imports_of(file) & {"pickle", "dill", "cloudpickle", "joblib", "shelve"}, file


def test_launch_folder_is_not_a_package() -> None:
    assert not (ROOT / "launch" / "__init__.py").exists(), "it would hide ROS's own launch package"
