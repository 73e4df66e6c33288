"""The audit of a server, with servers of our own: one that is right, one that forgets the temperature."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from bebop.audit.openai import ServerEngine
from bebop.audit.plan import QUICK
from bebop.audit.policies import DraftKind, Format, PolicyRecipe, write_policy
from bebop.audit.records import Status
from bebop.audit.server import Served, audit_server
from bebop.cli.audit import command
from bebop.core.sampling import GREEDY, Sampling
from bebop.engines.base import Completion, Request
from bebop.engines.embedded import EmbeddedEngine, EmbeddedOptions
from bebop.errors import UserError
from bebop.models.policy import load_policy

Body = dict[str, Any]
Serve = Callable[..., str]


def asked(body: Body) -> Request:
    return Request(
        id="",
        prompt_tokens=tuple(body["prompt"]),
        max_tokens=body["max_tokens"],
        sampling=Sampling(
            temperature=body["temperature"], top_p=body["top_p"], top_k=max(0, body["top_k"]), min_p=body["min_p"]
        ),
        seed=body["seed"],
        num_completions=body["n"],
    )


def choice(done: Completion) -> Body:
    greedy = all(value == 0 for value in done.logprobs)
    logprobs = done.raw_logprobs if greedy else done.logprobs
    return {
        "index": done.index,
        "finish_reason": "length",
        "token_ids": list(done.tokens),
        "logprobs": {"token_logprobs": list(logprobs)},
    }


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "policy"
    write_policy(PolicyRecipe(format=Format.MIMO, draft=DraftKind.ECHO, vocabulary=8), path)
    return path


@pytest.fixture
def serve(directory: Path) -> Iterator[Serve]:
    """Starts a server whose requests go through ``change`` first, and returns its address."""
    engine = EmbeddedEngine(load_policy(directory, dtype=torch.float32), EmbeddedOptions(num_draft_tokens=2))
    lock, servers = threading.Lock(), []

    def start(change: Callable[[Request], Request] = lambda request: request, bodies: list[Body] | None = None) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer({"data": [{"id": "policy"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if bodies is not None:
                    bodies.append(body)
                with lock:
                    done = engine.generate([change(asked(body))])
                self.answer({"choices": [choice(one) for one in done]})

            def answer(self, data: Body) -> None:
                text = json.dumps(data).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *arguments: object) -> None:
                """Quiet."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


PLAN = replace(QUICK, num_samples=400)


def failed(directory: Path, url: str) -> set[str]:
    report = audit_server(Served(url=url, directory=directory, prompt="abc"), PLAN)
    return {result.check for result in report.results if result.status is Status.FAIL}


def test_a_sound_server_passes(directory: Path, serve: Serve) -> None:
    assert failed(directory, serve()) == set()


def test_a_server_that_forgets_the_temperature_fails(directory: Path, serve: Serve) -> None:
    def warm(request: Request) -> Request:
        sampling = request.sampling
        return request if sampling.is_greedy else replace(request, sampling=replace(sampling, temperature=1.0))

    found = failed(directory, serve(warm))
    assert {"law/temperature", "log-probs/behaviour"} <= found
    assert "law/temperature-1" not in found


def test_every_setting_is_sent(serve: Serve) -> None:
    """A server fills in what is missing from the checkpoint's own defaults."""
    bodies: list[Body] = []
    ServerEngine(serve(bodies=bodies)).generate([Request(id="", prompt_tokens=(1,), max_tokens=1)])
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0}
    assert {name: bodies[0][name] for name in neutral} == neutral


def test_a_greedy_tokens_log_prob_is_a_raw_one(directory: Path, serve: Serve) -> None:
    request = Request(id="", prompt_tokens=(1, 2), max_tokens=2, sampling=GREEDY)
    (done,) = ServerEngine(serve()).generate([request])
    (wanted,) = EmbeddedEngine(load_policy(directory, dtype=torch.float32)).generate([request])
    assert done.raw_logprobs == pytest.approx(wanted.raw_logprobs)
    assert all(value != value for value in done.logprobs), "what the sampling distribution says is not returned"


def test_options_of_other_engines_are_refused_for_a_server() -> None:
    with pytest.raises(UserError, match="drop --rule, --formats, --as-released and --plant"):
        command("http://127.0.0.1:9", policy="tiny", plant="argmax")


def test_options_of_a_server_are_refused_for_other_engines() -> None:
    with pytest.raises(UserError, match="drop --policy, --model and --prompt"):
        command("embedded", policy="checkpoints/mine")
    with pytest.raises(UserError, match="--as-released leaves a defect of vLLM's"):
        command("embedded", as_released=True)


def test_a_check_that_cannot_be_made_is_no_pass(directory: Path, serve: Serve) -> None:
    with pytest.raises(UserError, match="stops, weights cannot be looked at in http"):
        command(serve(), quick=True, samples=100, policy=str(directory), checks="law,stops,weights", prompt="abc")


def test_an_address_that_is_none_is_named() -> None:
    with pytest.raises(UserError, match=r"abc is no address of a server .*write http://HOST:PORT"):
        ServerEngine("http://127.0.0.1:abc", None)
