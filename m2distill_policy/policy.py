"""A trained policy as a Python object: images and proprioception in, an action out."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m2distill_policy.bundle import open_bundle
from m2distill_policy.bundle_files import bundle_folder
from m2distill_policy.bundle_signature import PublicKey
from m2distill_policy.contract import Contract
from m2distill_policy.errors import ConfigError, M2DistillError, ObservationError
from m2distill_policy.images.preprocess import preprocess
from m2distill_policy.installation import PRETRAINED
from m2distill_policy.observation import Observation
from m2distill_policy.runtime.engine import Conditioning, Engine
from m2distill_policy.runtime.mixture import Mixture, Sampling, check_sampling


class PolicyError(M2DistillError):
    """A method of the policy was called too early."""


@dataclass(frozen=True)
class Action:
    """The policy's answer to one observation.

    Attributes:
        values: (7,) float64 in [-1, 1], sampled from ``mixture`` and clipped. The first six are the motion of the end
            effector in the base frame, the last one is the gripper. ``contract.action`` gives scales, units and frame.
        mixture: Gaussian mixture over actions, before clipping.
        latency: Duration of ``Policy.act`` in seconds.
    """

    values: NDArray[np.float64]
    mixture: Mixture
    latency: float


class Policy:
    """A trained policy, loaded from a bundle. Not thread-safe.

    Args:
        bundle: Folder of a bundle, or of a run (the bundle of its last stage).
        provider: ONNX Runtime provider: ``cpu``, ``cuda``, ``tensorrt`` or ``auto``.
        threads: Number of threads of one operator on the CPU.
        sampling: How an action is sampled from the mixture. ``low_noise`` samples a component and returns nearly its
            mean (LIBERO's evaluation); ``sample`` samples from the mixture; ``mode`` returns the mean of the component
            with the largest weight.
        temperature: Temperature of ``sample``. 1 samples from the mixture itself; smaller values give actions closer to
            the mode.
        seed: Random seed. Episode ``e`` uses the generator ``numpy.random.default_rng([seed, e])``.
        public_key: If given, the bundle must have a valid signature of this key.

    Raises:
        BundleError: the bundle is damaged, of another version, or does not fit its contract.
        ConfigError: an unknown provider or sampling.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        provider: str = "cpu",
        threads: int = 1,
        sampling: Sampling = "low_noise",
        temperature: float = 1.0,
        seed: int = 0,
        public_key: PublicKey | None = None,
    ) -> None:
        check_sampling(sampling, temperature)
        if seed < 0:
            raise ConfigError(f"seed is {seed}; use a whole number from 0 on")
        opened = open_bundle(bundle_folder(Path(bundle)), public_key=public_key)
        self._engine = Engine(opened, provider=provider, threads=threads)
        self._window = self._engine.window()
        self._sampling, self._temperature, self._seed = sampling, temperature, seed
        self._conditioning: Conditioning | None = None
        self._episode = -1
        self._rng = np.random.default_rng()

    @property
    def instructions(self) -> tuple[str, ...]:
        """The instructions that the policy was trained on, oldest task first."""
        return self._engine.bundle.instructions

    @property
    def contract(self) -> Contract:
        """What the policy expects and returns: cameras, proprioception, action, rate."""
        return self._engine.contract

    @property
    def identifier(self) -> str:
        """The bundle's identifier: 12 hexadecimal digits of its hash."""
        return self._engine.bundle.identifier

    @property
    def provider(self) -> str:
        """The ONNX Runtime provider in use, such as ``CPUExecutionProvider``."""
        return self._engine.active_provider

    def reset(self, instruction: str, *, seed: int | None = None) -> None:
        """Start an episode: clear the history and set the instruction.

        Args:
            instruction: One of ``instructions``.
            seed: Random seed, with which the policy starts again at episode 0. By default it continues with the next
                episode of the current seed.

        Raises:
            UnknownInstructionError: The policy was not trained on this instruction.
        """
        self._conditioning = self._engine.condition(instruction)
        self._window.clear()
        if seed is not None:
            self._seed, self._episode = seed, -1
        self._episode += 1
        self._rng = np.random.default_rng([self._seed, self._episode])

    def act(self, images: Mapping[str, NDArray[Any]], proprioception: Mapping[str, ArrayLike] | None = None) -> Action:
        """Compute the next action. Call it once in every control period (``contract.period``), with a new observation.

        Warning:
            This method has no safety functions. It does not detect late or frozen inputs, and it does not limit speed,
            acceleration or workspace. Use it in simulation and for analysis. On an arm, run ``m2distill serve`` or the
            ROS 2 node, which do both.

        Args:
            images: Name of the view -> (H, W, 3) uint8, RGB, upright. A larger image is cropped at its centre to the
                contract's aspect and shrunk to its resolution.
            proprioception: Name of the group -> (n,) numbers, in the contract's units. None if ``images`` also contains
                the proprioception, as the observations of ``make_env`` do.

        Returns:
            The sampled action, the mixture that it was sampled from, and the time that this call took.

        Raises:
            PolicyError: ``reset`` was not called.
            ObservationError: An input is missing, or has the wrong shape, dtype or range.
            EngineError: ONNX Runtime failed.
        """
        begin = time.perf_counter()
        if self._conditioning is None:
            raise PolicyError(
                f"the policy has no instruction; call reset(instruction) first, with one of {list(self.instructions)}"
            )
        observation = self._observation(images, images if proprioception is None else proprioception)
        mixture, tokens = self._engine.step(self._conditioning, observation, self._window)
        mixture.check()
        values = np.clip(mixture.sample(self._sampling, self._rng, self._temperature), -1.0, 1.0)
        self._window.push(tokens)
        return Action(values, mixture, time.perf_counter() - begin)

    def _observation(self, images: Mapping[str, Any], proprioception: Mapping[str, Any]) -> Observation:
        contract = self.contract
        try:
            frames = {c.name: preprocess(np.asarray(images[c.name]), c) for c in contract.cameras if c.name in images}
            values = {
                name: np.asarray(proprioception[name], dtype=np.float32)
                for name in contract.proprioception_names
                if name in proprioception
            }
        except (TypeError, ValueError) as error:
            raise ObservationError(f"the observation is not made of arrays of numbers: {error}") from error
        observation = Observation(images=frames, proprioception=values, stamp=0.0)
        observation.check(contract)
        return observation


def load(path: str | os.PathLike[str] | None = None, **options: Any) -> Policy:
    """Load a policy.

    Args:
        path: Folder of a bundle, or of a run (the bundle of its last stage); by default the pretrained bundle that
            ships with the package.
        options: Keyword arguments of ``Policy``, such as ``provider`` and ``sampling``.

    Returns:
        The policy, ready for ``Policy.reset``.

    Raises:
        BundleError: the bundle is damaged, of another version, or does not fit its contract.
        ConfigError: an unknown provider or sampling.

    Examples:
        >>> import m2distill_policy as m2
        >>> policy = m2.load()
        >>> env = m2.make_env("tabletop", task=0, size=64)
        >>> observation, info = env.reset(seed=0)
        >>> policy.reset(info["instruction"])
        >>> action = policy.act(observation)
        >>> observation, reward, terminated, truncated, info = env.step(action.values)
    """
    return Policy(PRETRAINED if path is None else path, **options)
