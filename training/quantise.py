"""int8 for the image encoders and the head's trunk: five sixths of a step's time on a CPU are theirs in fp32.

Weights a channel, activations a tensor, by ONNX Runtime's static quantisation, calibrated on real frames. Transformer
and the head's last layers stay fp32: they are small, and what they compute is the action itself.
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
from training.replay import GraphReplay

#: Steps of real frames whose activations give the ranges.
CALIBRATION_STEPS = 120


@dataclass(frozen=True)
class Loss:
    """How far int8 is from fp32 on an episode: differences of the likeliest mode's mean, in [-1, 1], over its steps."""

    mean: float
    largest: float
    steps: int


def quantise(graphs: Mapping[str, bytes], replays: Iterable[GraphReplay]) -> dict[str, bytes]:
    """The graphs with the step's convolutions and the head's trunk in int8; ``replays`` of the fp32 ones bring frames.

    Raises :class:`ExportError` where ONNX Runtime cannot quantise the graph.
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
            quant_pre_process(given, prepared)  # folds normalisation into the convolutions before ranges are looked at
            quantize_static(
                prepared,
                made,
                Reader(),
                quant_format=QuantFormat.QDQ,
                # Beside convolutions what can stay in their numbers, a ReLU being a range's lower end and a pool a
                # choice, and the two large matrices of the head's trunk.
                op_types_to_quantize=["Conv", "Relu", "MaxPool", "Gemm"],
                nodes_to_exclude=_small_matrices(prepared),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        # Whatever the library meets in a graph it does not understand: no bundle is written then.
        except Exception as error:
            raise ExportError(f"the step cannot be made int8: {type(error).__name__}: {error}; export fp32") from error
        return {**graphs, "step.onnx": made.read_bytes()}


def _small_matrices(graph: Path) -> list[str]:
    """Names of the matrix products that stay fp32: all but the head's trunk. They are small, and the last ones are the
    action."""
    import onnx

    nodes = onnx.load(graph).graph.node
    return [node.name for node in nodes if node.op_type == "Gemm" and not node.name.startswith("/head/trunk/")]


def _calibration(replays: Iterable[GraphReplay]) -> Iterator[dict[str, NDArray[Any]]]:
    left = CALIBRATION_STEPS
    for replay in replays:
        for feed, _ in replay:
            if left == 0:
                return
            left -= 1
            # Ranges are looked at in fp32's own numbers, and NaN in the empty slots would be the range of a slot.
            yield {name: np.nan_to_num(value) if value.dtype == np.float32 else value for name, value in feed.items()}


def loss(fp32: GraphReplay, int8: GraphReplay) -> Loss:
    """Both graphs over the same episode, each on its own tokens, as each would run.

    Raises :class:`ExportError` if int8 answers with something that is not finite.
    """
    differences = []
    for (_, ours), (_, theirs) in zip(fp32, int8, strict=True):
        if not all(np.isfinite(part).all() for part in theirs):
            raise ExportError("the int8 step answers with something that is not finite, so no bundle was written")
        differences.append(np.abs(_likeliest(ours) - _likeliest(theirs)))
    return Loss(float(np.mean(differences)), float(np.max(differences)), len(differences))


def _likeliest(outputs: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    logits, means = outputs[0][0], outputs[1][0]
    return np.asarray(means[int(np.argmax(logits))])
