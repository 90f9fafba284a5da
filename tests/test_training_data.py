"""Windows stay inside their episode; augmentation is what it says; memory keeps what it says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from m2distill_policy.errors import ConfigError, TrainingError
from tests.training_fixtures import CONTRACT, NETWORK, task_data
from training.data.augment import AugmentConfig, augment
from training.data.joint_data import JointData
from training.data.out_of_distribution import perturb_single_steps
from training.data.task_data import TaskData, WindowBatch
from training.lifelong.memory import Memory, MemoryConfig
from training.lifelong.stage import to_inputs
from training.models.resnet_t import ResNetT
from training.run_config import OptimConfig, RunConfig

OFF = AugmentConfig(0, 0, 0, 0, 0, 0)


def indexed(lengths: tuple[int, ...]) -> TaskData:
    data = task_data(0, lengths)
    data.actions[:, 0] = np.arange(len(data.actions))
    return data


def test_windows_never_cross_an_episode() -> None:
    lengths = (18, 21, 6)
    data = indexed(lengths)
    batch = data.windows(np.random.default_rng(0), 500, 10)
    ends = np.cumsum(lengths)
    for row, valid in zip(batch.actions[:, :, 0], batch.valid, strict=True):
        steps = row[valid].astype(int)
        assert np.all(np.diff(steps) == 1)
        assert len(set(np.searchsorted(ends, steps, side="right"))) == 1
        assert len(steps) == min(10, lengths[int(np.searchsorted(ends, steps[0], side="right"))])


def test_steps_drawn_apart_come_from_everywhere_and_the_share_is_kept() -> None:
    data = indexed((18, 21))
    batch = data.windows(np.random.default_rng(0), 2000, 10, single_steps=0.75)
    assert 0.7 < batch.single_steps.mean() < 0.8
    steps = batch.actions[:, :, 0].astype(int)
    assert not np.any(np.all(np.diff(steps[batch.single_steps], axis=1) == 1, axis=1))
    assert np.all(np.diff(steps[~batch.single_steps], axis=1) == 1)
    assert batch.valid.all()
    assert set(steps[batch.single_steps].ravel()) == set(range(39))
    assert not data.windows(np.random.default_rng(0), 50, 10).single_steps.any()


def test_no_step_of_a_row_drawn_apart_sees_another() -> None:
    torch.manual_seed(0)
    policy = ResNetT(NETWORK, CONTRACT).eval()
    batch = task_data(0).windows(np.random.default_rng(0), 4, 10)
    single_steps = np.array([True, False, True, False])
    other = {n: f.copy() for n, f in batch.images.items()}
    for frames in other.values():
        frames[:, 3] = 255 - frames[:, 3]
    with torch.no_grad():
        whole = policy(to_inputs(batch, torch.device("cpu"))).mixture.means
        before, after = (
            policy(
                to_inputs(dataclasses.replace(batch, images=images, single_steps=single_steps), torch.device("cpu"))
            ).mixture.means
            for images in (batch.images, other)
        )
    same = [t for t in range(10) if t != 3]
    assert torch.allclose(before[single_steps][:, same], after[single_steps][:, same], atol=1e-6)
    assert not torch.allclose(before[single_steps, 3], after[single_steps, 3], atol=1e-4)
    assert not torch.allclose(before[~single_steps][:, 4:], after[~single_steps][:, 4:], atol=1e-4), (
        "a window remembers"
    )
    assert torch.allclose(before[~single_steps], whole[~single_steps], atol=1e-6)
    assert torch.allclose(before[:, 0], whole[:, 0], atol=1e-6), "the first step has no history either way"


def test_every_step_is_drawn_and_early_steps_have_little_history() -> None:
    data = indexed((18, 21))
    batch = data.windows(np.random.default_rng(0), 4000, 10)
    assert set(batch.actions[:, :, 0].astype(int).ravel()) == set(range(39))
    first_of_window = batch.actions[:, 0, 0].astype(int)
    # about 10 of 18 newest steps of the first episode have a window that starts at its beginning
    share = np.mean(first_of_window[first_of_window < 18] == 0)
    assert 0.45 < share < 0.66


def test_same_seed_same_windows() -> None:
    data = task_data(1)
    a = data.windows(np.random.default_rng([1, 2]), 4, 10)
    b = data.windows(np.random.default_rng([1, 2]), 4, 10)
    assert all(np.array_equal(a.images[k], b.images[k]) for k in a.images)


def test_augmentation_leaves_its_input_and_does_nothing_when_off() -> None:
    frames = {"a": torch.rand(2, 3, 3, 16, 16), "b": torch.rand(2, 3, 3, 16, 16)}
    before = {k: v.clone() for k, v in frames.items()}
    out = augment(frames, AugmentConfig(), np.random.default_rng(0))
    assert all(torch.equal(frames[k], before[k]) for k in frames)
    assert not torch.equal(out["a"], frames["a"])
    same = augment(frames, OFF, np.random.default_rng(0))
    assert all(torch.equal(same[k], frames[k]) for k in frames)


def test_shift_is_one_for_all_frames_and_views_of_a_window() -> None:
    ramp = torch.arange(256.0).reshape(1, 1, 1, 16, 16).expand(2, 3, 3, 16, 16) / 255
    out = augment({"a": ramp, "b": ramp}, AugmentConfig(0, 0, 0, 0, 0, 4), np.random.default_rng(3))
    assert torch.equal(out["a"], out["b"])
    assert torch.equal(out["a"][:, 0], out["a"][:, 2])
    centre = (out["a"][:, 0, 0, 8, 8] * 255).round().long()
    rows, columns = centre // 16 - 8, centre % 16 - 8
    assert bool((rows.abs() <= 2).all()) and bool((columns.abs() <= 2).all())


def test_hue_turned_by_a_third_makes_red_green() -> None:
    red = torch.zeros(1, 1, 3, 2, 2)
    red[:, :, 0] = 0.8

    class Third:
        def uniform(self, low: float, high: float, size: int) -> np.ndarray:
            return np.full(size, 1 / 3 if low < 0 else 1.0)

        def random(self, size: int) -> np.ndarray:
            return np.ones(size)

        def permutation(self, n: int) -> np.ndarray:
            return np.arange(n)

    out = augment({"a": red}, AugmentConfig(0, 0, 0, 0.5, 0, 0), Third())["a"]  # type: ignore[arg-type]
    torch.testing.assert_close(out[0, 0, :, 0, 0], torch.tensor([0.0, 0.8, 0.0]), atol=1e-6, rtol=0)


def test_jitter_matches_the_formulas_by_hand() -> None:
    frames = torch.rand(1, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    factor = np.random.default_rng(0).uniform(0.5, 1.5, size=1)[0]
    out = augment({"a": frames}, AugmentConfig(0.5, 0, 0, 0, 0, 0), rng)["a"]
    torch.testing.assert_close(out, (frames * factor).clamp(0, 1).float(), atol=1e-6, rtol=0)


def test_views_are_changed_alike_or_each_by_itself() -> None:
    frames = torch.rand(2, 3, 3, 16, 16)
    views = {"a": frames, "b": frames.clone()}
    alike = augment(views, AugmentConfig(), np.random.default_rng(0))
    assert torch.equal(alike["a"], alike["b"])
    each = augment(views, AugmentConfig(together=False, skip=0.0), np.random.default_rng(0))
    assert not torch.equal(each["a"], each["b"])


def test_rows_of_a_batch_are_changed_as_they_would_be_in_it() -> None:
    views = {"a": torch.rand(6, 3, 3, 16, 16), "b": torch.rand(6, 3, 3, 16, 16)}
    whole = augment(views, AugmentConfig(), np.random.default_rng(1))
    rows = np.array([1, 3, 5])
    part = augment({n: v[rows] for n, v in views.items()}, AugmentConfig(), np.random.default_rng(1), (6, rows))
    assert all(torch.equal(part[name], whole[name][rows]) for name in views)


def test_augmentation_ranges_are_checked() -> None:
    with pytest.raises(ConfigError, match="hue"):
        AugmentConfig(hue=0.9)


def test_memory_keeps_what_it_says_and_counts_its_bytes() -> None:
    memory = Memory(MemoryConfig(episodes=2, replay_batch=6, instructions=True, instruction_batch=3))
    data = task_data(0)
    assert memory.bytes == 0
    memory.add(data, np.random.default_rng(0))
    kept = memory.exemplars[0]
    assert kept.episodes == 2
    assert memory.bytes == kept.bytes + data.embedding.nbytes
    replay = memory.replay(np.random.default_rng(0), 10)
    assert replay is not None and len(replay) == 6
    new = task_data(1).windows(np.random.default_rng(1), 4, 10)
    asked = memory.with_old_instructions(new, np.random.default_rng(1))
    assert asked is not None and len(asked) == 3
    assert np.array_equal(asked.embedding, np.stack([data.embedding] * 3))
    frames = {f.tobytes() for f in new.images["agentview_rgb"]}
    assert all(f.tobytes() in frames for f in asked.images["agentview_rgb"])


def test_memory_by_libero_s_rule_keeps_the_first_windows() -> None:
    data = task_data(0, (30, 25, 40))
    memory = Memory(MemoryConfig(windows=50, replay_batch=4))
    memory.add(data, np.random.default_rng(0))
    kept = memory.exemplars[0]
    assert kept.lengths.tolist() == [30, 20] and kept.steps == 50
    assert np.array_equal(kept.actions, data.actions[:50])
    assert kept.bytes == memory.bytes < data.bytes
    replay = memory.replay(np.random.default_rng(1), 10)
    assert replay is not None and len(replay) == 4 and replay.valid.all()
    all_of_it = Memory(MemoryConfig(windows=1000))
    all_of_it.add(data, np.random.default_rng(0))
    assert all_of_it.exemplars[0].content_hash() == data.content_hash()


def test_memory_of_text_alone_keeps_no_demonstration() -> None:
    memory = Memory(MemoryConfig(episodes=0, instructions=True))
    data = task_data(0)
    memory.add(data, np.random.default_rng(0))
    assert memory.replay(np.random.default_rng(0), 10) is None
    assert memory.bytes == data.embedding.nbytes


def test_widened_steps_have_other_colours_and_readings_and_windows_stay() -> None:
    batch = task_data(0, (60, 60)).windows(np.random.default_rng(0), 200, 10, single_steps=0.5)
    wide = perturb_single_steps(batch, np.random.default_rng(1), share=0.8, noise=0.3)
    for name, frames in batch.images.items():
        assert np.array_equal(frames[~batch.single_steps], wide.images[name][~batch.single_steps])
        # Whatever the order of the channels, a pixel keeps its three values.
        assert np.array_equal(np.sort(frames, axis=-1), np.sort(wide.images[name], axis=-1))
        changed = (frames != wide.images[name]).any(axis=(2, 3, 4))[batch.single_steps]
        assert 0.8 * 5 / 6 - 0.05 < changed.mean() < 0.8 * 5 / 6 + 0.05
    first, second = (wide.images[n] != batch.images[n] for n in batch.images)
    assert (first.any(axis=(2, 3, 4)) != second.any(axis=(2, 3, 4))).any(), "each view has an order of its own"
    for name, values in batch.proprioception.items():
        moved = wide.proprioception[name] - values
        assert wide.proprioception[name].dtype == values.dtype
        assert not moved[~batch.single_steps].any()
        steps = moved[batch.single_steps].any(axis=-1)
        assert 0.75 < steps.mean() < 0.85
        spread = moved[batch.single_steps][steps].std(axis=0) / values[batch.single_steps].std(axis=(0, 1))
        np.testing.assert_allclose(spread, 0.3, rtol=0.15)
    assert np.array_equal(wide.actions, batch.actions) and np.array_equal(wide.embedding, batch.embedding)


def test_old_instructions_are_asked_of_widened_observations_where_configured() -> None:
    new = task_data(1).windows(np.random.default_rng(1), 8, 10, single_steps=1.0)

    def asked(**settings: float) -> WindowBatch:
        memory = Memory(MemoryConfig(instructions=True, instruction_batch=4, **settings))  # type: ignore[arg-type]
        memory.add(task_data(0), np.random.default_rng(0))
        found = memory.with_old_instructions(new, np.random.default_rng(2))
        assert found is not None
        return found

    plain, wide, still = (
        asked(),
        asked(out_of_distribution=1.0),
        asked(out_of_distribution=1.0, out_of_distribution_noise=0.0),
    )
    name = "joint_states"
    assert np.array_equal(plain.proprioception[name], still.proprioception[name])
    assert not np.array_equal(plain.proprioception[name], wide.proprioception[name])
    frames = {f.tobytes() for f in new.images["agentview_rgb"]}
    assert all(f.tobytes() in frames for f in plain.images["agentview_rgb"])
    assert not all(f.tobytes() in frames for f in wide.images["agentview_rgb"])


def test_widening_that_would_do_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="it is a share, 0 to 1"):
        MemoryConfig(out_of_distribution=1.5)
    with pytest.raises(ConfigError, match="only single steps are changed"):
        RunConfig(memory=MemoryConfig(instructions=True, out_of_distribution=0.5), optim=OptimConfig(single_steps=0.0))


def test_memory_that_asks_for_too_much_is_refused() -> None:
    with pytest.raises(ConfigError, match="has 3 episodes"):
        Memory(MemoryConfig(episodes=9)).add(task_data(0), np.random.default_rng(0))
    with pytest.raises(ConfigError, match=r"memory.episodes is .* and memory.windows"):
        MemoryConfig(episodes=1, windows=1000)
    with pytest.raises(ConfigError, match=r"memory\.windows keeps demonstrations but memory\.replay_batch is 0"):
        MemoryConfig(windows=1000, replay_batch=0)


def test_task_data_survives_disk_and_names_a_broken_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    data = task_data(3)
    data.save(tmp_path / "x.safetensors")
    back = TaskData.load(tmp_path / "x.safetensors", data.name, data.instruction)
    assert back.content_hash() == data.content_hash()
    (tmp_path / "x.safetensors").write_bytes(b"broken")
    with pytest.raises(TrainingError, match=r"x\.safetensors cannot be read"):
        TaskData.load(tmp_path / "x.safetensors", "a", "b")


def test_windows_of_several_tasks_are_each_of_one_of_them() -> None:
    parts = (task_data(0, (30, 10)), task_data(1, (80,)))
    joint = JointData(parts)
    assert (joint.tasks, joint.steps) == (2, 120)
    batch = joint.windows(np.random.default_rng(0), 600, 5)
    of_first = (batch.embedding == parts[0].embedding).all(axis=1)
    of_second = (batch.embedding == parts[1].embedding).all(axis=1)
    assert (of_first ^ of_second).all() and 0.28 < of_first.mean() < 0.39
    known = {part: {tuple(row) for row in data.actions} for part, data in enumerate(parts)}
    for part, rows in enumerate((of_first, of_second)):
        assert all(tuple(action) in known[part] for action in batch.actions[rows].reshape(-1, 7))
    assert joint.proprioception["joint_states"].shape == (120, 7)


def test_pictures_on_disk_are_the_same_and_leave_nothing(tmp_path: Path) -> None:
    data = task_data(0)
    stored = data.on_disk(tmp_path)
    assert not list(tmp_path.iterdir()), "files without a name: nothing is left behind, however the process ends"
    assert all(isinstance(frames, np.memmap) for frames in stored.images.values())
    assert stored.content_hash() == data.content_hash()
    a, b = (JointData((d,)).windows(np.random.default_rng(3), 5, 4) for d in (data, stored))
    assert all(np.array_equal(a.images[name], b.images[name]) for name in a.images)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("r+b", 0) as full:
        monkeypatch.setattr("training.data.task_data.tempfile.TemporaryFile", lambda dir: full)
        with pytest.raises(TrainingError, match=r"cannot be written to .*No space left.*free disk space"):
            task_data(0).on_disk(tmp_path)
