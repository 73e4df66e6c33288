"""What of a policy a recipe needs: where it is, and how its head is served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bebop.engines.vllm.arguments import Runtime, speculative_config
from bebop.engines.vllm.options import VllmOptions
from bebop.errors import UserError
from bebop.models.names import resolve_name
from bebop.models.spec import PolicySpec, read_spec

# How SGLang wires what engines wire differently (`bebop.models.contracts`).
_SGLANG_WIRING: Mapping[str, Mapping[str, object]] = {
    "mimo": {"input_norm": "post"},
    "deepseek_v3": {"recycle": "post"},
    "glm4_moe": {"recycle": "post"},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedHead:
    """A policy whose head is to be served with ``num_draft_tokens`` (K) drafts a round."""

    spec: PolicySpec
    num_draft_tokens: int

    @property
    def policy(self) -> str:
        """The checkpoint directory."""
        return str(self.spec.directory)

    @property
    def draft_directory(self) -> str | None:
        """Where engines read the head from, if not from the checkpoint itself."""
        assert self.spec.contract is not None
        subdirectory = self.spec.contract.subdirectory
        return str(self.spec.directory / subdirectory) if subdirectory else None

    @property
    def vllm(self) -> dict[str, Any]:
        """vLLM's ``speculative_config``: drafts are sampled, and accepted by the ratio of the probabilities."""
        options = VllmOptions(num_draft_tokens=self.num_draft_tokens)
        return speculative_config(self.spec, options, Runtime(on_cpu=False, runner=2))

    @property
    def sglang(self) -> dict[str, Any]:
        """SGLang's server arguments: a chain of K drafts, judged by rejection sampling."""
        self._check_sglang_wiring()
        arguments: dict[str, Any] = {
            "speculative_algorithm": "EAGLE" if self.draft_directory else "NEXTN",
            "speculative_num_steps": self.num_draft_tokens,
            "speculative_eagle_topk": 1,
            "speculative_num_draft_tokens": self.num_draft_tokens + 1,
            "speculative_use_rejection_sampling": True,
        }
        if self.draft_directory:
            arguments["speculative_draft_model_path"] = f"{self.draft_directory}-sglang"
        return arguments

    def describe(self) -> dict[str, Any]:
        """For the recipe's heading."""
        contract = self.spec.contract
        assert contract is not None
        return {
            "policy": self.policy,
            "contract": contract.name,
            "method": "eagle" if self.draft_directory else "mtp",
            "draft_directory": self.draft_directory,
            "num_draft_tokens": self.num_draft_tokens,
        }

    def _check_sglang_wiring(self) -> None:
        contract = self.spec.contract
        assert contract is not None
        for name, served in _SGLANG_WIRING.get(contract.name, {}).items():
            trained = getattr(contract, name)
            if trained != served:
                raise UserError(
                    f"this {contract.name} head was made with {name}={trained}, and SGLang serves {name}={served} "
                    f"whatever the checkpoint says; train the head with {name}={served} in the "
                    "checkpoint's bebop.json to serve it there"
                )


def served_head(policy: str | Path, num_draft_tokens: int) -> ServedHead:
    """The head of a policy by name or directory. UserError where it has none."""
    spec = read_spec(resolve_name(policy))
    if spec.head_checkpoint is None:
        raise UserError(f"{spec.directory} has no MTP head; train one with `bebop train-mtp` or stitch one to it")
    if num_draft_tokens < 1:
        raise UserError(f"k is {num_draft_tokens}; a recipe for drafting needs 1 or more")
    return ServedHead(spec=spec, num_draft_tokens=num_draft_tokens)
