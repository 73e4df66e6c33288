"""Policy: a backbone, its MTP head and its tokenizer as one value.

Shapes: B rows, T positions, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from bebop.models.contracts import HeadContract, HeadOptions, contract_for
from bebop.models.fingerprint import Fingerprint, fingerprint_of
from bebop.models.fresh import initialise_head
from bebop.models.head import MTPHead, head_config


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneState:
    """One backbone forward: `hidden_BTH` (after the final norm) enters the lm_head, `draft_input_BTH` draft depth 1."""

    hidden_BTH: Tensor
    draft_input_BTH: Tensor
    cache: Cache | None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Policy:
    """What is trained, drafted with and served. The modules are live: training changes them in place."""

    backbone: PreTrainedModel
    head: MTPHead | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    contract: HeadContract | None = None
    source: Path | None = None
    """The checkpoint it was read from; saving copies untouched tensors and side files out of it."""
    head_trained_on: str | None = None
    """Backbone fingerprint the head was last trained on; None for a head Bebop has not trained."""
    draft_vocabulary: tuple[int, ...] | None = None
    """Tokens that the head may draft, in rising order; None for all of them."""

    @property
    def config(self) -> PreTrainedConfig:
        return self.backbone.config.get_text_config()

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.dtype

    @property
    def fingerprint(self) -> Fingerprint:
        """Computed from the tensors as they are now; hashing costs about a second per gigabyte and core."""
        return fingerprint_of(self.backbone, self.head)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every token that ends a completion, from generation config, config or tokenizer, in this order."""
        candidates: list[Any] = [
            getattr(self.backbone.generation_config, "eos_token_id", None),
            self.config.eos_token_id,
        ]
        candidates.append(getattr(self.tokenizer, "eos_token_id", None))
        found = next((ids for ids in candidates if ids is not None), ())
        return (found,) if isinstance(found, int) else tuple(found)

    def embed(self, tokens: Tensor) -> Tensor:
        """Token embeddings [..., H] of token ids [...]."""
        return self.backbone.get_input_embeddings()(tokens)

    def logits(self, hidden: Tensor) -> Tensor:
        """The lm_head's logits [..., V] of hiddens [..., H] (post-norm, or a head's output)."""
        lm_head = self.backbone.get_output_embeddings()
        assert lm_head is not None, "a causal language model has an lm_head"
        return lm_head(hidden)

    def hide_undrafted(self, logits: Tensor) -> Tensor:
        """Draft logits [..., V] with -inf at tokens outside the draft vocabulary."""
        if self.draft_vocabulary is None:
            return logits
        is_hidden_V = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
        is_hidden_V[list(self.draft_vocabulary)] = False
        return logits.masked_fill(is_hidden_V, float("-inf"))

    def run_backbone(
        self,
        tokens_BT: Tensor,
        *,
        position_ids_BT: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        attention_options: Mapping[str, Any] | None = None,
    ) -> BackboneState:
        """The backbone without lm_head; `draft_input_BTH` is from the side of the final norm the contract names.

        attention_options: arguments for an attention implementation of ours that is in force (`attending_by`).
        """
        decoder = self.backbone.get_decoder()
        wants_pre_norm = self.contract is not None and self.contract.input_norm == "pre"
        norm = decoder.get_submodule("norm")
        with _norm_inputs(norm) if wants_pre_norm else nullcontext([]) as pre_norm:
            outputs = decoder(
                input_ids=tokens_BT,
                position_ids=position_ids_BT,
                attention_mask=attention_mask,
                past_key_values=cache,
                use_cache=cache is not None,
                **(attention_options or {}),
            )
        hidden_BTH = outputs.last_hidden_state
        draft_input_BTH = pre_norm[-1] if wants_pre_norm else hidden_BTH
        return BackboneState(hidden_BTH=hidden_BTH, draft_input_BTH=draft_input_BTH, cache=outputs.past_key_values)

    def with_head_trained_here(self) -> Policy:
        """This policy, its head marked as trained on the backbone as it is now."""
        return replace(self, head_trained_on=self.fingerprint.backbone)


@contextmanager
def _norm_inputs(norm: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what enters `norm` while the context is open."""
    seen: list[Tensor] = []
    hook = norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        hook.remove()


def new_policy(
    backbone: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    contract: HeadContract | None = None,
    options: HeadOptions | None = None,
    seed: int = 0,
) -> Policy:
    """A policy out of a model in memory, with a fresh head; `contract` None = the one of the model's `model_type`."""
    config = backbone.config.get_text_config()
    contract = (contract or contract_for(config.model_type)).with_options(options or HeadOptions())
    head = build_head(contract, head_config(contract, config), dtype=backbone.dtype, device=backbone.device)
    initialise_head(head, backbone, seed=seed)
    return Policy(backbone=backbone, head=head, tokenizer=tokenizer, contract=contract)


def build_head(
    contract: HeadContract, config: PreTrainedConfig, *, dtype: torch.dtype, device: torch.device
) -> MTPHead:
    """A head with tensors allocated but not set; the routing bias of MoE layers is float32, as in the backbone."""
    with torch.device("meta"):
        head = MTPHead(contract, config)
    state = {
        name: torch.empty_like(tensor, device=device, dtype=parameter_dtype(name, tensor, dtype))
        for name, tensor in head.state_dict().items()
    }
    head.load_state_dict(state, assign=True)
    head.rotary.to(device)
    return head.eval()


def parameter_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The format of a head's parameter in a policy of ``dtype``."""
    if not tensor.is_floating_point():
        return tensor.dtype
    return torch.float32 if name.endswith("e_score_correction_bias") else dtype
