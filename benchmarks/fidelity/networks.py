"""The four networks and their losses, in torch and transformers only: peers run the very same in their environment."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

TASKS = ("diabetes", "cancer", "digits", "language")
VOCABULARY = 98
"""Printable ASCII, the line break, and one token for everything else."""


class LanguageNetwork(nn.Module):
    """GPT-2 from its configuration, from token ids (batch, length) to logits (batch, length, vocabulary).

    Its Conv1D layers are held as the linear layers that they are, since most peers have no rule for them.
    """

    def __init__(self, width: int, depth: int, heads: int, length: int) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=length,
            n_embd=width,
            n_layer=depth,
            n_head=heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=False,
            use_cache=False,
            bos_token_id=0,
            eos_token_id=0,
            attn_implementation="eager",
        )
        self.gpt = GPT2LMHeadModel(config)
        for block in self.gpt.transformer.h:
            for owner, name in (
                (block.attn, "c_attn"),
                (block.attn, "c_proj"),
                (block.mlp, "c_fc"),
                (block.mlp, "c_proj"),
            ):
                setattr(owner, name, _linear(getattr(owner, name)))

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.gpt(input_ids=tokens).logits
        return logits

    def hidden(self, tokens: Tensor) -> Tensor:
        """The last hidden layer, mean over positions: (batch, width)."""
        states: Tensor = self.gpt.transformer(input_ids=tokens).last_hidden_state
        return states.mean(1)


def _linear(layer: Any) -> nn.Linear:
    inputs, outputs = layer.weight.shape
    linear = nn.Linear(inputs, outputs)
    with torch.no_grad():
        linear.weight.copy_(layer.weight.T)
        linear.bias.copy_(layer.bias)
    return linear


def build(task: str, *, toy: bool = False) -> nn.Module:
    """The network of a task with fresh weights from torch's own generator, in eval mode."""
    width = 6 if toy else 32
    if task == "diabetes":
        network: nn.Module = _mlp(10, width, 1)
    elif task == "cancer":
        network = _mlp(30, width, 2)
    elif task == "digits":
        network = nn.Sequential(
            nn.Conv2d(1, width // 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width // 4, width // 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 10),
        )  # fmt: skip
    else:
        network = LanguageNetwork(8, 1, 2, 16) if toy else LanguageNetwork(48, 2, 4, 64)
    return network.eval()


def losses(task: str, outputs: Tensor, targets: Tensor) -> Tensor:
    """The training loss of each example, summed over what it predicts: (batch,)."""
    if task == "diabetes":
        return 0.5 * (outputs.reshape(len(outputs), -1) - targets.reshape(len(targets), -1)).square().sum(1)
    if task == "language":
        found = functional.cross_entropy(outputs[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), reduction="none")
        return found.reshape(len(targets), -1).sum(1)
    return functional.cross_entropy(outputs, targets, reduction="none")


def _mlp(features: int, width: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )
