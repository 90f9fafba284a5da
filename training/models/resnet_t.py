"""ResNet-T, the policy network: encoders of views, text and proprioception, and a transformer over a window."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from m2distill_policy.contract import Contract
from m2distill_policy.errors import ContractError
from training.models.config import NetworkConfig
from training.models.image_encoder import ImageEncoder
from training.models.mixture import Mixture, MixtureHead
from training.models.transformer import TemporalTransformer, causal_mask, position_table, step_mask


@dataclass
class Inputs:
    """A batch of windows, as the input of the network.

    Attributes:
        images: View -> frames (B, L, 3, H, W), float in [0, 1].
        proprioception: Group -> values (B, L, n).
        embedding: Embeddings of the instructions (B, text size).
        single_steps: (B,) bool: True if the L steps of a row are unrelated, so that each attends only to itself. None
            if there are no such rows.
    """

    images: dict[str, Tensor]
    proprioception: dict[str, Tensor]
    embedding: Tensor
    single_steps: Tensor | None = None


class Output(NamedTuple):
    """The output of the network for a batch of windows.

    Attributes:
        tokens: Tokens (B, L, T, E) in the order [text, groups..., views...], before positions are added.
        mixture: Mixture of every step, over (B, L).
    """

    tokens: Tensor
    mixture: Mixture


class GroupEncoder(nn.Module):
    """The encoder of one proprioception group, (N, n) -> tokens (N, E): a linear layer on (x - mean) / deviation.

    ``mean`` is 0 and ``deviation`` is 1 until :meth:`fit` is called. Both are saved with the weights.
    """

    def __init__(self, inputs: int, embed: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("deviation", torch.ones(inputs))
        self.mean: Tensor
        self.deviation: Tensor
        self.linear = nn.Linear(inputs, embed)

    def fit(self, values: Tensor) -> None:
        """Set ``mean`` and ``deviation`` to those of ``values`` (N, n); the deviation is at least 1e-3."""
        self.mean.copy_(values.mean(0))
        self.deviation.copy_(values.std(0).clamp_min(1e-3))

    def forward(self, x: Tensor) -> Tensor:
        token: Tensor = self.linear((x - self.mean) / self.deviation)
        return token


class ResNetT(nn.Module):
    """LIBERO's ``bc_transformer_policy`` for any contract: an encoder for each view and each proprioception group."""

    def __init__(self, config: NetworkConfig, contract: Contract) -> None:
        super().__init__()
        if contract.text is None:
            raise ContractError("the network needs a contract with a text encoder; got none")
        self.config, self.contract = config, contract
        self.views = nn.ModuleList(
            [ImageEncoder(config, c.height, c.width, contract.text.size) for c in contract.cameras]
        )
        self.text = nn.Linear(contract.text.size, config.embed)
        self.groups = nn.ModuleList([GroupEncoder(g.size, config.embed) for g in contract.proprioception])
        self.transformer = TemporalTransformer(config)
        self.head = MixtureHead(config, contract.action.size)
        self.register_buffer("positions", position_table(contract.history, config.embed), persistent=False)
        self.positions: Tensor
        self.register_buffer("mask", causal_mask(contract.history, self.tokens_per_step), persistent=False)
        self.mask: Tensor
        self.register_buffer("step_mask", step_mask(contract.history, self.tokens_per_step), persistent=False)
        self.step_mask: Tensor

    @property
    def tokens_per_step(self) -> int:
        """The number of tokens of a step: one for the text, one for each proprioception group, one for each view."""
        return 1 + len(self.groups) + len(self.views)

    @property
    def film_size(self) -> int:
        """The number of FiLM terms of all views."""
        return sum(view.film_size for view in self._views())

    def _views(self) -> list[ImageEncoder]:
        return [view for view in self.views if isinstance(view, ImageEncoder)]

    def recompute(self, on: bool) -> None:
        """Set whether the image encoders recompute feature maps in the backward pass instead of storing them."""
        for view in self._views():
            view.recompute = on

    def feature_bytes(self) -> int:
        """Return how many bytes of feature maps the image encoders store for each step if nothing is recomputed."""
        size = 0
        for view, camera in zip(self._views(), self.contract.cameras, strict=True):
            probe = copy.deepcopy(view).train()  # a copy: in training mode a batch norm stores more, but it changes
            probe.recompute = False
            kept: dict[int, int] = {}

            def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
                if tensor.dim() == 4 and tensor.shape[0] == 2:  # feature maps of the two images, not weights
                    kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
                return tensor

            images = next(view.parameters()).new_zeros(2, 3, camera.height, camera.width)
            with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                probe(images, images.new_zeros(2, view.film_size))
            size += sum(kept.values()) // 2
        return size

    def text_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the layers that read the text embedding: of FiLM and of the text token."""
        return [*self.text.parameters(), *(p for view in self._views() for p in view.film.parameters())]

    def condition(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Return the text token (B, E) and the FiLM terms (B, F) of all views for text embeddings (B, text size)."""
        return self.text(embedding), torch.cat([view.film_terms(embedding) for view in self._views()], dim=-1)

    def step_tokens(
        self, text_token: Tensor, film: Tensor, images: list[Tensor], proprioception: list[Tensor]
    ) -> Tensor:
        """Return the tokens (N, T, E) of N single steps.

        Args:
            text_token: Text tokens (N, E).
            film: FiLM terms (N, F).
            images: Frames of each view (N, 3, H, W), in [0, 1].
            proprioception: Values of each group (N, n).
        """
        tokens = [text_token]
        tokens += [layer(values) for layer, values in zip(self.groups, proprioception, strict=True)]
        parts = torch.split(film, [view.film_size for view in self._views()], dim=-1)
        tokens += [view(frame, part) for view, frame, part in zip(self._views(), images, parts, strict=True)]
        return torch.stack([token.float() for token in tokens], dim=1)

    def decode(self, tokens: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Return the features (B, L, E) of each step: the step's text token after the transformer."""
        return self.transformer(tokens + positions.unsqueeze(-2), mask)[:, :, 0]

    def decode_newest(self, tokens: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Return the features (B, E) of the last step only; see :meth:`decode`."""
        newest: Tensor = self.transformer.newest(tokens + positions.unsqueeze(-2), mask)
        return newest

    def forward(self, inputs: Inputs) -> Output:
        batch, length = inputs.images[self.contract.camera_names[0]].shape[:2]
        text_token, film = self.condition(inputs.embedding)
        tokens = self.step_tokens(
            text_token.repeat_interleave(length, dim=0),
            film.repeat_interleave(length, dim=0),
            [inputs.images[name].flatten(0, 1) for name in self.contract.camera_names],
            [inputs.proprioception[name].flatten(0, 1) for name in self.contract.proprioception_names],
        ).reshape(batch, length, self.tokens_per_step, -1)
        size = length * self.tokens_per_step
        mask = self.mask[:size, :size]
        if inputs.single_steps is not None and inputs.single_steps.any():
            # Single steps keep their positions: when the policy runs, a step can be at any position of the window.
            mask = torch.where(inputs.single_steps[:, None, None, None], self.step_mask[:size, :size], mask)
        return Output(tokens, self.head(self.decode(tokens, self.positions[:length], mask)))

    def fit_normalisation(self, proprioception: dict[str, Tensor]) -> None:
        """Fit the normalisation of every group to ``proprioception``, group -> values (N, n)."""
        for name, encoder in zip(self.contract.proprioception_names, self.groups, strict=True):
            assert isinstance(encoder, GroupEncoder)
            encoder.fit(proprioception[name])

    def freeze_batch_norm(self) -> None:
        """Put every batch norm into evaluation mode, which fixes its statistics. Call this after ``train()``."""
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
