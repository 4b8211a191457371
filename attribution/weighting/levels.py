"""Levels at which group weights are tied: single layers, kinds of weights within a block, or whole blocks.

Weights are fitted per level group and written down per stored group, so that nothing changes where they are applied.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from gradtrail.attribution.features.plan import FeaturePlan
from gradtrail.errors import UsageError

Level = Literal["layer", "kind", "block"]
Kind = Literal["norm", "embedding", "attention", "mlp", "convolution", "other"]

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_NORM_WORDS = {"norm", "ln", "bn", "layernorm", "batchnorm", "groupnorm", "rmsnorm"}
_KIND_WORDS: tuple[tuple[Kind, frozenset[str]], ...] = (
    ("embedding", frozenset({"embedding", "embeddings", "embed", "emb", "wte", "wpe"})),
    ("attention", frozenset({"attention", "attn", "mha", "qkv", "query", "key", "value"})),
    ("attention", frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "in_proj"})),
    ("mlp", frozenset({"mlp", "ffn", "fc", "dense", "linear", "intermediate", "feed_forward"})),
    ("mlp", frozenset({"gate_proj", "up_proj", "down_proj"})),
    ("convolution", frozenset({"conv", "convolution"})),
)


@dataclass(frozen=True)
class GroupTies:
    """Which stored groups share one weight.

    `places` (groups,) int64 says for each stored group, in the plan's order, which of `names` it belongs to.
    """

    level: Level
    names: tuple[str, ...]
    places: Tensor

    @property
    def sizes(self) -> Tensor:
        """How many stored groups each level group holds: (level groups,) float64."""
        return torch.bincount(self.places, minlength=len(self.names)).double()

    def summed(self, values: Tensor) -> Tensor:
        """`values` (…, groups) added up within each level group: (…, level groups)."""
        empty = torch.zeros(*values.shape[:-1], len(self.names), dtype=values.dtype)
        return empty.index_add_(values.ndim - 1, self.places, values)

    def expanded(self, values: Tensor) -> Tensor:
        """`values` (level groups,) for each stored group: (groups,)."""
        return values[self.places]


def group_ties(plan: FeaturePlan, level: Level = "layer") -> GroupTies:
    """The ties of a plan's groups at a level; level groups are in the order in which they first occur.

    `layer` ties nothing. `block` ties layers whose names share a prefix up to and with their first number, such as
    `transformer.h.3`; a layer without a number is a block of its own. `kind` ties, within a block, what has the same
    kind: attention, mlp, norm, embedding, convolution or other, as the names tell.

    Raises:
        UsageError: for a level that does not exist.
    """
    if level not in get_args(Level):
        raise UsageError(f"There is no level {level!r} of groups.", f"Choose one of {', '.join(get_args(Level))}.")
    labels = [_label(group.name, level) for group in plan.groups]
    names = tuple(dict.fromkeys(labels))
    return GroupTies(level, names, torch.tensor([names.index(label) for label in labels], dtype=torch.int64))


def block_of(name: str) -> str:
    """The prefix of a group's name up to and with its first number, or the whole name where it has none."""
    parts = name.split(".")
    numbered = next((place for place, part in enumerate(parts) if any(map(str.isdigit, part))), None)
    if numbered is None:
        return name
    # `layer1.0.conv1`: the stage is numbered too, and the block is the number within it.
    inner = numbered + 1
    if not parts[numbered].isdigit() and inner < len(parts) and parts[inner].isdigit():
        numbered = inner
    return ".".join(parts[: numbered + 1])


def kind_of(name: str) -> Kind:
    """What a group does in its block, read from its name: the norm of an attention layer is a norm."""
    parts = name.split(".")
    words = [_words(part) for part in parts]
    owner = words[-2:] if parts[-1] in {"weight", "bias"} else words[-1:]
    if any(_NORM_WORDS & part for part in owner):
        return "norm"
    for kind, known in _KIND_WORDS:
        if any(known & part for part in words):
            return kind
    return "other"


def _label(name: str, level: Level) -> str:
    if level == "layer":
        return name
    block = block_of(name)
    if level == "block" or block == name:
        return block
    return f"{block} {kind_of(name)}"


def _words(part: str) -> set[str]:
    """The words of one component, `self_attn`, `LayerNorm` and `bn1` alike, and the whole of it without its digits."""
    whole = re.sub(r"[\d_]+$", "", part).lower()
    return {whole, *(word.lower() for word in _WORD.findall(part))}
