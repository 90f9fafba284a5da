"""Check that our network computes the same as LIBERO's.

Both networks have the paper's configuration (see :mod:`benchmarks.libero_policy` for FOLDER). Our network gets LIBERO's
weights, and both read the same windows of noise: in evaluation mode, and in training mode without dropout, where batch
norms use the statistics of the batch. The results are the numbers of parameters and the largest differences of the
mixture. It takes seconds and does not resume.

Example:
    python -m benchmarks.libero_agreement --libero FOLDER --out mine.json
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.libero_policy import libero_policy
from benchmarks.output import add_out, command, make_parser
from benchmarks.result_files import write_measurement
from m2distill_policy.config import load_config
from m2distill_policy.contract import Text, libero_contract
from m2distill_policy.errors import TrainingError
from training.lifelong.stage import to_inputs
from training.models.resnet_t import ResNetT
from training.models.transformer import StochasticDepth
from training.run_config import RunConfig
from training.studies.plan import noise

#: LIBERO's name of a weight -> our name. Layer numbers are the same, but LIBERO counts blocks and FiLM layers from 1.
_NAMES = (
    (r"encoders\.(\d)\.resnet18_base\.([01])\.(.*)", r"views.\1.stem.\2.\3"),
    (r"encoders\.(\d)\.block_(\d)\.(.*)", r"views.\1.blocks.<\2>.\3"),
    (r"encoders\.(\d)\.lang_proj(\d)\.(.*)", r"views.\1.film.<\2>.\3"),
    (r"encoders\.(\d)\.projection_layer\.spatial_softmax\._spatial_conv\.(.*)", r"views.\1.softmax.conv.\2"),
    (r"encoders\.(\d)\.projection_layer\.projection\.(.*)", r"views.\1.projection.\2"),
    (r"language_encoder\.projection\.0\.(.*)", r"text.\1"),
    (r"extra_encoder\.encoders\.(\d)\.0\.(.*)", r"groups.\1.linear.\2"),
    (r"temporal_transformer\.layers\.(\d)\.0\.norm\.(.*)", r"transformer.layers.\1.norm1.\2"),
    (r"temporal_transformer\.layers\.(\d)\.1\.qkv\.(.*)", r"transformer.layers.\1.attention.qkv.\2"),
    (r"temporal_transformer\.layers\.(\d)\.1\.output_layer\.0\.(.*)", r"transformer.layers.\1.attention.out.\2"),
    (r"temporal_transformer\.layers\.(\d)\.2\.norm\.(.*)", r"transformer.layers.\1.norm2.\2"),
    (r"temporal_transformer\.layers\.(\d)\.3\.net\.(\d)\.(.*)", r"transformer.layers.\1.feed_forward.\2.\3"),
    (r"policy_head\.share\.(\d)\.(.*)", r"head.trunk.\1.\2"),
    (r"policy_head\.mean_layer\.(.*)", r"head.means.\1"),
    (r"policy_head\.logstd_layer\.(.*)", r"head.scales.\1"),
    (r"policy_head\.logits_layer\.(.*)", r"head.logits.\1"),
)
#: Names in LIBERO's network without a counterpart in ours: a second name of weights, or values that ours computes.
_NOT_OURS = (r"extra_encoder\.proprio_mlp\..*", r"temporal_position_encoding_fn\..*", r".*\.spatial_softmax\.pos_[xy]")


def ours_from(theirs: dict[str, Tensor], policy: ResNetT) -> None:
    """Load LIBERO's weights into our network.

    Raises:
        TrainingError: A weight of either network has no counterpart.
    """
    taken: dict[str, Tensor] = {}
    for name, values in theirs.items():
        if any(re.fullmatch(pattern, name) for pattern in _NOT_OURS):
            continue
        for pattern, ours in _NAMES:
            found = re.fullmatch(pattern, name)
            if found:
                taken[re.sub(r"<(\d)>", lambda m: str(int(m.group(1)) - 1), found.expand(ours))] = values
                break
        else:
            raise TrainingError(f"LIBERO's '{name}' has no counterpart in our network")
    left = set(policy.state_dict()) - set(taken)
    # Proprioception is not normalised here: mean 0, deviation 1.
    if left - {f"groups.{i}.{part}" for i in range(len(policy.groups)) for part in ("mean", "deviation")}:
        raise TrainingError(f"LIBERO's network has no counterpart for {sorted(left)}")
    policy.load_state_dict(taken, strict=False)


def _without_dropout(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, StochasticDepth):
            module.probability = 0.0
        if type(module).__name__ == "DropPath":  # LIBERO's stochastic depth
            module.__dict__["drop_prob"] = 0.0


def main() -> None:
    """Compare, and write the result."""
    parser = make_parser(__doc__)
    parser.add_argument("--libero", type=Path, metavar="FOLDER", required=True, help="a clone of LIBERO's repository")
    parser.add_argument("--text-size", type=int, default=768, help="size of a text embedding (default: %(default)s)")
    parser.add_argument("--windows", type=int, default=8, help="default: %(default)s")
    add_out(parser)
    args = parser.parse_args()
    config = load_config(RunConfig, Path("config/paper.toml"), [])
    contract = libero_contract(config.image_size, Text("noise", "0", "none", 1.0, args.text_size))
    torch.manual_seed(0)
    reference = libero_policy(args.libero, contract, args.text_size)
    ours = ResNetT(config.network, contract)
    ours_from(reference.state_dict(), ours)
    batch = noise(contract, 0).windows(np.random.default_rng(0), args.windows, contract.history)
    inputs = to_inputs(batch, torch.device("cpu"))
    data = {"obs": {**inputs.images, **inputs.proprioception}, "task_emb": inputs.embedding}
    figures: dict[str, object] = {
        "parameters": {
            "ours": sum(p.numel() for p in ours.parameters()),
            "libero": sum(p.numel() for p in reference.parameters()),
        }
    }
    for mode in ("evaluation", "training"):
        for network in (reference, ours):
            network.train(mode == "training")
            _without_dropout(network)
        with torch.no_grad():
            theirs = reference(data)
            mixture = ours(inputs).mixture
        components = theirs.component_distribution.base_dist
        pairs = {
            "logits": (torch.log_softmax(mixture.logits, -1), theirs.mixture_distribution.logits),
            "means": (mixture.means, components.loc),
            "scales": (mixture.scales, components.scale),
        }
        figures[f"{mode}_largest_difference"] = {
            name: float((a - b.reshape(a.shape)).abs().max()) for name, (a, b) in pairs.items()
        }
    shape = list(inputs.images[contract.camera_names[0]].shape)
    write_measurement(
        "libero_agreement", {"windows": args.windows, "images": shape, "text_size": args.text_size}, figures, args.out
    )


if __name__ == "__main__":
    command(main)
