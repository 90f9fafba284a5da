"""Records of a run folder: what is written is read back, and anything else is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from m2distill_policy import provenance
from m2distill_policy.errors import TrainingError
from m2distill_policy.evaluation.results import CellSummary
from m2distill_policy.sim.env import Task
from tests.training_fixtures import CONTRACT, config
from training.lifelong.records import (
    FORMAT,
    CandidatesRecord,
    CurveRecord,
    Drift,
    EvaluationRecord,
    ExtensionRecord,
    FileRecord,
    PartialRecord,
    RunRecord,
    RunResults,
    SamplesRecord,
    SelectionRecord,
    StageRecord,
    StateRecord,
    read_record,
    write_record,
)
from training.lifelong.run import LifelongRun
from training.regression_gate import Gate
from training.release import ReleaseCriteria

TASK = Task("tabletop", 0, "lift_it", "lift it", 200, "lift", ("it",))
CELL = CellSummary("tabletop", 0, "lift_it", "lift it", 2, 1, 1, 1.0, 0.2, 1.0, None, 30.0)
JSON_CONTRACT = json.loads(json.dumps(CONTRACT.to_dict()))
RUN = RunRecord(
    config(strategy="ewc"), JSON_CONTRACT, (TASK,), ((0.1, 0.25),), "/demos", **provenance.describe(),
    data={"0": "abc"}, extends=(ExtensionRecord("old", 2, config(), ReleaseCriteria(0.1, "/watched")),),
)  # fmt: skip
RESULTS = RunResults(
    label="er", run="x", strategy="er", seed=0, tasks=(TASK,), rollouts=2, sampling="mode", success=((1.0,),),
    wrong_object=((None,),), errors=1, cells=((CELL,),), cross_instruction=None, cross_instruction_success=None,
    success_curves=((0.0, 1.0),),
    metrics={"nbt": None, "auc": 0.5}, bytes_kept=3, drift=(({"text": Drift(0.0, 0.0, 1.0, None)},),), config=config(),
    data={}, trained=({"precision": "fp32"},), **provenance.describe(),
)  # fmt: skip
RECORDS = [
    RUN,
    RESULTS,
    PartialRecord(1, 7, "partial_7.safetensors", "ab"),
    CandidatesRecord({"1": FileRecord("a", "b")}, {"time": "now"}, {"0": None}, StateRecord("ewc", "f", "s")),
    SelectionRecord(2, (0.5, None)),
    StageRecord("a", "b", 1, 100),
    SamplesRecord("a", "b"),
    EvaluationRecord((CELL,)),
    CurveRecord((0.0, 0.5)),
    Gate(("lift it",), (1.0,), (0.5,), 0.2, 10),
]


@pytest.mark.parametrize("record", RECORDS, ids=[type(record).__name__ for record in RECORDS])
def test_what_is_written_is_read_back(tmp_path: Path, record: Any) -> None:
    path = tmp_path / "record.json"
    write_record(path, record)
    assert read_record(type(record), path) == record
    assert json.loads(path.read_text())["format"] == FORMAT


def _changed(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": FORMAT + 1}, f"has format {FORMAT + 1} and this version of m2distill reads format {FORMAT}"),
        ({"format": None}, "has format none"),
        ({"chosen": "2"}, "'chosen' is '2'"),
        ({"chosen": True}, "'chosen' is True"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"rates": [0.5, "x"]}, "rates"),
    ],
)
def test_anything_else_is_refused_in_one_sentence(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = tmp_path / "selection.json"
    write_record(path, SelectionRecord(1))
    _changed(path, **changes)
    with pytest.raises(TrainingError) as caught:
        read_record(SelectionRecord, path)
    assert words in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_folder_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"config": {}, "contract": {}, "tasks": []}))
    with pytest.raises(TrainingError, match=r"run\.json has format none and .* train a new run in another folder"):
        LifelongRun.open(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(TrainingError, match="has format none"):
        LifelongRun.open(tmp_path)
