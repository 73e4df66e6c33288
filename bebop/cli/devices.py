"""Where a command computes when it is not told."""

from bebop.models.devices import chosen_device, chosen_dtype, default_device

__all__ = ["chosen_device", "chosen_dtype", "default_device"]
