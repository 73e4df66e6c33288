"""What the learner sees of a rollout is what was sampled, and every token's loss counts for what it should."""

import dataclasses
import itertools

import pytest
import torch

from bebop.rl.batch import learn_batches, traces_of, weighed
from bebop.rl.staleness import lag_metrics, lags
from tests.rl.rollouts import changed, rollout, sampled_groups, small_policy


@pytest.fixture(scope="module")
def groups():
    return sampled_groups(small_policy(), [[0, 1, 0, 1], [0.5, 0, 1, 0], [0, 0, 0, 1]], version=3)


@pytest.mark.parametrize("budget", [1, 30, 10_000])
def test_batches_hold_what_was_sampled_in_any_cut(groups, budget):
    traces = weighed([one for group in groups for one in traces_of(group)], "token")
    batches = learn_batches(traces, budget)
    seen = []
    for batch in batches:
        layout = batch.layout
        num_rollouts = sum(len(block.rows.tokens_BT) for block in layout.blocks)
        assert len(layout.tokens_U) <= budget or num_rollouts == 1
        assert (batch.versions_N == 3).all()
        rows = [row[is_target] for block in layout.blocks for row, is_target in rows_of(block)]
        assert torch.equal(torch.cat(rows), layout.written_N)
        for number, row in enumerate(rows):
            mine_N = batch.rollout_N == number
            seen.append((row.tolist(), batch.behaviour_N[mine_N].tolist()))
            assert layout.written_N[mine_N].tolist() == row.tolist()
            assert len(set(batch.advantages_N[mine_N].tolist())) == 1
    assert sum(batch.weights_N.sum().item() for batch in batches) == pytest.approx(1)
    turns = [turn.completion for group in groups for one in group.rollouts for turn in one.turns]
    expected = [(list(one.tokens), pytest.approx(list(one.logprobs), rel=1e-6)) for one in turns]
    # Equal attempts have equal log-probs, so tokens suffice as the order.
    assert sorted(seen, key=lambda pair: pair[0]) == sorted(expected, key=lambda pair: pair[0])


def rows_of(block):
    return zip(block.rows.tokens_BT, block.rows.is_target_BT, strict=True)


def test_later_turns_are_learned_and_what_the_environment_said_is_not(groups):
    turns = [group.rollouts[0].turns[0] for group in groups[:2]]
    both = rollout(0, turns[0].given_tokens, [one.completion for one in turns], 1.0)
    (batch,) = learn_batches(traces_of(dataclasses.replace(groups[0], rollouts=(both,))), 1000)
    assert batch.layout.written_N.tolist() == [token for one in turns for token in one.completion.tokens]
    assert batch.behaviour_N.tolist() == pytest.approx(
        [value for one in turns for value in one.completion.logprobs], rel=1e-6
    )
    # The environment's one token between the turns is not written, and it predicts the second turn's first.
    num_first = len(turns[0].completion.tokens)
    assert batch.layout.tokens_U[batch.layout.before_N[num_first]] == 1


def test_weights_are_a_mean_over_tokens_or_over_rollouts(groups):
    traces = [one for group in groups for one in traces_of(group)]
    counts = [one.num_written for one in traces]
    assert [one.token_weight for one in weighed(traces, "token")] == pytest.approx([1 / sum(counts)] * len(traces))
    by_rollout = [one.token_weight * count for one, count in zip(weighed(traces, "rollout"), counts, strict=True)]
    assert by_rollout == pytest.approx([1 / len(traces)] * len(traces))


def test_an_attempt_without_a_token_counts_in_its_group_alone(groups):
    first, *others = groups[0].rollouts
    nothing = {"tokens": (), "logprobs": (), "raw_logprobs": (), "entropies": (), "sources": (), "versions": ()}
    blank = changed(first, **nothing, **{"draft_logprobs": (), "overlaps": ()} if has_drafts(first) else {})
    traces = traces_of(dataclasses.replace(groups[0], rollouts=(blank, *others)))
    assert [one.advantage for one in traces] == [-1, 1, -1, 1]
    assert weighed(traces, "rollout")[0].token_weight == 0
    batches = learn_batches(weighed(traces, "rollout"), 1000)
    assert sum(batch.weights_N.sum().item() for batch in batches) == pytest.approx(1)


def has_drafts(one):
    return hasattr(one.turns[0].completion, "draft_logprobs")


def test_lags_are_counted_by_token(groups):
    first = groups[0].rollouts[0]
    (turn,) = first.turns
    num_tokens = len(turn.completion.tokens)
    mixed = changed(first, versions=(2,) + (3,) * (num_tokens - 1))
    group = dataclasses.replace(groups[0], rollouts=(mixed,))
    metrics = lag_metrics(lags([group], 4))
    assert metrics["lag"].total == 2 + (num_tokens - 1)
    assert metrics["lag"].count == num_tokens
    assert metrics["lag/max"] == 2
    assert (metrics["lag/count@1"], metrics["lag/count@2"]) == (num_tokens - 1, 1)
    everything = itertools.chain.from_iterable(one.rollouts for one in groups)
    assert lag_metrics(lags(groups, 3))["lag/count@0"] == sum(one.num_model_tokens for one in everything)
