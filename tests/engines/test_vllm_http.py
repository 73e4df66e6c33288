"""The HTTP side of vLLM: bodies and answers, checks of the server, updates in order. A stand-in server answers."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from vllm_policies import served_policy

from bebop.core.sampling import Sampling
from bebop.engines.base import Request, StopReason, TokenSource
from bebop.engines.vllm import Http, VllmOptions, VllmServer
from bebop.engines.vllm.outputs import PLAIN, Step
from bebop.engines.vllm.wire import check_server, generate_body, sampled_of
from bebop.errors import UserError
from bebop.models.policy import Policy, save_policy

S, D, C = TokenSource.SAMPLED, TokenSource.DRAFTED, TokenSource.CORRECTED
OPTIONS = VllmOptions(num_draft_tokens=2, max_rows=3)
SPECULATION = {
    "num_speculative_tokens": 2,
    "draft_sample_method": "probabilistic",
    "rejection_sample_method": "standard",
}
CONFIG = {
    "model_config": {"logprobs_mode": "processed_logprobs", "max_model_len": 64},
    "device_config": {"device_type": "cpu"},
    "speculative_config": SPECULATION,
}


METRICS = """
vllm:spec_decode_num_drafts_total{engine="0"} 3.0
vllm:spec_decode_num_draft_tokens_total{engine="0"} 6.0
vllm:spec_decode_num_accepted_tokens_total{engine="0"} 1.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="0"} 1.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",position="1"} 0.0
"""


def answer_to(body: dict[str, Any], versions: list[dict] | None = None) -> dict[str, Any]:
    """Four tokens after the prompt's last: a prefill's, then a round with one accepted draft, then one with none."""
    first = body["token_ids"][-1] + 1
    content = [{"token_id": first + i, "logprob": -0.5 * i, "top_logprobs": []} for i in range(4)]
    return {
        "choices": [
            {
                "token_ids": [first + i for i in range(4)],
                "logprobs": {"content": content},
                "finish_reason": "length",
                "weight_versions": versions,
            }
        ],
        "metrics": {"speculative_decoding": {"per_step_drafted": [2, 2], "per_step_accepted": [1, 0]}},
    }


@dataclass
class StandIn:
    """What the stand-in server was sent, and what it is to refuse."""

    url: str = ""
    posts: list[tuple[str, dict]] = field(default_factory=list)
    tensors: list[dict[str, Tensor]] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    config: dict = field(default_factory=lambda: json.loads(json.dumps(CONFIG)))

    def get(self, path: str) -> Any:
        if path == "/metrics":
            return METRICS
        return {"vllm_config": self.config}

    def post(self, path: str, body: dict) -> Any:
        self.posts.append((path, body))
        if path == "/update_weights":
            self.tensors.append(load_file(body["update_info"]["path"]))
        return answer_to(body) if path.startswith("/inference") else None


@pytest.fixture
def server() -> Iterator[StandIn]:
    state = StandIn()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(state.get(self.path))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path in state.refused:
                self.send_error(500, "out of memory")
                return
            self.reply(state.post(self.path, body))

        def reply(self, answer: Any) -> None:
            data = answer if isinstance(answer, str) else "" if answer is None else json.dumps(answer)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data.encode())

        def log_message(self, *_: object) -> None:
            """Quiet."""

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{listener.server_port}"
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    yield state
    listener.shutdown()
    listener.server_close()


@pytest.fixture
def policy(tmp_path: Path) -> tuple[Policy, Path]:
    made = served_policy("llama")
    save_policy(made, tmp_path / "policy")
    return made, tmp_path / "policy"


def asked(name: str = "r", **settings: object) -> Request:
    return Request(id=name, **({"prompt_tokens": (1, 2), "max_tokens": 4} | settings))  # type: ignore[arg-type]


def test_a_request_becomes_token_ids_and_sampling_parameters() -> None:
    body = generate_body(asked(sampling=Sampling(temperature=0.5)), 0, "key", OPTIONS)
    assert (body["request_id"], body["token_ids"]) == ("key", [1, 2])
    assert (body["sampling_params"]["temperature"], body["sampling_params"]["max_tokens"]) == (0.5, 4)
    assert json.loads(json.dumps(body)) == body


def test_an_answer_becomes_tokens_log_probs_rounds_and_versions() -> None:
    spans = [{"version": "default", "start": 0, "end": 1}, {"version": "7", "start": 1, "end": 4}]
    sampled = sampled_of(answer_to({"token_ids": [4]}, spans), asked(), 3)
    assert sampled.tokens == (5, 6, 7, 8)
    assert sampled.logprobs == (0.0, -0.5, -1.0, -1.5)
    assert sampled.versions == (3, 7, 7, 7)
    assert sampled.steps == (PLAIN, Step(drafted=2, accepted=1), Step(drafted=2, accepted=0))
    assert sampled.length


def test_whole_distributions_give_entropies() -> None:
    answer = answer_to({"token_ids": [4]})
    for place in answer["choices"][0]["logprobs"]["content"]:
        place["logprob"] = -0.6931471805599453
        place["top_logprobs"] = [{"token_id": t, "logprob": place["logprob"]} for t in (place["token_id"], 99)]
    assert sampled_of(answer, asked(), 0).entropies == pytest.approx((0.6931471805599453,) * 4)


def test_an_answer_without_log_probs_is_refused() -> None:
    answer = answer_to({"token_ids": [4]})
    answer["choices"][0]["logprobs"] = None
    with pytest.raises(UserError, match="0 log-probs for 4 tokens"):
        sampled_of(answer, asked(), 0)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("model_config", "logprobs_mode"), "raw_logprobs", "processed_logprobs"),
        (("speculative_config", "draft_sample_method"), "greedy", "draft_sample_method=greedy"),
        (("speculative_config", "num_speculative_tokens"), 5, "num_speculative_tokens=5"),
    ],
)
def test_a_server_that_was_started_otherwise_is_refused(path: tuple[str, str], value: object, message: str) -> None:
    config = json.loads(json.dumps(CONFIG))
    check_server(config, OPTIONS, SPECULATION)
    config[path[0]][path[1]] = value
    with pytest.raises(UserError, match=message):
        check_server(config, OPTIONS, SPECULATION)


def test_completions_come_back_in_order(server: StandIn, policy: tuple[Policy, Path]) -> None:
    engine = VllmServer(Http(url=server.url), policy[1], OPTIONS, version=4)
    requests = [asked(str(i), prompt_tokens=(i,), num_completions=2) for i in range(5)]
    done = engine.generate(requests)
    assert [(one.request_id, one.index) for one in done] == [(str(i), c) for i in range(5) for c in range(2)]
    assert [one.tokens[0] for one in done[::2]] == [1, 2, 3, 4, 5]
    assert done[0].sources == (S, D, C, C)
    assert (done[0].versions, done[0].stop_reason) == ((4,) * 4, StopReason.MAX_TOKENS)
    assert (engine.drafts().rounds, engine.drafts().accepted) == (3, (1, 0))
    keys = [body["request_id"] for path, body in server.posts if path.startswith("/inference")]
    assert len(set(keys)) == 10


def test_a_stream_that_is_closed_aborts_what_runs(server: StandIn, policy: tuple[Policy, Path]) -> None:
    engine = VllmServer(Http(url=server.url), policy[1], OPTIONS)
    stream = engine.stream(asked(str(i)) for i in range(100))
    next(stream)
    stream.close()
    aborted = [body["request_ids"] for path, body in server.posts if path == "/abort_requests"]
    assert len(aborted) <= 1
    assert len([1 for path, _ in server.posts if path.startswith("/inference")]) < 20


def test_an_update_pauses_sends_target_then_draft_and_sets_the_version_last(
    server: StandIn, policy: tuple[Policy, Path]
) -> None:
    made, directory = policy
    engine = VllmServer(Http(url=server.url), directory, OPTIONS)
    assert made.head is not None
    backbone = dict(made.backbone.state_dict())
    head = {"head." + name: tensor for name, tensor in made.head.state_dict().items()}
    engine.load_weights(9, backbone | head)
    assert [path for path, _ in server.posts] == [
        "/pause?mode=keep",
        "/start_weight_update",
        "/update_weights",
        "/finish_weight_update",
        "/start_draft_weight_update",
        "/update_weights",
        "/finish_weight_update",
        "/reset_prefix_cache?reset_running_requests=true",
        "/resume",
    ]
    finished = [body for path, body in server.posts if path == "/finish_weight_update"]
    assert finished == [{}, {"weight_version": "9"}]
    target, draft = server.tensors
    assert torch.equal(target["model.norm.weight"], backbone["model.norm.weight"])
    assert torch.equal(draft["fc.weight"], head["head.fuse.weight"])
    assert engine.version == 9


def test_an_update_that_fails_half_way_stops_the_engine(server: StandIn, policy: tuple[Policy, Path]) -> None:
    made, directory = policy
    engine = VllmServer(Http(url=server.url), directory, OPTIONS)
    server.refused.add("/finish_weight_update")
    with pytest.raises(UserError, match="refused /finish_weight_update"):
        engine.load_weights(1, dict(made.backbone.state_dict()))
    with pytest.raises(UserError, match="failed half-way"):
        engine.generate([asked()])
    server.refused.clear()
    engine.load_weights(1, dict(made.backbone.state_dict()))
    assert engine.generate([asked()])


def test_no_server_is_a_sentence() -> None:
    with pytest.raises(UserError, match="is the server running"):
        Http(url="http://127.0.0.1:9", timeout=2).get("/server_info")


def test_sleep_is_refused_where_vllm_ignores_it(server: StandIn, policy: tuple[Policy, Path]) -> None:
    with pytest.raises(UserError, match="ignores sleep"):
        VllmServer(Http(url=server.url), policy[1], OPTIONS).sleep()
