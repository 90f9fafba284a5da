"""Quantise the image encoders and the trunk of the mixture head to int8.

In fp32 these parts take five sixths of the time of a step on a CPU. ONNX Runtime's static quantisation is used: weights
have one scale per channel, activations one scale per tensor, calibrated on real frames. The transformer and the last
layers of the head stay in fp32, because they are small and the last layers compute the action itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m2distill_policy.errors import ExportError
from training.graph_runner import GraphRunner

#: Number of steps of demonstrations on which the ranges of activations are measured.
CALIBRATION_STEPS = 120


@dataclass(frozen=True)
class Loss:
    """Difference between int8 and fp32 on an episode.

    Attributes:
        mean: Mean absolute difference of the most likely mode's mean, in units of the action, which is in [-1, 1].
        largest: Largest absolute difference, in the same units.
        steps: Number of steps of the episode.
    """

    mean: float
    largest: float
    steps: int


def quantise(graphs: Mapping[str, bytes], replays: Iterable[GraphRunner]) -> dict[str, bytes]:
    """Return the graphs with the step's convolutions and the head's trunk in int8.

    Args:
        graphs: File name -> bytes of the fp32 graphs.
        replays: Replays of the fp32 graphs. Their inputs calibrate the ranges.

    Raises:
        ExportError: ONNX Runtime cannot quantise the graph.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    feeds = _calibration(replays)

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, NDArray[Any]] | None:
            return next(feeds, None)

    with tempfile.TemporaryDirectory() as folder:
        given, prepared, made = (Path(folder) / f"{name}.onnx" for name in ("given", "prepared", "made"))
        given.write_bytes(graphs["step.onnx"])
        try:
            quant_pre_process(given, prepared)  # folds batch norms into the convolutions before ranges are measured
            quantize_static(
                prepared,
                made,
                Reader(),
                quant_format=QuantFormat.QDQ,
                # Convolutions, the operations that can reuse their int8 values (ReLU and max-pool), and the two large
                # matrices of the head's trunk.
                op_types_to_quantize=["Conv", "Relu", "MaxPool", "Gemm"],
                nodes_to_exclude=_small_matrices(prepared),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        # The library raises any kind of error for a graph that it does not support. No bundle is written then.
        except Exception as error:
            raise ExportError(
                f"the step graph cannot be quantised to int8: {type(error).__name__}: {error}; export fp32"
            ) from error
        return {**graphs, "step.onnx": made.read_bytes()}


def _small_matrices(graph: Path) -> list[str]:
    """Return the names of the matrix products that stay in fp32: all but those of the head's trunk."""
    import onnx

    nodes = onnx.load(graph).graph.node
    return [node.name for node in nodes if node.op_type == "Gemm" and not node.name.startswith("/head/trunk/")]


def _calibration(replays: Iterable[GraphRunner]) -> Iterator[dict[str, NDArray[Any]]]:
    left = CALIBRATION_STEPS
    for replay in replays:
        for feed, _ in replay:
            if left == 0:
                return
            left -= 1
            # NaN in the empty slots would spoil the measured ranges.
            yield {name: np.nan_to_num(value) if value.dtype == np.float32 else value for name, value in feed.items()}


def loss(fp32: GraphRunner, int8: GraphRunner) -> Loss:
    """Compare int8 with fp32 on the same episode. Each graph reads the tokens that it computed in earlier steps.

    Raises:
        ExportError: An output of int8 is not finite.
    """
    differences = []
    for (_, ours), (_, theirs) in zip(fp32, int8, strict=True):
        if not all(np.isfinite(part).all() for part in theirs):
            raise ExportError("an output of the int8 step graph is not finite; no bundle was written: export fp32")
        differences.append(np.abs(_likeliest(ours) - _likeliest(theirs)))
    return Loss(float(np.mean(differences)), float(np.max(differences)), len(differences))


def _likeliest(outputs: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    logits, means = outputs[0][0], outputs[1][0]
    return np.asarray(means[int(np.argmax(logits))])
