"""Check what this machine can run, and say how to install what is missing.

Each check is a function that returns a :class:`Finding` and does not raise if something is missing. A check tries a
feature; it does not only look whether a package is installed. Trials that could hang or crash (rendering, a GPU driver)
run in a subprocess with a timeout. The checks need only the standard library, so they also work if no dependency is
installed.
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

from m2distill_policy import installation, pins
from m2distill_policy.errors import M2DistillError

#: ``ok``: it works. ``missing``: it does not work, and 'm2distill demo' needs it. ``optional``: it does not work, and
#: 'm2distill demo' does not need it.
State = Literal["ok", "missing", "optional"]

#: Command -> names of the findings that the command needs; an empty tuple means all findings.
NEEDED_BY: dict[str, tuple[str, ...]] = {"demo": (), "serve": ("Python", "packages: robot", "DDS")}

#: Free disk space that 'm2distill demo' needs for demonstrations and runs, GiB.
DISK_NEEDED = 2.0

#: Time limit of one trial in a subprocess, s. The first import of MuJoCo after a boot is slow.
TRIAL_TIMEOUT = 60.0

# Renders a scene with a light, a floor and a box. Prints the time of the second frame in ms, because the first frame
# includes the time to compile shaders.
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
    """The result of one check.

    Attributes:
        name: What was checked.
        state: See :data:`State`.
        detail: What was found.
        cure: What to type or set if the state is not ``ok``; else empty.
    """

    name: str
    state: State
    detail: str
    cure: str = ""


def examine() -> list[Finding]:
    """Run every check, in the order of the report. Takes several seconds."""
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
    """Format the findings for a terminal: a line for each finding, its cure below it, and which commands can run."""
    width = max(len(finding.name) for finding in findings)
    marks = {"ok": "ok     ", "missing": "MISSING", "optional": "absent "}
    lines: list[str] = []
    first: dict[str, str] = {}  # several findings often have the same cure, which is a long command
    for finding in findings:
        lines.append(f"{marks[finding.state]}  {finding.name:<{width}}  {finding.detail}")
        if finding.cure:
            name = first.setdefault(finding.cure, finding.name)
            cure = finding.cure if name == finding.name else f"as for '{name}'"
            lines.append(f"{'':7}  {'':<{width}}  -> {cure}")
    lines.append("")
    for command in NEEDED_BY:
        missing = missing_for(command, findings)
        verdict = f"cannot run yet; missing: {', '.join(missing)}" if missing else "can run"
        lines.append(f"'m2distill {command}' {verdict}.")
    return "\n".join(lines)


def as_json(findings: list[Finding]) -> str:
    """Format the findings for a program.

    Returns:
        ``{"installed_by": "clone" | "pip" | "colcon", "ready": {command: bool}, "findings": [{name, state, detail,
        cure}, ...]}``
    """
    report = {
        "installed_by": installation.kind(),
        "ready": {command: not missing_for(command, findings) for command in NEEDED_BY},
        "findings": [asdict(finding) for finding in findings],
    }
    return json.dumps(report, indent=2)


def missing_for(command: str, findings: list[Finding]) -> list[str]:
    """Return the names of the missing findings that a command of :data:`NEEDED_BY` needs."""
    needed = NEEDED_BY[command]
    return [f.name for f in findings if f.state == "missing" and (not needed or f.name in needed)]


# --- the machine ------------------------------------------------------------------------------------------------


def check_python() -> Finding:
    """Check for Python 3.10 to 3.12, the versions for which ROS 2 and the pinned packages are available."""
    version = platform.python_version()
    if (3, 10) <= sys.version_info[:2] <= (3, 12):
        return Finding("Python", "ok", version)
    cure = (
        "make venv PYTHON=python3.12" if installation.kind() == "clone" else "install into a Python 3.10, 3.11 or 3.12"
    )
    return Finding("Python", "missing", f"{version}; allowed are 3.10, 3.11 and 3.12", cure)


def check_cores() -> Finding:
    """Count the CPU cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding("CPU cores", "ok", f"{cores} ({platform.machine()})")


def check_disk(folder: Path | None = None) -> Finding:
    """Check the free disk space in ``folder`` (default: the working directory)."""
    free = shutil.disk_usage(folder or Path.cwd()).free / 2**30
    if free >= DISK_NEEDED:
        return Finding("disk", "ok", f"{free:.0f} GiB free here")
    return Finding("disk", "missing", f"{free:.1f} GiB free here", f"free at least {DISK_NEEDED:.0f} GiB")


def check_role(role: str) -> Finding:
    """Check that the packages of a role are installed in the versions that ``requirements/`` lists."""
    name = f"packages: {role}"
    absent = installation.missing_modules(role)
    if absent:
        return Finding(name, "missing", f"not installed: {', '.join(absent)}", installation.install_command(role))
    folder = installation.find_file("requirements")
    if folder is None:
        return Finding(name, "ok", "installed; versions not compared: this installation has no requirements/ folder")
    files = installation.requirement_files(role)
    wrong = [phrase for file in files for phrase in pins.find_mismatches(folder / file)]
    if wrong:
        return Finding(name, "missing", "; ".join(wrong), installation.install_command(role))
    return Finding(name, "ok", f"the versions of requirements/{files[0]}")


def check_compiled_code() -> Finding:
    """Check that numba can compile the simulator's code and has a folder for the compiled code."""
    name = "compiled code"
    if any(importlib.util.find_spec(module) is None for module in ("numba", "robosuite", "mujoco")):
        return Finding(name, "optional", "the simulator is not installed", installation.install_command("sim"))
    code = "import m2distill_policy.sim.osc, robosuite, os; print(os.environ.get('NUMBA_CACHE_DIR', ''))"
    folder, error = _trial(code, dict(os.environ))
    if error:
        cure = "set NUMBA_CACHE_DIR to a folder that this user can write to"
        return Finding(name, "missing", f"robosuite or numba cannot be imported: {error}", cure)
    return Finding(name, "ok", f"cached in {folder or 'the folders of the code or the user cache'}")


# --- rendering and GPUs -----------------------------------------------------------------------------------------


def check_rendering() -> Finding:
    """Render a small image with MuJoCo without a screen. If the chosen OpenGL library fails, try the others."""
    name = "headless rendering"
    if importlib.util.find_spec("mujoco") is None:
        return Finding(name, "missing", "mujoco is not installed", installation.install_command("sim"))
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
            errors.append(f"{backend}: the image has one colour only")
            continue
        hint = "" if backend == chosen else f"; set MUJOCO_GL={backend}"
        return Finding(name, "ok", f"{backend}, {result['ms']:.1f} ms for an image of 64 x 64{hint}")
    cure = "sudo apt-get install -y libosmesa6   (or, on a GPU: sudo apt-get install -y libegl1; MUJOCO_GL=egl)"
    return Finding(name, "missing", "; ".join(errors), cure)


def check_gpu() -> Finding:
    """List ONNX Runtime's providers and check that it and torch can use the GPU, if there is one."""
    name = "GPU"
    has_gpu = Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
    if importlib.util.find_spec("onnxruntime") is None:
        return Finding(name, "optional", "ONNX Runtime is not installed", installation.install_command("robot"))
    code = "import onnxruntime; print(' '.join(onnxruntime.get_available_providers()))"
    output, error = _trial(code, dict(os.environ))
    if error:
        detail = f"ONNX Runtime cannot be imported: {error}"
        return Finding(name, "missing", detail, installation.install_command("robot"))
    providers = [provider.removesuffix("ExecutionProvider") for provider in output.split()]
    detail = f"ONNX Runtime: {', '.join(providers)}"
    if not has_gpu:
        return Finding(name, "optional", f"no NVIDIA GPU; {detail}", "nothing to do: everything runs on the CPU")
    if importlib.util.find_spec("torch") is not None:
        device, error = _trial(_TORCH_GPU, dict(os.environ))
        detail += f"; torch: {device or error or 'finds no GPU'}"
    if "CUDA" not in providers:
        cure = f"{installation.install_command('robot-gpu')}   (onnxruntime-gpu instead of onnxruntime)"
        return Finding(name, "optional", f"an NVIDIA GPU that ONNX Runtime cannot use; {detail}", cure)
    return Finding(name, "ok", detail)


def _trial(code: str, environment: dict[str, str]) -> tuple[str, str]:
    """Run Python code in a subprocess.

    Returns:
        (last line of the output, reason of the failure). The reason is "" if the code succeeded.
    """
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
        # A destructor may print another exception after the one that ended the process, so the first unindented line
        # that names an error is used.
        reasons = [line for line in lines if line[0].isalpha() and "Error" in line.split(":")[0]]
        return "", (reasons or lines or [f"exit code {done.returncode}"])[0 if reasons else -1]
    lines = done.stdout.strip().splitlines()
    return (lines[-1] if lines else ""), ""


# --- the robot's side -------------------------------------------------------------------------------------------


def check_dds() -> Finding:
    """Check that Cyclone DDS loads, which ``serve`` and ``sim`` use to communicate without ROS 2."""
    name = "DDS"
    if importlib.util.find_spec("cyclonedds") is None:
        # The list of packages for a robot with ROS 2 does not contain it.
        is_listed = installation.requirement_files("robot") != ("robot-ros.txt",)
        cure = installation.install_command("robot") if is_listed else installation.reinstall_command("cyclonedds")
        return Finding(name, "missing", "cyclonedds is not installed", cure)
    _, error = _trial("import cyclonedds.core, cyclonedds.domain", dict(os.environ))
    if error:
        cure = installation.reinstall_command("cyclonedds")
        return Finding(name, "missing", f"cyclonedds does not load: {error}", cure)
    return Finding(name, "ok", "cyclonedds loads; 'serve' and 'sim' exchange ROS 2 messages with it")


def check_ros(root: Path = Path("/opt/ros")) -> Finding:
    """Check whether ROS 2 is sourced in this shell, or installed below ``root``."""
    name = "ROS 2"
    distribution = os.environ.get("ROS_DISTRO")
    if distribution and os.environ.get("AMENT_PREFIX_PATH"):
        if importlib.util.find_spec("rclpy") is not None:
            return Finding(name, "ok", f"{distribution} is sourced, and rclpy is installed for this Python")
        detail = f"{distribution} is sourced, but this Python ({platform.python_version()}) cannot import its rclpy"
        cure = "use the Python that ROS 2 was built for"
        if installation.kind() == "clone":
            cure += ": make venv PYTHON=/usr/bin/python3"
        return Finding(name, "optional", detail, cure)
    setups = sorted(folder for folder in root.glob("*") if (folder / "setup.bash").is_file())
    if setups:
        return Finding(
            name, "optional", f"{setups[-1].name} is installed, not sourced", f"source {setups[-1]}/setup.bash"
        )
    detail = "not installed; 'serve' can still exchange messages with ROS 2 on another machine"
    return Finding(name, "optional", detail, "to install it: docs.ros.org, Installation")


# --- scenes and text encoders -----------------------------------------------------------------------------------


def check_libero_scenes() -> Finding:
    """Check for LIBERO's meshes and textures, which its package does not contain."""
    name = "LIBERO scenes"
    try:
        from m2distill_policy.sim.libero.files import assets_folder

        if importlib.util.find_spec("libero") is None:
            return Finding(name, "optional", "LIBERO is not installed", installation.install_command("sim"))
        return Finding(name, "ok", str(assets_folder()))
    except ImportError as error:
        return _not_checked(name, "optional", error, "sim")
    except M2DistillError as error:
        cure = "needed for LIBERO's suites, not for 'tabletop': set M2DISTILL_LIBERO_ASSETS to their folder"
        return Finding(name, "optional", str(error), cure)


def check_minilm() -> Finding:
    """Check the files of the default text encoder and their sha256."""
    name = "text encoder: minilm"
    try:
        from training.text import MINILM_PACKAGE, minilm_folder, open_encoder

        if minilm_folder() is None:
            detail = f"the package {MINILM_PACKAGE} is not installed"
            return Finding(name, "missing", detail, installation.install_command("train"))
        spec = open_encoder("minilm").spec
    except ImportError as error:
        return _not_checked(name, "missing", error, "train")
    except M2DistillError as error:
        return Finding(name, "missing", str(error), installation.reinstall_command(MINILM_PACKAGE))
    return Finding(name, "ok", f"{spec.encoder}, sha256 of the weights {spec.sha256[:12]}..., as expected")


def check_bert() -> Finding:
    """Check whether the paper's text encoder is in the local cache of the Hugging Face hub. Downloads nothing."""
    name = "text encoder: bert"
    try:
        from training.text import bert_in_cache

        folder = bert_in_cache()
    except ImportError as error:
        return _not_checked(name, "optional", error, "train")
    if folder is None:
        code = "from training.text import open_encoder; open_encoder('bert-base-cased')"
        detail = "bert-base-cased is not in the cache of the Hugging Face hub; the profile 'paper' needs it"
        return Finding(name, "optional", detail, f'{sys.executable} -c "{code}"   (downloads it)')
    return Finding(name, "ok", str(folder))


def _not_checked(name: str, state: State, error: ImportError, role: str) -> Finding:
    return Finding(name, state, f"not checked: needs the package '{error.name}'", installation.install_command(role))
