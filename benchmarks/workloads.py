"""The models and data of the races: a small GPT, a CNN on images and a tabular MLP, in plain torch.

Peers run the very same classes in an environment of their own, so this module needs torch only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """A pre-norm transformer block with causal attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        batch, length, width = hidden.shape
        packed = self.query_key_value(self.attention_norm(hidden))
        query, key, value = packed.reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.attention_out(attended.transpose(1, 2).reshape(batch, length, width))
        return hidden + self.mlp_out(functional.gelu(self.mlp_in(self.mlp_norm(hidden))))


class TinyGPT(nn.Module):
    """Next-token logits (batch, length, vocabulary) from token ids (batch, length)."""

    def __init__(self, vocabulary: int = 1024, length: int = 64, width: int = 256, depth: int = 4, heads: int = 4):
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.position_embedding = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(depth)])
        self.final_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def embed(self, tokens: Tensor) -> Tensor:
        # One row of positions per example: the batch stays the first dimension of every layer's input.
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        return self.token_embedding(tokens) + self.position_embedding(positions)

    def continue_from(self, embedded: Tensor) -> Tensor:
        logits: Tensor = self.head(self.final_norm(self.blocks(embedded)))
        return logits

    def forward(self, tokens: Tensor) -> Tensor:
        return self.continue_from(self.embed(tokens))


class ImageCNN(nn.Module):
    """Class logits of (batch, 3, 32, 32) images."""

    def __init__(self, classes: int = 10, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.rest = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Conv2d(2 * width, 4 * width, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Conv2d(4 * width, 4 * width, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * width, 256),
            nn.ReLU(),
            nn.Linear(256, classes),
        )

    def embed(self, images: Tensor) -> Tensor:
        first: Tensor = self.first(images)
        return first

    def continue_from(self, embedded: Tensor) -> Tensor:
        logits: Tensor = self.rest(embedded)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        return self.continue_from(self.embed(images))


class TabularMLP(nn.Module):
    """Class logits of (batch, features) rows."""

    def __init__(self, features: int = 64, width: int = 512, depth: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.first = nn.Linear(features, width)
        layers: list[nn.Module] = [nn.ReLU()]
        for _ in range(depth - 1):
            layers += [nn.Linear(width, width), nn.ReLU()]
        self.rest = nn.Sequential(*layers, nn.Linear(width, classes))

    def embed(self, rows: Tensor) -> Tensor:
        first: Tensor = self.first(rows)
        return first

    def continue_from(self, embedded: Tensor) -> Tensor:
        logits: Tensor = self.rest(embedded)
        return logits

    def forward(self, rows: Tensor) -> Tensor:
        return self.continue_from(self.embed(rows))


Model = TinyGPT | ImageCNN | TabularMLP


def token_losses(logits: Tensor, tokens: Tensor) -> Tensor:
    """Cross entropy of every next token, summed over an example: (batch,)."""
    losses = functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return losses.reshape(len(tokens), -1).sum(1)


def class_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of the class: (batch,)."""
    return functional.cross_entropy(logits, targets, reduction="none")


@dataclass(frozen=True)
class Workload:
    """A model, how much data of which kind, and how many examples go through it at once.

    `losses(outputs, targets)` gives one summed loss per example; a GPT's targets are its own tokens.
    """

    name: str
    model_type: Callable[..., Model]
    options: Mapping[str, Any]
    input_shape: tuple[int, ...]
    examples: int
    batch_size: int
    losses: Callable[[Tensor, Tensor], Tensor]

    def build(self) -> Model:
        """The model with its first, seeded weights, in eval mode."""
        torch.manual_seed(0)
        return self.model_type(**self.options).eval()

    def data(self) -> tuple[Tensor, Tensor]:
        """Seeded inputs and targets."""
        generator = torch.Generator().manual_seed(1)
        shape = (self.examples, *self.input_shape)
        if self.model_type is TinyGPT:
            tokens = torch.randint(0, self.options.get("vocabulary", 1024), shape, generator=generator)
            return tokens, tokens
        inputs = torch.randn(shape, generator=generator)
        return inputs, torch.randint(0, 10, (self.examples,), generator=generator)


def workloads(tiny: bool) -> dict[str, Workload]:
    """The three races by name; `tiny` ones end in a second and measure nothing."""
    tiny_gpt = {"vocabulary": 64, "length": 8, "width": 16, "depth": 1, "heads": 2}
    known = [
        Workload("gpt", TinyGPT, tiny_gpt if tiny else {}, (8 if tiny else 64,), 16 if tiny else 768, 64, token_losses),
        Workload("cnn", ImageCNN, {"width": 4} if tiny else {}, (3, 32, 32), 16 if tiny else 4096, 64, class_losses),
        Workload("mlp", TabularMLP, {"width": 16} if tiny else {}, (64,), 16 if tiny else 16384, 256, class_losses),
    ]
    return {workload.name: workload for workload in known}
