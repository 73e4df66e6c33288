"""JSON over HTTP with the standard library: what a vLLM server is spoken to with."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bebop.errors import UserError


@dataclass(frozen=True, kw_only=True, slots=True)
class Http:
    """A server by its address, such as http://127.0.0.1:8000. Safe to use from many threads."""

    url: str
    api_key: str | None = None
    timeout: float = 3600.0
    """Seconds; a completion may take this long."""

    def get(self, path: str) -> Any:
        """The JSON at a path."""
        return json.loads(self.text(path))

    def text(self, path: str) -> str:
        """The text at a path."""
        return self._send(path, None)

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """What the server answers to a JSON body; None to an empty answer."""
        answer = self._send(path, json.dumps(body or {}).encode())
        return json.loads(answer) if answer else None

    def _send(self, path: str, data: bytes | None) -> str:
        headers = {"Content-Type": "application/json"}
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key}"
        request = urllib.request.Request(self.url.rstrip("/") + path, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            raise UserError(f"the server at {self.url} refused {path}: {_reason(error)}") from error
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            raise UserError(f"no answer from {self.url}{path} ({error}); is the server running?") from error


def _reason(error: urllib.error.HTTPError) -> str:
    """The message in an error's body, or its status."""
    text = error.read().decode(errors="replace").strip()
    return f"{error.code} {text[:300]}" if text else f"{error.code} {error.reason}"
