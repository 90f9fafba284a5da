"""``m2distill info``: show what a run, bundle, demonstration file, recording or result is, and where it comes from."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m2distill_policy.arguments import say_next, train_command
from m2distill_policy.commands import SUMMARIES, _own_strategies

if TYPE_CHECKING:
    from collections.abc import Callable

    from m2distill_policy.contract import Contract
    from m2distill_policy.demonstrations import DemonstrationFile

#: The description of a file or folder: label -> one line or several lines.
Facts = dict[str, str | list[str]]

_KINDS = "a run, a bundle, a demonstration file, a recording, or the result of 'evaluate', 'ablate' or 'sweep'"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "info",
        help=SUMMARIES["info"],
        description="Show what a file or folder is, what it was made from, on which machine and commit, and how well "
        "it works. PATH is a run, a bundle, a demonstration file or a folder of them, a rosbag2 recording, or a folder "
        "of 'm2distill evaluate', 'ablate' or 'sweep'.",
        epilog="examples:\n"
        "  m2distill info runs/first\n"
        "  m2distill info bundles/first --json\n"
        "  m2distill info data/tabletop64/lift_the_red_box_demo.hdf5",
    )
    parser.add_argument("path", metavar="PATH", type=Path, help="file or folder to describe")
    parser.add_argument("--json", action="store_true", help="print JSON")
    _own_strategies.add_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Describe the path."""
    _own_strategies.load(args)
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
        path: A file or folder of one of the kinds in the subcommand's help.

    Returns:
        The facts, and the arguments of the ``m2distill`` command that a user would give next.

    Raises:
        ConfigError: ``path`` does not exist, or is of an unknown kind.
        M2DistillError: The file or folder is damaged.
    """
    from m2distill_policy.errors import ConfigError

    if not path.exists():
        raise ConfigError(f"'{path}' does not exist; give {_KINDS}")
    show = _shower(path)
    if show is not None:
        return show(path)
    inside = sorted(child for child in path.iterdir() if _shower(child)) if path.is_dir() else []
    hint = f"; inside it are: {', '.join(str(child) for child in inside[:5])}" if inside else ""
    raise ConfigError(f"'{path}' is nothing that m2distill knows{hint}; give {_KINDS}")


def _shower(path: Path) -> Callable[[Path], tuple[Facts, Sequence[object]]] | None:
    """Choose the function that describes ``path`` by the names of its files; return None for an unknown kind."""
    for name, show in (
        ("bundle.json", _bundle),
        ("run.json", _run),
        ("summary.json", _evaluation),
        ("ablation.json", _ablation),
        ("sweep.json", _sweep),
        ("metadata.yaml", _recording),
    ):
        if (path / name).is_file():
            return show
    if path.suffix in (".hdf5", ".h5"):
        return _demonstrations
    if path.suffix in (".mcap", ".db3"):
        return _recording
    if path.is_dir() and any(path.glob("*_demo.hdf5")):
        return _demonstration_folder
    return None


def _read(file: Path) -> dict[str, Any]:
    """Read a JSON object."""
    from m2distill_policy import strict_json
    from m2distill_policy.errors import ConfigError

    again = "restore it, or give the command again that wrote it"
    try:
        data = strict_json.parse(file.read_bytes(), longest=2**28)
    except (OSError, strict_json.JsonError) as error:
        raise ConfigError(f"{file} cannot be read: {error}; {again}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{file} holds no JSON object; {again}")
    return data


def _origin(record: Mapping[str, Any]) -> Facts:
    """Return the recorded facts about when, on which machine and from which commit a result was made."""
    machine, versions = record.get("machine"), record.get("versions")
    facts: Facts = {}
    if isinstance(machine, Mapping):
        facts["machine"] = f"{machine.get('processor', 'unknown')}, {machine.get('system', 'unknown')}"
    facts |= {label: str(record[label]) for label in ("commit", "time") if label in record}
    if isinstance(versions, Mapping):
        facts["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    return facts


def _tasks(instructions: Sequence[object], success: Sequence[object] | None) -> list[str]:
    """Return a line for each task: number, instruction and success rate."""
    lines = []
    for number, instruction in enumerate(instructions):
        rate = success[number] if success and number < len(success) else None
        lines.append(f"{number}  {instruction}" + (f"  (success {rate:.2f})" if isinstance(rate, (int, float)) else ""))
    return lines


def _views(contract: Contract) -> str:
    views = ", ".join(f"{camera.name} {camera.width} x {camera.height}" for camera in contract.cameras)
    return f"{views}; {contract.rate_hz:g} Hz"


def _bundle(path: Path) -> tuple[Facts, Sequence[object]]:
    from m2distill_policy.bundle import open_bundle
    from m2distill_policy.bundle_files import SIGNATURE

    bundle = open_bundle(path)
    made = bundle.provenance
    metrics, data = made.get("metrics"), made.get("data")
    hashes = data if isinstance(data, Mapping) else {}
    success = metrics.get("success") if isinstance(metrics, Mapping) else None
    signed = (path / SIGNATURE).exists()
    facts: Facts = {
        "what": f"bundle {bundle.identifier}, hashes verified",
        "made from": f"stage {made.get('stage', 'unknown')} of run {made.get('run', 'unknown')}, "
        f"strategy {made.get('strategy', 'unknown')}, seed {made.get('seed', 'unknown')}",
        "data": [f"{task}  content hash {digest}" for task, digest in hashes.items()],
        "tasks": _tasks(bundle.instructions, success if isinstance(success, list) else None),
        "cameras": _views(bundle.contract),
        "precision": str(made.get("precision", "unknown")),
        "signed": f"yes; verify it: m2distill sign {path} --verify PUBLIC_KEY" if signed else "no",
        **_origin(made),
    }
    return facts, ("serve", path, "--instruction", bundle.instructions[0])


def _run(path: Path) -> tuple[Facts, Sequence[object]]:
    from training.lifelong.records import RunResults, read_record
    from training.lifelong.run import LifelongRun

    run = LifelongRun.open(path)
    record, config = run.record, run.config
    finished = (path / "results.json").is_file()
    results = read_record(RunResults, path / "results.json") if finished else None
    trained = [stage for stage in range(run.stages) if run.trained(stage)]
    measured = [rates for rates in (run.success(stage) for stage in trained) if rates is not None]
    success: Sequence[float | None] | None = measured[-1] if measured else None
    if results is not None and results.success:
        success = results.success[-1]
    bundles = [run.bundle_folder(stage) for stage in trained if run.bundle_folder(stage).is_dir()]
    facts: Facts = {
        "what": f"training run, strategy {config.strategy}, seed {config.seed}",
        "made from": f"{config.suite} demonstrations in {record.demonstrations}",
        "stages": f"{len(trained)} of {run.stages} trained" + ("" if results else ", not finished"),
        "tasks": _tasks([task.instruction for task in run.tasks], success),
    }
    if run.extends:
        facts["extends"] = ", ".join(f"{before.run} ({before.stages} stages)" for before in run.extends)
    if results is not None:
        facts["metrics"] = (
            ", ".join(f"{name} {v:.2f}" for name, v in results.metrics.items() if v is not None) or "none"
        )
        facts["measured on"] = f"{results.rollouts} rollouts for each task, sampling {results.sampling}"
        facts["memory"] = f"{results.bytes_kept / 2**20:.2f} MiB of old tasks"
    facts["bundles"] = [str(folder) for folder in bundles]
    facts["logs"] = [f"tensorboard --logdir {path / 'tensorboard'}", str(path / "metrics.jsonl")]
    facts |= _origin(vars(record))
    if results is None:
        return facts, ("train", "--resume", "--out", path)
    return facts, ("report", path)


def _evaluation(path: Path) -> tuple[Facts, Sequence[object]]:
    from m2distill_policy.config import from_dict
    from m2distill_policy.errors import ConfigError
    from m2distill_policy.evaluation.results import EvaluationSummary, table

    try:
        summary = from_dict(EvaluationSummary, _read(path / "summary.json"))
    except ConfigError as error:
        raise ConfigError(f"{path / 'summary.json'} is damaged or of another version: {error}") from error
    made = summary.provenance
    facts: Facts = {
        "what": f"evaluation of bundle {summary.bundle}, {summary.bundle_path}",
        "made from": f"stage {made.get('stage', 'unknown')} of run {made.get('run', 'unknown')}",
        "sampling": f"{summary.sampling}, seed {summary.seed}",
        "success": table(summary.cells).splitlines(),
        "videos": [str(video) for video in sorted((path / "videos").rglob("*.mp4"))],
        "logs": str(path / "rollouts.jsonl"),
        **_origin(vars(summary)),
    }
    return facts, ("serve", summary.bundle_path)


def _ablation(path: Path) -> tuple[Facts, Sequence[object]]:
    from training.studies.ablation import table

    return _study(path, "ablation study", path / "ablation.json", table)


def _sweep(path: Path) -> tuple[Facts, Sequence[object]]:
    from training.studies.sweep import table

    return _study(path, "search of settings", path / "sweep.json", table)


def _study(path: Path, what: str, file: Path, table: Callable[[dict[str, Any]], str]) -> tuple[Facts, Sequence[object]]:
    from m2distill_policy.errors import ConfigError

    found = _read(file)
    try:
        result = table(found).splitlines()
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ConfigError(
            f"{file} is damaged or of another version ({type(error).__name__}: {error}); give the command again that "
            "wrote it"
        ) from error
    runs = sorted(str(run.parent) for run in path.rglob("run.json"))
    return {"what": what, "result": result, "runs": runs, **_origin(found)}, ("report", *(runs or ["RUN"]))


def _demonstrations(path: Path) -> tuple[Facts, Sequence[object]]:
    from m2distill_policy.demonstrations import DemonstrationFile

    file = DemonstrationFile(path)
    lengths = file.lengths()
    facts: Facts = {
        "what": f"demonstration file, sha256 {file.sha256()}",
        "instruction": file.instruction,
        "made from": file.suite or "unknown, as for LIBERO's own files",
        "episodes": f"{len(file)} of {file.tried} attempts, {min(lengths)} to {max(lengths)} steps",
        "cameras": _views(file.contract),
        "settings": [f"{name}: {value}" for name, value in file.settings.items()],
    }
    return facts, _train(path.parent, [file])


def _demonstration_folder(path: Path) -> tuple[Facts, Sequence[object]]:
    from m2distill_policy.demonstrations import DemonstrationFile

    files = [DemonstrationFile(file) for file in sorted(path.glob("*_demo.hdf5"))]
    facts: Facts = {
        "what": "folder of demonstration files, one for each task",
        "files": [f"{file.path.name}: {len(file)} episodes, '{file.instruction}'" for file in files],
        "cameras": _views(files[0].contract),
    }
    return facts, _train(path, files)


def _train(folder: Path, files: Sequence[DemonstrationFile]) -> Sequence[object]:
    """Return the arguments of the command that trains on ``files`` in ``folder``."""
    from m2distill_policy.errors import SimulationError
    from m2distill_policy.sim.env import FILES
    from m2distill_policy.sim.suites import suite_tasks

    suite, numbers = files[0].suite or FILES, {}
    if suite != FILES:
        try:
            numbers = {task.name: task.index for task in suite_tasks(suite)}
        except SimulationError:  # the suite is unknown or not installed; training can use the files alone
            suite = FILES
    if suite == FILES:
        numbers = {file.name.removesuffix("_demo.hdf5"): i for i, file in enumerate(sorted(folder.glob("*_demo.hdf5")))}
    tasks = sorted(numbers[file.task_name] for file in files if file.task_name in numbers)
    return train_command(folder, suite, tasks, min(map(len, files)), files[0].contract.cameras[0].height)


def _recording(path: Path) -> tuple[Facts, Sequence[object]]:
    from m2distill_policy.recordings.bag import Bag
    from m2distill_policy.tables import format_table

    with Bag(path) as bag:
        rows = [("topic", "type", "messages")]
        rows += [(topic, kind, str(bag.counts[topic])) for topic, kind in bag.topics.items()]
    facts: Facts = {"what": "rosbag2 recording", "topics": format_table(rows, "<<>").splitlines()}
    words = ["import-bag", path, "--instruction", "INSTRUCTION", "--contract", "BUNDLE"]
    return facts, (*words, "--out", "data/mine")
