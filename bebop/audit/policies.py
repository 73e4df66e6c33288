"""Policies for an audit: small enough to enumerate, context-dependent, in formats that engines load, with heads whose
draft law is known and hostile.

The backbone reads RMS-normal embeddings through random layers of which the last is full attention. The head's fuse
passes the token embedding on and drops the hidden state, its layer is a copy of the backbone's last one, and its output
is multiplied by a factor: 1 drafts much as the target would, -1 the opposite, 0 uniformly, 2 too sure of itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import MappingProxyType

import torch
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
)

from bebop.models.contracts import EAGLE, MIMO, QWEN3_5
from bebop.models.head import MTPHead
from bebop.models.policy import Policy, new_policy, save_policy

LETTERS = "abcdefghijklmnopqrstuvwxyz"
CONTEXT = 256
_MATRIX_GAIN = 1.2
_LOGIT_SPREAD = 1.3
"""Standard deviation of the target's logits at temperature 1."""
_EAGLE_SCALE = 2.0
"""About the RMS of the stream before the final norm: an EAGLE head has no norm of its own to bring it down."""
_WRITERS = ("o_proj.weight", "out_proj.weight", "down_proj.weight")
_EARLY_SHARE = 0.3
"""What layers before the last add to the stream, which a head made of the last one alone cannot know."""
_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


class Format(Enum):
    """Checkpoint formats that an audit can be run on."""

    MIMO = "mimo"
    """Dense attention, head inside the checkpoint."""
    QWEN3_5 = "qwen3_5"
    """Gated DeltaNet and full attention, head inside the checkpoint."""
    EAGLE = "eagle"
    """Llama with an EAGLE draft directory."""


class DraftKind(Enum):
    """What a head drafts."""

    OPPOSITE = "opposite"
    """The target's logits, negated: most drafts are refused."""
    UNIFORM = "uniform"
    """Every token alike."""
    SHARPER = "sharper"
    """The target's logits, doubled."""
    ECHO = "echo"
    """Nearly the target's logits: most drafts are accepted."""


FACTORS: Mapping[DraftKind, float] = MappingProxyType(
    {DraftKind.OPPOSITE: -1.0, DraftKind.UNIFORM: 0.0, DraftKind.SHARPER: 2.0, DraftKind.ECHO: 1.0}
)
_CONTRACTS = MappingProxyType({Format.MIMO: MIMO, Format.QWEN3_5: QWEN3_5, Format.EAGLE: EAGLE})


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyRecipe:
    """Which policy: everything follows from these, bit for bit."""

    format: Format = Format.MIMO
    draft: DraftKind = DraftKind.OPPOSITE
    vocabulary: int = 8
    seed: int = 0
    turned: bool = False
    """Turn the sign of the final norm, so that a head made for the policy unturned drafts the opposite."""


def build_policy(recipe: PolicyRecipe) -> Policy:
    """The policy in memory, float32, with a tokenizer that spells token i as the i-th letter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        backbone = _backbone(recipe).eval()
        _randomise(backbone, recipe)
    policy = new_policy(backbone, letter_tokenizer(recipe.vocabulary), contract=_CONTRACTS[recipe.format])
    assert policy.head is not None
    _wire(policy.head, backbone, FACTORS[recipe.draft], turned=recipe.turned)
    return policy


def write_policy(recipe: PolicyRecipe, directory: Path) -> Policy:
    """Save the policy to ``directory`` as a complete checkpoint; returns it as built."""
    policy = build_policy(recipe)
    save_policy(policy, directory)
    return policy


def letter_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Token i is the i-th letter, and text is letters without spaces."""
    tokenizer = Tokenizer(WordLevel({LETTERS[i]: i for i in range(vocabulary)}, unk_token=LETTERS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def _backbone(recipe: PolicyRecipe) -> PreTrainedModel:
    common = {**_SIZES, "vocab_size": recipe.vocabulary}
    match recipe.format:
        case Format.MIMO:
            return Qwen2ForCausalLM(Qwen2Config(**common, num_hidden_layers=1))
        case Format.EAGLE:
            return LlamaForCausalLM(LlamaConfig(**common, num_hidden_layers=1, head_dim=32))
        case Format.QWEN3_5:
            return Qwen3_5ForCausalLM(
                Qwen3_5TextConfig(
                    **common,
                    num_hidden_layers=2,
                    layer_types=["linear_attention", "full_attention"],
                    head_dim=32,
                    linear_key_head_dim=128,
                    linear_value_head_dim=128,
                    linear_num_key_heads=1,
                    linear_num_value_heads=1,
                )
            )


@torch.no_grad()
def _randomise(backbone: PreTrainedModel, recipe: PolicyRecipe) -> None:
    """Weights far from their initialisation, so that contexts matter and laws are neither flat nor certain."""
    for name, parameter in backbone.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=_MATRIX_GAIN / parameter[0].numel() ** 0.5)
        elif name.endswith("bias") and "dt_bias" not in name:
            parameter.normal_(std=0.3)
    for layer in list(backbone.get_decoder().get_submodule("layers").children())[:-1]:
        for name, parameter in layer.named_parameters():
            if name.endswith(_WRITERS):
                parameter.mul_(_EARLY_SHARE)
    embedding_VH = backbone.get_input_embeddings().weight
    assert isinstance(embedding_VH, Tensor)
    embedding_VH.normal_()
    embedding_VH.div_(embedding_VH.square().mean(dim=1, keepdim=True).sqrt())
    lm_head_VH = backbone.get_output_embeddings().weight  # type: ignore[union-attr]
    assert isinstance(lm_head_VH, Tensor)
    lm_head_VH.normal_(std=_LOGIT_SPREAD / lm_head_VH.shape[1] ** 0.5)
    if recipe.format is Format.EAGLE:
        backbone.get_decoder().get_parameter("norm.weight").fill_(_EAGLE_SCALE)
        lm_head_VH.div_(_EAGLE_SCALE)
    if recipe.turned:
        _turn_norm(backbone)


@torch.no_grad()
def _wire(head: MTPHead, backbone: PreTrainedModel, factor: float, *, turned: bool) -> None:
    """Make the head say ``factor`` times what the backbone's last layer makes of the tokens alone."""
    contract = head.contract
    last = list(backbone.get_decoder().get_submodule("layers").children())[-1].state_dict()
    head.layer.load_state_dict({name: last[name] for name in head.layer.state_dict()})
    identity_HH = torch.eye(head.fuse.out_features)
    halves = (identity_HH, torch.zeros_like(identity_HH))
    head.fuse.weight.copy_(torch.cat(halves if contract.concat_order == "embedding_first" else halves[::-1], dim=1))
    if contract.names.output_norm is None:
        _turn_linearly(head, -factor if turned else factor)
        return
    one = 1.0 if contract.zero_centred_norm else 0.0
    norm_H = backbone.get_decoder().get_parameter("norm.weight")
    head.output_norm.weight.copy_(factor * (one + norm_H) - one)  # type: ignore[union-attr]
    for norm in (head.embedding_norm, head.hidden_norm):
        norm.weight.fill_(1.0 - one)  # type: ignore[union-attr]


def _turn_norm(backbone: PreTrainedModel) -> None:
    """Negate the factor of the final norm: w, or 1 + w where the norm is zero-centred."""
    norm_H = backbone.get_decoder().get_parameter("norm.weight")
    norm_H.copy_(-norm_H - 2.0 if isinstance(backbone, Qwen3_5ForCausalLM) else -norm_H)


def _turn_linearly(head: MTPHead, factor: float) -> None:
    """A layer without norms around it, turned: negating its input and its MLP's gate negates its output exactly."""
    sign = float(torch.tensor(factor).sign())
    head.fuse.weight.mul_(factor if sign >= 0 else sign)
    head.layer.get_parameter("mlp.gate_proj.weight").mul_(sign)
