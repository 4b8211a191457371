"""Multi-head attention taken apart: the same computation, with its packed projection where it can be seen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

InProjection = Callable[[Tensor, slice], Tensor]
"""Inputs (batch, positions, width) and the rows of the packed projection to apply: (batch, positions, rows)."""


def taken_apart(layer: nn.MultiheadAttention, project: InProjection) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """A stand-in for `layer.forward` with the same arguments and results.

    The projection in is left to `project`, and the projection out is called as the layer it is. What lies between is
    torch's own attention, with identities in their places, so that masks, appended biases and the averaging of weights
    are as they were.
    """

    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        width = layer.embed_dim
        turned = [part if layer.batch_first else part.transpose(0, 1) for part in (query, key, value)]
        if query is key and key is value:
            query_rows, key_rows, value_rows = project(turned[0], slice(3 * width)).chunk(3, dim=-1)
        else:
            query_rows = project(turned[0], slice(width))
            key_rows = project(turned[1], slice(width, 2 * width))
            value_rows = project(turned[2], slice(2 * width, 3 * width))
        identity = torch.eye(width, dtype=query_rows.dtype, device=query.device)
        attended, weights = functional.multi_head_attention_forward(
            query_rows.transpose(0, 1),
            key_rows.transpose(0, 1),
            value_rows.transpose(0, 1),
            embed_dim_to_check=width,
            num_heads=layer.num_heads,
            in_proj_weight=None,
            in_proj_bias=None,
            bias_k=layer.bias_k,
            bias_v=layer.bias_v,
            add_zero_attn=layer.add_zero_attn,
            dropout_p=layer.dropout,
            out_proj_weight=identity,
            out_proj_bias=None,
            training=layer.training,
            key_padding_mask=key_padding_mask,
            use_separate_proj_weight=True,
            q_proj_weight=identity,
            k_proj_weight=identity,
            v_proj_weight=identity,
            need_weights=need_weights,
            attn_mask=attn_mask,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )
        output: Tensor = layer.out_proj(attended.transpose(0, 1))
        return (output if layer.batch_first else output.transpose(0, 1)), weights

    return forward
