"""Whose turn it is: tasks take turns by their shares, and every turn is another problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def task_turns(shares: Mapping[str, int]) -> tuple[str, ...]:
    """A cycle of turns that has every task as often as its share; turns are spread evenly.

    Every turn goes to the task that is furthest behind its share, the one named first where two are.
    """
    num_turns, turns = sum(shares.values()), []
    for place in range(1, num_turns + 1):
        turns.append(max(shares, key=lambda name: place * shares[name] - num_turns * turns.count(name)))
    return tuple(turns)


def problem_of_turn(number: int, turns: Sequence[str]) -> tuple[str, int]:
    """(task, index of its problem) of turn ``number``; ``turns`` come round and round, problems are never repeated."""
    cycle, place = divmod(number, len(turns))
    task = turns[place]
    return task, cycle * turns.count(task) + turns[:place].count(task)
