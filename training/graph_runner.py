"""Run the two graphs of a bundle on a demonstration, step by step, as on a robot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from training.data.task_data import TaskData


class GraphRunner:
    """The steps of the first episode of ``data``: each item is the input and the output of the step graph.

    Empty slots of the window hold NaN. A finite output shows that the graph does not read them.

    Args:
        graphs: Bytes of ``instruction.onnx`` and ``step.onnx``.
        data: The episode's frames and proprioception, and the embedding of its instruction.
        history: Number of steps in a window, from the contract.
        token_shape: Shape (T, E) of the tokens of a step.
        steps: Largest number of steps to replay; None: the whole episode.
    """

    def __init__(
        self,
        graphs: Mapping[str, bytes],
        data: TaskData,
        *,
        history: int,
        token_shape: tuple[int, int],
        steps: int | None = None,
    ) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._sessions = {
            name: onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            for name, graph in graphs.items()
        }
        self._data = data
        self._past = history - 1
        self._shape = token_shape
        self.steps = min(int(data.lengths[0]), steps or int(data.lengths[0]))

    def __iter__(self) -> Iterator[tuple[dict[str, NDArray[Any]], list[NDArray[np.float32]]]]:
        data = self._data
        text_token, film = self._sessions["instruction.onnx"].run(None, {"embedding": data.embedding[None]})
        past: list[NDArray[np.float32]] = []
        for t in range(self.steps):
            tokens = np.full((1, self._past, *self._shape), np.nan, dtype=np.float32)
            kept = past[-self._past :]
            if kept:
                tokens[0, -len(kept) :] = np.stack(kept)
            feed: dict[str, NDArray[Any]] = {
                "text_token": text_token,
                "film": film,
                "past_tokens": tokens,
                "past_count": np.array([len(kept)], dtype=np.int64),
            }
            feed |= {name: frames[t][None] for name, frames in data.images.items()}
            feed |= {name: values[t][None] for name, values in data.proprioception.items()}
            outputs = self._sessions["step.onnx"].run(None, feed)
            past.append(outputs[-1][0])
            yield feed, outputs
