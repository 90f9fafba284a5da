"""Bundles: manifests with fields changed and hashes made to fit, and damage to every file.

An input is a folder's files, see :func:`tests.fuzz.door.pack`. What opens drives a policy for some steps and ramps to a
halt; some inputs are swapped into a policy that drives already.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from m2distill_policy.bundle import INSTRUCTION_GRAPH, INSTRUCTIONS, STEP_GRAPH, VIEWS, Bundle, open_bundle
from m2distill_policy.bundle_files import DIGEST, MANIFEST, digest_line
from m2distill_policy.contract import Contract
from m2distill_policy.errors import M2DistillError
from m2distill_policy.runtime.decision import Decision
from m2distill_policy.runtime.probe import ProbeLimits, mark_proved, prove
from m2distill_policy.runtime.safety import SafetyLimits
from m2distill_policy.runtime.server import PolicyServer
from m2distill_policy.runtime.status import SwapState
from m2distill_policy.runtime.watchdog import WatchLimits
from tests.bundles import INSTRUCTIONS as TEXTS
from tests.bundles import observations, toy_contract, write_toy
from tests.fuzz.choice import NUMBERS, Choice
from tests.fuzz.door import Door, Folder, pack, unpack
from tests.fuzz.expected import within
from tests.fuzz.invariant import finite, require

#: (6,) m/s and rad/s.
SPEED = (0.05, 0.05, 0.05, 0.2, 0.2, 0.2)
STEPS = 6
#: s of answers after which an input has been driven enough: one may take 2 s.
ENOUGH = 1.0
#: A swap that takes longer than this is a finding, s.
LONGEST_SWAP = 60.0
#: What a bundle may take until its first answer: less than a node gives it, because many inputs are made to take long.
LIMITS = ProbeLimits(timeout=8.0)


def rehashed(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same files with hashes that fit, and a digest of the manifest."""
    manifest = files.get(MANIFEST, b"")
    try:
        tree = json.loads(manifest)
        listed = {name: hashlib.sha256(data).hexdigest() for name, data in files.items() if name in tree["files"]}
        if tree["files"] != listed:
            tree["files"] = listed
            manifest = json.dumps(tree, indent=2, sort_keys=True).encode()
    except (KeyError, ValueError, TypeError, RecursionError):
        pass  # a manifest that is no JSON keeps its bytes
    return {**files, MANIFEST: manifest, DIGEST: digest_line(manifest)}


class Driver:
    """Drives a policy server and looks at every decision."""

    def __init__(self, server: PolicyServer, speed: tuple[float, ...] | None) -> None:
        self._server = server
        self._speed = speed
        self._now = 0.0
        self._twist = np.zeros(6)

    def check(self, decision: Decision) -> None:
        """The command is finite and inside the limits of the server that gave it."""
        contract = self._server.contract
        finite("an action", decision.action, -1.0, 1.0)
        if self._speed is not None:
            speed = np.array(self._speed)
            finite("a twist", contract.action.response.twist(decision.action), -speed, speed)
        else:
            finite("a twist", contract.action.response.twist(decision.action), -1e3, 1e3)
        twist = contract.action.response.twist(decision.action)
        acceleration = self._server.limits.acceleration
        if acceleration is not None and decision.status.motion == "running":
            most = np.array(acceleration) * contract.period
            within("the velocity changes faster than the acceleration limit", twist - self._twist, most, 1e-5)
        self._twist = twist
        finite("a sample", decision.sample, -np.inf, np.inf)
        require(decision.status.motion in ("running", "halting", "halted"), "no such motion", decision.status.motion)

    def drive(self, steps: int, seed: int = 0) -> None:
        """Answer ``steps`` observations of the contract's form, or fewer that took long."""
        enough = time.monotonic() + ENOUGH
        for observation in observations(self._server.contract, steps, seed=seed, start=self._now):
            decision = self._server.step(observation, observation.stamp)
            self.check(decision)
            self._now = observation.stamp
            if time.monotonic() > enough:
                break
        self._now += self._server.contract.period

    def halt(self) -> None:
        """Ramp to a halt, which ends within a second of halt times and never speeds up."""
        self._server.halt("the fuzzer wants it")
        last = np.abs(self._server.tick_without_observation(self._now).action[:6])
        for _ in range(200):
            decision = self._server.tick_without_observation(self._now)
            self.check(decision)
            size = np.abs(decision.action[:6])
            require(bool((size <= last + 1e-9).all()), "a ramp to a halt speeds up", (last.tolist(), size.tolist()))
            last = size
            if decision.status.motion == "halted":
                require(not decision.action[:6].any(), "a halted arm moves", decision.action.tolist())
                return
        require(False, "a ramp to a halt does not end")


class BundleDoor(Door):
    """See the module's text."""

    name = "bundle"
    # A first answer within the probe's time, a second one, and two drives of at most ENOUGH and one more answer each.
    seconds = 20.0
    mebibytes = 1024

    def __init__(self) -> None:
        self._folder = Folder("candidate")
        with tempfile.TemporaryDirectory() as folder:
            self._bases = [self._written(Path(folder) / str(index), **kind) for index, kind in enumerate(_KINDS)]
            self._good = open_bundle(Path(folder) / "0")
        self._graphs = {files[name] for files in self._bases for name in (STEP_GRAPH, INSTRUCTION_GRAPH)}

    @staticmethod
    def _written(path: Path, **kind: Any) -> dict[str, bytes]:
        write_toy(path, **kind)
        return {file.name: file.read_bytes() for file in path.iterdir()}

    # --- letting in ---------------------------------------------------------------------------------------------------

    def run(self, data: bytes) -> None:
        """See :class:`Door`."""
        files = unpack(data)
        if files is None:
            return
        path = self._folder.fill(files)
        number = int.from_bytes(hashlib.sha256(data).digest()[:4], "little")
        known = all(files.get(name) in self._graphs for name in (STEP_GRAPH, INSTRUCTION_GRAPH))
        if number % 8 == 0:
            self._swapped(path, known, limited=number % 16 == 0)
        else:
            self._served(self._opened(path, known), number)

    @staticmethod
    def _opened(path: Path, known: bool) -> Bundle:
        """As a node opens the bundle that it starts with, see :func:`open_and_prove`. Graphs that nobody has changed
        are not tried in a process of their own, which takes a hundred times as long."""
        bundle = open_bundle(path)
        if known:
            mark_proved(bundle)
        prove(bundle, LIMITS)
        return bundle

    def _served(self, bundle: Bundle, number: int) -> None:
        contract = bundle.contract
        speed = SPEED if number % 3 else None
        limits = SafetyLimits(speed=speed, acceleration=(1.0,) * 6 if number % 5 == 0 else None)
        server = PolicyServer(
            bundle,
            limits=limits,
            watch=WatchLimits.lockstep(),
            sampling=("low_noise", "mode", "sample")[number % 7 % 3],
            temperature=(1.0, 0.1, 5.0)[number % 11 % 3],
            seed=number % 100,
        )
        try:
            pixels = sum(camera.height * camera.width for camera in contract.cameras)
            driver = Driver(server, speed)
            for instruction in bundle.instructions[:2]:
                server.set_instruction(instruction)
                driver.drive(STEPS if pixels < 1 << 18 else 1, seed=number)
            driver.halt()
            bundle.identifier, bundle.task_names, repr(bundle)
            for name in bundle.views:
                bundle.view(name)
        finally:
            server.close()

    def _swapped(self, path: Path, known: bool, *, limited: bool) -> None:
        """A candidate for a policy that drives: refused, or as slow as what the operator started."""
        speed = SPEED if limited else None
        server = PolicyServer(
            self._good, limits=SafetyLimits(speed=speed), watch=WatchLimits.lockstep(), swap_when="now", probe=LIMITS
        )
        try:
            server.set_instruction(TEXTS[0])
            top = self._good.contract.action.response.twist(np.ones(7))
            driver = Driver(server, speed or tuple(top))
            driver.drive(2)
            if known:
                with contextlib.suppress(M2DistillError):
                    self._opened(path, known)
            server.load(path)
            report = server.wait_for_swap(LONGEST_SWAP)
            require(report.state in (SwapState.REFUSED, SwapState.SWITCHED), "a swap has no end", report)
            require(bool(report.message), "a swap says nothing", report)
            require(len(report.message) < 10_000, "a swap says too much", len(report.message))
            driver.drive(3, seed=1)
            driver.halt()
            if report.state is SwapState.REFUSED:
                raise _Refused(report.message)
        finally:
            server.close()

    # --- making -------------------------------------------------------------------------------------------------------

    def seeds(self) -> list[bytes]:
        """See :class:`Door`."""
        return [pack(files) for files in self._bases]

    def change(self, choice: Choice, data: bytes) -> bytes:
        """See :class:`Door`."""
        files = unpack(data)
        if files is None or MANIFEST not in files or choice.chance(3):
            files = dict(choice.pick(self._bases))
        fits = not choice.chance(6)
        for _ in range(choice.pick((1, 1, 2, 3))):
            kind = choice.integer(0, 25)
            if kind > 19 or kind <= 12:
                files = self._with_field(choice, files)
            elif kind <= 14:
                name = choice.pick(sorted(files))
                files[name] = choice.damaged(files[name])
            elif kind <= 16:
                files = self._with_arrays(choice, files)
            elif kind <= 18:
                files = self._with_graph(choice, files)
            else:
                name = choice.pick(sorted(files))
                piece = files.pop(name) if choice.chance(2) else choice.raw(50)
                files[choice.pick((name, "more.onnx", "views.npz", "a" * 100, "bundle.sha256", "weights.bin"))] = piece
        return pack(rehashed(files) if fits else files)

    @staticmethod
    def _with_field(choice: Choice, files: dict[str, bytes]) -> dict[str, bytes]:
        try:
            manifest = json.loads(files[MANIFEST])
            if not isinstance(manifest, dict):
                raise TypeError
        except (KeyError, ValueError, TypeError, RecursionError):
            return files
        part = choice.pick(("contract", "contract", "contract", "action", "network", "tasks", "all"))
        if choice.chance(2):
            for _ in range(choice.pick((1, 1, 2, 4))):
                _make_plausible(choice, manifest)
        elif part == "all":
            manifest = choice.edited(manifest)
        elif part == "action" and isinstance(manifest.get("contract"), dict):
            manifest["contract"]["action"] = choice.edited(manifest["contract"].get("action"), choice.integer(1, 2))
        else:
            manifest[part] = choice.edited(manifest.get(part), choice.integer(1, 2))
        try:
            text = json.dumps(manifest, indent=2, sort_keys=choice.chance(2))
        except (TypeError, ValueError, RecursionError):
            return files
        if choice.chance(12):
            text = choice.damaged(text.encode("utf-8", "replace")).decode("utf-8", "replace")
        return {**files, MANIFEST: text.encode("utf-8", "replace")}

    @staticmethod
    def _with_arrays(choice: Choice, files: dict[str, bytes]) -> dict[str, bytes]:
        name = choice.pick((INSTRUCTIONS, INSTRUCTIONS, VIEWS))
        try:
            with np.load(io.BytesIO(files[name]), allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
        except (KeyError, ValueError, OSError, EOFError, MemoryError, RuntimeError, NotImplementedError, SyntaxError):
            return files
        except Exception:  # zipfile and zlib have errors of their own; nothing to change here then
            return files
        if not arrays:
            return files
        key = choice.pick(sorted(arrays))
        value = np.atleast_1d(arrays[key])  # an input that was kept may hold a single number
        kind = choice.integer(0, 7)
        if kind == 0:
            arrays[key] = value[:0]
        elif kind == 1:
            arrays[key] = np.concatenate([value, value])
        elif kind == 2:
            kinds = (np.float64, np.float16, np.int32) if value.dtype.kind != "U" else (np.dtype("U5"), np.dtype("U99"))
            arrays[key] = value.astype(choice.pick(kinds))
        elif kind == 3 and value.dtype.kind == "f":
            arrays[key] = np.full_like(value, choice.real())
        elif kind == 4:
            arrays[choice.pick(("more", "a/b", "../x", key + ".npy"))] = arrays.pop(key)
        elif kind == 5:
            arrays[key] = np.reshape(value, (1, *value.shape))
        elif kind == 6 and value.dtype.kind == "U":
            arrays[key] = np.array([choice.text().replace("\ud800", "") for _ in range(len(value))])
        else:
            arrays[key] = np.zeros(choice.pick(((), (0, 12), (1 << 16,), (2, 0))), dtype=value.dtype)
        packed = io.BytesIO()
        try:
            np.savez_compressed(packed, **arrays)
        except (ValueError, TypeError, KeyError):
            return files
        data = packed.getvalue()
        return {**files, name: choice.damaged(data) if choice.chance(6) else data}

    @staticmethod
    def _with_graph(choice: Choice, files: dict[str, bytes]) -> dict[str, bytes]:
        name = choice.pick((STEP_GRAPH, STEP_GRAPH, "instruction.onnx"))
        try:
            model = onnx.load_model_from_string(files[name])
            _change_graph(choice, model)
            return {**files, name: model.SerializeToString()}
        except Exception:  # protobuf's and onnx's errors; damaged models are changed as bytes
            return files


def _make_plausible(choice: Choice, manifest: dict[str, Any]) -> None:
    """Change fields to what another robot, or another run, could have: most of it opens."""
    with contextlib.suppress(KeyError, TypeError, AttributeError, ValueError):
        contract = manifest["contract"]
        action, factor = contract["action"], choice.pick((0.1, 0.5, 0.9, 0.99, 1.01, 1.2, 1.3, 2.0, 10.0, 100.0))
        kind = choice.integer(0, 8)
        if kind >= 6:
            _make_harmless(choice, manifest)
        elif kind == 0:
            rows = action["response"]["velocities"]
            action["response"]["velocities"] = [[value * factor for value in row] for row in rows]
        elif kind == 1:
            row = choice.pick(action["response"]["velocities"])
            row[-1] *= factor
        elif kind == 2:
            name = choice.pick(("translation_scale", "rotation_scale"))
            action[name] *= factor
        elif kind == 3:
            contract["rate_hz"] *= factor
        elif kind == 4:
            group = choice.pick(contract["proprioception"])
            group[choice.pick(("low", "high"))] *= factor
        else:
            choice.pick(contract["cameras"])["fov_y"] *= factor


def _make_harmless(choice: Choice, manifest: dict[str, Any]) -> None:
    """Change what another training run, or another robot, would have otherwise."""
    contract, kind = manifest["contract"], choice.integer(0, 4)
    if kind == 0:
        provenance = manifest["provenance"]
        provenance[choice.pick((*provenance, "note"))] = choice.pick(("x", "run 7", "0" * 64))
    elif kind == 1:
        task = choice.pick(manifest["tasks"])
        task["name"] = choice.pick((task["name"] + "_2", "lift", "a" * 60))
    elif kind == 2:  # another response of the same top speeds: what a refit gives
        response = contract["action"]["response"]
        for row in response["velocities"]:
            row[1:-1] = [row[-1] * value for value in np.linspace(0, 1, len(row))[1:-1] ** choice.pick((0.8, 1.1, 2))]
    elif kind == 3:
        response = contract["action"]["response"]
        response["levels"] = [0.0, 0.1, 1.0]
        response["velocities"] = [[0.0, row[-1] / choice.pick((2, 5, 10)), row[-1]] for row in response["velocities"]]
    else:
        group = choice.pick(contract["proprioception"])
        group["low"], group["high"] = group["low"] * 1.5, group["high"] * 2


def _change_graph(choice: Choice, model: Any) -> None:
    graph = model.graph
    kind = choice.integer(0, 8)
    if kind <= 1 and graph.initializer:
        weight = choice.pick(list(graph.initializer))
        values = numpy_helper.to_array(weight).copy()
        if values.dtype.kind == "f" and values.size:
            with np.errstate(over="ignore"):
                values.reshape(-1)[choice.integer(0, values.size - 1) :] = choice.pick([float(n) for n in NUMBERS])
        elif values.size:
            values.reshape(-1)[choice.integer(0, values.size - 1)] = choice.pick((-1, 0, 2, 7, 10**6, 2**40))
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    elif kind == 2 and graph.initializer:
        weight = choice.pick(list(graph.initializer))
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", choice.pick(("weights.bin", "../weights.bin", "/etc/passwd", "/dev/zero"))),
                           ("offset", choice.pick(("0", "-1", "99999999999"))),
                           ("length", choice.pick(("0", "32", "99999999999")))):  # fmt: skip
            entry = weight.external_data.add()
            entry.key, entry.value = key, value
    elif kind == 3 and graph.node:
        node = choice.pick(list(graph.node))
        node.op_type = choice.pick(
            ("Add", "Mul", "Identity", "Exp", "Log", "Div", "Reciprocal", "Sqrt", "Tile", "Loop")
        )
    elif kind == 4 and graph.node:
        node = choice.pick(list(graph.node))
        if node.input:
            names = [output for other in graph.node for output in other.output] + [w.name for w in graph.initializer]
            node.input[choice.integer(0, len(node.input) - 1)] = choice.pick(names)
    elif kind == 5:
        port = choice.pick([*graph.input, *graph.output])
        dims = port.type.tensor_type.shape.dim
        if dims:
            dim = dims[choice.integer(0, len(dims) - 1)]
            dim.dim_value = choice.pick((0, 1, 2, 7, 10**6, 2**31, -1))
        if choice.chance(3):
            port.type.tensor_type.elem_type = choice.integer(0, 20)
    elif kind == 6 and graph.node and choice.chance(4):
        _insert_growth(choice, graph)
    elif kind == 7:
        model.opset_import[0].version = choice.pick((1, 6, 13, 17, 18, 21, 99, 0))
        model.ir_version = choice.pick((3, 8, 9, 10, 99))
    elif graph.node:
        graph.node.remove(choice.pick(list(graph.node)))


def _insert_growth(choice: Choice, graph: Any) -> None:
    """A node that makes its output large, or takes long."""
    node = choice.pick(list(graph.node))
    if not node.output:
        return
    old = node.output[0]
    node.output[0] = old + "_before"
    times = choice.pick((1, 1000, 10**6, 10**9))
    kind = choice.integer(0, 1)
    if kind == 0:
        graph.initializer.append(numpy_helper.from_array(np.array([times], dtype=np.int64), old + "_times"))
        graph.node.append(onnx.helper.make_node("Expand", [node.output[0], old + "_times"], [old]))
    else:
        body = onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", ["go"], ["go_on"]), onnx.helper.make_node("Add", ["x", "x"], ["y"])],
            "body",
            [onnx.helper.make_tensor_value_info("i", onnx.TensorProto.INT64, []),
             onnx.helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, []),
             onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)],
            [onnx.helper.make_tensor_value_info("go_on", onnx.TensorProto.BOOL, []),
             onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        )  # fmt: skip
        graph.initializer.append(numpy_helper.from_array(np.array(times, dtype=np.int64), old + "_times"))
        graph.initializer.append(numpy_helper.from_array(np.array(True), old + "_go"))
        graph.node.append(
            onnx.helper.make_node("Loop", [old + "_times", old + "_go", node.output[0]], [old], body=body)
        )
    # Where it stood: the nodes behind it read what it makes.
    index = list(graph.node).index(node)
    made = graph.node.pop()
    graph.node.insert(index + 1, made)


class _Refused(M2DistillError):
    """A swap was refused."""


def _contract(**changes: Any) -> Contract:
    return dataclasses.replace(toy_contract(16), **changes)


_VIEWS = {camera.name: np.full(camera.shape, 128, dtype=np.uint8) for camera in toy_contract(16).cameras}
#: What seeds are made of: LIBERO's contract as tests use it, and others that are allowed too.
_KINDS: list[dict[str, Any]] = [
    {"contract": toy_contract(16)},
    {"contract": toy_contract(16), "seed": 1, "views": _VIEWS},
    {"contract": _contract(history=1, rate_hz=10.0), "seed": 2},
    {"contract": _contract(cameras=toy_contract(24).cameras[:1]), "seed": 3, "instructions": TEXTS[:1]},
]


def make() -> Door:
    """The door."""
    return BundleDoor()
