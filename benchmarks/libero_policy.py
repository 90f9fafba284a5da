"""LIBERO's own transformer policy, made from its sources, for comparison with ours.

LIBERO's wheel lacks a part of its models. The argument ``folder`` is therefore a clone of
https://github.com/Lifelong-Robot-Learning/LIBERO. ``robomimic`` and ``einops`` must be installed (``pip install
--no-deps robomimic==0.3.0 einops``). LIBERO uses only the first half of torchvision's ResNet-18. If torchvision is not
installed, the same layers are made here.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from easydict import EasyDict
from numpy.typing import NDArray
from torch import Tensor, nn

from m2distill_policy.contract import Contract
from m2distill_policy.errors import TrainingError
from m2distill_policy.observation import Observation


def libero_get_action(
    folder: Path, contract: Contract, text_size: int
) -> Callable[[Observation, Tensor], NDArray[np.float32]]:
    """Return LIBERO's ``get_action`` for an untrained policy in evaluation mode.

    Returns:
        A function of an observation (as in ``contract``) and the task's embedding (text size,), which returns an
        action.

    Raises:
        TrainingError: See :func:`libero_policy`.
    """
    policy = libero_policy(folder, contract, text_size).eval()

    def get_action(observation: Observation, embedding: Tensor) -> NDArray[np.float32]:
        obs = {
            name: torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255
            for name, frame in observation.images.items()
        }
        obs |= {name: torch.from_numpy(values)[None] for name, values in observation.proprioception.items()}
        found: NDArray[np.float32] = policy.get_action({"obs": obs, "task_emb": embedding[None]})
        return found

    return get_action


def libero_policy(folder: Path, contract: Contract, text_size: int, *, augment: bool = False) -> Any:
    """Make LIBERO's ``BCTransformerPolicy`` in the paper's configuration, untrained.

    Args:
        folder: Clone of LIBERO's repository.
        contract: Contract, for the cameras and the proprioception.
        text_size: Size of a text embedding.
        augment: Whether the policy includes LIBERO's augmentation, for training. This needs torchvision.

    Raises:
        TrainingError: ``folder`` or a package is missing.
    """
    if augment and importlib.util.find_spec("torchvision") is None:
        raise TrainingError("LIBERO's augmentation needs the package 'torchvision'; install it")
    if not augment:
        _stand_in_for_torchvision()
        # This part of robomimic needs torchvision, and only augmentation calls it.
        sys.modules.setdefault(
            "robomimic.models.base_nets", _module("robomimic.models.base_nets", CropRandomizer=nn.Module)
        )
    if not (folder / "libero" / "lifelong" / "models" / "modules").is_dir():
        raise TrainingError(f"{folder} has no libero/lifelong/models/modules; give a clone of LIBERO's repository")
    for name in [name for name in sys.modules if name.split(".")[0] == "libero"]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    for package in ("libero", "libero.lifelong"):  # without their __init__, which imports much more
        made = _module(package)
        made.__path__ = [str(folder.joinpath(*package.split(".")))]
        sys.modules[package] = made
    try:
        models = importlib.import_module("libero.lifelong.models.bc_transformer_policy")
    except ModuleNotFoundError as error:
        raise TrainingError(
            f"LIBERO's policy needs the package '{error.name}'; pip install --no-deps robomimic==0.3.0 einops"
        ) from error
    shapes = {camera.name: [3, camera.height, camera.width] for camera in contract.cameras}
    return models.BCTransformerPolicy(_configuration(contract, text_size, augment), {"ac_dim": 7, "all_shapes": shapes})


def _configuration(contract: Contract, text_size: int, augment: bool) -> Any:
    """Return LIBERO's ``configs/policy/bc_transformer_policy.yaml`` with the files that it includes."""
    none = {"network": "IdentityAug", "network_kwargs": {"input_shape": None}}
    ranges = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "hue": 0.3, "epsilon": 0.1}
    jitter = {"network": "BatchWiseImgColorJitterAug", "network_kwargs": {"input_shape": None, **ranges}}
    shift = {"network": "TranslationAug", "network_kwargs": {"input_shape": None, "translation": 8}}
    encoder = {"pretrained": False, "freeze": False, "remove_layer_num": 4, "no_stride": False}
    head = {"hidden_size": 1024, "num_layers": 2, "min_std": 1e-4, "num_modes": 5, "low_eval_noise": False}
    return EasyDict(
        device="cpu",
        train={"use_augmentation": augment},
        data={
            "use_joint": True,
            "use_gripper": True,
            "use_ee": False,
            "obs": {"modality": {"rgb": list(contract.camera_names)}},
        },
        policy={
            "extra_num_layers": 0,
            "extra_hidden_size": 128,
            "embed_size": 64,
            "transformer_input_size": None,
            "transformer_num_layers": 4,
            "transformer_num_heads": 6,
            "transformer_head_output_size": 64,
            "transformer_mlp_hidden_size": 256,
            "transformer_dropout": 0.1,
            "transformer_max_seq_len": contract.history,
            "color_aug": jitter if augment else none,
            "translation_aug": shift if augment else none,
            "image_encoder": {"network": "ResnetEncoder", "network_kwargs": {**encoder, "language_fusion": "film"}},
            "language_encoder": {
                "network": "MLPEncoder",
                "network_kwargs": {"input_size": text_size, "hidden_size": 128, "output_size": 128, "num_layers": 1},
            },
            "temporal_position_encoding": {
                "network": "SinusoidalPositionEncoding",
                "network_kwargs": {"input_size": None, "inv_freq_factor": 10, "factor_ratio": None},
            },
            "policy_head": {
                "network": "GMMHead",
                "network_kwargs": {**head, "activation": "softplus"},
                "loss_kwargs": {"loss_coef": 1.0},
            },
        },
    )


def _module(name: str, **attributes: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    for key, value in attributes.items():
        setattr(made, key, value)
    return made


def _stand_in_for_torchvision() -> None:
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return
    sys.modules["torchvision"] = _module("torchvision", models=types.SimpleNamespace(resnet18=_resnet18))


class _BasicBlock(nn.Module):
    """torchvision's residual block: two 3 x 3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if stride != 1
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return torch.as_tensor(self.relu(self.bn2(self.conv2(out)) + shortcut))


def _resnet18(pretrained: bool = False) -> nn.Module:
    """Make torchvision's ResNet-18 without its last four children, which LIBERO removes."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    layer1 = nn.Sequential(_BasicBlock(64, 64, 1), _BasicBlock(64, 64, 1))
    layer2 = nn.Sequential(_BasicBlock(64, 128, 2), _BasicBlock(128, 128, 1))
    return nn.Sequential(*stem, layer1, layer2, *(nn.Identity() for _ in range(4)))
