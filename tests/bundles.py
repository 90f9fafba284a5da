"""Small real bundles for tests: tiny ONNX graphs with the signature of docs/reference/bundle.md, made without torch.

The toy network looks at everything it is given: the mean of every view, every reading, the text token, and the mean of
the valid past tokens. Different seeds give different weights and so different answers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from m2distill_policy.bundle import Bundle, open_bundle
from m2distill_policy.bundle_files import DIGEST, MANIFEST, digest_line
from m2distill_policy.bundle_writer import write_bundle
from m2distill_policy.contract import Contract, Proprioception, Text, libero_contract
from m2distill_policy.observation import Observation
from m2distill_policy.runtime.server import PolicyServer

EMBED, FILM, MODES, ACTIONS, TEXT = 8, 6, 3, 7, 12
INSTRUCTIONS = ("lift the red box", "lift the green box")


def toy_contract(size: int = 32, *, history: int = 10) -> Contract:
    """LIBERO's contract with small pictures and a short text embedding."""
    text = Text(encoder="toy", sha256="0" * 64, pooling="mean", scaling=1.0, size=TEXT)
    return dataclasses.replace(libero_contract(size, text), history=history)


def toy_embeddings(instructions: Sequence[str]) -> NDArray[np.float32]:
    """One fixed row (TEXT,) an instruction, different for different texts."""
    return np.stack(
        [np.random.default_rng(list(text.encode())).normal(size=TEXT).astype(np.float32) for text in instructions]
    )


def toy_graphs(
    contract: Contract, seed: int = 0, *, bias_nan: bool = False, fails_above: float | None = None
) -> dict[str, bytes]:
    """``instruction.onnx`` and ``step.onnx`` with weights drawn from ``seed``.

    fails_above: ONNX Runtime itself fails on a step whose first reading is above, as it does when a GPU is lost.
    """
    rng = np.random.default_rng(seed)
    tokens = 1 + len(contract.proprioception) + len(contract.cameras)
    past = contract.history - 1

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        values = rng.normal(scale=0.5, size=shape).astype(np.float32)
        return numpy_helper.from_array(values, name)

    def constant(name: str, values: NDArray[np.float32] | NDArray[np.int64]) -> onnx.TensorProto:
        return numpy_helper.from_array(values, name)

    def port(name: str, kind: int, *shape: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, ["batch", *shape])

    f32, u8, i64 = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT64
    instruction = helper.make_graph(
        [
            helper.make_node("MatMul", ["embedding", "w_text"], ["text_token"]),
            helper.make_node("MatMul", ["embedding", "w_film"], ["film"]),
        ],
        "instruction",
        [port("embedding", f32, TEXT)],
        [port("text_token", f32, EMBED), port("film", f32, FILM)],
        [weight("w_text", TEXT, EMBED), weight("w_film", TEXT, FILM)],
    )

    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = [
        constant("axis_token", np.array([1], dtype=np.int64)),
        constant("axes_12", np.array([1, 2], dtype=np.int64)),
        constant("axes_2", np.array([2], dtype=np.int64)),
        constant("scale_255", np.array(1 / 255, dtype=np.float32)),
    ]
    inputs = [
        port("text_token", f32, EMBED),
        port("film", f32, FILM),
        port("past_tokens", f32, past, tokens, EMBED),
        port("past_count", i64),
    ]
    nodes.append(helper.make_node("Unsqueeze", ["text_token", "axis_token"], ["token_text"]))
    names = ["token_text"]
    for group in contract.proprioception:
        inputs.append(port(group.name, f32, group.size))
        weights.append(weight(f"w_{group.name}", group.size, EMBED))
        nodes += [
            helper.make_node("MatMul", [group.name, f"w_{group.name}"], [f"flat_{group.name}"]),
            helper.make_node("Unsqueeze", [f"flat_{group.name}", "axis_token"], [f"token_{group.name}"]),
        ]
        names.append(f"token_{group.name}")
    for camera in contract.cameras:
        inputs.append(port(camera.name, u8, *camera.shape))
        weights += [weight(f"w_{camera.name}", 3, EMBED), weight(f"f_{camera.name}", FILM, EMBED)]
        nodes += [
            helper.make_node("Cast", [camera.name], [f"cast_{camera.name}"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"cast_{camera.name}", "scale_255"], [f"unit_{camera.name}"]),
            helper.make_node("ReduceMean", [f"unit_{camera.name}", "axes_12"], [f"mean_{camera.name}"], keepdims=0),
            helper.make_node("MatMul", [f"mean_{camera.name}", f"w_{camera.name}"], [f"plain_{camera.name}"]),
            helper.make_node("MatMul", ["film", f"f_{camera.name}"], [f"terms_{camera.name}"]),
            helper.make_node("Mul", [f"plain_{camera.name}", f"terms_{camera.name}"], [f"flat_{camera.name}"]),
            helper.make_node("Unsqueeze", [f"flat_{camera.name}", "axis_token"], [f"token_{camera.name}"]),
        ]
        names.append(f"token_{camera.name}")
    nodes.append(helper.make_node("Concat", names, ["tokens"], axis=1))

    # Mean of the valid past steps: a slot counts when its index is at least P - past_count.
    weights += [
        constant("slots", np.arange(past, dtype=np.int64)[None]),
        constant("past", np.array([[past]], dtype=np.int64)),
        constant("zero", np.array(0.0, dtype=np.float32)),
        constant("one", np.array(1.0, dtype=np.float32)),
        constant("axes_123", np.array([2, 3], dtype=np.int64)),
    ]
    nodes += [
        helper.make_node("Unsqueeze", ["past_count", "axis_token"], ["count_2d"]),
        helper.make_node("Sub", ["past", "count_2d"], ["first"]),
        helper.make_node("GreaterOrEqual", ["slots", "first"], ["valid"]),
        helper.make_node("Unsqueeze", ["valid", "axes_123"], ["valid_4d"]),
        helper.make_node("Where", ["valid_4d", "past_tokens", "zero"], ["valid_tokens"]),
        helper.make_node("ReduceSum", ["valid_tokens", "axes_12"], ["past_sum"], keepdims=0),
        helper.make_node("Cast", ["count_2d"], ["count_f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["count_f", "one"], ["count_1"]),
        helper.make_node("Div", ["past_sum", "count_1"], ["past_mean"]),
        helper.make_node("ReduceSum", ["tokens", "axis_token"], ["now_sum"], keepdims=0),
        helper.make_node("Add", ["now_sum", "past_mean"], ["features"]),
    ]
    bias = np.full(MODES * ACTIONS, np.nan if bias_nan else 0.0, dtype=np.float32)
    weights += [
        weight("w_logits", EMBED, MODES), weight("w_means", EMBED, MODES * ACTIONS),
        weight("w_scales", EMBED, MODES * ACTIONS), constant("bias", bias),
        constant("shape", np.array([-1, MODES, ACTIONS], dtype=np.int64)),
        constant("floor", np.array(0.01, dtype=np.float32)),
    ]  # fmt: skip
    nodes += [
        helper.make_node("MatMul", ["features", "w_logits"], ["logits"]),
        helper.make_node("MatMul", ["features", "w_means"], ["means_raw"]),
        helper.make_node("Add", ["means_raw", "bias"], ["means_biased"]),
        helper.make_node("Tanh", ["means_biased"], ["means_flat"]),
        helper.make_node("Reshape", ["means_flat", "shape"], ["means"]),
        helper.make_node("MatMul", ["features", "w_scales"], ["scales_raw"]),
        helper.make_node("Softplus", ["scales_raw"], ["scales_soft"]),
        helper.make_node("Add", ["scales_soft", "floor"], ["scales_flat"]),
        helper.make_node("Reshape", ["scales_flat", "shape"], ["scales"]),
    ]
    if fails_above is not None:
        # An index of 0 into a table of one entry, or of 1.
        weights += [
            constant("table", np.zeros((1, MODES), dtype=np.float32)), constant("index_0", np.array(0, dtype=np.int64)),
            constant("limit", np.array(fails_above, dtype=np.float32)),
        ]  # fmt: skip
        nodes[[n.output[0] for n in nodes].index("logits")].output[0] = "logits_sound"
        nodes += [
            helper.make_node("Gather", [contract.proprioception[0].name, "index_0"], ["first_reading"], axis=1),
            helper.make_node("Greater", ["first_reading", "limit"], ["too_far"]),
            helper.make_node("Cast", ["too_far"], ["entry"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "entry"], ["nothing"], axis=0),
            helper.make_node("Add", ["logits_sound", "nothing"], ["logits"]),
        ]
    outputs = [
        port("logits", f32, MODES), port("means", f32, MODES, ACTIONS), port("scales", f32, MODES, ACTIONS),
        port("tokens", f32, tokens, EMBED),
    ]  # fmt: skip
    step = helper.make_graph(nodes, "step", inputs, outputs, weights)
    graphs = {}
    for name, graph in (("instruction.onnx", instruction), ("step.onnx", step)):
        # Older IR than onnx would choose by itself, so that every supported ONNX Runtime reads it.
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.checker.check_model(model)
        graphs[name] = model.SerializeToString()
    return graphs


def write_toy(
    path: Path,
    seed: int = 0,
    *,
    contract: Contract | None = None,
    graph_contract: Contract | None = None,
    instructions: Sequence[str] = INSTRUCTIONS,
    overwrite: bool = False,
    bias_nan: bool = False,
    fails_above: float | None = None,
    views: Mapping[str, NDArray[np.uint8]] | None = None,
) -> Path:
    """Write a toy bundle; ``graph_contract`` lets the graphs obey another contract than the manifest."""
    contract = contract or toy_contract()
    write_bundle(
        path,
        contract=contract,
        tasks=[{"name": text.replace(" ", "_"), "instruction": text} for text in instructions],
        network={
            "modes": MODES,
            "tokens": 1 + len(contract.proprioception) + len(contract.cameras),
            "embed": EMBED,
            "film": FILM,
        },
        provenance={"run": "toy", "seed": seed},
        instructions=instructions,
        embeddings=toy_embeddings(instructions),
        graphs=toy_graphs(graph_contract or contract, seed, bias_nan=bias_nan, fails_above=fails_above),
        views=views,
        overwrite=overwrite,
    )
    return path


def toy_bundle(path: Path, seed: int = 0, *, contract: Contract | None = None) -> Bundle:
    """A toy bundle, written to ``path`` and opened."""
    return open_bundle(write_toy(path, seed, contract=contract))


def write_manifest(path: Path, manifest: bytes) -> None:
    """Replace ``bundle.json`` and the digest beside it, so that only what is inside can be wrong."""
    (path / MANIFEST).write_bytes(manifest)
    (path / DIGEST).write_bytes(digest_line(manifest))


def edit_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest of a bundle in place, and the digest beside it."""
    manifest = json.loads((path / MANIFEST).read_text())
    change(manifest)
    write_manifest(path, json.dumps(manifest).encode())


def replace_file(path: Path, name: str, data: bytes) -> None:
    """Change a file, its hash in the manifest and the digest, so that only what is inside the file can be wrong."""
    (path / name).write_bytes(data)
    edit_manifest(path, lambda m: m["files"].update({name: hashlib.sha256(data).hexdigest()}))


def observations(contract: Contract, count: int, seed: int = 0, start: float = 0.0) -> list[Observation]:
    """``count`` different valid observations, one a period; readings differ by less than a joint can move."""
    rng = np.random.default_rng(seed)
    near = {"rad": 0.04, "m": 0.004}
    return [
        Observation(
            images={c.name: rng.integers(0, 256, c.shape, dtype=np.uint8) for c in contract.cameras},
            proprioception={g.name: _readings(rng, g, near[g.unit]) for g in contract.proprioception},
            stamp=start + i * contract.period,
        )
        for i in range(count)
    ]


def _readings(rng: np.random.Generator, group: Proprioception, near: float) -> NDArray[np.float32]:
    """Within the group's range, as near to 0 as that allows."""
    middle = min(max(0.0, group.low), group.high)
    return rng.uniform(max(group.low, middle - near), min(group.high, middle + near), group.size).astype(np.float32)


class Tremor:
    """Poses as a real arm's are: never twice the very same, 2 um apart."""

    def __init__(self) -> None:
        self._turn = 0

    def __call__(self, pose: NDArray[np.float64]) -> NDArray[np.float64]:
        self._turn += 1
        return pose + np.array([2e-6 * (self._turn % 2), 0.0, 0.0, 0.0, 0.0, 0.0])


def server_state(server: PolicyServer) -> dict[str, object]:
    """All that a refusal must leave as it is: a copy of whatever a policy server keeps, but for its locks."""
    kept = {}
    for name, value in vars(server).items():
        if name in ("_lock", "_clock", "_governor", "_watchdog", "_policy", "_interlock", "_rng"):
            continue
        kept[name] = value
    window, policy = server.window, server._policy
    return {
        **kept,
        "swap": server.swap,
        "motion": server.motion,
        "engine": id(server.engine),
        "window": (window.count, window.past_tokens.tobytes()),
        "history": (len(policy.history), policy.history.cleared_because, policy.answered().generation),
        "conditioning": id(policy.conditioning),
        "instruction": policy.instruction,
        **{f"interlock.{k}": repr(v) for k, v in vars(server._interlock).items() if k != "_watchdog"},
        "random": str(server._rng.bit_generator.state),
        "watchdog": {k: repr(v) for k, v in vars(server._watchdog).items() if k not in ("_contract", "limits")},
        "governor": {k: repr(v) for k, v in vars(server._governor).items() if k != "_contract"},
    }
