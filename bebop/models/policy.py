"""The door to policies: what other parts of Bebop import from `bebop.models`."""

from bebop.models.devices import recommended_dtype
from bebop.models.fingerprint import Fingerprint
from bebop.models.head import HeadState, MTPHead
from bebop.models.loading import HeadChoice, load_policy
from bebop.models.record import BackboneState, Policy, new_policy
from bebop.models.saving import save_policy

__all__ = [
    "BackboneState",
    "Fingerprint",
    "HeadChoice",
    "HeadState",
    "MTPHead",
    "Policy",
    "load_policy",
    "new_policy",
    "recommended_dtype",
    "save_policy",
]
