"""Do completions end where they should, also inside a block, and keep their law up to there?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from bebop.audit.fit import fit
from bebop.audit.laws import Conditional, IsEnd, Tokens, ends_after, ends_with_text, enumerate_law
from bebop.audit.policies import LETTERS
from bebop.audit.records import Effect, Evidence
from bebop.audit.survey import Session
from bebop.engines.base import Completion, Request
from bebop.errors import UserError

STOP_TOKENS: Tokens = (3, 6)
_LENGTHS = range(1, 9)


def check_stops(session: Session) -> Iterator[Evidence]:
    """Stop tokens, a stop string, and every small max_tokens."""
    request = Request(
        id="stops",
        prompt_tokens=session.plan.plain.prompt,
        max_tokens=session.plan.max_tokens,
        sampling=session.plan.plain.sampling,
        seed=session.plan.seed + 10_000_000,
        num_completions=session.plan.num_samples,
    )
    by_token = replace(request, stop_token_ids=STOP_TOKENS)
    yield _check_ends(session, "stops/token", by_token, ends_after(request.max_tokens, STOP_TOKENS))
    pair = likeliest_pair(session.exact.target(request.prompt_tokens).law(request.sampling))
    by_text = replace(request, stop_strings=("".join(LETTERS[token] for token in pair),))
    yield _check_ends(session, "stops/text", by_text, ends_with_text(request.max_tokens, pair))
    yield _check_lengths(session, request)


def likeliest_pair(law: Conditional) -> Tokens:
    """The two different tokens that a completion most often begins with: a stop string that does occur."""
    first_V = law([()])[0]
    pair_VV = first_V[:, None] * law([(token,) for token in range(len(first_V))])
    place = int(pair_VV.fill_diagonal_(0.0).argmax())
    return place // len(first_V), place % len(first_V)


def _check_ends(session: Session, check: str, request: Request, is_end: IsEnd) -> Evidence:
    try:
        done = session.engine.generate([request])
    except UserError as error:
        return Evidence(check=check, refusal=str(error))
    uncut = [one for one in done if any(is_end(one.tokens[: place + 1]) for place in range(len(one.tokens) - 1))]
    open_ends = [one for one in done if not one.tokens or not is_end(one.tokens)]
    faults = []
    if uncut:
        faults.append(f"{len(uncut)} of {len(done)} completions go on after their stop ({session.label})")
    if open_ends:
        faults.append(f"{len(open_ends)} of {len(done)} completions end before their stop ({session.label})")
    share = (len(uncut) + len(open_ends)) / len(done)
    law = enumerate_law(session.exact.target(request.prompt_tokens).law(request.sampling), is_end)
    name = f"{session.label}, {check}"
    fits = () if faults else (fit(name, [one.tokens for one in done], law),)
    effect = Effect(value=share, unit="wrong ends") if faults else None
    return Evidence(check=check, fits=fits, faults=tuple(faults), effect=effect)


def _check_lengths(session: Session, request: Request) -> Evidence:
    requests = [replace(request, id=str(length), max_tokens=length, num_completions=8) for length in _LENGTHS]
    done = session.engine.generate(requests)
    wrong = [one for one in done if len(one.tokens) != int(one.request_id) or not _is_aligned(one)]
    faults = (f"{len(wrong)} of {len(done)} completions have another length ({session.label})",) if wrong else ()
    return Evidence(
        check="stops/length",
        faults=faults,
        effect=Effect(value=len(wrong) / len(done), unit="wrong lengths"),
    )


def _is_aligned(done: Completion) -> bool:
    per_token: Sequence[Sequence[object]] = (done.logprobs, done.versions, done.sources)
    return all(len(values) == len(done.tokens) for values in per_token)
