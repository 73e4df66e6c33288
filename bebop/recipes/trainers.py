"""Recipes for frameworks that train by reinforcement learning: the head is served and left alone."""

from __future__ import annotations

from bebop.recipes.caveats import SGLANG_UPDATES, sglang_caveats, vllm_caveats
from bebop.recipes.engines import sglang_draft
from bebop.recipes.head import ServedHead
from bebop.recipes.metrics import nemo_rl_metrics, skyrl_metrics, slime_metrics, verl_metrics, vllm_counters
from bebop.recipes.record import Block, Caveat, Recipe
from bebop.recipes.write import as_toml, as_yaml, dotted, overrides, shell

_ROLLOUT = "actor_rollout_ref.rollout"
_SPECULATIVE = f"{_ROLLOUT}.engine_kwargs.vllm.speculative_config"


def verl(head: ServedHead) -> Recipe:
    return Recipe(
        framework="verl",
        checked="verl main, September 2026",
        head=head.describe(),
        blocks=(_verl_eagle(head) if head.draft_directory else _verl_mtp(head),),
        metrics=verl_metrics(),
        caveats=(
            *(_VERL_EAGLE if head.draft_directory else _VERL_MTP),
            Caveat(
                text="On vLLM the acceptance metrics need per-request statistics; without them verl warns once and "
                "logs nothing. Take vLLM's own counters then.",
                source="verl, rollout metrics",
            ),
            *vllm_caveats(head),
        ),
    )


_VERL_MTP = (
    Caveat(
        text="verl loads the head with the Megatron trainer only; with FSDP, roll out with a head in a draft "
        "directory.",
        source="verl#6483",
    ),
)
_VERL_EAGLE = (
    Caveat(
        text="verl starts its engine with dummy weights and, between rollouts, sleeps at level 2, which discards "
        "the draft: hence draft_load_config and no sleep mode, which needs rollouts on GPUs of their own or "
        "memory for both.",
        source="verl, vllm_async_server.py; verl#6661",
    ),
)


def _verl_mtp(head: ServedHead) -> Block:
    """The trainer holds the head, untrained, and sends it along; vLLM then sleeps at level 1."""
    config = head.vllm
    rest = {key: value for key, value in config.items() if key not in ("method", "num_speculative_tokens")}
    mtp = {
        "enable": True,
        "enable_train": False,
        "enable_rollout": True,
        "method": config["method"],
        "num_speculative_tokens": config["num_speculative_tokens"],
    }
    options = {
        "actor_rollout_ref.model.path": head.policy,
        **dotted("actor_rollout_ref.model.mtp", mtp),
        **_verl_rollout(),
    }
    return overrides("Add to the command (Megatron trainer)", options, added=dotted(_SPECULATIVE, rest))


def _verl_eagle(head: ServedHead) -> Block:
    """The draft goes straight to vLLM, which reads it from disk and keeps it."""
    options = {
        "actor_rollout_ref.model.path": head.policy,
        **_verl_rollout(),
        f"{_ROLLOUT}.enable_sleep_mode": False,
        f"{_ROLLOUT}.free_cache_engine": False,
    }
    config = {**head.vllm, "draft_load_config": {"load_format": "auto"}}
    return overrides("Add to the command", options, added=dotted(_SPECULATIVE, config))


def _verl_rollout() -> dict[str, object]:
    return {
        f"{_ROLLOUT}.name": "vllm",
        f"{_ROLLOUT}.calculate_log_probs": True,
        f"{_ROLLOUT}.logprobs_mode": "processed_logprobs",
        f"{_ROLLOUT}.enable_prefix_caching": False,
        f"{_ROLLOUT}.disable_log_stats": False,
    }


def skyrl(head: ServedHead) -> Recipe:
    refusal = None
    blocks: tuple[Block, ...] = ()
    if head.draft_directory:
        refusal = "SkyRL takes heads inside the checkpoint alone (method mtp) and refuses an EAGLE draft (SkyRL#2176)."
    else:
        options = {
            "trainer.policy.model.path": head.policy,
            "trainer.mtp.enabled": False,
            "generator.inference_engine.backend": "vllm",
            "generator.inference_engine.speculative_config": head.vllm,
        }
        blocks = (overrides("Add to the command", options),)
    return Recipe(
        framework="skyrl",
        checked="SkyRL main, September 2026",
        head=head.describe(),
        blocks=blocks,
        metrics=skyrl_metrics(),
        caveats=(
            Caveat(
                text="trainer.mtp.enabled=true would train the head, and set a speculative_config of its own that "
                "drafts greedily; false leaves the head out of the trainer and of its weight updates.",
                source="SkyRL#1832",
            ),
            *vllm_caveats(head),
        ),
        refusal=refusal,
    )


def slime(head: ServedHead) -> Recipe:
    sglang = {**head.sglang, "enable_draft_weights_cpu_backup": True}
    options = {"hf_checkpoint": head.policy, **{f"sglang_{name}": value for name, value in sglang.items()}}
    return Recipe(
        framework="slime",
        checked="slime main, August 2026; miles has the same flags",
        head=head.describe(),
        blocks=(*sglang_draft(head), shell("Add to the arguments of train.py", ("python", "train.py"), options)),
        metrics=slime_metrics(),
        caveats=(
            Caveat(
                text="Leave out --enable-mtp-training and --mtp-num-layers: they train the head and need it "
                "converted for Megatron.",
                source="slime#1702",
            ),
            SGLANG_UPDATES,
            *sglang_caveats(head),
        ),
    )


def nemo_rl(head: ServedHead) -> Recipe:
    generation = {
        "backend": "vllm",
        "vllm_cfg": {"pipeline_parallel_size": 1},
        "vllm_kwargs": {"speculative_config": head.vllm},
    }
    policy = {
        "model_name": head.policy,
        "draft": {"enabled": False},
        "megatron_cfg": {"mtp_num_layers": 0},
        "generation": generation,
    }
    return Recipe(
        framework="nemo-rl",
        checked="NeMo-RL main, September 2026",
        head=head.describe(),
        blocks=(as_yaml("Merge into the configuration", {"policy": policy}),),
        metrics=nemo_rl_metrics(),
        caveats=(
            Caveat(
                text="A head that the trainer does not train is read from the checkpoint, while the target starts "
                "from dummy weights and waits for the first update: judge acceptance after that.",
                source="NeMo-RL, generation/vllm",
            ),
            *vllm_caveats(head),
        ),
    )


def trl(head: ServedHead) -> Recipe:
    served = shell(
        "Serve (server mode)",
        ("trl", "vllm-serve", "--model", head.policy),
        {"speculative_config": head.vllm},
        dash="_",
    )
    return Recipe(
        framework="trl",
        checked="TRL with #5605, April 2026",
        head=head.describe(),
        blocks=(served,),
        metrics=(),
        caveats=(
            Caveat(
                text="Colocated vLLM takes no speculative_config: use vllm_mode='server' in GRPOConfig.",
                source="trl#5604",
            ),
            Caveat(
                text="TRL logs no acceptance; read vLLM's counters, which the recipe for vllm translates.",
                source="trl, source",
            ),
            *vllm_caveats(head),
        ),
    )


def prime_rl(head: ServedHead) -> Recipe:
    options = {
        "model": head.policy,
        "logprobs_mode": "processed_logprobs",
        "enable_prefix_caching": False,
        "speculative_config": head.vllm,
    }
    return Recipe(
        framework="prime-rl",
        checked="prime-rl main, September 2026",
        head=head.describe(),
        blocks=(as_toml("Add to the TOML file; every key goes to vLLM as it is", {"inference.vllm": options}),),
        metrics=vllm_counters(),
        caveats=(
            Caveat(
                text="The trainer drops mtp.* when it loads the policy: the head stays as it is on disk, and "
                "checkpoints that the trainer writes have none. Put it back with `bebop policy stitch`.",
                source="prime-rl#2122",
            ),
            *vllm_caveats(head),
        ),
    )
