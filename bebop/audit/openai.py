"""An OpenAI-compatible completions server as an engine: prompts and completions are token ids, nothing else is needed.

The server must return token ids: vLLM does when asked with ``return_token_ids`` or ``return_tokens_as_token_ids``.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from torch import Tensor

from bebop.engines.base import Completion, DraftStats, Request, StopReason, TokenSource
from bebop.errors import UserError

_SECONDS = 600.0
"""Before an answer is given up."""
_PARALLEL = 8
"""Requests under way at once, so that the server has batches to mix."""
_TOKEN_ID = "token_id:"


class ServerEngine:
    """Samples from a server; weights cannot be changed, and nothing is known of drafts."""

    def __init__(self, url: str, model: str | None = None) -> None:
        """UserError where no server answers, or it serves several models and none is named."""
        parts = urlsplit(url if url.rstrip("/").endswith("/v1") else f"{url.rstrip('/')}/v1")
        self._url = url
        self._host, self._path, self._secure = parts.netloc, parts.path, parts.scheme == "https"
        self._model = model or self._only_model()

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        """Every completion of every request, ordered by request, then by completion index."""
        with ThreadPoolExecutor(_PARALLEL) as pool:
            return [done for completions in pool.map(self._complete, requests) for done in completions]

    def stream(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        """Completions, request by request."""
        yield from self.generate(request for request in requests if request is not None)

    def load_weights(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        raise UserError(f"{self._url} is a server, and its weights cannot be changed from here")

    def close(self) -> None:
        """Nothing is held."""

    def _complete(self, request: Request) -> list[Completion]:
        answer = self._ask("POST", "/completions", _body(request, self._model))
        choices = sorted(answer.get("choices", []), key=lambda choice: choice.get("index", 0))
        if len(choices) != request.num_completions:
            raise UserError(
                f"{self._url} returned {len(choices)} completions where {request.num_completions} were asked for; "
                "use a server that answers n"
            )
        return [_completion(request, index, choice, self._url) for index, choice in enumerate(choices)]

    def _only_model(self) -> str:
        names = [str(model["id"]) for model in self._ask("GET", "/models", None).get("data", [])]
        if len(names) != 1:
            raise UserError(f"{self._url} serves {', '.join(names) or 'nothing'}; name the model with --model")
        return names[0]

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        """The server's answer; UserError where there is none or it refuses, RuntimeError where it failed."""
        connect = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        try:
            connection = connect(self._host, timeout=_SECONDS)
        except http.client.InvalidURL as error:
            raise UserError(f"{self._url} is no address of a server ({error}); write http://HOST:PORT") from error
        data = None if body is None else json.dumps(body)
        try:
            connection.request(method, self._path + path, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise UserError(f"no answer from {self._url} ({error}); check the address and that it runs") from error
        finally:
            connection.close()
        if response.status >= 500:
            raise RuntimeError(f"the server answered {response.status}: {text[:200]}")
        if response.status >= 400:
            raise UserError(f"{self._url} refuses the request ({response.status}: {text[:200]})")
        try:
            return json.loads(text)
        except ValueError as error:
            raise UserError(
                f"{self._url} does not answer in JSON; check that it is an OpenAI-compatible API"
            ) from error


def _body(request: Request, model: str) -> dict[str, Any]:
    """Every setting is sent: what is left out, a server may fill in from the checkpoint's generation_config.json."""
    sampling = request.sampling
    optional = {
        "stop_token_ids": list(request.stop_token_ids) or None,
        "stop": list(request.stop_strings) or None,
    }
    return {
        "model": model,
        "prompt": list(request.prompt_tokens),
        "max_tokens": request.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "min_p": sampling.min_p,
        "seed": request.seed,
        "n": request.num_completions,
        "logprobs": 1,
        "ignore_eos": True,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        **{name: value for name, value in optional.items() if value is not None},
    }


def _completion(request: Request, index: int, choice: Mapping[str, Any], url: str) -> Completion:
    tokens = _token_ids(choice, url)
    size = len(tokens)
    logprobs = (choice.get("logprobs") or {}).get("token_logprobs") or [float("nan")] * size
    given = tuple(float("nan") if value is None else float(value) for value in logprobs[:size])
    unknown = (float("nan"),) * size
    # A greedy token's log-prob is that of the plain distribution: in the one it came from, it is certain.
    behaviour, raw = (unknown, given) if request.sampling.is_greedy else (given, unknown)
    return Completion(
        request_id=request.id,
        index=index,
        tokens=tokens,
        logprobs=behaviour,
        raw_logprobs=raw,
        entropies=unknown,
        sources=(TokenSource.SAMPLED,) * size,
        versions=(0,) * size,
        draft_logprobs=(None,) * size,
        overlaps=(None,) * size,
        stop_reason=StopReason.MAX_TOKENS if choice.get("finish_reason") == "length" else StopReason.STOP_TOKEN,
        drafts=DraftStats(),
    )


def _token_ids(choice: Mapping[str, Any], url: str) -> tuple[int, ...]:
    ids = choice.get("token_ids")
    if ids is None:
        texts = [str(token) for token in (choice.get("logprobs") or {}).get("tokens") or []]
        if not texts or not all(text.startswith(_TOKEN_ID) for text in texts):
            raise UserError(
                f"{url} returns no token ids; serve the policy with vLLM 0.10.2 or newer, which does when asked"
            )
        ids = [text.removeprefix(_TOKEN_ID) for text in texts]
    return tuple(int(token) for token in ids)
