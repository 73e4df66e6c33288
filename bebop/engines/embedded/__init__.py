"""Draft-and-verify decoding in PyTorch: the engine that runs everywhere and that other engines are held against."""

from bebop.engines.embedded.engine import EmbeddedEngine
from bebop.engines.embedded.options import EmbeddedOptions

__all__ = ["EmbeddedEngine", "EmbeddedOptions"]
