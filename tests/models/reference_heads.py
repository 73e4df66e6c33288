"""MTP heads once more, in plain torch from the tensors' names and the formulas, without transformers or Bebop.

Shapes: B rows, T positions, H hidden size, N query heads, M key heads, D head dim, R rotary dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What the tensors do not tell by themselves."""

    num_heads: int
    head_dim: int
    rotary_dim: int
    rope_theta: float
    eps: float
    num_experts_per_token: int = 0


def rms(x: Tensor, weight: Tensor, eps: float, *, centred: bool) -> Tensor:
    scale = 1 + weight if centred else weight
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * scale


def rotate(x_BTND: Tensor, positions_BT: Tensor, sizes: Sizes) -> Tensor:
    """Rotate-half rotary embedding of the first `rotary_dim` dims; text positions make M-RoPE the same."""
    half = sizes.rotary_dim // 2
    frequencies = sizes.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angles_BT1F = (positions_BT[..., None].double() * frequencies)[:, :, None]
    first, second, rest = x_BTND[..., :half], x_BTND[..., half : 2 * half], x_BTND[..., 2 * half :]
    cos, sin = angles_BT1F.cos().to(x_BTND.dtype), angles_BT1F.sin().to(x_BTND.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def attend(query_BTND: Tensor, key_BTMD: Tensor, value_BTMD: Tensor) -> Tensor:
    """Causal attention, query by query and head by head; [B, T, N D]."""
    num_rows, length, num_heads, dim = query_BTND.shape
    group = num_heads // key_BTMD.shape[2]
    out = torch.zeros_like(query_BTND)
    for head in range(num_heads):
        for now in range(length):
            keys, values = key_BTMD[:, : now + 1, head // group], value_BTMD[:, : now + 1, head // group]
            scores = (keys @ query_BTND[:, now, head, :, None])[..., 0] * dim**-0.5
            out[:, now, head] = (scores.softmax(-1)[..., None] * values).sum(1)
    return out.reshape(num_rows, length, num_heads * dim)


def qwen_attention(w: Weights, y: Tensor, positions: Tensor, sizes: Sizes, *, split_per_head: bool = True) -> Tensor:
    rows, length, _ = y.shape
    n, d = sizes.num_heads, sizes.head_dim
    doubled = y @ w["q_proj.weight"].T
    if split_per_head:
        query, gate = doubled.view(rows, length, n, 2 * d).split(d, dim=-1)
    else:
        query, gate = (half.view(rows, length, n, d) for half in doubled.chunk(2, dim=-1))
    key = (y @ w["k_proj.weight"].T).view(rows, length, -1, d)
    value = (y @ w["v_proj.weight"].T).view(rows, length, -1, d)
    query = rotate(rms(query, w["q_norm.weight"], sizes.eps, centred=True), positions, sizes)
    key = rotate(rms(key, w["k_norm.weight"], sizes.eps, centred=True), positions, sizes)
    return (attend(query, key, value) * torch.sigmoid(gate.reshape(rows, length, -1))) @ w["o_proj.weight"].T


def plain_attention(w: Weights, y: Tensor, positions: Tensor, sizes: Sizes) -> Tensor:
    rows, length, _ = y.shape
    projected = [
        F.linear(y, w[f"{p}_proj.weight"], w.get(f"{p}_proj.bias")).view(rows, length, -1, sizes.head_dim)
        for p in ("q", "k", "v")
    ]
    query, key = (rotate(x, positions, sizes) for x in projected[:2])
    return attend(query, key, projected[2]) @ w["o_proj.weight"].T


def swiglu(w: Weights, x: Tensor) -> Tensor:
    gate, up, down = (w[f"{p}_proj.weight"] for p in ("gate", "up", "down"))
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


def qwen_moe(w: Weights, x: Tensor, sizes: Sizes) -> Tensor:
    """Softmax over all experts, top-k renormalised, plus the gated shared expert; a loop over tokens."""
    out = torch.zeros_like(x)
    probs = (x @ w["gate.weight"].T).softmax(-1)
    for index in torch.cartesian_prod(*(torch.arange(size) for size in x.shape[:-1])):
        row = tuple(index.tolist())
        chosen = probs[row].topk(sizes.num_experts_per_token)
        for expert, weight in zip(chosen.indices, chosen.values / chosen.values.sum(), strict=True):
            gate, up = w["experts.gate_up_proj"][expert].chunk(2)
            out[row] += weight * (w["experts.down_proj"][expert] @ (F.silu(gate @ x[row]) * (up @ x[row])))
    shared = swiglu(below(w, "shared_expert."), x)
    return out + torch.sigmoid(x @ w["shared_expert_gate.weight"].T) * shared


def below(w: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): tensor for name, tensor in w.items() if name.startswith(prefix)}


def qwen_head(
    w: Weights, hidden: Tensor, embeds: Tensor, positions: Tensor, sizes: Sizes, *, split_per_head: bool = True
) -> Tensor:
    """`mtp.*` of Qwen3.5 and Qwen3-Next: [embedding ; hidden], all norms zero-centred; returns post `mtp.norm`."""
    a = rms(embeds, w["pre_fc_norm_embedding.weight"], sizes.eps, centred=True)
    b = rms(hidden, w["pre_fc_norm_hidden.weight"], sizes.eps, centred=True)
    z = torch.cat([a, b], dim=-1) @ w["fc.weight"].T
    layer = below(w, "layers.0.")
    y = rms(z, layer["input_layernorm.weight"], sizes.eps, centred=True)
    attention = below(layer, "self_attn.")
    z = z + qwen_attention(attention, y, positions, sizes, split_per_head=split_per_head)
    y = rms(z, layer["post_attention_layernorm.weight"], sizes.eps, centred=True)
    mlp = below(layer, "mlp.")
    z = z + (qwen_moe(mlp, y, sizes) if "gate.weight" in mlp else swiglu(mlp, y))
    return rms(z, w["norm.weight"], sizes.eps, centred=True)


def mimo_head(w: Weights, hidden: Tensor, embeds: Tensor, positions: Tensor, sizes: Sizes) -> Tensor:
    """`model.mtp_layers.0.*`: [hidden ; embedding], plain norms, embedding zeroed at position 0."""
    embeds = torch.where((positions == 0)[..., None], torch.zeros_like(embeds), embeds)
    a = rms(hidden, w["hidden_layernorm.weight"], sizes.eps, centred=False)
    b = rms(embeds, w["token_layernorm.weight"], sizes.eps, centred=False)
    z = torch.cat([a, b], dim=-1) @ w["input_proj.weight"].T
    y = rms(z, w["input_layernorm.weight"], sizes.eps, centred=False)
    z = z + plain_attention(below(w, "self_attn."), y, positions, sizes)
    z = z + swiglu(below(w, "mlp."), rms(z, w["post_attention_layernorm.weight"], sizes.eps, centred=False))
    return rms(z, w["final_layernorm.weight"], sizes.eps, centred=False)


def eagle_head(w: Weights, hidden: Tensor, embeds: Tensor, positions: Tensor, sizes: Sizes) -> Tensor:
    """The EAGLE draft: [embedding ; hidden], no norm before attention, none at the end."""
    z = torch.cat([embeds, hidden], dim=-1) @ w["fc.weight"].T
    layer = below(w, "layers.0.")
    z = z + plain_attention(below(layer, "self_attn."), z, positions, sizes)
    normed = rms(z, layer["post_attention_layernorm.weight"], sizes.eps, centred=False)
    return z + swiglu(below(layer, "mlp."), normed)
