"""The audit tells exact engines from planted ones, outlives those that die, and says what it could not look at."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from torch import Tensor

from bebop.audit.catalogue import BY_NAME, CHECKS
from bebop.audit.host import EngineDied, Host
from bebop.audit.patterns import ARGMAX, IGNORED, TOWARDS_DRAFT, UNINITIALISED
from bebop.audit.plan import QUICK, AuditPlan
from bebop.audit.plants import PLANTS, planted
from bebop.audit.policies import DraftKind, Format, PolicyRecipe, write_policy
from bebop.audit.records import AuditReport, CheckResult, Status
from bebop.audit.run import audit
from bebop.audit.subjects import EmbeddedSubject
from bebop.engines.base import Completion, Engine, Request
from bebop.engines.embedded import EmbeddedEngine
from bebop.errors import UserError

SMALL = replace(QUICK, num_samples=300)
OPPOSITE, ECHO = (DraftKind.OPPOSITE,), (DraftKind.ECHO,)

# Plants whose bias is small, with the samples it takes.
SAMPLES = {
    "another-q": 1200,
    "stale-temperature": 1200,
    "shared-noise": 600,
    "reused-coins": 600,
    "warm-plain-decoding": 600,
}
# Plants that show with a head that drafts well; the others show with one that drafts the opposite.
WITH_ECHO = {"wrong-bonus-index", "stale-temperature", "stale-weights", "stale-head", "wrong-version", "stop-not-cut"}
PATTERNS = {
    "argmax": ("law/temperature-1", ARGMAX),
    "ignored-settings": ("law/top-k", IGNORED),
    "no-min-p": ("law/min-p", IGNORED),
    "uninitialised-settings": ("law/temperature-1", UNINITIALISED),
    "accept-all": ("law/temperature-1", TOWARDS_DRAFT),
    "residual-from-target": ("law/temperature-1", TOWARDS_DRAFT),
    "draft-logprobs": ("log-probs/behaviour", "They are the draft's, not the target's."),
    "untempered-logprobs": ("log-probs/behaviour", "temperature 1 without truncation"),
}


def by_check(report: AuditReport) -> dict[str, CheckResult]:
    return {result.check: result for result in report.results}


@pytest.mark.parametrize("rule", ["rejection", "block", "target_only", "coupled"])
def test_the_embedded_engine_passes_with_every_rule(rule: str) -> None:
    plan = replace(SMALL, num_samples=200 if rule != "rejection" else 300)
    report = audit(EmbeddedSubject(rule=rule), plan)
    failed = [result for result in report.results if result.status is Status.FAIL]
    # At this size the biased arm may go unseen.
    assert [result.check for result in failed if result.check != "control/biased"] == []
    assert {result.check for result in report.results} == {check.name for check in CHECKS}
    missing = [result.check for result in report.results if result.status is Status.NOT_SUPPORTED]
    assert missing == ["sleep/law", "sleep/head"]


@pytest.mark.parametrize("format", [Format.QWEN3_5, Format.EAGLE])
def test_other_formats_pass_too(format: Format) -> None:
    report = audit(EmbeddedSubject(), replace(SMALL, formats=(format,), drafts=ECHO, only=("law", "weights", "batch")))
    assert report.passed


@pytest.mark.parametrize("name", list(PLANTS))
def test_a_plant_fails_its_checks(name: str) -> None:
    plant = PLANTS[name]
    drafts = ECHO if name in WITH_ECHO else OPPOSITE
    plan = replace(SMALL, num_samples=SAMPLES.get(name, 300), drafts=drafts, only=plant.fails)
    with planted(name):
        report = audit(EmbeddedSubject(), plan)
    results = by_check(report)
    assert set(results) == set(plant.fails)
    assert all(result.status is Status.FAIL for result in results.values())
    assert not report.passed
    assert all(result.explanation.startswith(BY_NAME[check].meaning) for check, result in results.items())
    if name in PATTERNS:
        check, words = PATTERNS[name]
        assert words in results[check].explanation


def test_every_check_of_the_engine_has_a_plant() -> None:
    """Sleep is no part of the embedded engine, nor is dying; those checks are tried on doubles below."""
    seen = {check for plant in PLANTS.values() for check in plant.fails}
    others = {"control/exact", "control/biased", "engine/alive", "law/short-prompt", "sleep/law", "sleep/head"}
    assert seen | others == {check.name for check in CHECKS}


def test_a_plant_is_gone_afterwards() -> None:
    before = EmbeddedEngine.load_weights
    with pytest.raises(RuntimeError, match="inside"), planted("wrong-version"):
        assert EmbeddedEngine.load_weights is not before
        raise RuntimeError("inside")
    assert EmbeddedEngine.load_weights is before
    with pytest.raises(UserError, match="no plant 'bug'; choose one of shared-noise"), planted("bug"):
        pass


def test_the_biased_arm_is_seen_at_quick_size() -> None:
    results = by_check(audit(EmbeddedSubject(), replace(QUICK, only=("control",))))
    assert results["control/exact"].status is results["control/biased"].status is Status.PASS
    assert results["control/biased"].effect is not None
    assert 0.02 < results["control/biased"].effect.value < 0.06


@dataclass
class Changed:
    """The embedded engine, its answers or doings changed."""

    engine: Engine
    log: list[str] = field(default_factory=list)

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        return self.engine.generate(requests)

    def stream(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        return self.engine.stream(requests)

    def load_weights(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        self.engine.load_weights(version, tensors)

    def close(self) -> None:
        self.engine.close()


class Sleeper(Changed):
    def sleep(self) -> None:
        self.log.append("asleep")

    def wake(self) -> None:
        self.log.append("awake")


class ForgetfulSleeper(Sleeper):
    """Loses its head's weights in sleep, as vllm#52479."""

    def wake(self) -> None:
        assert isinstance(self.engine, EmbeddedEngine)
        head = self.engine.policy.head
        assert head is not None
        head.output_norm.weight.data.neg_()  # type: ignore[operator, union-attr]


class Mortal(Changed):
    """Dies of top-k."""

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        wanted = list(requests)
        if any(request.sampling.top_k for request in wanted):
            raise RuntimeError("max(): Expected reduction dim\nand much more")
        return super().generate(wanted)


class MortalInCompany(Changed):
    """Dies when settings are mixed."""

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        wanted = list(requests)
        if len({request.sampling for request in wanted}) > 1:
            raise RuntimeError("index -1071588120 is out of bounds")
        return super().generate(wanted)


class Choosy(Changed):
    """Refuses min-p and weights, and says nothing of raw log-probs, entropies and drafts."""

    def generate(self, requests: Iterable[Request]) -> list[Completion]:
        wanted = list(requests)
        if any(request.sampling.min_p for request in wanted):
            raise UserError("no min_p with drafts; leave it out")
        return [_bare(done) for done in super().generate(wanted)]

    def load_weights(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        raise UserError("a server's weights cannot be changed")


def _bare(done: Completion) -> Completion:
    nothing = (math.nan,) * len(done.tokens)
    return replace(done, raw_logprobs=nothing, entropies=nothing, drafts=type(done.drafts)())


@dataclass(frozen=True)
class Double:
    """A subject that opens changed engines."""

    kind: type[Changed]
    name: str = "double"
    draft_lengths: tuple[int | None, ...] = (1, 3)
    formats: tuple[Format, ...] = (Format.MIMO,)

    def open(self, directory: Path, num_draft_tokens: int) -> Engine:
        return self.kind(EmbeddedSubject().open(directory, num_draft_tokens))


def look(kind: type[Changed], *only: str, plan: AuditPlan = SMALL) -> dict[str, CheckResult]:
    return by_check(audit(Double(kind), replace(plan, only=only, drafts=ECHO)))


def test_sleep_is_looked_at_where_there_is_one() -> None:
    results = look(Sleeper, "sleep")
    assert {result.status for result in results.values()} == {Status.PASS}
    results = look(ForgetfulSleeper, "sleep")
    assert results["sleep/law"].status is Status.PASS
    assert results["sleep/head"].status is Status.FAIL
    assert "vllm#52479" in results["sleep/head"].explanation


def test_an_engine_that_dies_of_a_setting_is_asked_for_the_others() -> None:
    results = look(Mortal, "engine", "law")
    for check in ("law/top-k", "law/combined"):
        assert results[check].status is Status.FAIL
        assert "RuntimeError: max(): Expected reduction dim)" in results[check].explanation
    assert results["law/temperature-1"].status is results["law/top-p"].status is Status.PASS
    assert results["engine/alive"].status is Status.PASS


def test_an_engine_that_dies_of_mixed_settings_is_asked_for_them_one_by_one() -> None:
    results = look(MortalInCompany, "engine", "law", "seeds")
    assert results["engine/alive"].status is Status.FAIL
    assert "index -1071588120 is out of bounds" in results["engine/alive"].explanation
    assert results["law/top-k"].status is results["law/pooled"].status is Status.PASS


def test_what_an_engine_refuses_or_does_not_say_is_no_failure() -> None:
    results = look(Choosy)
    refused = {name: result for name, result in results.items() if result.status is Status.NOT_SUPPORTED}
    assert set(refused) == {
        *("law/min-p", "speculation/on", "log-probs/raw", "log-probs/entropy"),
        *("weights/law", "weights/version", "weights/head", "sleep/law", "sleep/head"),
    }
    assert refused["law/min-p"].explanation == "no min_p with drafts; leave it out"
    assert results["law/temperature-1"].status is Status.PASS


def test_a_host_opens_its_engine_again() -> None:
    opened: list[Mortal] = []

    def open_engine() -> Engine:
        with written_directory() as directory:
            opened.append(Mortal(EmbeddedSubject().open(directory, 3)))
        return opened[-1]

    host = Host(open_engine)
    request = Request(id="a", prompt_tokens=(1,), max_tokens=2)
    deadly = replace(request, sampling=replace(request.sampling, top_k=2))
    with pytest.raises(EngineDied, match=r"RuntimeError: max\(\): Expected reduction dim$"):
        host.generate([deadly])
    assert len(host.generate([request])[0].tokens) == 2
    assert len(opened) == 2
    with pytest.raises(UserError, match="no sleep"):
        host.nap()


@contextmanager
def written_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as scratch:
        write_policy(PolicyRecipe(), Path(scratch) / "policy")
        yield Path(scratch) / "policy"


def test_plans_that_cannot_see_anything_are_refused() -> None:
    for settings, words in (
        ({"num_samples": 99}, "99 samples"),
        ({"vocabulary": 7}, "vocabulary is 7"),
        ({"num_draft_tokens": 0}, "needs draft tokens"),
    ):
        with pytest.raises(UserError, match=words):
            replace(QUICK, **settings)
