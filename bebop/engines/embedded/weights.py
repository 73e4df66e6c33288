"""Copying new weights into a policy that is in use."""

from collections.abc import Mapping

import torch
from torch import Tensor

from bebop.errors import UserError
from bebop.models.policy import Policy

HEAD_PREFIX = "head."
"""What precedes the names of the head's tensors."""


@torch.no_grad()
def copy_weights(policy: Policy, tensors: Mapping[str, Tensor]) -> None:
    """Overwrite the named tensors in place; all names and shapes are checked before the first one is written."""
    own = dict(policy.backbone.state_dict())
    if policy.head is not None:
        own |= {HEAD_PREFIX + name: tensor for name, tensor in policy.head.state_dict().items()}
    for name, tensor in tensors.items():
        if name not in own:
            raise UserError(
                f"the policy has no tensor {name!r}; name tensors as in its state_dict, the head's after 'head.'"
            )
        if own[name].shape != tensor.shape:
            raise UserError(
                f"tensor {name!r} has shape {tuple(tensor.shape)} and the policy's {tuple(own[name].shape)}; "
                "send weights of the same model"
            )
    for name, tensor in tensors.items():
        own[name].copy_(tensor)
