"""vLLM as a rollout engine, in process and over HTTP. The binding alone imports vLLM, when an engine is opened."""

from bebop.engines.vllm.engine import VllmEngine
from bebop.engines.vllm.http import Http
from bebop.engines.vllm.options import VllmOptions
from bebop.engines.vllm.server import VllmServer, serve_command

__all__ = ["Http", "VllmEngine", "VllmOptions", "VllmServer", "serve_command"]
