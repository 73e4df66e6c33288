"""vLLM as a rollout engine, in process and over HTTP. The binding alone imports vLLM, when an engine is opened."""

from bebop.engines.vllm.engine import VllmEngine
from bebop.engines.vllm.options import VllmOptions

__all__ = ["VllmEngine", "VllmOptions"]
