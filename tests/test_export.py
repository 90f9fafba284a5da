"""ONNX and torch agree; what is exported can be opened; a disagreement stops the export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from m2distill_policy.bundle import open_bundle
from m2distill_policy.errors import DemonstrationError, ExportError
from m2distill_policy.runtime.engine import Engine
from tests.test_demonstrations import recording, writer
from tests.training_fixtures import CONTRACT, NETWORK, task_data
from training.data.task_data import check_file
from training.export import build_graphs, check_parity, export_bundle, replay_of
from training.lifelong import samples
from training.models.config import NetworkConfig
from training.models.resnet_t import ResNetT
from training.quantise import quantise


def policy(seed: int = 0, network: NetworkConfig = NETWORK) -> ResNetT:
    torch.manual_seed(seed)
    made = ResNetT(network, CONTRACT)
    for module in made.modules():  # statistics of a trained network, not the identity
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0.0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return made.eval()


def test_parity_over_short_full_and_slid_windows() -> None:
    network = policy()
    parity = check_parity(network, build_graphs(network), task_data(0))
    assert parity.steps == CONTRACT.history + 5
    assert parity.largest < 1e-4


def test_another_networks_graph_is_refused() -> None:
    with pytest.raises(ExportError, match="differ by"):
        check_parity(policy(0), build_graphs(policy(1)), task_data(0))


def test_bundle_is_written_and_opens(tmp_path: Path) -> None:
    data = task_data(0)
    export_bundle(
        policy(),
        tmp_path / "bundle",
        tasks=[{"name": data.name, "instruction": data.instruction}],
        embeddings=data.embedding[None],
        check_on=[data],
        provenance={"run": "test"},
    )
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.contract == CONTRACT
    assert bundle.instructions == (data.instruction,)
    assert np.array_equal(bundle.embedding(data.instruction), data.embedding)
    assert bundle.provenance["parity"]["largest_difference"] < 1e-4
    onnx.checker.check_model(onnx.load_from_string(bundle.graph("step.onnx")), full_check=True)


def test_a_bundle_is_checked_on_a_demonstration_in_which_a_window_slides(tmp_path: Path) -> None:
    """The first may be a short one; where all are, that is said before anything is learned."""
    for lengths, taken in (((4, 21, 30), 21), ((4, 10, 7), 10)):
        samples.save_samples(tmp_path, task_data(0, lengths=lengths), np.random.default_rng(0), CONTRACT.history)
        assert samples.episode(tmp_path, "a", "b").steps == taken
    short = writer(tmp_path)
    short.add(recording(0, length=7))
    file = short.finish([0], 1)
    with pytest.raises(
        DemonstrationError, match=r"longest episode of .* has 7 steps and a window has 10; .* at least 11"
    ):
        check_file(file, file.instruction, file.contract, 1)


def test_refused_export_leaves_nothing(tmp_path: Path) -> None:
    data = task_data(0, lengths=(4, 4))
    with pytest.raises(ExportError, match="at least 11"):
        export_bundle(
            policy(),
            tmp_path / "bundle",
            tasks=[{"name": "a", "instruction": "b"}],
            embeddings=data.embedding[None],
            check_on=[data],
            provenance={},
        )
    assert not (tmp_path / "bundle").exists()


def test_paper_profile_has_the_published_size() -> None:
    from m2distill_policy.contract import Text, libero_contract

    made = ResNetT(NetworkConfig(), libero_contract(128, Text("bert", "0", "pooler", 1.0, 768)))
    assert sum(p.numel() for p in made.parameters()) == pytest.approx(5.38e6, rel=2e-3)


def test_int8_is_measured_beside_fp32(tmp_path: Path) -> None:
    """The graph's convolutions are in 8 bits, its ports are the same, and what that costs is written down."""
    data = task_data(0)
    for precision in ("fp32", "int8"):
        parity = export_bundle(
            policy(),
            tmp_path / precision,
            tasks=[{"name": data.name, "instruction": data.instruction}],
            embeddings=data.embedding[None],
            check_on=[data],
            provenance={},
            precision=precision,
        )
        assert (parity.int8 is not None) == (precision == "int8") and parity.largest < 1e-4
    fp32, int8 = open_bundle(tmp_path / "fp32"), open_bundle(tmp_path / "int8")
    assert int8.provenance["precision"] == "int8" and fp32.provenance["precision"] == "fp32"
    cost = int8.provenance["parity"]["int8"]
    assert 0 < cost["mean"] <= cost["largest"] < 0.3 and cost["steps"] == int(data.lengths[0])
    kinds = [node.op_type for node in onnx.load_from_string(int8.graph("step.onnx")).graph.node]
    assert kinds.count("DequantizeLinear") > kinds.count("Conv") > 0
    assert Engine(int8).film == Engine(fp32).film


def test_a_graph_that_cannot_be_quantised_is_refused() -> None:
    data = task_data(0)
    graphs = build_graphs(policy())
    replay = replay_of(policy(), graphs, data, 3)
    with pytest.raises(ExportError, match=r"cannot be quantised to int8: .*; export fp32"):
        quantise({**graphs, "step.onnx": graphs["step.onnx"][:-100]}, [replay])
