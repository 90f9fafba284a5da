"""Text tables: a long label widens its column, and every row keeps its columns."""

from __future__ import annotations

import dataclasses
import re

import pytest

from m2distill_policy.evaluation.results import CellSummary
from m2distill_policy.evaluation.results import table as evaluation_table
from m2distill_policy.tables import format_table

LONG = "m2distill, old instructions only, no demonstrations, seed 12"
assert len(LONG) == 60


def ends(line: str) -> list[int]:
    """Where the entries of a line end, without the first one."""
    return [found.end() for found in re.finditer(r"\S(?: ?\S)*", line)][1:]


def test_columns_are_aligned_and_lines_have_no_trailing_space() -> None:
    table = format_table([("run", "mean", "note"), (LONG, "1.00", ""), ("er", "0.5", "x")], "<><")
    lines = table.splitlines()
    assert [len(line) for line in lines] == [72, 66, 69]
    assert [line.find(text) for line, text in zip(lines, ("mean", "1.00", "0.5"), strict=True)] == [62, 62, 63]


def test_a_long_label_keeps_the_columns_of_an_evaluation() -> None:
    cell = CellSummary("tabletop", 0, "lift", "lift it", 20, 0, 20, 1.0, 0.84, 1.0, 0.0, 130.0)
    lines = evaluation_table([cell, dataclasses.replace(cell, task=LONG, errors=1)]).splitlines()
    assert lines[2].startswith(f"{LONG}  lift it")
    assert {line.index(word) for line, word in zip(lines, ("instruction", "lift it", "lift it"), strict=True)} == {62}
    assert len({len(line) for line in lines}) == 1


@pytest.mark.role("train")
def test_a_long_label_keeps_the_columns_of_runs() -> None:
    from tests.test_records import RESULTS
    from training.report.page import text_table

    metrics = {"mean_final": 1.0, "fwt": 0.5, "nbt": None, "auc": 0.25}
    runs = [dataclasses.replace(RESULTS, label=label, metrics=metrics) for label in ("er", LONG)]
    lines = text_table(runs).splitlines()[:3]
    assert lines[2].split("  ")[0] == LONG
    assert ends(lines[0]) == ends(lines[1]) == ends(lines[2])


@pytest.mark.role("train")
def test_a_long_label_keeps_the_columns_of_studies() -> None:
    from training.studies.ablation import METRICS, table
    from training.studies.sweep import table as sweep_table

    numbers = dict.fromkeys(METRICS, (0.5, 0.4, 0.6))
    arm = {"mean_and_interval": numbers, "difference_to_whole": numbers}
    text = table({"seeds": [0, 1], "arms": {"whole": {**arm, "label": "all"}, "x": {**arm, "label": LONG}}})
    head, first, second, _ = text.splitlines()
    assert second.startswith(f"{LONG}  ") and first.startswith("all  ")
    assert ends(head)[:-1] == ends(second)[:-1], "right aligned"
    assert head.index("AUC minus") == second.index("+0.50 (+0.40 to +0.60)")
    trials = [{"number": n, "value": value, "settings": {"a": LONG}} for n, value in ((0, 0.5), (10, -12.25))]
    lines = sweep_table({"metric": "mean_final", "trials": trials, "importance": None}).splitlines()
    assert {line.index(text) for line, text in zip(lines, ("settings", "a=", "a="), strict=True)} == {19}
    assert all(line.endswith(LONG) for line in lines[1:])
