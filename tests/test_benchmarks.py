"""The benchmarks' command lines; what they measure is not timed here."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.result_files import PartialFigures, RunResult, read_runs, write_runs
from benchmarks.tabletop import ARMS
from m2distill_policy.errors import TrainingError

ROOT = Path(__file__).resolve().parent.parent


def _tabletop(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.tabletop", *map(str, arguments)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_tabletop_plans_every_arm_and_seed(tmp_path: Path) -> None:
    done = _tabletop("--plan", "--folder", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) == 3 * len(ARMS) and all(row[3] == "0" and row[-1] == "starting" for row in rows)
    assert [row[1] for row in rows[:: len(ARMS)]] == ["0", "1", "2"]
    assert not list(tmp_path.iterdir()), "a plan does nothing"


def test_results_of_another_configuration_are_not_summed_up(tmp_path: Path) -> None:
    from m2distill_policy import provenance
    from m2distill_policy.config import load_config
    from training.lifelong.records import RunRecord, write_record
    from training.run_config import RunConfig

    run = tmp_path / "seed_0" / "er"
    run.mkdir(parents=True)
    config = load_config(RunConfig, None, ["strategy=er", "episodes=3", "memory.episodes=1"])
    made = RunRecord(config, {}, (), (), "elsewhere", **provenance.describe())
    write_record(run / "run.json", made)
    assert _tabletop("--plan", "--folder", tmp_path).returncode == 0, "nothing of it was trained"
    (run / "results.json").write_text("{}")
    done = _tabletop("--plan", "--folder", tmp_path)
    assert done.returncode != 0 and "holds a run under another configuration" in done.stderr


def _results(path: Path, arm: str, seed: int) -> RunResult:
    """A run's result out of the repository's own."""
    return next(run for run in read_runs(path) if (run.arm, run.seed) == (arm, seed))


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    for path in (ROOT / "benchmarks/results").glob("*.jsonl"):
        header = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
        runs = read_runs(path)
        assert runs and all(run.metrics["mean_final"] is not None for run in runs)
        again = tmp_path / path.name
        write_runs(again, header["study"], header["config"], runs)
        assert again.read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), path.name
        assert path.stat().st_size < 5_000 * len(runs), f"{path.name}: a run takes less than 5 KB"
    whole = sum(path.stat().st_size for path in (ROOT / "benchmarks/results").iterdir())
    assert whole < 400_000, f"benchmarks/results has {whole} bytes"


def test_results_of_another_format_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.jsonl"
    assert read_runs(path) == []
    path.write_text(json.dumps({"format": 0, "study": "x", "config": {}, "environments": []}) + "\n")
    with pytest.raises(TrainingError, match="has format 0"):
        read_runs(path)
    path.write_text("{}\n")
    with pytest.raises(TrainingError, match="is not a file of runs"):
        read_runs(path)


def test_a_result_keeps_counts_and_where_it_comes_from() -> None:
    origin = {"commit": "abc", "time": "2026-01-01T00:00:00+00:00", "machine": {"cores": 2}, "versions": {"torch": "2"}}
    cells = [
        {
            "task_index": i, "instruction": instruction, "rollouts": 4, "errors": e, "successes": s, "wrong_rate": w,
            "mean_steps": 7.123456,
        }
        for i, instruction, e, s, w in ((5, "a", 1, 2, 1 / 3), (7, "b", 0, 4, 0.0))
    ]  # fmt: skip
    run = RunResult.of(
        "er",
        {
            "seed": 3, "config": {"strategy": "er"}, "data": {"0": "f" * 64}, "rollouts": 4, "metrics": {"auc": 0.5},
            "tasks": [{"index": 5, "instruction": "a"}, {"index": 7, "instruction": "b"}], "bytes_kept": 8,
            "cells": [cells[:1], cells], "success_curves": [[0.0, 2 / 3], [1.0]],
            "cross_instruction": [{**cells[0], "instruction": "b", "errors": 0, "successes": 1, "wrong_rate": 0.75}],
            "drift": [[{"text": {"relative": 0.123456, "l2": 1.0}}]],
            "trained": [{**origin, "precision": "torch.bfloat16"}], **origin,
        },
    )  # fmt: skip
    assert run.success == [[2 / 3], [2 / 3, 1.0]] and run.wrong_object == [[1], [1, 0]] and run.error_count == 2
    assert run.steps == [[7.1235], [7.1235, 7.1235]] and run.drift == {"text": [[0.1235]]}
    assert run.cross_instruction == [[0, 1, 4, 1, 3]] and run.cross_instruction_success == 0.25
    assert run.trained[0].precision == "bfloat16" and run.evaluated.environment["machine"] == {"cores": 2}
    assert run.data == {"0": "f" * 16}


def test_another_machine_continues_a_study(tmp_path: Path) -> None:
    """Results in the output file count when asked for, and only under the same configuration."""
    from benchmarks.tabletop import SETTINGS
    from m2distill_policy.config import load_config, to_dict
    from training.run_config import RunConfig

    table = tmp_path / "table.jsonl"
    er = next(arm for arm in ARMS if arm.name == "er")
    config = to_dict(load_config(RunConfig, ROOT / "config/tiny.toml", [*SETTINGS, *er.overrides, "seed=1"]))
    run = replace(_results(ROOT / "benchmarks/results/tabletop.jsonl", "er", 1), config=config)
    write_runs(table, "tabletop", {}, [run])
    folder = ("--folder", tmp_path / "runs", "--out", table, "--plan")

    def done(*more: str) -> list[str]:
        return [line.split("  ")[0] for line in _tabletop(*folder, *more).stdout.splitlines() if "100 %" in line]

    assert done() == [] and done("--reuse-results") == ["seed 1 er"]
    write_runs(table, "tabletop", {}, [replace(run, config={**config, "episodes": 30})])
    refused = _tabletop(*folder, "--reuse-results")
    assert refused.returncode != 0 and "'seed 1 er' under another configuration: episodes" in refused.stderr


def test_libero_small_plans_every_strategy_and_term(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.libero_small", "--plan", "--suites", "libero_goal", "--seeds", "0",
         "--folder", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = [line.split()[2] for line in done.stdout.splitlines()]
    terms = [f"m2distill_no_{term}" for term in ("image", "text", "extra", "policy")]
    assert names == ["sequential", "er", "ewc", "packnet", "m2distill", *terms]
    assert not list(tmp_path.iterdir()), "a plan does nothing"


def test_the_pages_of_results_say_what_was_measured(tmp_path: Path) -> None:
    from benchmarks import tabletop_results
    from benchmarks.libero_results import fill

    tasks = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    assert tabletop_results.fill(tasks, ROOT / "benchmarks/results") == tasks, "python -m benchmarks.tabletop_results"
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    assert fill(page, ROOT / "benchmarks/results") == page, "python -m benchmarks.libero_results"
    assert "not run" in fill(page, tmp_path) and "Trained at" not in fill(page, tmp_path)
    # Every study's file has the same format, so a run of one fits into that of another.
    run = _results(ROOT / "benchmarks/results/tabletop.jsonl", "m2distill_demos", 1)
    write_runs(tmp_path / "libero_small_goal.jsonl", "libero_small_goal", {}, [replace(run, arm="m2distill")])
    row = next(line for line in fill(page, tmp_path).splitlines() if f"{run.metrics['auc']:.2f}" in line)
    assert row.startswith("| m2distill, the same 5 demonstrations |") and row.endswith("| 1 |")


def test_policy_latency_writes_both_precisions(tmp_path: Path) -> None:
    out = tmp_path / "latency.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.policy_latency", "--steps", "24", "--profile", "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())["figures"]
    for name in ("onnxruntime_fp32_ms", "onnxruntime_int8_ms", "torch_ms"):
        assert 0 < figures[name]["median"] <= figures[name]["longest"]
    assert figures["torch_over_onnxruntime_fp32"] > 0
    assert "Conv" in figures["profile_ms"]["fp32"] and "QLinearConv" in figures["profile_ms"]["int8"]


def test_libero_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.policy_latency", "--steps", "24", "--libero", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode != 0 and "give a clone of LIBERO's repository" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_benchmark_is_described() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    shared = (
        *("lifelong", "tables", "output", "result_files", "svg", "child"),
        *("libero_policy", "ros_robot", "ros_events"),
    )
    for path in (ROOT / "benchmarks").glob("[a-z]*.py"):
        described = re.search(rf"benchmarks.{path.stem}[` ]", text) or path.stem == "tabletop"
        assert described or path.stem in shared, path.name


def test_a_roofline_counts_operations_and_shares_out_the_time(tmp_path: Path) -> None:
    out = tmp_path / "roofline.json"
    words = ["--config", "config/tiny.toml", "--text-size", "384", "--steps", "1", "--out", str(out)]
    # One profiled step that a busy machine interrupts has other shares, so it is measured up to three times.
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.roofline", *words],
            cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        figures = json.loads(out.read_text())["figures"]
        share = figures["share_of_time"]
        if share["convolution, backward"] > share["batch norm"]:
            break
    # 4 windows of 10 steps and 2 views: the stem alone is 2 x 3 x 25 x 24 x 16 x 16 operations a picture.
    assert figures["gflop_a_step"] > 80 * 2 * 3 * 25 * 24 * 16 * 16 / 1e9
    assert figures["gflop_s"] > 0 and figures["matrix_product_gflop_s"] > 0 and figures["copy_gb_s"] > 0
    assert abs(sum(figures["share_of_time"].values()) - 1) < 0.01
    assert share["convolution, backward"] > share["batch norm"]


def test_a_measurement_resumes_with_the_figures_so_far(tmp_path: Path) -> None:
    out = tmp_path / "faults.json"
    PartialFigures(out, {"size": (2, 3)}).add("first", 1.5)
    again = PartialFigures(out, {"size": (2, 3)})
    assert again.figures == {"first": 1.5}
    with pytest.raises(TrainingError, match="figures of other options"):
        PartialFigures(out, {"size": (2, 4)})
    again.remove()
    assert not list(tmp_path.iterdir())
    PartialFigures(None, {}).add("first", 1.5)


def test_every_command_has_an_example_and_says_whether_it_resumes() -> None:
    for path in (ROOT / "benchmarks").glob("[a-z]*.py"):
        text = path.read_text(encoding="utf-8")
        if '__name__ == "__main__"' in text:
            description = ast.get_docstring(ast.parse(text)) or ""
            assert f"benchmarks.{path.stem}" in description.partition("Example:\n")[2], path.name
            assert "resum" in description or path.stem.endswith("_results"), path.name
            assert "make_parser(__doc__)" in text or "main(" in text, path.name
