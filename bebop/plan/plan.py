"""The whole plan: decoding, step, head, and whether to use it at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bebop.plan.decoding import MIN_GAIN, Acceptance, BatchPlan, RoundCosts, break_even_batch, plan_batch, with_prefill
from bebop.plan.steps import LoggedStep, asynchronous, synchronous
from bebop.report.analysis_time import break_even_steps

SEARCHED_BATCH = 4096
"""Batches up to here are searched for the one where drafting stops paying, if costs reach so far."""
TRUSTED_FACTOR = 4
"""Measured costs are believed up to so many times the largest measured batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """Acceptance and costs."""

    acceptance: Acceptance
    costs: RoundCosts
    origin: str
    """Where they come from, for a reader."""
    largest_batch: int = SEARCHED_BATCH
    """The largest batch that the costs can be asked about."""
    prefill_share: float = 0.0
    """Of generation without drafts, at the rollouts' batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFacts:
    """What is known of a step without drafts; what is None is not planned."""

    logged: LoggedStep | None = None
    """Takes the place of ``generation_share`` and ``seconds``."""
    generation_share: float | None = None
    """Of a synchronous step."""
    seconds: float | None = None
    head_seconds: float | None = None
    """The head's training."""
    num_steps: int | None = None
    """Length of the run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What is known before anything is spent."""

    known: Known
    batches: tuple[int, ...]
    rollout_batch: int
    """Rows an engine decodes at once in the run."""
    max_drafts: int = 5
    num_drafts: int | None = None
    """The draft length of the rollouts; None takes the best one."""
    step: StepFacts = StepFacts()


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlan:
    """Ratios of step times, without over with."""

    generation_share: float
    """Of a synchronous step without drafts."""
    synchronous: float
    asynchronous: float
    as_logged: float | None = None
    """In the mode of the logged run, from its own waiting times."""
    logged_seconds: float | None = None
    predicted_seconds: float | None = None

    @property
    def speed_up(self) -> float:
        """The one to count on: as logged where there is a log, else of synchronous steps."""
        return self.synchronous if self.as_logged is None else self.as_logged

    @property
    def pays(self) -> bool:
        """Whether steps gain anything, in the run's mode or, where that is not known, in either."""
        gained = max(self.synchronous, self.asynchronous) if self.as_logged is None else self.as_logged
        return gained >= MIN_GAIN

    @property
    def told(self) -> str:
        if self.as_logged is not None:
            return f"makes steps {self.as_logged:.2f} times as fast"
        both = f"{self.synchronous:.2f} and asynchronous ones {self.asynchronous:.2f} times as fast"
        return f"makes synchronous steps {both}"


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadPlan:
    """Training the head against what it saves; ``break_even_steps`` is None where nothing is saved."""

    training_seconds: float
    saved_per_step: float
    break_even_steps: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The answer."""

    origin: str
    conditional_acceptance: tuple[float, ...]
    batches: tuple[BatchPlan, ...]
    stops_paying_at: int | None
    """Batch from which on drafting does not pay; None: it pays up to ``searched_to``."""
    searched_to: int
    rollout_batch: int
    num_drafts: int
    """Draft length for the rollouts; 0 = off."""
    accept_length: float
    decoding_speed_up: float
    best_speed_up: float
    """Of decoding with the best draft length above 0, used or not."""
    generation_speed_up: float
    """Prefill included."""
    step: StepPlan | None
    head: HeadPlan | None
    pays: bool = False
    verdict: str = ""


def make_plan(question: Question) -> Plan:
    """Answer the question; every number follows from it by the formulas of ``decoding`` and ``steps``."""

    def at(batch: int) -> BatchPlan:
        return plan_batch(known.costs, known.acceptance, batch, max(question.max_drafts, question.num_drafts or 1))

    known = question.known
    rollout = at(question.rollout_batch)
    chosen = rollout.best if question.num_drafts is None else question.num_drafts
    decoding = rollout.speed_ups[chosen]
    generation = with_prefill(decoding, known.prefill_share)
    step = step_plan(question.step, generation)
    stops_at = break_even_batch(lambda batch: at(batch).best_draft_speed_up, known.largest_batch)
    plan = Plan(
        origin=known.origin,
        conditional_acceptance=known.acceptance.conditional_K,
        batches=tuple(at(batch) for batch in question.batches),
        stops_paying_at=stops_at,
        searched_to=known.largest_batch,
        rollout_batch=question.rollout_batch,
        num_drafts=chosen,
        accept_length=rollout.accept_lengths[chosen],
        decoding_speed_up=decoding,
        best_speed_up=rollout.best_draft_speed_up,
        generation_speed_up=generation,
        step=step,
        head=head_plan(question.step, step),
    )
    pays, verdict = judge(plan, question.step.num_steps)
    return replace(plan, pays=pays, verdict=verdict)


def step_plan(facts: StepFacts, speed_up: float) -> StepPlan | None:
    """None where neither a generation share nor a log is known."""
    logged = facts.logged
    if logged is not None:
        share = logged.synchronous_share
        seconds = logged.with_speed_up(speed_up)
        return StepPlan(
            generation_share=share,
            synchronous=synchronous(share, speed_up),
            asynchronous=asynchronous(share, speed_up),
            as_logged=logged.step / seconds,
            logged_seconds=logged.step,
            predicted_seconds=seconds,
        )
    share = facts.generation_share
    if share is None:
        return None
    return StepPlan(
        generation_share=share,
        synchronous=synchronous(share, speed_up),
        asynchronous=asynchronous(share, speed_up),
    )


def head_plan(facts: StepFacts, step: StepPlan | None) -> HeadPlan | None:
    """None where the training's cost, or the step's time or speed-up is not known."""
    seconds = facts.logged.step if facts.logged else facts.seconds
    if facts.head_seconds is None or seconds is None or step is None:
        return None
    steps = break_even_steps(facts.head_seconds, seconds, step.speed_up)
    return HeadPlan(
        training_seconds=facts.head_seconds,
        saved_per_step=seconds * (1 - 1 / step.speed_up),
        break_even_steps=steps if math.isfinite(steps) else None,
    )


def judge(plan: Plan, num_steps: int | None) -> tuple[bool, str]:
    """Whether to use it, and why, in a sentence."""
    at = f"K = {plan.num_drafts} at batch {plan.rollout_batch} decodes {plan.decoding_speed_up:.2f} times as fast"
    step, head = plan.step, plan.head
    if plan.decoding_speed_up < MIN_GAIN:
        stops = plan.stops_paying_at
        edge = f"; below batch {stops} it pays" if stops is not None and 1 < stops <= plan.rollout_batch else ""
        best = f"the best draft length decodes {plan.best_speed_up:.2f} times as fast as none"
        told = f"at batch {plan.rollout_batch} {best}" if plan.num_drafts == 0 else at
        return False, f"Do not use it: {told}{edge}."
    if step is not None and not step.pays:
        return False, f"Do not use it: {at}, but steps gain {step.speed_up:.2f} times: they spend their time elsewhere."
    told = at if step is None else f"{at} and {step.told}"
    if head is None or head.break_even_steps is None:
        return True, f"Use it: {told}."
    needed = math.ceil(head.break_even_steps)
    if num_steps is not None and needed > num_steps:
        return False, (
            f"Do not train a head for this run alone: {told}, but its training is won back after {needed} steps and "
            f"the run has {num_steps}."
        )
    return True, f"Use it: {told}; training the head is won back after {needed} steps."


def reachable(batches: Sequence[int]) -> int:
    """The largest batch that measured costs are believed for."""
    return TRUSTED_FACTOR * max(batches)
