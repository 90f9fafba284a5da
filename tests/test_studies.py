"""Ablations and sweeps: what is run, what is gone on with, and what the tables say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from m2distill_policy import provenance
from m2distill_policy.cli import main
from m2distill_policy.config import load_config
from m2distill_policy.errors import ConfigError, TrainingError
from tests.test_run import SMALL, m2distill
from training.lifelong.records import RunRecord, write_record
from training.parallel_runs import run_alone
from training.studies.ablation import ARMS, ablate, interval, table
from training.studies.study import Study
from training.studies.sweep import Axis, SweepConfig, sweep
from training.studies.sweep import table as sweep_table

TINY = Path("config/tiny.toml")
SEARCH = SweepConfig(
    "auc", {"distill.policy.weight": Axis(0.1, 1.0, log=True), "distill.samples": Axis(choices=(1, 2))}
)


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demonstrations")
    m2distill("demos", "--tasks", "0,1", "--episodes", "2", "--size", "32", "--workers", "1", "--out", str(folder))
    return folder


def _finished(study: Study, seeds: tuple[int, ...], auc: dict[str, float]) -> None:
    """Folders of runs that are over, with an AUC that differs by 0.02 from seed to seed."""
    for i, seed in enumerate(seeds):
        for arm, job in zip(ARMS, replace(study, arms=ARMS).jobs(seed), strict=True):
            job.folder.mkdir(parents=True)
            made = RunRecord(job.config, {}, (), (), str(study.data.resolve()), **provenance.describe())
            write_record(job.folder / "run.json", made)
            metrics = {"mean_final": 0.5, "nbt": 0.1, "auc": auc[arm.name] + 0.02 * i, "fwt": 0.9}
            (job.folder / "results.json").write_text(json.dumps({"metrics": metrics}))


def test_an_interval_is_students() -> None:
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - 2.4841, 2 + 2.4841), abs=1e-3)
    assert interval([0.7]) == (0.7, None, None), "one seed carries no interval"


def test_an_ablation_sums_up_every_arm_beside_the_whole(tmp_path: Path) -> None:
    study = Study(TINY, tmp_path / "data", tmp_path / "runs")
    auc = {arm.name: 0.9 - 0.1 * i for i, arm in enumerate(ARMS)}
    _finished(study, (0, 1, 2), auc)
    found = ablate(study, (0, 1, 2), at_once=1)
    assert list(found["arms"]) == ["whole", "no_image", "no_text", "no_extra", "no_policy", "none"]
    whole, without = found["arms"]["whole"], found["arms"]["no_image"]
    assert whole["mean_and_interval"]["auc"][0] == pytest.approx(0.92)
    # Seed by seed the difference is the same, so its interval is a point, whatever the seeds do to both.
    assert without["difference_to_whole"]["auc"] == pytest.approx((-0.1, -0.1, -0.1))
    assert json.loads((study.folder / "ablation.json").read_text())["arms"].keys() == found["arms"].keys()
    lines = table(found).splitlines()
    assert lines[1].split() == ["all", "four", "terms", "0.50", "0.10", "0.92", "0.90"]
    assert lines[2].endswith("-0.10 (-0.10 to -0.10)") and lines[-1] == "seeds 0, 1, 2"


def test_an_ablation_of_nothing_is_refused(tmp_path: Path) -> None:
    for overrides, sentence in (
        (("distill.text.weight=0",), "distill.text is off or has weight 0"),
        (("evaluation.rollouts=0",), "evaluation.rollouts is 0"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            ablate(Study(TINY, tmp_path, tmp_path / "runs", overrides), (0,), 1)
    with pytest.raises(ConfigError, match=r"seeds are \[0, 0\]"):
        ablate(Study(TINY, tmp_path, tmp_path / "runs"), (0, 0), 1)
    study = Study(TINY, tmp_path, tmp_path / "runs")
    _finished(study, (0,), dict.fromkeys((arm.name for arm in ARMS), 0.5))
    with pytest.raises(TrainingError, match="another configuration: episodes"):
        ablate(Study(TINY, tmp_path, tmp_path / "runs", ("episodes=7",)), (0,), 1)
    with pytest.raises(TrainingError, match="holds a run of the demonstrations in"):
        ablate(Study(TINY, tmp_path / "collected_anew", tmp_path / "runs"), (0,), 1)
    assert not (study.folder / "ablation.json").exists()


def test_axes_and_spaces_that_mean_nothing_are_refused(tmp_path: Path) -> None:
    for axis, sentence in (
        ({}, "either choices, or low and high"),
        ({"low": 1.0, "high": 2.0, "choices": (1, 2)}, "either choices, or low and high"),
        ({"low": 2.0, "high": 1.0}, "low is 2.0 and high is 1.0"),
        ({"low": 0.0, "high": 1.0, "log": True}, "low is 0.0"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            Axis(**axis)
    with pytest.raises(ConfigError, match="search space is empty"):
        SweepConfig()
    assert load_config(SweepConfig, "config/sweeps/distill.toml").space["distill.samples"].choices == (1, 4, 16)


@pytest.mark.slow
def test_a_sweep_tries_settings_goes_on_and_ranks_them(
    tmp_path: Path, demonstrations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(TINY, demonstrations, tmp_path / "sweep", tuple(SMALL))
    said: list[str] = []
    found = sweep(SEARCH, study, (3,), trials=2, at_once=1, say=said.append)
    assert [trial["number"] for trial in sorted(found["trials"], key=lambda t: t["number"])] == [0, 1]
    values = [trial["value"] for trial in found["trials"]]
    assert values == sorted(values, reverse=True) and found["best"] == found["trials"][0]["settings"]
    for trial in found["trials"]:
        run = json.loads((study.folder / "seed_3" / f"trial_{trial['number']}" / "run.json").read_text())["config"]
        assert run["distill"]["policy"]["weight"] == trial["settings"]["distill.policy.weight"]
        assert run["distill"]["samples"] == trial["settings"]["distill.samples"] and run["seed"] == 3
    shared = [study.folder / "seed_3" / f"trial_{n}" / "stages" / "stage_0" / "stage.json" for n in (0, 1)]
    assert len({json.loads(path.read_text())["sha256"] for path in shared}) == 1, "the first stage is learned once"
    assert "auc" in sweep_table(found).splitlines()[0]

    done = len(said)
    again = sweep(SEARCH, study, (3,), trials=2, at_once=1, say=said.append)
    assert len(said) == done and again["trials"] == found["trials"], "what is finished is not run again"
    # Cut off between drawing a trial and the end of its run: it is resumed with the settings it had.
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage

    storage = JournalStorage(JournalFileBackend(str(study.folder / "study.journal")))
    cut = optuna.load_study(study_name="sweep", storage=storage).ask()
    drawn = {name: axis.sample(cut, name) for name, axis in SEARCH.space.items()}
    more = sweep(SEARCH, study, (3,), trials=3, at_once=1, say=said.append)
    assert said[done] == "trial 2: resumed"
    assert next(t["settings"] for t in more["trials"] if t["number"] == 2) == drawn
    with pytest.raises(ConfigError, match=r"holds another search: seeds is \[3\] there and \[4\] here"):
        sweep(SEARCH, study, (4,), trials=3, at_once=1)
    with pytest.raises(ConfigError, match=r"holds another search: optim.batch is 2 there and 3 here"):
        sweep(SEARCH, replace(study, overrides=(*SMALL, "optim.batch=3")), (3,), trials=3, at_once=1)
    with pytest.raises(ConfigError, match=r"holds another search: data is "):
        sweep(SEARCH, replace(study, data=tmp_path), (3,), trials=3, at_once=1)
    assert sweep(SEARCH, replace(study, overrides=(*SMALL, "evaluation.workers=2")), (3,), trials=3, at_once=1)

    # A run that was lost says nothing of its settings: the trial is gone on with.
    def lost(*_: object) -> None:
        raise TrainingError("the machine was lost")

    with monkeypatch.context() as patched, pytest.raises(TrainingError, match="the machine was lost"):
        patched.setattr("training.studies.sweep.run_jobs", lost)
        sweep(SEARCH, study, (3,), trials=4, at_once=1, say=said.append)
    assert len(sweep(SEARCH, study, (3,), trials=4, at_once=1, say=said.append)["trials"]) == 4
    assert "trial 3: resumed" in said


def test_settings_that_are_none_together_are_a_trial_that_does_not_count(tmp_path: Path) -> None:
    """More confident samples than samples: whatever is drawn, every trial is refused before anything runs."""
    space = {
        "distill.samples": Axis(low=1, high=2, whole=True),
        "distill.confident": Axis(low=3, high=4, whole=True),
    }
    study = Study(TINY, tmp_path, tmp_path / "sweep", (*SMALL, "distill.samples=4"))
    for number in (0, 1):
        with pytest.raises(TrainingError, match=rf"trial {number} failed, .* distill.confident is"):
            sweep(SweepConfig(space=space), study, (3,), trials=1, at_once=1)
    for overrides, trials, sentence in (
        (("evaluation.rollouts=0",), 1, "evaluation.rollouts is 0"),
        (("strategy=multitask",), 1, "has no auc"),
        ((), 0, "number of trials is 0"),
    ):
        other = replace(study, folder=tmp_path / "other", overrides=(*SMALL, *overrides))
        with pytest.raises(ConfigError, match=sentence):
            sweep(SEARCH, other, (3,), trials=trials, at_once=1)


def test_a_first_stage_is_stopped_with_who_waits_for_it(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="'first' ended with code 3; see its message above"):
        run_alone([sys.executable, "-c", "raise SystemExit(3)"], "first")
    child = "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(60)"
    waits = "import sys; from training.parallel_runs import run_alone\n"
    waits += f"run_alone([sys.executable, '-c', {child!r}], 'first')"
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    process = subprocess.Popen([sys.executable, "-c", waits], cwd=tmp_path, env=environment)
    until = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < until
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_what_was_asked_wrongly_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["ablate", *words, "--seeds", "one"]) == 2
    assert "give whole numbers from 0 to 4294967295, such as --seeds 0,1,2" in capsys.readouterr().err
    (tmp_path / "bad.toml").write_text('[space]\n"distill.policy.weight" = { low = 1.0 }\n')
    assert main(["sweep", str(tmp_path / "bad.toml"), *words]) == 2
    assert "low is 1.0 and high is None" in capsys.readouterr().err
    (tmp_path / "unknown.toml").write_text('[space]\n"distill.polcy.weight" = { low = 1.0, high = 2.0 }\n')
    assert main(["sweep", str(tmp_path / "unknown.toml"), *words]) == 2
    assert "polcy" in capsys.readouterr().err
