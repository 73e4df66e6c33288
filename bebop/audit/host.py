"""An engine under audit, opened again when it has died."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from bebop.engines.base import Completion, Engine, Request
from bebop.errors import UserError


class EngineDied(Exception):
    """The engine raised an error of its own, no refusal, in the middle of its work."""


@runtime_checkable
class CanSleep(Protocol):
    """An engine that can give its memory back for a while."""

    def sleep(self) -> None: ...

    def wake(self) -> None: ...


class Host:
    """Passes calls on to the engine that ``open_engine`` opens; a `UserError` is a refusal and leaves the engine be."""

    def __init__(self, open_engine: Callable[[], Engine]) -> None:
        self._open = open_engine
        self._engine: Engine | None = open_engine()

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        """Every completion of every request; EngineDied, with the engine's words, when it broke down."""
        try:
            return self._alive().generate(requests)
        except RuntimeError as error:
            self._bury()
            first = str(error).strip().splitlines() or ["no message"]
            raise EngineDied(f"{type(error).__name__}: {first[0]}") from error

    def load_weights(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        self._alive().load_weights(version, tensors)

    def nap(self) -> None:
        """Sleep and wake; UserError where the engine has no sleep."""
        engine = self._alive()
        if not isinstance(engine, CanSleep):
            raise UserError("the engine has no sleep")
        engine.sleep()
        engine.wake()

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _alive(self) -> Engine:
        if self._engine is None:
            self._engine = self._open()
        return self._engine

    def _bury(self) -> None:
        """Close what is left of the engine; one that died in its work may die of this too."""
        engine, self._engine = self._engine, None
        try:
            if engine is not None:
                engine.close()
        except RuntimeError:
            return
