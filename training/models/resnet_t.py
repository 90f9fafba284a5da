"""ResNet-T, the policy: views, text and proprioception become tokens, a transformer reads ten steps of them."""

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
    """A batch of windows as the network reads them.

    images: view -> (B, L, 3, H, W) float in [0, 1]; proprioception: group -> (B, L, n); embedding: (B, text size);
    single_steps: (B,) bool or None, True where the L steps of a row are unrelated and none sees another.
    """

    images: dict[str, Tensor]
    proprioception: dict[str, Tensor]
    embedding: Tensor
    single_steps: Tensor | None = None


class Output(NamedTuple):
    """tokens (B, L, T, E) in the order [text, groups..., views...], before positions; mixture over (B, L)."""

    tokens: Tensor
    mixture: Mixture


class GroupEncoder(nn.Module):
    """One proprioception group (N, n) -> tokens (N, E): a linear layer on (x - mean) / deviation.

    mean and deviation are 0 and 1, that is nothing, until :meth:`fit` is called; they travel with the weights.
    """

    def __init__(self, inputs: int, embed: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("deviation", torch.ones(inputs))
        self.mean: Tensor
        self.deviation: Tensor
        self.linear = nn.Linear(inputs, embed)

    def fit(self, values: Tensor) -> None:
        """Take mean and deviation from values (N, n); an entry that hardly moves is not blown up."""
        self.mean.copy_(values.mean(0))
        self.deviation.copy_(values.std(0).clamp_min(1e-3))

    def forward(self, x: Tensor) -> Tensor:
        token: Tensor = self.linear((x - self.mean) / self.deviation)
        return token


class ResNetT(nn.Module):
    """LIBERO's ``bc_transformer_policy`` for any contract: one encoder a view, one linear a proprioception group."""

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
        """One token for the text, one a proprioception group, one a view."""
        return 1 + len(self.groups) + len(self.views)

    @property
    def film_size(self) -> int:
        """Length of the FiLM terms of all views together."""
        return sum(view.film_size for view in self._views())

    def _views(self) -> list[ImageEncoder]:
        return [view for view in self.views if isinstance(view, ImageEncoder)]

    def recompute(self, on: bool) -> None:
        """Whether the encoders keep little for the backward pass and compute the rest again."""
        for view in self._views():
            view.recompute = on

    def feature_bytes(self) -> int:
        """What the encoders keep of a step's views for its backward pass, where nothing is computed again."""
        size = 0
        for view, camera in zip(self._views(), self.contract.cameras, strict=True):
            probe = copy.deepcopy(view).train()  # a batch norm that learns keeps more, and changes
            probe.recompute = False
            kept: dict[int, int] = {}

            def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
                if tensor.dim() == 4 and tensor.shape[0] == 2:  # maps of the two pictures, not weights
                    kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
                return tensor

            pictures = next(view.parameters()).new_zeros(2, 3, camera.height, camera.width)
            with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                probe(pictures, pictures.new_zeros(2, view.film_size))
            size += sum(kept.values()) // 2
        return size

    def text_parameters(self) -> list[nn.Parameter]:
        """The parameters that read the text embedding: FiLM's and the text token's."""
        return [*self.text.parameters(), *(p for view in self._views() for p in view.film.parameters())]

    def condition(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """What an instruction means to the network: text token (B, E) and FiLM terms of all views (B, F)."""
        return self.text(embedding), torch.cat([view.film_terms(embedding) for view in self._views()], dim=-1)

    def step_tokens(
        self, text_token: Tensor, film: Tensor, images: list[Tensor], proprioception: list[Tensor]
    ) -> Tensor:
        """Tokens (N, T, E) of N single steps: text_token (N, E), film (N, F), images (N, 3, H, W), groups (N, n)."""
        tokens = [text_token]
        tokens += [layer(values) for layer, values in zip(self.groups, proprioception, strict=True)]
        parts = torch.split(film, [view.film_size for view in self._views()], dim=-1)
        tokens += [view(frame, part) for view, frame, part in zip(self._views(), images, parts, strict=True)]
        return torch.stack([token.float() for token in tokens], dim=1)

    def decode(self, tokens: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Features (B, L, E): the text token of each step after the transformer."""
        return self.transformer(tokens + positions.unsqueeze(-2), mask)[:, :, 0]

    def decode_newest(self, tokens: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """What :meth:`decode` has for the last step, (B, E)."""
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
            # Positions stay: a step may stand anywhere in the window that the policy will run with.
            mask = torch.where(inputs.single_steps[:, None, None, None], self.step_mask[:size, :size], mask)
        return Output(tokens, self.head(self.decode(tokens, self.positions[:length], mask)))

    def fit_normalisation(self, readings: dict[str, Tensor]) -> None:
        """Fit every group's normalisation to readings, group -> (N, n)."""
        for name, encoder in zip(self.contract.proprioception_names, self.groups, strict=True):
            assert isinstance(encoder, GroupEncoder)
            encoder.fit(readings[name])

    def freeze_batch_norm(self) -> None:
        """Put every batch norm into evaluation mode, so that its statistics stay (call after ``train()``)."""
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
