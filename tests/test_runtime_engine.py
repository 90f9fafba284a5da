"""The engine checks a bundle's graphs against its contract, and reports every fall-back."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from m2distill_policy.bundle import Bundle, open_bundle
from m2distill_policy.errors import BundleError, ConfigError, UnknownInstructionError
from m2distill_policy.runtime.engine import Engine, EngineError
from m2distill_policy.runtime.window import TokenWindow
from tests.bundles import EMBED, FILM, INSTRUCTIONS, MODES, TEXT, observations, toy_bundle, toy_contract, write_toy

CONTRACT = toy_contract()


def with_graph(bundle: Bundle, **graphs: bytes) -> Bundle:
    """Copy the bundle with other graphs (``step=...``, ``instruction=...``)."""
    return dataclasses.replace(bundle, graphs={**bundle.graphs, **{f"{k}.onnx": v for k, v in graphs.items()}})


def edited(bundle: Bundle, name: str, change: Any) -> bytes:
    """Return a graph's bytes after ``change(model)``."""
    model = onnx.load_from_string(bundle.graph(f"{name}.onnx"))
    change(model)
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_bundle(tmp_path_factory.mktemp("engine") / "bundle")


def test_step_uses_every_input(bundle: Bundle) -> None:
    engine = Engine(bundle)
    first, second = (engine.condition(text) for text in INSTRUCTIONS)
    assert first.text_token.shape == (1, EMBED) and first.film.shape == (1, FILM) and engine.film == FILM
    a, b = observations(CONTRACT, 2)
    window = engine.window()
    mixture, tokens = engine.step(first, a, window)
    assert mixture.logits.shape == (MODES,) and mixture.means.shape == mixture.scales.shape == (MODES, 7)
    assert tokens.shape == (1, 5, EMBED)
    assert window.count == 0, "the window is only read"
    means = [mixture.means]
    means.append(engine.step(second, a, window)[0].means)
    means.append(engine.step(first, b, window)[0].means)
    window.push(tokens)
    means.append(engine.step(first, a, window)[0].means)
    assert len({m.tobytes() for m in means}) == 4
    # What lies in slots that were never filled does not matter.
    dirty = TokenWindow(CONTRACT.history, 5, EMBED)
    dirty.past_tokens.fill(np.nan)
    dirty.push(tokens)
    assert np.array_equal(engine.step(first, a, dirty)[0].means, means[3])
    with pytest.raises(UnknownInstructionError):
        engine.condition("sing")


def test_two_engines_give_identical_results(bundle: Bundle) -> None:
    step = observations(CONTRACT, 1)[0]
    answers = []
    for _ in range(2):
        engine = Engine(bundle)
        answers.append(engine.step(engine.condition(INSTRUCTIONS[0]), step, engine.window())[0])
    assert np.array_equal(answers[0].means, answers[1].means)


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="a GPU is here")
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_fall_back_is_reported(bundle: Bundle, provider: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        engine = Engine(bundle, provider=provider)
    assert engine.requested == provider and engine.active_provider == "CPUExecutionProvider"
    assert engine.fallback is not None
    assert f"provider '{provider}' was requested, but CPUExecutionProvider runs" in engine.fallback
    assert "install onnxruntime-gpu" in engine.fallback
    assert engine.fallback in caplog.text


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="a GPU is here")
def test_failing_provider_is_reported_with_its_reason(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A build with CUDA on a machine where CUDA cannot start: it is available but fails when a session is created."""
    real = onnxruntime.InferenceSession

    def session(*arguments: Any, providers: list[tuple[str, dict[str, Any]]], **options: Any) -> Any:
        if providers[0][0] == "CUDAExecutionProvider":
            raise RuntimeError("CUDA failure 35")
        return real(*arguments, providers=providers, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    for provider in ("cuda", "auto"):
        engine = Engine(bundle, provider=provider)
        assert engine.active_provider == "CPUExecutionProvider"
        assert engine.fallback is not None and "CUDAExecutionProvider failed (CUDA failure 35)" in engine.fallback
    assert capsys.readouterr().out == ""


def test_damaged_graph_raises_only_bundle_errors(bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    """The hashes fit the damaged graph, so that ONNX Runtime itself loads it."""
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(100):
        name = str(rng.choice(["step.onnx", "instruction.onnx"]))
        data = bytearray(bundle.graph(name))
        if rng.random() < 0.2:
            data = data[: int(rng.integers(1, len(data)))]
        for _ in range(int(rng.integers(1, 4))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        try:
            Engine(dataclasses.replace(bundle, graphs={**bundle.graphs, name: bytes(data)}))
        except BundleError as error:
            refused += 1
            assert str(bundle.path) in str(error)
    assert refused > 30
    assert capfd.readouterr().out == ""


def test_cpu_and_auto_report_no_fall_back(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    assert Engine(bundle, provider="cpu").fallback is None
    assert Engine(bundle, provider="auto").fallback is None
    assert caplog.text == ""


def test_options_are_checked(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match=r"provider 'gpu' is unknown; choose one of \['cpu'"):
        Engine(bundle, provider="gpu")
    with pytest.raises(ConfigError, match="0 threads; at least 1"):
        Engine(bundle, threads=0)


def test_graph_of_another_contract(tmp_path: Path) -> None:
    other = toy_contract(48)
    sizes = write_toy(tmp_path / "size", graph_contract=other)
    with pytest.raises(
        BundleError,
        match=r"input 'agentview_rgb' of .*step.onnx' is tensor\(uint8\) \['batch', 48, 48, 3\]; "
        r"the contract needs tensor\(uint8\) \['batch', 32, 32, 3\]; export the bundle again",
    ):
        Engine(open_bundle(sizes))
    fewer = dataclasses.replace(CONTRACT, cameras=CONTRACT.cameras[:1])
    with pytest.raises(BundleError, match=r"missing \['eye_in_hand_rgb'\], not expected \[\]"):
        Engine(open_bundle(write_toy(tmp_path / "views", graph_contract=fewer)))
    with pytest.raises(
        BundleError, match=r"input 'past_tokens' of .* is tensor\(float\) \['batch', 4, 5, 8\]; .* 9, 5, 8\]"
    ):
        Engine(open_bundle(write_toy(tmp_path / "past", graph_contract=toy_contract(history=5))))


def test_file_that_is_not_a_graph(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"step.onnx' cannot be loaded by ONNX Runtime .*; export the bundle again"):
        Engine(with_graph(bundle, step=b"not a graph"))
    with pytest.raises(BundleError, match=r"instruction.onnx' cannot be loaded"):
        Engine(with_graph(bundle, instruction=b""))


def test_wrong_names_and_types(bundle: Bundle) -> None:
    def rename(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.output[:] = ["token" if n == "text_token" else n for n in node.output]
        model.graph.output[0].name = "token"

    with pytest.raises(BundleError, match=r"missing \['text_token'\], not expected \['token'\]"):
        Engine(with_graph(bundle, instruction=edited(bundle, "instruction", rename)))

    double = helper.make_graph(
        [
            helper.make_node("Cast", ["embedding"], ["e"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["e", "a"], ["text_token"]),
            helper.make_node("MatMul", ["e", "b"], ["film"]),
        ],
        "instruction",
        [helper.make_tensor_value_info("embedding", TensorProto.DOUBLE, ["batch", TEXT])],
        [
            helper.make_tensor_value_info("text_token", TensorProto.FLOAT, ["batch", EMBED]),
            helper.make_tensor_value_info("film", TensorProto.FLOAT, ["batch", FILM]),
        ],
        [
            onnx.numpy_helper.from_array(np.zeros((TEXT, EMBED), np.float32), "a"),
            onnx.numpy_helper.from_array(np.zeros((TEXT, FILM), np.float32), "b"),
        ],
    )
    model = helper.make_model(double, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    with pytest.raises(BundleError, match=r"input 'embedding' of .* is tensor\(double\)"):
        Engine(with_graph(bundle, instruction=model.SerializeToString()))


def test_open_output_shape_is_checked_by_the_first_answer(bundle: Bundle) -> None:
    def shorten(model: onnx.ModelProto) -> None:
        """Drop one logit in a way that shape inference cannot see."""
        for node in model.graph.node:
            node.output[:] = ["all_logits" if n == "logits" else n for n in node.output]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([True, True, False]), "which"))
        model.graph.node.append(helper.make_node("Compress", ["all_logits", "which"], ["logits"], axis=1))
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "any"

    with pytest.raises(
        BundleError, match=r"output 'logits' .* has the shape \(2,\); the contract needs \(3,\)|has logits \(2,\)"
    ):
        Engine(with_graph(bundle, step=edited(bundle, "step", shorten)))


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    sick = open_bundle(write_toy(tmp_path / "sick", bias_nan=True))
    with pytest.raises(BundleError, match=r"does not answer a blank observation: .* means are not finite"):
        Engine(sick)


def test_failure_while_running_is_an_engine_error(bundle: Bundle) -> None:
    engine = Engine(bundle)
    conditioning = engine.condition(INSTRUCTIONS[0])
    step = observations(toy_contract(48), 1)[0]
    with pytest.raises(
        EngineError, match=rf"ONNX Runtime \(CPUExecutionProvider\) failed on bundle {bundle.identifier}"
    ):
        engine.step(conditioning, step, engine.window())
