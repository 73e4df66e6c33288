"""vLLM behind its HTTP server, as a rollout engine; nothing here imports vLLM.

The server must be one that ``serve_command`` starts: it holds our weight transfer, and its development endpoints
(weight updates, pause, digests) are on, so keep it on an address that only trusted programs reach.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from uuid import uuid4

from safetensors.torch import save_file
from torch import Tensor

from bebop.engines.base import Completion, DraftStats, Request, check_prompt
from bebop.engines.vllm.arguments import Runtime, as_flags, engine_arguments, speculative_config
from bebop.engines.vllm.counters import SpecCounters
from bebop.engines.vllm.environment import environment
from bebop.engines.vllm.http import Http
from bebop.engines.vllm.options import VllmOptions
from bebop.engines.vllm.outputs import completion_of
from bebop.engines.vllm.requests import IDLE_SECONDS, decoder_of, in_order
from bebop.engines.vllm.weights import Update, WeightNames
from bebop.engines.vllm.wire import GENERATE, check_server, generate_body, sampled_of
from bebop.errors import UserError
from bebop.models.fingerprint import Fingerprint
from bebop.models.spec import PolicySpec, read_spec

SHARED_MEMORY = Path("/dev/shm")


def serve_command(
    spec: PolicySpec, options: VllmOptions, runtime: Runtime, *, port: int
) -> tuple[list[str], dict[str, str]]:
    """Command line and environment variables that serve a policy on this machine's loopback address."""
    arguments = engine_arguments(spec, options, runtime)
    server = ["--enable-scale-out", "--host", "127.0.0.1", "--port", str(port), "--served-model-name", "policy"]
    tokenizer = [] if decoder_of(spec) is not None else ["--skip-tokenizer-init"]
    # `vllm serve` asks for a distribution named vllm, which the CPU build is not; the module behind it is the same.
    command = [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", "--model", str(spec.directory)]
    return [*command, *as_flags(arguments), *server, *tokenizer], environment(options, in_process=False)


class VllmServer:
    """A running vLLM server on the policy in ``directory``, which both sides can read; see ``Engine`` for the protocol.

    ``options`` say how the server was started, and its own configuration is compared with them.
    """

    def __init__(
        self, http: Http, directory: str | Path, options: VllmOptions | None = None, *, version: int = 0
    ) -> None:
        self.options = options or VllmOptions()
        self.version = self._first_version = version
        self._http = http
        self._spec = read_spec(Path(directory))
        self._names = WeightNames(self._spec)
        self._decode = decoder_of(self._spec)
        config = http.get("/server_info?config_format=json")["vllm_config"]
        on_cpu = config["device_config"].get("device_type") == "cpu"
        # What the server's runner would ignore, serve_command has refused.
        runtime = Runtime(on_cpu=on_cpu, runner=1 if on_cpu else 2)
        drafts = self.options.num_draft_tokens > 0
        check_server(config, self.options, speculative_config(self._spec, self.options, runtime) if drafts else {})
        self.max_context: int = config["model_config"]["max_model_len"]
        self._on_cpu = on_cpu
        self._updating = threading.Lock()
        self._broken: str | None = None

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        """Every completion of every request, ordered by request, then by completion index."""
        return in_order(requests, self.stream)

    def stream(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        """Completions as they finish; requests are taken from the iterable as rows become free.

        Weights may be loaded meanwhile, from another thread too.
        """
        running: dict[Future[Completion], str] = {}
        source: Iterator[Request | None] | None = iter(requests)
        pool = ThreadPoolExecutor(self.options.max_rows)
        try:
            while source is not None or running:
                source = self._admit(source, running, pool)
                done, _ = wait(running, IDLE_SECONDS if source is not None else None, FIRST_COMPLETED)
                for future in done:
                    running.pop(future)
                    yield future.result()
        finally:
            if running:
                self._http.post("/abort_requests", {"request_ids": list(running.values())})
            pool.shutdown(cancel_futures=True)

    def load_weights(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        """Bring in the whole backbone, the whole head, or both as one transaction, while the server pauses.

        As ``VllmEngine.load_weights``; the tensors go through a file in shared memory.
        """
        update = self._names.update(tensors)
        if update.draft and self.options.num_draft_tokens == 0:
            raise UserError("this server drafts nothing and holds no head; leave the head out of the update")
        with self._updating:
            self._broken = (
                f"the update to version {version} failed half-way; send all weights again or restart the server"
            )
            self._http.post("/pause?mode=keep")
            self._send(update, version)
            if self.options.recompute_cache:
                self._http.post("/reset_prefix_cache?reset_running_requests=true")
            self._http.post("/resume")
            self._broken = None
            self.version = version

    def fingerprint(self) -> Fingerprint:
        """As ``VllmEngine.fingerprint``."""
        return self._names.fingerprint(self._digests())

    def held_digests(self) -> dict[str, dict[str, str]]:
        """As ``VllmEngine.held_digests``."""
        return self._names.held(self._digests())

    def drafts(self) -> DraftStats:
        """Sums over everything since the server was started, from its metrics page."""
        return SpecCounters.of_text(self._http.text("/metrics").splitlines()).stats()

    def sleep(self) -> None:
        """Give back the device's memory; the weights wait in the host's."""
        self._refuse_sleep_on_cpu()
        self._http.post("/sleep?level=1")

    def wake(self) -> None:
        """Take the memory again. Check ``fingerprint`` afterwards."""
        self._refuse_sleep_on_cpu()
        self._http.post("/wake_up")

    def close(self) -> None:
        """Nothing is held here; the server goes on."""

    def _admit(
        self, source: Iterator[Request | None] | None, running: dict[Future[Completion], str], pool: ThreadPoolExecutor
    ) -> Iterator[Request | None] | None:
        """Send requests while rows are free; None when the source is exhausted."""
        while source is not None and len(running) < self.options.max_rows:
            request = next(source, _END)
            if request is _END:
                return None
            if not isinstance(request, Request):
                if not running:
                    time.sleep(IDLE_SECONDS)
                return source
            check_prompt(request, self._spec.config.vocab_size, self.max_context)
            if request.stop_strings and self._decode is None:
                raise UserError(
                    f"request {request.id!r} has stop strings and the policy no tokenizer; use stop_token_ids"
                )
            for index in range(request.num_completions):
                key = f"bebop-{uuid4().hex}"
                body = generate_body(request, index, key, self.options)
                running[pool.submit(self._complete, request, index, body)] = key
        return source

    def _complete(self, request: Request, index: int, body: Mapping[str, object]) -> Completion:
        if self._broken is not None and not self._updating.locked():
            raise UserError(self._broken)
        answer = self._http.post(GENERATE, body)
        return completion_of(request, index, sampled_of(answer, request, self._first_version), self._decode)

    def _send(self, update: Update, version: int) -> None:
        """Target, then draft; the version is set with the last of them."""
        parts = [(part, draft) for part, draft in ((update.target, False), (update.draft, True)) if part]
        place = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
        with tempfile.TemporaryDirectory(prefix="bebop-", dir=place) as scratch:
            for number, (tensors, draft) in enumerate(parts):
                path = Path(scratch) / f"{number}.safetensors"
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
                self._http.post("/start_draft_weight_update" if draft else "/start_weight_update")
                self._http.post("/update_weights", {"update_info": {"path": str(path)}})
                is_last = number == len(parts) - 1
                self._http.post("/finish_weight_update", {"weight_version": str(version)} if is_last else {})

    def _digests(self) -> dict[str, dict[str, str]]:
        return self._http.post("/collective_rpc", {"method": "bebop_digests"})["results"][0]

    def _refuse_sleep_on_cpu(self) -> None:
        if self._on_cpu:
            raise UserError("vLLM ignores sleep and wake on a CPU; stop the server to get its memory back")


_END = object()
