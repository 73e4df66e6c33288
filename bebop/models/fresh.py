"""The start of a head that was never trained.

The fuse starts as [I, I], so that the layer sees the hidden plus the embedding of the next token, each normalised where
the head has norms for it. With an output norm, the layer starts as a copy of the last backbone layer of the same kind,
and the output norm as the backbone's final norm, because that is the scale the frozen lm_head expects.

Without one (EAGLE) the layer's output enters the lm_head as it is. A copied layer writes at the scale of the residual
stream before its norm, a start from which training does not recover (SmolLM2-135M: output RMS 52 where the hidden has
2.1, KL to the target 809 nats; a random layer 8.6). So that layer is drawn with `initializer_range`.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from bebop.models.head import MTPHead


@torch.no_grad()
def initialise_head(head: MTPHead, backbone: PreTrainedModel, *, seed: int = 0) -> None:
    """Sets every parameter and buffer of `head` in place; deterministic given `seed`."""
    generator = torch.Generator().manual_seed(seed)
    decoder = backbone.get_decoder()
    has_output_norm = head.contract.names.output_norm is not None
    source = _last_layer_like(head.layer, list(decoder.get_submodule("layers").children())) if has_output_norm else {}
    for name, tensor in head.layer.state_dict().items():
        twin = source.get(name)
        if twin is not None and twin.shape == tensor.shape:
            tensor.copy_(twin)
        elif tensor.dim() >= 2:
            drawn = torch.randn(tensor.shape, generator=generator) * head.config.initializer_range
            tensor.copy_(drawn)
        else:
            tensor.fill_(_neutral(name, head.contract.zero_centred_norm))
    _initialise_fuse(head.fuse)
    for norm in (head.embedding_norm, head.hidden_norm):
        if not isinstance(norm, nn.Identity):
            norm.weight.fill_(_neutral("norm.weight", head.contract.zero_centred_norm))
    if not isinstance(head.output_norm, nn.Identity):
        head.output_norm.weight.copy_(decoder.get_parameter("norm.weight"))


def _initialise_fuse(fuse: nn.Linear) -> None:
    identity_HH = torch.eye(fuse.out_features, dtype=fuse.weight.dtype, device=fuse.weight.device)
    fuse.weight.copy_(torch.cat([identity_HH, identity_HH], dim=1))


def _neutral(name: str, zero_centred_norm: bool) -> float:
    """Biases start at 0, norm weights at the value that leaves the normalised vector as it is."""
    is_norm_weight = name.endswith("norm.weight")
    return 1.0 if is_norm_weight and not zero_centred_norm else 0.0


def _last_layer_like(layer: nn.Module, backbone_layers: list[nn.Module]) -> dict[str, torch.Tensor]:
    """State of the last backbone layer that has the tensors of `layer` (a full-attention one, not a linear one)."""
    wanted = {name: tensor.shape for name, tensor in layer.state_dict().items()}
    best: dict[str, torch.Tensor] = {}
    best_matches = 0
    for candidate in reversed(backbone_layers):
        state = candidate.state_dict()
        matches = sum(name in state and state[name].shape == shape for name, shape in wanted.items())
        if matches > best_matches:
            best, best_matches = state, matches
    return best
