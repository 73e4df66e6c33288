"""The frozen-head contract: after every publication each worker drafts with the head that the run started with, and
with the learner's own embedding and lm_head; and drafting still pays.

A draft that died shows nowhere else: verification corrects it, so rollouts stay right and only become slow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from bebop.engines.base import DraftStats
from bebop.errors import UserError
from bebop.metrics import Mean
from bebop.models.fingerprint import backbone_groups, differing_tensors, tensor_digests
from bebop.models.naming import EMBEDDING, LM_HEAD
from bebop.models.policy import Policy
from bebop.models.record import parameter_dtype

HEAD_PREFIX = "head."
"""What precedes the names of the head's tensors in a publication."""

TensorDigests = Mapping[str, Mapping[str, str]]
"""Group (head, embedding, lm_head) -> tensor name -> sha256 of its values; without a head that group is missing."""

HeadMode = Literal["none", "frozen", "online"]


def held_digests(policy: Policy) -> dict[str, dict[str, str]]:
    """What a worker reports: digests of the tensors that its engine drafts with."""
    groups = backbone_groups(policy.backbone)
    found = {name: tensor_digests(groups[name]) for name in ("embedding", "lm_head")}
    return found if policy.head is None else {"head": tensor_digests(policy.head.state_dict()), **found}


class HeadContract:
    """Compares what workers hold with what was published."""

    def __init__(self, policy: Policy, mode: HeadMode, worker_dtype: torch.dtype) -> None:
        """``policy``: the learner's, before its first update. ``worker_dtype``: format of the workers' weights."""
        assert mode == "none" or policy.head is not None, "a run that drafts has a head"
        self._policy = policy
        self._mode = mode
        self._dtype = worker_dtype
        self._published_dtype = worker_dtype
        self._head_at_start = self._learners_head() if mode == "frozen" else {}
        self._expected: dict[str, dict[str, str]] = {}

    def expect(self, tensors: Mapping[str, Tensor]) -> None:
        """Take note of what is being published (``Learner.tensors()``): from now on workers must hold it.

        ``UserError`` where the learner's own head is no longer the one that the run started with.
        """
        embedding = tensors[EMBEDDING]
        self._published_dtype = embedding.dtype
        expected = {
            "embedding": self._digests({"weight": embedding}),
            "lm_head": self._digests({"weight": tensors.get(LM_HEAD, embedding)}),
        }
        published = {
            name.removeprefix(HEAD_PREFIX): one for name, one in tensors.items() if name.startswith(HEAD_PREFIX)
        }
        if self._mode == "online":
            expected["head"] = self._digests(published)
        elif self._mode == "frozen":
            expected["head"] = self._digests(published) if published else self._learners_head()
            changed = differing_tensors(self._head_at_start, expected["head"])
            if changed:
                raise UserError(
                    f"the learner's MTP head is frozen and no longer the one that the run started with "
                    f"({_listed(changed)}); start the same command again, which goes on from the last checkpoint, and "
                    "report it if that does not help"
                )
        self._expected = expected

    def check(self, worker: str, version: int, held: TensorDigests) -> None:
        """``UserError`` that names worker, group and tensor where the worker does not hold what was published."""
        assert self._expected, "something was published"
        if "head" in self._expected and not held.get("head"):
            raise UserError(
                f"{worker} has lost its MTP head: after publication {version} it holds none, where the learner's has "
                f"{len(self._expected['head'])} tensors; load the policy with its head, or set mtp.mode=none"
            )
        differing = {
            group: differing_tensors(digests, held.get(group, {})) for group, digests in self._expected.items()
        }
        wrong = [f"another {group} ({_listed(names)})" for group, names in differing.items() if names]
        if wrong:
            raise UserError(
                f"{worker} does not hold the weights of publication {version}: it has {' and '.join(wrong)} than the "
                f"learner; {self._remedy()}"
            )

    def _remedy(self) -> str:
        published = self._published_dtype
        if torch.finfo(published).bits < torch.finfo(self._dtype).bits:
            return (
                f"the learner publishes {published} and the workers read the policy as {self._dtype}: set dtype and "
                "rollout.dtype alike, or save the policy in the coarser format"
            )
        return "resume the run, which sends all weights again, and report it if that does not help"

    def _learners_head(self) -> dict[str, str]:
        assert self._policy.head is not None
        return self._digests(self._policy.head.state_dict())

    def _digests(self, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """Of the values that remain in the workers' number format."""
        return tensor_digests(
            {name: one.detach().to(parameter_dtype(name, one, self._dtype)) for name, one in tensors.items()}
        )


class AcceptLengthWatch:
    """Stops a run whose drafts are hardly ever accepted. Observe the rollouts of every publication that drafted."""

    def __init__(self, *, least: float = 1.05, patience: int = 3) -> None:
        """``least``: accept length (1 + accepted drafts per drafting round) to be reached within ``patience``
        publications in a row."""
        self._least = least
        self._recent: deque[tuple[int, float]] = deque(maxlen=patience)

    def observe(self, version: int, drafts: DraftStats) -> None:
        """Count the rounds played since ``version`` was published; rounds without drafts say nothing.

        ``UserError`` after ``patience`` publications in a row whose accept length was too short.
        """
        length = accept_length(drafts)
        if not length.count:
            return
        self._recent.append((version, length.value))
        assert self._recent.maxlen is not None
        if len(self._recent) < self._recent.maxlen or any(one >= self._least for _, one in self._recent):
            return
        seen = ", ".join(f"{one:.3f} after {number}" for number, one in self._recent)
        raise UserError(
            f"the MTP head no longer drafts what the policy samples: accept length {seen} (least {self._least}); the "
            "workers' head, embedding and lm_head are the learner's, so what differs is the head from the policy: "
            "go on with mtp.mode=none, or start a run anew with a head that `bebop train-mtp` has retrained or with "
            "mtp.mode=online"
        )


def accept_length(drafts: DraftStats) -> Mean:
    """1 + accepted drafts, over the rounds that drafted."""
    num_rounds = drafts.drafted[0] if drafts.drafted else 0
    return Mean(num_rounds + drafts.num_accepted, num_rounds)


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown
