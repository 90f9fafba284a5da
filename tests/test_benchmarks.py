"""The benchmarks' command lines; what they measure is not timed here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.tabletop import ARMS

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
    run = tmp_path / "seed_0" / "er"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"config": {"strategy": "er", "episodes": 3, "memory": {"episodes": 1}}}))
    assert _tabletop("--plan", "--folder", tmp_path).returncode == 0, "nothing of it was trained"
    (run / "results.json").write_text("{}")
    done = _tabletop("--plan", "--folder", tmp_path)
    assert done.returncode != 0 and "holds a run under another configuration" in done.stderr


def test_another_machine_goes_on_with_what_is_finished(tmp_path: Path) -> None:
    """Results beside the table count when asked for, and only under the same configuration."""
    from benchmarks.tabletop import SETTINGS
    from m2distill_policy.config import load_config, to_dict
    from training.run_config import RunConfig

    table = tmp_path / "table.json"
    er = next(arm for arm in ARMS if arm.name == "er")
    config = to_dict(load_config(RunConfig, ROOT / "config/tiny.toml", [*SETTINGS, *er.overrides, "seed=1"]))
    kept = tmp_path / "table" / "seed_1_er.json"
    kept.parent.mkdir()
    kept.write_text(json.dumps({"config": config}))
    folder = ("--folder", tmp_path / "runs", "--out", table, "--plan")

    def done(*more: str) -> list[str]:
        return [line.split("  ")[0] for line in _tabletop(*folder, *more).stdout.splitlines() if "100 %" in line]

    assert done() == [] and done("--go-on") == ["seed 1 er"]
    kept.write_text(json.dumps({"config": {**config, "episodes": 30}}))
    refused = _tabletop(*folder, "--go-on")
    assert refused.returncode != 0 and "seed_1_er.json was made under another configuration: episodes" in refused.stderr


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
    # A run as it is kept beside the table: one kept by the tabletop benchmark has the same form.
    kept = tmp_path / "libero_small_goal" / "seed_1_m2distill.json"
    kept.parent.mkdir()
    run = json.loads((ROOT / "benchmarks/results/tabletop/seed_1_m2distill_demos.json").read_text())
    kept.write_text(json.dumps(run))
    row = next(line for line in fill(page, tmp_path).splitlines() if f"{run['metrics']['auc']:.2f}" in line)
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
    parts = ("lifelong", "tables", "output", "child", "libero_policy", "ros_robot", "ros_events")  # of the others
    for path in (ROOT / "benchmarks").glob("[a-z]*.py"):
        described = re.search(rf"benchmarks.{path.stem}[` ]", text) or path.stem == "tabletop"
        assert described or path.stem in parts, path.name


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
