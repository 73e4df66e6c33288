"""A real vLLM server, started by ``serve_command``: the same completions as the embedded engine's, updates, digests."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_policies import GREEDY, random_prompts

from bebop.audit.policies import DraftKind, Format, PolicyRecipe, write_policy
from bebop.engines.base import DraftStats, Request
from bebop.engines.embedded import EmbeddedEngine, EmbeddedOptions
from bebop.engines.vllm import Http, VllmOptions, VllmServer, serve_command
from bebop.engines.vllm.environment import load_binding
from bebop.errors import UserError
from bebop.models.policy import load_policy
from bebop.models.spec import read_spec

pytestmark = pytest.mark.vllm

OPTIONS = VllmOptions(num_draft_tokens=3, max_rows=6, max_context=192, cache_bytes=1 << 28)
START_SECONDS = 500


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("server") / "policy"
    write_policy(PolicyRecipe(format=Format.MIMO, draft=DraftKind.ECHO, vocabulary=16), path)
    return path


@pytest.fixture(scope="module")
def engine(directory: Path) -> Iterator[VllmServer]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runtime = load_binding(OPTIONS).find_runtime()
    command, variables = serve_command(read_spec(directory), OPTIONS, runtime, port=port)
    log = directory.parent / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, env=os.environ | variables, stdout=out, stderr=out)
    try:
        yield connected(Http(url=f"http://127.0.0.1:{port}", timeout=60), directory, process, log)
    finally:
        process.terminate()
        process.wait(60)


def connected(http: Http, directory: Path, process: subprocess.Popen, log: Path) -> VllmServer:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            http.text("/health")
            return VllmServer(http, directory, OPTIONS)
        except UserError:
            time.sleep(1)
    raise AssertionError(log.read_text()[-3000:])


def requests(max_tokens: int = 30) -> list[Request]:
    prompts = random_prompts((3, 7, 1, 12))
    return [
        Request(id=str(place), prompt_tokens=prompt, max_tokens=max_tokens, sampling=GREEDY)
        for place, prompt in enumerate(prompts)
    ]


def test_a_server_says_what_the_embedded_engine_says(engine: VllmServer, directory: Path) -> None:
    policy = load_policy(directory, dtype=torch.float32)
    theirs = engine.generate(requests())
    ours = EmbeddedEngine(policy, EmbeddedOptions(num_draft_tokens=3)).generate(requests())
    assert [one.tokens for one in theirs] == [one.tokens for one in ours]
    for one, other in zip(theirs, ours, strict=True):
        assert torch.allclose(torch.tensor(one.raw_logprobs), torch.tensor(other.raw_logprobs), atol=1e-4)
        assert one.drafts.num_accepted > 0
    total = sum((one.drafts for one in theirs), DraftStats())
    assert replace(engine.drafts(), emitted=0, overlaps=()) == replace(total, emitted=0, overlaps=())
    assert engine.fingerprint() == policy.fingerprint


def test_new_weights_reach_a_server(engine: VllmServer, directory: Path) -> None:
    policy = load_policy(directory, dtype=torch.float32)
    assert policy.head is not None
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in (*policy.backbone.parameters(), *policy.head.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.05)
    head = {"head." + name: tensor for name, tensor in policy.head.state_dict().items()}
    engine.load_weights(3, dict(policy.backbone.state_dict()) | head)
    assert engine.fingerprint() == policy.fingerprint
    theirs = engine.generate(requests())
    ours = EmbeddedEngine(policy, EmbeddedOptions(num_draft_tokens=3)).generate(requests())
    assert [one.tokens for one in theirs] == [one.tokens for one in ours]
    assert {version for one in theirs for version in one.versions} == {3}
