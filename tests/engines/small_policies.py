"""Random policies small enough to enumerate, heads that are good or adversarial, and short ways to ask an engine."""

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3_5ForCausalLM, Qwen3_5TextConfig

from bebop.core.sampling import Sampling
from bebop.engines.base import Completion, Request
from bebop.engines.embedded import EmbeddedEngine, EmbeddedOptions
from bebop.models.head import HeadState
from bebop.models.policy import Policy, new_policy

KINDS = ("full", "hybrid", "llama")
CONTEXT = 256
GREEDY = Sampling(temperature=0.0)


def small_policy(kind: str = "full", *, vocabulary: int = 16, seed: int = 0, spread: float = 0.15) -> Policy:
    """float32, random weights far enough from their initialisation that contexts matter."""
    torch.manual_seed(seed)
    backbone = (_llama if kind == "llama" else _qwen)(vocabulary, kind).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn_like(parameter) * spread)
    return new_policy(backbone, seed=seed)


def _llama(vocabulary: int, kind: str) -> PreTrainedModel:
    del kind
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
        )
    )


def _qwen(vocabulary: int, kind: str) -> PreTrainedModel:
    layers = {"full": ["full_attention"] * 2, "single": ["full_attention"]}
    layer_types = layers.get(kind, ["linear_attention"] * 3 + ["full_attention"])
    return Qwen3_5ForCausalLM(
        Qwen3_5TextConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=len(layer_types),
            layer_types=layer_types,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            linear_key_head_dim=16,
            linear_value_head_dim=16,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            max_position_embeddings=CONTEXT,
        )
    )


class EchoHead(nn.Module):
    """Drafts what the backbone would say to the last token alone, or, with sign -1, the opposite of it."""

    def __init__(self, policy: Policy, sign: float) -> None:
        super().__init__()
        self._model = [policy.backbone.get_decoder()]
        self.config = policy.config
        self._sign = sign

    def forward(self, hidden: Tensor, embeds: Tensor, positions: Tensor, **_: object) -> HeadState:
        rows, steps, size = embeds.shape
        before = self.config._attn_implementation
        self.config._attn_implementation = "eager"
        out = self._model[0](inputs_embeds=embeds.reshape(rows * steps, 1, size), use_cache=False)
        self.config._attn_implementation = before
        out = self._sign * out.last_hidden_state.reshape(rows, steps, size)
        return HeadState(output_BTH=out, recycle_BTH=out)


def with_echo_head(policy: Policy, sign: float) -> Policy:
    return Policy(backbone=policy.backbone, head=EchoHead(policy, sign), contract=policy.contract)  # type: ignore[arg-type]


def random_prompts(lengths: tuple[int, ...], vocabulary: int = 16, seed: int = 1) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randint(0, vocabulary, (n,), generator=generator).tolist()) for n in lengths]


def run(policy: Policy, requests: list[Request], **options: object) -> list[Completion]:
    return EmbeddedEngine(policy, EmbeddedOptions(**options)).generate(requests)  # type: ignore[arg-type]


def greedy_reference(policy: Policy, prompt: tuple[int, ...], num_tokens: int) -> tuple[int, ...]:
    """What transformers' generate says."""
    tokens = torch.tensor([prompt])
    out = policy.backbone.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    return tuple(out[0, len(prompt) :].tolist())


@torch.no_grad()
def full_logits(policy: Policy, tokens: tuple[int, ...]) -> Tensor:
    """[T, V] logits of one forward without any cache."""
    return policy.backbone(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float()
