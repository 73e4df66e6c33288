"""Multi-turn tool use: look things up, calculate, inspect and edit a small file tree, run its check.

The policy calls a tool by writing ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``; the result comes back
as a message of role ``tool``. Two kinds of problem: *prices* (look up, calculate, answer) and *files* (list, read,
write, check).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from bebop.tasks.agent_worlds import AgentConfig, World, draw_world
from bebop.tasks.base import Family, Message, Outcome, Problem, Split, Turn, draw_in_split, seeded

TOOL_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
SYSTEM = "Tools: lookup(key), calc(expr), ls(), read(path), write(path, text), check()."


@dataclass(slots=True)
class AgentEpisode:
    """One attempt: the world it changes and the turns it has taken."""

    world: World
    max_turns: int
    num_turns: int = field(default=0)

    def step(self, completion: str) -> Turn:
        self.num_turns += 1
        calls = TOOL_CALL.findall(completion)
        if not calls:
            return Turn(outcome=self.grade(completion))
        if self.num_turns >= self.max_turns:
            return Turn(outcome=Outcome(reward=0.0, reason="turn limit"))
        return Turn(messages=tuple(Message(role="tool", content=self.call(one)) for one in calls))

    def call(self, text: str) -> str:
        """The result of a tool call, or a sentence that says what is wrong with it."""
        try:
            wanted = json.loads(text)
        except json.JSONDecodeError:
            return "error: the call is not JSON"
        if not isinstance(wanted, dict) or not isinstance(wanted.get("arguments"), dict):
            return "error: a call needs a name and arguments"
        return self.world.call(str(wanted.get("name")), wanted["arguments"])

    def grade(self, completion: str) -> Outcome:
        _, answered, answer = completion.rpartition("Answer:")
        if not answered:
            return Outcome(reward=0.0, reason="no answer")
        return self.world.grade(answer.strip())


@dataclass(frozen=True, slots=True)
class AgentTask:
    """Small worlds behind tools; reward 1 for the right final state and answer."""

    config: AgentConfig = field(default_factory=AgentConfig)
    seed: int = 0
    name: str = "agent"
    family: Family = "agent"

    def problem(self, split: Split, index: int) -> Problem:
        world = draw_in_split(
            split, (self.name, self.seed, index), lambda rng: draw_world(self.config, rng), lambda world: world.identity
        )
        system = (Message(role="system", content=SYSTEM),) if self.config.show_tools else ()
        opening = (*system, Message(role="user", content=world.question))
        return Problem(task=self.name, split=split, index=index, messages=opening, facts={"world": world})

    def start(self, problem: Problem) -> AgentEpisode:
        return AgentEpisode(problem.facts["world"].copy(), self.config.max_turns)

    def demonstration(self, problem: Problem, seed: int) -> tuple[Message, ...]:
        """The expert's episode, played against the real tools."""
        rng, episode, transcript = seeded(problem.id, seed), self.start(problem), list(problem.messages)
        for turn in problem.facts["world"].show(rng):
            transcript.append(turn)
            transcript.extend(episode.step(turn.content).messages)
        return tuple(transcript)
