"""Settings of the vLLM engine, in process and as a server."""

from dataclasses import dataclass
from typing import Literal

from bebop.errors import UserError

GIB = 1 << 30

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class VllmOptions:
    """How vLLM drafts, verifies and fits into memory. Fields that ``EmbeddedOptions`` has as well mean the same.

    ``num_draft_tokens`` is K for every request: vLLM has no K of a single request. ``recompute_cache`` says what new
    weights do to requests in flight: True runs their tokens again, False keeps the keys of the old weights.
    """

    rule: str = "rejection"
    num_draft_tokens: int = 3
    max_rows: int = 64
    max_context: int | None = None
    """Positions a request may have; None takes the policy's own limit."""
    dtype: Dtype = "auto"
    """What vLLM computes in; "auto" is the checkpoint's dtype, but float32 on a CPU without bfloat16 instructions,
    if the architecture can."""
    cache_bytes: int = GIB
    """Memory for keys and values."""
    record_distribution: bool = False
    """Ask for the log-probs of the whole vocabulary at every token: entropies, and raw log-probs at temperatures other
    than 1, come from them. Slow beyond small vocabularies; without it both are NaN."""
    recompute_cache: bool = True
    compile: bool = False
    """Let vLLM compile the model (minutes at the start). Without it torch.compile is off in the whole process."""
    correct_cpu_sampling: bool = True
    """On a CPU vLLM reads temperature, top-k and top-p of speculative requests from uninitialised memory (vllm#55005);
    True puts a correct expansion in the place of the faulty one, False leaves vLLM as it is."""

    def __post_init__(self) -> None:
        for name in ("max_rows", "cache_bytes"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if self.num_draft_tokens < 0:
            raise UserError(f"num_draft_tokens is {self.num_draft_tokens}; it must be 0 or more")
        if self.max_context is not None and self.max_context < 2:
            raise UserError(f"max_context is {self.max_context}; a prompt and a token after it need 2")
