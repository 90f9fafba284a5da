"""The two graphs of a bundle in ONNX Runtime, checked against the contract when they are loaded."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from m2distill_policy.bundle import INSTRUCTION_GRAPH, STEP_GRAPH, Bundle
from m2distill_policy.errors import BundleError, ConfigError, M2DistillError, closest
from m2distill_policy.observation import Observation
from m2distill_policy.runtime.mixture import Mixture, PolicyOutputError
from m2distill_policy.runtime.run_timeout import LONGEST_ANSWER, OverdueError, RunGuard
from m2distill_policy.runtime.window import TokenWindow

logger = logging.getLogger(__name__)

_CPU = ("CPUExecutionProvider",)
#: Execution providers for each value of ``provider``, in the order in which they are tried. ``auto`` leaves out
#: TensorRT, because it compiles for minutes.
PROVIDERS: Mapping[str, tuple[str, ...]] = {
    "cpu": _CPU,
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
    "auto": ("CUDAExecutionProvider", "CPUExecutionProvider"),
}
#: Full float32 on GPUs too: TF32 alone changes a mixture's parameters by more than the export's tolerance.
_PROVIDER_OPTIONS: Mapping[str, dict[str, Any]] = {
    "CUDAExecutionProvider": {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"},
}
#: Seconds that the first answer may take; the second value is for TensorRT, which compiles during that answer.
_LONGEST_FIRST_ANSWER = 30.0
_LONGEST_COMPILATION = 1800.0
_OUTPUTS = ("logits", "means", "scales", "tokens")


class EngineError(M2DistillError):
    """ONNX Runtime failed while it computed an answer."""


@dataclass(frozen=True)
class Conditioning:
    """Outputs of the instruction graph, computed once for each instruction: text_token (1, E), film (1, F)."""

    instruction: str
    text_token: NDArray[np.float32]
    film: NDArray[np.float32]


class Engine:
    """A bundle's network, ready to run. Not thread-safe: use it from one thread at a time.

    Args:
        bundle: An opened bundle.
        provider: Where to run: ``cpu``, ``cuda``, ``tensorrt`` or ``auto``.
        threads: Threads of one operator. With 1, results are the same on all machines of a kind, and the other cores
            stay free for cameras and control.
        before_parse: Called before each of the two graphs is parsed. ONNX Runtime holds the interpreter's lock while it
            parses (about 10 ms for 16 MB).
        cancelled: Once set, running and later calls raise :class:`EngineError`.

    Attributes:
        active_provider: Name of the execution provider that runs.
        fallback: Message if ``active_provider`` is not the requested provider, else None; also logged as a warning.
            ``auto`` on a machine without a GPU is not a fall-back.

    Raises:
        BundleError: A graph cannot be loaded, does not have the contract's inputs and outputs, or does not answer a
            blank observation with a mixture.
        ConfigError: ``provider`` or ``threads`` is not allowed.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        provider: str = "cpu",
        threads: int = 1,
        before_parse: Callable[[], object] = lambda: None,
        cancelled: threading.Event | None = None,
    ) -> None:
        if provider not in PROVIDERS:
            raise ConfigError(
                f"provider '{provider}' is unknown; choose one of {list(PROVIDERS)}{closest(provider, PROVIDERS)}"
            )
        if threads < 1:
            raise ConfigError(f"the engine was given {threads} threads; at least 1 is needed")
        assert bundle.contract.text is not None  # open_bundle refuses contracts without text
        self.bundle = bundle
        self.contract = bundle.contract
        self.requested = provider
        self._threads = threads
        self._before_parse = before_parse
        self.embed = int(bundle.network["embed"])
        self.tokens = int(bundle.network["tokens"])
        self.modes = int(bundle.network["modes"])
        self._views = self.contract.camera_names
        self._groups = self.contract.proprioception_names
        self.fallback: str | None = None
        available = onnxruntime.get_available_providers()
        self._try = [name for name in PROVIDERS[provider] if name in available] or list(_CPU)
        best = PROVIDERS[provider][0] if provider != "auto" else self._try[0]
        compiles = self._try[0] == "TensorrtExecutionProvider"
        self._guard = RunGuard(_LONGEST_COMPILATION if compiles else _LONGEST_FIRST_ANSWER, cancelled)
        self._report = ""
        self._instruction = self._session(INSTRUCTION_GRAPH)
        self._step = self._session(STEP_GRAPH)
        self.active_provider = str(self._step.get_providers()[0])
        if self.active_provider != best:
            self.fallback = (
                f"provider '{provider}' was requested, but {self.active_provider} runs: "
                + (self._report or f"ONNX Runtime {onnxruntime.__version__} here offers {', '.join(available)}")
                + "; install onnxruntime-gpu with its CUDA libraries, or use 'cpu'"
            )
            logger.warning("%s", self.fallback)
        try:
            self.film = self._check_signature()
        except UnicodeDecodeError as error:  # names of inputs and outputs in a damaged graph
            raise BundleError(
                f"the graphs of '{bundle.path}' have names that cannot be read ({error}); export the bundle again"
            ) from error
        self._check_answer()

    # --- running -----------------------------------------------------------------------------------------------------

    def window(self) -> TokenWindow:
        """Return an empty window of this network's sizes."""
        return TokenWindow(self.contract.history, self.tokens, self.embed)

    def condition(self, instruction: str) -> Conditioning:
        """Compute the network's conditioning on ``instruction``.

        Raises:
            UnknownInstructionError: The bundle does not know the instruction.
            EngineError: ONNX Runtime failed.
        """
        return self._condition(instruction, self.bundle.embedding(instruction))

    def _condition(self, instruction: str, embedding: NDArray[np.float32]) -> Conditioning:
        text_token, film = self._run(self._instruction, ("text_token", "film"), {"embedding": embedding[None]})
        width = self.film or film.shape[-1]  # a width that the graphs do not state is checked when the step graph runs
        self._check_shapes(INSTRUCTION_GRAPH, ("text_token", text_token, (self.embed,)), ("film", film, (width,)))
        return Conditioning(instruction, text_token, film)

    def limit_answers(self, longest: float) -> None:
        """Abort answers that take longer than ``longest`` s; the default is :data:`LONGEST_ANSWER`."""
        self._guard.longest = longest

    def step(
        self, conditioning: Conditioning, observation: Observation, window: TokenWindow
    ) -> tuple[Mixture, NDArray[np.float32]]:
        """Run one control step. The window is not changed.

        Args:
            conditioning: Result of :meth:`condition`.
            observation: Observation that has passed :meth:`Observation.check`.
            window: Tokens of the earlier steps.

        Returns:
            The mixture over the next action, and this step's tokens (1, T, E) for ``window.push``.

        Raises:
            EngineError: ONNX Runtime failed.
        """
        feed: dict[str, NDArray[Any]] = {
            "text_token": conditioning.text_token,
            "film": conditioning.film,
            "past_tokens": window.past_tokens,
            "past_count": window.past_count,
        }
        for name in self._views:
            feed[name] = observation.images[name][None]
        for name in self._groups:
            feed[name] = np.asarray(observation.proprioception[name], dtype=np.float32)[None]
        logits, means, scales, tokens = self._run(self._step, _OUTPUTS, feed)
        size = self.contract.action.size
        self._check_shapes(
            STEP_GRAPH,
            ("logits", logits, (self.modes,)),
            ("means", means, (self.modes, size)),
            ("scales", scales, (self.modes, size)),
            ("tokens", tokens, (self.tokens, self.embed)),
        )
        return Mixture(logits[0], means[0], scales[0]), tokens

    def _run(
        self, session: onnxruntime.InferenceSession, outputs: tuple[str, ...], feed: dict[str, NDArray[Any]]
    ) -> list[NDArray[np.float32]]:
        try:
            return self._guard.run(session, outputs, feed)
        except OverdueError as error:
            raise EngineError(f"bundle {self.bundle.identifier} was aborted: {error.reason}") from error
        # The exceptions of ONNX Runtime have no common base class below Exception. Each of them ends only one step.
        except Exception as error:
            raise EngineError(
                f"ONNX Runtime ({session.get_providers()[0]}) failed on bundle {self.bundle.identifier}: {error}"
            ) from error

    def _check_shapes(self, graph: str, *outputs: tuple[str, NDArray[Any], tuple[int, ...]]) -> None:
        # Checked for every answer, because an output's shape may depend on the input.
        for name, got, wanted in outputs:
            if got.shape != (1, *wanted):
                one = got.shape[:1] == (1,)  # then the message leaves the batch axis out
                raise EngineError(
                    f"output '{name}' of '{graph}' in bundle {self.bundle.identifier} has the shape "
                    f"{got.shape[1:] if one else got.shape}; the contract needs {wanted if one else (1, *wanted)}; "
                    "export the bundle again"
                )

    # --- loading -----------------------------------------------------------------------------------------------------

    def _session(self, name: str) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.use_deterministic_compute = True
        # Spinning worker threads would use the cores that cameras and control need between two steps.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        graph = self.bundle.graph(name)
        while True:
            self._before_parse()
            try:
                return onnxruntime.InferenceSession(
                    graph,
                    options,
                    providers=[(p, _PROVIDER_OPTIONS.get(p, {})) for p in self._try],
                    # ONNX Runtime's own fall-back prints to stdout and does not report which provider runs.
                    enable_fallback=False,
                )
            except Exception as error:  # see _run
                if self._try != list(_CPU):
                    self._report = f"{self._try[0]} failed ({error})"
                    self._try = list(_CPU)
                    continue
                raise BundleError(
                    f"'{self.bundle.path / name}' cannot be loaded by ONNX Runtime {onnxruntime.__version__}: {error}; "
                    "export the bundle again with this version"
                ) from error

    def _check_signature(self) -> int:
        contract = self.contract
        assert contract.text is not None
        where = self.bundle.path
        film = _dimension(self._instruction.get_outputs(), "film", 1)
        if film is None:
            film = _dimension(self._step.get_inputs(), "film", 1)
        width = self.embed
        instruction_in = {"embedding": ("float", (contract.text.size,))}
        instruction_out = {"text_token": ("float", (width,)), "film": ("float", (film,))}
        step_in: dict[str, tuple[str, tuple[int | None, ...]]] = {
            "text_token": ("float", (width,)),
            "film": ("float", (film,)),
            "past_tokens": ("float", (contract.history - 1, self.tokens, width)),
            "past_count": ("int64", ()),
        }
        step_in |= {camera.name: ("uint8", camera.shape) for camera in contract.cameras}
        step_in |= {group.name: ("float", (group.size,)) for group in contract.proprioception}
        size = contract.action.size
        step_out = {
            "logits": ("float", (self.modes,)),
            "means": ("float", (self.modes, size)),
            "scales": ("float", (self.modes, size)),
            "tokens": ("float", (self.tokens, width)),
        }
        _check_ports(f"'{where / INSTRUCTION_GRAPH}'", "input", self._instruction.get_inputs(), instruction_in)
        _check_ports(f"'{where / INSTRUCTION_GRAPH}'", "output", self._instruction.get_outputs(), instruction_out)
        _check_ports(f"'{where / STEP_GRAPH}'", "input", self._step.get_inputs(), step_in)
        _check_ports(f"'{where / STEP_GRAPH}'", "output", self._step.get_outputs(), step_out)
        return film or 0

    def _check_answer(self) -> None:
        """Run both graphs twice.

        The first run warms up and shows output shapes that an exporter may leave open. The second run has the same time
        limit as later answers.
        """
        try:
            for _ in range(2):
                conditioning = self._condition(self.bundle.instructions[0], self.bundle.embeddings[0])
                mixture, tokens = self.step(conditioning, blank_observation(self.bundle), self.window())
                mixture.check()
                self._guard.longest = LONGEST_ANSWER
        except (EngineError, PolicyOutputError) as error:
            raise BundleError(f"bundle '{self.bundle.path}' does not answer a blank observation: {error}") from error
        if not np.isfinite(tokens).all():
            raise BundleError(
                f"the tokens of '{self.bundle.path / STEP_GRAPH}' are not finite; export the bundle again"
            )


def blank_observation(bundle: Bundle, stamp: float = 0.0) -> Observation:
    """Make an observation with grey images and proprioception of zero, or of the nearest allowed value."""
    contract = bundle.contract
    return Observation(
        images={c.name: np.full(c.shape, 128, dtype=np.uint8) for c in contract.cameras},
        proprioception={
            g.name: np.full(g.size, min(max(0.0, g.low), g.high), dtype=np.float32) for g in contract.proprioception
        },
        stamp=stamp,
    )


def _dimension(ports: list[Any], name: str, axis: int) -> int | None:
    for port in ports:
        if port.name == name and len(port.shape) > axis and isinstance(port.shape[axis], int):
            return int(port.shape[axis])
    return None


def _check_ports(
    graph: str, kind: str, ports: list[Any], wanted: Mapping[str, tuple[str, tuple[int | None, ...]]]
) -> None:
    """Compare a graph's inputs or outputs with ``wanted``: name -> (element type, shape without the batch axis)."""
    found = {port.name: port for port in ports}
    only_here, only_there = sorted(set(found) - set(wanted)), sorted(set(wanted) - set(found))
    if only_here or only_there:
        raise BundleError(
            f"{graph} does not have the contract's {kind}s: missing {only_there}, not expected {only_here}; "
            "export the bundle again"
        )
    for name, (element, shape) in wanted.items():
        port = found[name]
        dims = list(port.shape)
        fits = len(dims) == len(shape) + 1 and (not isinstance(dims[0], int) or dims[0] == 1)
        for got, want in zip(dims[1:], shape, strict=False):
            # An axis that the exporter left open is checked on the first answer, see _check_answer.
            fits = fits and (not isinstance(got, int) or want is None or got == want)
        if port.type != f"tensor({element})" or not fits:
            raise BundleError(
                f"{kind} '{name}' of {graph} is {port.type} {dims}; the contract needs tensor({element}) "
                f"{['batch', *shape]}; export the bundle again"
            )
