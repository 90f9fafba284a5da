"""``m2distill info``: show what a run, bundle, demonstration file, recording or result is, and where it comes from."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2distill_policy.arguments import say_next
from m2distill_policy.commands import SUMMARIES

if TYPE_CHECKING:
    from m2distill_policy.contract import Contract

#: What is shown: label -> text, or several lines.
Facts = dict[str, str | list[str]]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "info",
        help=SUMMARIES["info"],
        description="Show what a file or folder is, what it was made from, on which machine and commit, and how well "
        "it "
        "works. PATH is a run, a bundle, a demonstration file or a folder of them, a rosbag2 recording, or a folder of "
        "'m2distill evaluate', 'ablate' or 'sweep'.",
        epilog="examples:\n"
        "  m2distill info runs/first\n"
        "  m2distill info bundles/first --json\n"
        "  m2distill info data/tabletop64/lift_the_red_box_demo.hdf5",
    )
    parser.add_argument("path", metavar="PATH", type=Path, help="file or folder to describe")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Describe the path."""
    facts, command = describe(args.path)
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    width = max(len(label) for label in facts)
    for label, value in facts.items():
        lines = [value] if isinstance(value, str) else value
        for number, line in enumerate(lines or ["none"]):
            print(f"{label if number == 0 else '':<{width}}  {line}")
    say_next(*command)
    return 0


def describe(path: Path) -> tuple[Facts, Sequence[object]]:
    """Describe a file or folder.

    Args:
        path: See the subcommand's help.

    Returns:
        The facts, and the words of the command that a user would give next.

    Raises:
        ConfigError: ``path`` does not exist or is nothing known.
        M2DistillError: It is damaged.
    """
    from m2distill_policy.errors import ConfigError

    if not path.exists():
        raise ConfigError(f"'{path}' does not exist; give a run, a bundle, a demonstration file or a recording")
    for name, show in (
        ("bundle.json", _bundle),
        ("run.json", _run),
        ("summary.json", _evaluation),
        ("ablation.json", _ablation),
        ("sweep.json", _sweep),
        ("metadata.yaml", _recording),
    ):
        if (path / name).is_file():
            return show(path)
    if path.suffix in (".hdf5", ".h5"):
        return _demonstrations(path)
    if path.suffix in (".mcap", ".db3"):
        return _recording(path)
    if path.is_dir() and any(path.glob("*_demo.hdf5")):
        return _demonstration_folder(path)
    raise ConfigError(
        f"'{path}' is not a run, bundle, demonstration file, recording or result of m2distill; see 'm2distill info "
        "--help'"
    )


def _read(file: Path) -> dict[str, Any]:
    from m2distill_policy import strict_json
    from m2distill_policy.errors import ConfigError

    try:
        data = strict_json.parse(file.read_bytes(), longest=2**28)
    except (OSError, strict_json.JsonError) as error:
        raise ConfigError(f"{file} cannot be read: {error}; restore it from a backup") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{file} holds no JSON object; restore it from a backup")
    return data


def _origin(record: Mapping[str, Any]) -> Facts:
    """Return when, where and from which commit a result was made, as far as it is recorded."""
    machine = record.get("machine")
    facts: Facts = {}
    if isinstance(machine, Mapping):
        facts["machine"] = f"{machine.get('processor', 'unknown')}, {machine.get('system', 'unknown')}"
    for label in ("commit", "time"):
        if label in record:
            facts[label] = str(record[label])
    versions = record.get("versions")
    if isinstance(versions, Mapping):
        facts["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    return facts


def _tasks(tasks: Sequence[Mapping[str, Any]], success: Sequence[float | None] | None) -> list[str]:
    """Return a line for each task: number, instruction and success rate."""
    lines = []
    for number, task in enumerate(tasks):
        rate = success[number] if success and number < len(success) else None
        lines.append(f"{number}  {task.get('instruction')}" + ("" if rate is None else f"  (success {rate:.2f})"))
    return lines


def _views(contract: Contract) -> str:
    views = ", ".join(f"{camera.name} {camera.width} x {camera.height}" for camera in contract.cameras)
    return f"{views}; {contract.rate_hz:g} Hz"


def _bundle(path: Path) -> tuple[Facts, Sequence[object]]:
    from m2distill_policy.bundle import open_bundle

    bundle = open_bundle(path)
    made = bundle.provenance
    metrics, data = made.get("metrics"), made.get("data")
    hashes = data if isinstance(data, Mapping) else {}
    success = metrics.get("success") if isinstance(metrics, Mapping) else None
    facts: Facts = {
        "what": f"bundle {bundle.identifier}, hashes verified",
        "made from": f"stage {made.get('stage', '?')} of run {made.get('run', 'unknown')}, "
        f"strategy {made.get('strategy', 'unknown')}, seed {made.get('seed', 'unknown')}",
        "data": [f"{task}  content hash {digest}" for task, digest in hashes.items()],
        "tasks": _tasks(bundle.tasks, success if isinstance(success, list) else None),
        "sees": _views(bundle.contract),
        "precision": str(made.get("precision", "unknown")),
        "signed": "yes; check it with 'm2distill sign --verify'" if (path / "bundle.json.sig").exists() else "no",
        **_origin(made),
    }
    return facts, ("m2distill", "serve", path, "--instruction", bundle.instructions[0])


def _run(path: Path) -> tuple[Facts, Sequence[object]]:
    record = _read(path / "run.json")
    config = record.get("config", {})
    tasks = record.get("tasks", [])
    results = _read(path / "results.json") if (path / "results.json").is_file() else {}
    success = (results.get("success") or [None])[-1]
    trained = len(list(path.glob("stages/stage_*/stage.json")))
    bundles = sorted(str(folder.parent) for folder in path.glob("bundles/stage_*/bundle.json"))
    facts: Facts = {
        "what": f"training run, strategy {config.get('strategy', 'unknown')}, seed {config.get('seed', 'unknown')}",
        "made from": f"{record.get('demonstrations', 'unknown')}, suite {config.get('suite', 'unknown')}",
        "stages": f"{trained} trained" + ("" if results else ", not finished"),
        "tasks": _tasks(tasks, success),
        "bundles": bundles,
        "logs": [f"tensorboard --logdir {path / 'tensorboard'}", str(path / "metrics.jsonl")],
        **_origin(record),
    }
    metrics = results.get("metrics")
    if isinstance(metrics, Mapping):
        facts["metrics"] = ", ".join(f"{k} {v:.2f}" for k, v in metrics.items() if isinstance(v, float))
    if not results:
        return facts, ("m2distill", "train", "--resume", "--out", path)
    return facts, ("m2distill", "report", path)


def _evaluation(path: Path) -> tuple[Facts, Sequence[object]]:
    from m2distill_policy.evaluation.results import CellSummary, table

    record = _read(path / "summary.json")
    cells = [CellSummary(**cell) for cell in record.get("cells", [])]
    made = record.get("provenance", {})
    facts: Facts = {
        "what": f"evaluation of bundle {record.get('bundle', 'unknown')}",
        "made from": f"run {made.get('run', 'unknown')}, stage {made.get('stage', '?')}",
        "sampling": f"{record.get('sampling', 'unknown')}, seed {record.get('seed', 'unknown')}",
        "success": table(cells).splitlines(),
        "videos": [str(video) for video in sorted((path / "videos").rglob("*.mp4"))],
        **_origin(record),
    }
    return facts, ("m2distill", "serve", "BUNDLE")


def _ablation(path: Path) -> tuple[Facts, Sequence[object]]:
    from training.studies.ablation import table

    runs = sorted(str(file.parent) for file in path.rglob("run.json"))
    facts: Facts = {"what": "ablation study", "result": table(_read(path / "ablation.json")).splitlines(), "runs": runs}
    return facts, ("m2distill", "report", *runs)


def _sweep(path: Path) -> tuple[Facts, Sequence[object]]:
    from training.studies.sweep import table

    runs = sorted(str(file.parent) for file in path.rglob("run.json"))
    facts: Facts = {
        "what": "search of settings",
        "result": table(_read(path / "sweep.json")).splitlines(),
        "runs": runs,
    }
    return facts, ("m2distill", "info", runs[0] if runs else path)


def _demonstrations(path: Path) -> tuple[Facts, Sequence[object]]:
    from m2distill_policy.demonstrations import DemonstrationFile

    file = DemonstrationFile(path)
    lengths = file.lengths()
    facts: Facts = {
        "what": f"demonstration file, sha256 {file.sha256()}",
        "instruction": file.instruction,
        "made from": file.suite or "unknown, as for LIBERO's own files",
        "episodes": f"{len(file)} of {file.tried} attempts, {min(lengths)} to {max(lengths)} steps",
        "sees": _views(file.contract),
        "settings": [f"{name}: {value}" for name, value in file.settings.items()],
    }
    return facts, _train(path.parent, file.suite)


def _demonstration_folder(path: Path) -> tuple[Facts, Sequence[object]]:
    from m2distill_policy.demonstrations import DemonstrationFile

    files = [DemonstrationFile(file) for file in sorted(path.glob("*_demo.hdf5"))]
    facts: Facts = {
        "what": f"demonstrations of {len(files)} tasks",
        "files": [f"{file.path.name}: {len(file)} episodes, '{file.instruction}'" for file in files],
        "sees": _views(files[0].contract),
    }
    return facts, _train(path, files[0].suite)


def _train(folder: Path, suite: str) -> Sequence[object]:
    name = suite or "files"
    return ("m2distill", "train", "--config", "tiny", "--data", folder, "--out", "runs/first", f"suite={name}")


def _recording(path: Path) -> tuple[Facts, Sequence[object]]:
    from m2distill_policy.recordings.bag import Bag

    with Bag(path) as bag:
        topics = [f"{topic}  {kind}" for topic, kind in bag.topics.items()]
    facts: Facts = {"what": "rosbag2 recording", "topics": topics}
    words = (
        "m2distill",
        "import-bag",
        path,
        "--instruction",
        "INSTRUCTION",
        "--contract",
        "BUNDLE",
        "--out",
        "data/mine",
    )
    return facts, words
