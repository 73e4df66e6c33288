"""The quickstart as a person sees it: which act, what its commands say, what it found, what comes next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from bebop.quickstart.acts import Act


class ConsoleStage:
    """A live line per running command on a terminal; elsewhere a line whenever a command says something new."""

    def __init__(self, acts: Sequence[Act], console: Console | None = None) -> None:
        self._acts = acts
        self._console = console or Console()
        self._live: Live | None = None
        self._said: dict[str, str] = {}

    def begin(self, number: int, act: Act) -> None:
        self._console.print(f"\n[bold]Act {number} of {len(self._acts)}: {act.title}[/bold]")
        self._console.print(f"  {act.purpose}", style="dim", highlight=False)
        if self._console.is_terminal:
            self._live = Live(console=self._console, transient=True, refresh_per_second=8)
            self._live.start()

    def watch(self, messages: Mapping[str, str]) -> None:
        if self._live is not None:
            lines = [Spinner("dots", Text(f" {name}  {message}")) for name, message in messages.items()]
            self._live.update(Group(*lines))
            return
        for name, message in messages.items():
            if message and self._said.get(name) != message:
                self._said[name] = message
                self._console.print(f"  {name}: {message}", highlight=False, markup=False)

    def end(self, act: Act, seconds: float, found: Sequence[str]) -> None:
        self.close()
        for line in found:
            self._console.print(f"  [green]>[/green] {line}", highlight=False)
        rest = self._acts[self._acts.index(act) + 1 :]
        coming = f"next: {rest[0].title}" if rest else "that was the last one"
        self._console.print(f"  {seconds:.0f} s; {coming}", style="dim", highlight=False)

    def close(self) -> None:
        """Take the live lines away, also when an act is broken off."""
        if self._live is not None:
            self._live.stop()
            self._live = None
