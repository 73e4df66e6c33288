"""Settings reach vLLM under its names; what it would accept and ignore is refused with a sentence."""

import json
from pathlib import Path

import pytest
import torch
from small_policies import small_policy
from vllm_policies import served_policy, stored_in

from bebop.core.sampling import Sampling
from bebop.engines.base import Request
from bebop.engines.vllm.arguments import Runtime, as_flags, engine_arguments, rule_methods, speculative_config
from bebop.engines.vllm.options import VllmOptions
from bebop.engines.vllm.sampling import derived_seed, sampling_parameters
from bebop.errors import UserError
from bebop.models.contracts import HeadOptions
from bebop.models.policy import Policy, save_policy
from bebop.models.spec import PolicySpec, read_spec

CPU = Runtime(on_cpu=True, runner=1, fast_bfloat16=False)
FAST_CPU = Runtime(on_cpu=True, runner=1, fast_bfloat16=True)
GPU = Runtime(on_cpu=False, runner=2)


def saved(policy: Policy, path: Path) -> PolicySpec:
    save_policy(policy, path)
    return read_spec(path)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> PolicySpec:
    return saved(served_policy("full"), tmp_path_factory.mktemp("policies") / "full")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> PolicySpec:
    return saved(served_policy("llama"), tmp_path_factory.mktemp("policies") / "llama")


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> PolicySpec:
    return saved(served_policy("hybrid"), tmp_path_factory.mktemp("policies") / "hybrid")


@pytest.mark.parametrize(
    ("rule", "methods"),
    [
        ("rejection", ("probabilistic", "standard")),
        ("target_only", ("greedy", "standard")),
        ("block", ("probabilistic", "block")),
    ],
)
def test_a_rule_is_a_way_to_draft_and_a_way_to_verify(rule: str, methods: tuple[str, str]) -> None:
    assert rule_methods(rule, GPU) == methods


def test_block_is_refused_where_the_first_runner_would_ignore_it() -> None:
    with pytest.raises(UserError, match="ignores rule 'block'"):
        rule_methods("block", CPU)


@pytest.mark.parametrize("rule", ["coupled", "synthetic"])
def test_a_rule_that_vllm_lacks_or_that_is_not_lossless_is_refused(rule: str) -> None:
    with pytest.raises(UserError, match=rule):
        rule_methods(rule, GPU)


def test_a_native_head_is_drafted_with_by_method_mtp(full: PolicySpec) -> None:
    config = speculative_config(full, VllmOptions(num_draft_tokens=4), CPU)
    assert (config["method"], config["num_speculative_tokens"]) == ("mtp", 4)
    assert "model" not in config


def test_a_head_with_a_directory_of_its_own_is_drafted_with_by_method_eagle(llama: PolicySpec) -> None:
    config = speculative_config(llama, VllmOptions(), CPU)
    assert (config["method"], config["model"]) == ("eagle", str(llama.directory / "eagle"))


def test_without_drafts_there_is_no_speculation(full: PolicySpec) -> None:
    assert "speculative_config" not in engine_arguments(full, VllmOptions(num_draft_tokens=0), CPU)


def test_drafts_without_a_head_are_refused(tmp_path: Path) -> None:
    policy = served_policy("llama")
    spec = saved(Policy(backbone=policy.backbone, contract=policy.contract), tmp_path / "bare")
    assert engine_arguments(spec, VllmOptions(num_draft_tokens=0), CPU)
    with pytest.raises(UserError, match="no MTP head"):
        engine_arguments(spec, VllmOptions(), CPU)


def test_a_head_made_for_another_wiring_is_refused(tmp_path: Path) -> None:
    served = saved(served_policy("mimo"), tmp_path / "pre")
    assert speculative_config(served, VllmOptions(), CPU)["method"] == "mtp"
    other = saved(served_policy("mimo", HeadOptions(input_norm="post")), tmp_path / "post")
    with pytest.raises(UserError, match="input_norm=post"):
        speculative_config(other, VllmOptions(), CPU)


def test_gated_layers_on_a_cpu_take_bfloat16_and_heads_of_128(hybrid: PolicySpec) -> None:
    with pytest.raises(UserError, match="heads of size 128"):
        engine_arguments(hybrid, VllmOptions(), CPU)
    with pytest.raises(UserError, match="bfloat16 only"):
        engine_arguments(hybrid, VllmOptions(dtype="float32"), CPU)
    assert engine_arguments(hybrid, VllmOptions(dtype="float32"), GPU)["dtype"] == "float32"


def test_heads_of_a_size_that_the_cpu_kernels_lack_are_refused(tmp_path: Path) -> None:
    spec = saved(small_policy("full"), tmp_path / "small")
    with pytest.raises(UserError, match="has 16"):
        engine_arguments(spec, VllmOptions(), CPU)
    assert engine_arguments(spec, VllmOptions(), GPU)


@pytest.mark.parametrize(
    ("stored", "runtime", "dtype"),
    [
        (torch.float32, GPU, "float32"),
        (torch.float32, CPU, "float32"),
        (torch.bfloat16, GPU, "bfloat16"),
        (torch.bfloat16, FAST_CPU, "bfloat16"),
        (torch.bfloat16, CPU, "float32"),
    ],
)
def test_the_dtype_is_the_checkpoints_and_never_narrower(
    tmp_path: Path, stored: torch.dtype, runtime: Runtime, dtype: str
) -> None:
    spec = saved(stored_in(served_policy("full"), stored), tmp_path / "policy")
    assert engine_arguments(spec, VllmOptions(), runtime)["dtype"] == dtype


def test_a_context_beyond_the_policys_positions_is_refused(full: PolicySpec) -> None:
    with pytest.raises(UserError, match="256 positions"):
        engine_arguments(full, VllmOptions(max_context=257), CPU)


def test_the_command_line_says_the_same_as_the_arguments(full: PolicySpec) -> None:
    arguments = engine_arguments(full, VllmOptions(max_rows=7, compile=True, max_context=99), CPU)
    flags = as_flags(arguments)
    assert flags[flags.index("--max-num-seqs") + 1] == "7"
    assert flags[flags.index("--max-model-len") + 1] == "99"
    assert json.loads(flags[flags.index("--speculative-config") + 1]) == arguments["speculative_config"]
    assert {"--no-enforce-eager", "--no-enable-prefix-caching"} <= set(flags)
    assert "--model" not in flags


def request(**settings: object) -> Request:
    return Request(id="r", prompt_tokens=(1,), max_tokens=4, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling": Sampling(temperature=0.005)}, "raises to 0.01"),
        ({"sampling": Sampling(min_p=0.1)}, "min_p"),
        ({"num_draft_tokens": 2}, "one number for all requests"),
        ({"num_draft_tokens": 0}, "one number for all requests"),
    ],
)
def test_a_request_that_vllm_would_answer_otherwise_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sampling_parameters(request(**settings), 0, VllmOptions(num_draft_tokens=3))


def test_min_p_is_taken_without_drafts_but_not_together_with_top_p() -> None:
    plain = VllmOptions(num_draft_tokens=0)
    assert sampling_parameters(request(sampling=Sampling(min_p=0.1)), 0, plain)["min_p"] == 0.1
    with pytest.raises(UserError, match="another order"):
        sampling_parameters(request(sampling=Sampling(min_p=0.1, top_p=0.5)), 0, plain)


def test_sampling_settings_keep_their_meaning() -> None:
    asked = request(sampling=Sampling(temperature=0.7, top_k=5, top_p=0.9), stop_token_ids=(2, 3), num_draft_tokens=3)
    parameters = sampling_parameters(asked, 0, VllmOptions(num_draft_tokens=3))
    assert (parameters["temperature"], parameters["top_k"], parameters["top_p"]) == (0.7, 5, 0.9)
    assert (parameters["stop_token_ids"], parameters["ignore_eos"], parameters["max_tokens"]) == ([2, 3], True, 4)
    assert sampling_parameters(request(), 0, VllmOptions())["top_k"] == -1, "0 is off with us, -1 with vLLM"


def test_seeds_of_completions_differ_and_fit_64_bits() -> None:
    seeds = {derived_seed(seed, index) for seed in range(50) for index in range(4)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)
