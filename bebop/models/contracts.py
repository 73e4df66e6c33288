"""How an MTP head is wired, named and stored: one frozen record per architecture, looked up by `model_type`.

Draft depth 1 at position i takes the backbone's hidden state at i and the embedding of token i+1; depth k takes what
depth k-1 handed on and the embedding of token i+k. The records say which vectors these are, how they are joined, and
under which names engines look for the tensors. H = hidden size.

Sources: model code of vLLM 0.33 and SGLang 0.5.23; where the two disagree the record leaves the point open
(`open_options`) and the choice travels with the checkpoint in `bebop.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from bebop.errors import UserError

ConcatOrder = Literal["embedding_first", "hidden_first"]
NormSide = Literal["post", "pre"]
ExpertLayout = Literal["dense", "fused", "per_expert"]


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadNames:
    """Tensor names of a head in a checkpoint, relative to the contract's prefix; None = the head has no such part."""

    fuse: str
    embedding_norm: str | None
    hidden_norm: str | None
    output_norm: str | None
    layer: str
    """Prefix of the decoder layer's own tensors ("" where they stand beside the fuse)."""
    embedding_copy: str | None = None
    lm_head_copy: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerClasses:
    """The transformers classes the head is built from."""

    module: str
    layer: str
    norm: str
    rotary: str


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadOptions:
    """Explicit choices on the points that engines wire differently; None = the contract's default."""

    input_norm: NormSide | None = None
    recycle: NormSide | None = None
    zero_embedding_at_position_0: bool | None = None

    def __post_init__(self) -> None:
        for name in ("input_norm", "recycle"):
            if getattr(self, name) not in (None, "post", "pre"):
                raise UserError(f"Head option {name} is {getattr(self, name)!r}; it can be 'post' or 'pre'.")


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadContract:
    """The wiring of one architecture's MTP head.

    `prefix` may hold `{num_hidden_layers}`. `subdirectory` is set where engines read the head from a draft directory of
    its own. `count_key` is the config key by which engines learn that a head is there. `layer_config` overrides make
    the architecture's decoder layer, at index 0, the kind that the head uses.
    """

    name: str
    model_types: tuple[str, ...]
    prefix: str
    names: HeadNames
    classes: LayerClasses
    concat_order: ConcatOrder = "embedding_first"
    input_norm: NormSide = "post"
    """Which backbone hidden depth 1 takes: after ("post") or before ("pre") the final norm."""
    recycle: NormSide = "post"
    """Which vector depth k+1 takes: after or before the head's output norm."""
    zero_centred_norm: bool = False
    """The norms multiply by (1 + w) instead of w."""
    zero_embedding_at_position_0: bool = False
    layer_input_norm: bool = True
    expert_layout: ExpertLayout = "dense"
    """How a fresh head's experts are stored; a head that was read keeps the layout it had."""
    layer_config: Mapping[str, Any] = field(default_factory=dict)
    count_key: str | None = None
    subdirectory: str | None = None
    open_options: frozenset[str] = frozenset()

    def tensor_prefix(self, num_hidden_layers: int) -> str:
        return self.prefix.format(num_hidden_layers=num_hidden_layers)

    @property
    def options(self) -> HeadOptions:
        """The contract's own setting of every point that can be an option."""
        return HeadOptions(**{f.name: getattr(self, f.name) for f in fields(HeadOptions)})

    def with_options(self, options: HeadOptions) -> HeadContract:
        """This contract with `options` applied; UserError where an option differs on a point that is not open."""
        chosen = {f.name: getattr(options, f.name) for f in fields(options) if getattr(options, f.name) is not None}
        for name, value in chosen.items():
            if value != getattr(self, name) and name not in self.open_options:
                allowed = ", ".join(sorted(self.open_options)) or "none"
                raise UserError(f"The {self.name} head fixes {name}; drop that option (open for it: {allowed}).")
        return replace(self, **chosen)


def _modeling(package: str, stem: str, rotary: str | None = None) -> LayerClasses:
    return LayerClasses(
        module=f"transformers.models.{package}.modeling_{package}",
        layer=f"{stem}DecoderLayer",
        norm=f"{stem}RMSNorm",
        rotary=rotary or f"{stem}RotaryEmbedding",
    )


_QWEN_NAMES = HeadNames(
    fuse="fc.weight",
    embedding_norm="pre_fc_norm_embedding.weight",
    hidden_norm="pre_fc_norm_hidden.weight",
    output_norm="norm.weight",
    layer="layers.0.",
)
_DEEPSEEK_NAMES = HeadNames(
    fuse="eh_proj.weight",
    embedding_norm="enorm.weight",
    hidden_norm="hnorm.weight",
    output_norm="shared_head.norm.weight",
    layer="",
    embedding_copy="embed_tokens.weight",
    lm_head_copy="shared_head.head.weight",
)

QWEN3_5 = HeadContract(
    name="qwen3_5",
    model_types=("qwen3_5", "qwen3_5_text"),
    prefix="mtp.",
    names=_QWEN_NAMES,
    classes=_modeling("qwen3_5", "Qwen3_5", "Qwen3_5TextRotaryEmbedding"),
    zero_centred_norm=True,
    layer_config={"layer_types": ["full_attention"]},
    count_key="mtp_num_hidden_layers",
)
QWEN3_5_MOE = replace(
    QWEN3_5,
    name="qwen3_5_moe",
    model_types=("qwen3_5_moe", "qwen3_5_moe_text"),
    classes=_modeling("qwen3_5_moe", "Qwen3_5Moe", "Qwen3_5MoeTextRotaryEmbedding"),
    expert_layout="fused",
)
QWEN3_NEXT = replace(
    QWEN3_5,
    name="qwen3_next",
    model_types=("qwen3_next",),
    classes=_modeling("qwen3_next", "Qwen3Next"),
    expert_layout="per_expert",
    layer_config={"layer_types": ["full_attention"], "mlp_only_layers": [], "decoder_sparse_step": 1},
    count_key="num_nextn_predict_layers",
)
# vLLM feeds depth 1 the hidden before the final norm, SGLang and FastMTP the one after it.
MIMO = HeadContract(
    name="mimo",
    model_types=("mimo",),
    prefix="model.mtp_layers.0.",
    names=HeadNames(
        fuse="input_proj.weight",
        embedding_norm="token_layernorm.weight",
        hidden_norm="hidden_layernorm.weight",
        output_norm="final_layernorm.weight",
        layer="",
    ),
    classes=_modeling("qwen2", "Qwen2"),
    concat_order="hidden_first",
    input_norm="pre",
    zero_embedding_at_position_0=True,
    layer_config={"layer_types": ["full_attention"]},
    count_key="num_nextn_predict_layers",
    open_options=frozenset({"input_norm"}),
)
# The released reference code does not recycle; SGLang and vLLM (since vllm#45895) recycle after the norm. vLLM alone
# zeroes the embedding at position 0.
DEEPSEEK_V3 = HeadContract(
    name="deepseek_v3",
    model_types=("deepseek_v3",),
    prefix="model.layers.{num_hidden_layers}.",
    names=_DEEPSEEK_NAMES,
    classes=_modeling("deepseek_v3", "DeepseekV3"),
    expert_layout="per_expert",
    layer_config={"first_k_dense_replace": 0},
    count_key="num_nextn_predict_layers",
    open_options=frozenset({"recycle", "zero_embedding_at_position_0"}),
)
# vLLM 0.33 recycles before the output norm, SGLang after it.
GLM4_MOE = replace(
    DEEPSEEK_V3,
    name="glm4_moe",
    model_types=("glm4_moe",),
    classes=_modeling("glm4_moe", "Glm4Moe"),
)
# For architectures without a head of their own; vLLM serves it with method "eagle" (EagleLlamaForCausalLM), whose layer
# is Llama's whatever the target is.
EAGLE = HeadContract(
    name="eagle",
    model_types=("llama", "mistral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "olmo2", "smollm3"),
    prefix="",
    names=HeadNames(fuse="fc.weight", embedding_norm=None, hidden_norm=None, output_norm=None, layer="layers.0."),
    classes=_modeling("llama", "Llama"),
    layer_input_norm=False,
    subdirectory="eagle",
)

CONTRACTS: tuple[HeadContract, ...] = (QWEN3_5, QWEN3_5_MOE, QWEN3_NEXT, MIMO, DEEPSEEK_V3, GLM4_MOE, EAGLE)


def contract_for(model_type: str) -> HeadContract:
    """The contract of an architecture; UserError naming the supported ones where there is none."""
    for contract in CONTRACTS:
        if model_type in contract.model_types:
            return contract
    supported = ", ".join(name for contract in CONTRACTS for name in contract.model_types)
    raise UserError(f"No MTP head is known for model_type {model_type!r}; supported are {supported}.")


def foreign_contract(tensor_names: list[str], own: HeadContract) -> HeadContract | None:
    """The contract of another architecture whose fuse is among `tensor_names` (paths relative to the checkpoint)."""
    for contract in CONTRACTS:
        if contract.prefix in ("", own.prefix) or "{" in contract.prefix:
            continue
        if contract.prefix + contract.names.fuse in tensor_names:
            return contract
    return None
