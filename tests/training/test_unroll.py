"""The training forward is what the embedded engine computes when it drafts, at every anchor and depth.

Shapes: B rows, T tokens, N chains, K depths, H hidden size.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3_5TextConfig

from bebop.engines.embedded.attention import ragged
from bebop.engines.embedded.drafting import Drafter, Waiting
from bebop.models.contracts import HeadOptions
from bebop.models.policy import new_policy
from bebop.tasks.chat import Transcript
from bebop.training.chain_plan import plan_chains
from bebop.training.packing import decoder_inputs, laid_out
from bebop.training.samples import Sample
from bebop.training.transcripts import TokenBatch
from bebop.training.unroll import unroll
from bebop.training.unroll_attention import LAYOUTS

VOCAB, HIDDEN, DEPTHS = 61, 32, 4
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
CONFIGS = {
    "qwen3_5": Qwen3_5TextConfig(**SIZES, head_dim=16, layer_types=["full_attention"] * 2),
    "eagle": LlamaConfig(**SIZES),
    "mimo": Qwen2Config(**SIZES),
}


def policy_of(name):
    """A policy whose head is random through and through, so that no term of the attention is negligible."""
    torch.manual_seed(0)
    backbone = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    contract = None
    if name == "mimo":
        from bebop.models.contracts import MIMO as contract
    policy = new_policy(backbone, contract=contract, options=HeadOptions())
    with torch.no_grad():
        for parameter in (*policy.backbone.parameters(), *policy.head.parameters()):
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return policy


@pytest.fixture(params=list(CONFIGS))
def policy(request):
    return policy_of(request.param)


def batch_of(*rows):
    longest = max(map(len, rows))
    tokens_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    is_target_BT = torch.zeros(len(rows), longest, dtype=torch.bool)
    for place, row in enumerate(rows):
        tokens_BT[place, : len(row)] = torch.tensor([token for token, _ in row])
        is_target_BT[place, : len(row)] = torch.tensor([is_target for _, is_target in row])
    return TokenBatch(tokens_BT=tokens_BT, is_target_BT=is_target_BT)


def row_of(seed, length, prompt=3, gap=()):
    """A transcript: a prompt, then the policy's tokens but for the places in ``gap``."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, VOCAB, (length,), generator=generator).tolist()
    return [(token, place >= prompt and place not in gap) for place, token in enumerate(tokens)]


def packed(*rows_of_rows):
    """Several transcripts a row."""

    def sample(row):
        tokens, is_model = zip(*row, strict=True)
        return Sample(id="", transcript=Transcript(list(tokens), list(is_model)))

    return laid_out([[sample(row) for row in rows] for rows in rows_of_rows]).batch


def hidden_of(policy, batch):
    given = decoder_inputs(batch, policy.dtype)
    with torch.no_grad():
        return policy.run_backbone(
            batch.tokens_BT, position_ids_BT=given.positions_BT, attention_mask=given.mask_B1TT
        ).draft_input_BTH


def unrolled(policy, batch, layout="ttt", num_depths=DEPTHS):
    plan = plan_chains(batch, num_depths)
    with torch.no_grad():
        return unroll(policy, hidden_of(policy, batch), plan, LAYOUTS[layout])


def cached_draft(policy, tokens, anchor, num_depths):
    """What the engine's drafter computes at ``anchor`` when it is made to draft the tokens that follow."""
    seen = []

    def choose(output_BH, depth):
        seen.append(output_BH[0])
        return torch.tensor([tokens[min(anchor + depth + 2, len(tokens) - 1)]])

    drafter = Drafter(policy, policy.head, num_slots=1)
    drafter.cache.reserve(len(tokens) + 40)
    with torch.no_grad(), ragged(policy.config, policy.head.config):
        hidden = policy.run_backbone(torch.tensor([tokens])).draft_input_BTH
        drafter.keep(hidden[:, : anchor + 1], torch.tensor([0]))
        waiting = Waiting(
            tokens_BW=torch.tensor([tokens[1 : anchor + 2]]),
            first_B=torch.tensor([0]),
            counts_B=torch.tensor([anchor + 1]),
            width=anchor + 1,
            longest=anchor + 1,
        )
        drafter.draft(waiting, num_depths, choose)
    return torch.stack(seen)


def test_every_anchor_and_depth_equals_the_engines_cached_draft(policy):
    rows = [row_of(1, 14), row_of(2, 9, prompt=5), row_of(3, 12, gap=(6, 7))]
    batch = batch_of(*rows)
    made = unrolled(policy, batch)
    plan = made.plan
    row_N, _ = plan.is_real_BA.nonzero(as_tuple=True)
    anchor_N = plan.anchors_BA[plan.is_real_BA]
    assert len(anchor_N) > 15
    num_compared = 0
    for chain, (row, anchor) in enumerate(zip(row_N.tolist(), anchor_N.tolist(), strict=True)):
        tokens = [token for token, _ in rows[row]]
        expected_KH = cached_draft(policy, tokens, anchor, DEPTHS)
        counted_K = plan.depth_mask_NK[chain]
        torch.testing.assert_close(made.states_NKH[chain][counted_K], expected_KH[counted_K], atol=1e-5, rtol=1e-5)
        num_compared += int(counted_K.sum())
    assert num_compared == plan.num_counted


def test_a_batch_equals_its_rows_alone(policy):
    rows = [row_of(1, 14), row_of(2, 9), row_of(3, 6)]
    together = unrolled(policy, batch_of(*rows))
    alone = [unrolled(policy, batch_of(row)) for row in rows]
    mask_NK = torch.cat([one.plan.depth_mask_NK for one in alone])
    assert torch.equal(together.plan.depth_mask_NK, mask_NK)
    expected_NKH = torch.cat([one.states_NKH for one in alone])
    torch.testing.assert_close(together.states_NKH[mask_NK], expected_NKH[mask_NK], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_packed_sequences_equal_separate_ones(policy, layout):
    """Three sequences in two rows, one of them all the policy's own from its first token, so that chains would run on
    into it if sequences were not kept apart."""
    rows = [row_of(1, 14), row_of(2, 9, prompt=0), row_of(3, 6)]
    batch = packed([rows[0], rows[1]], [rows[2]])
    together = unrolled(policy, batch, layout)
    alone = [unrolled(policy, batch_of(row), layout) for row in rows]
    mask_NK = together.plan.depth_mask_NK
    assert torch.equal(mask_NK, torch.cat([one.plan.depth_mask_NK for one in alone]))
    labels_NK = torch.cat([one.plan.labels_NK for one in alone])
    assert torch.equal(together.plan.labels_NK[mask_NK], labels_NK[mask_NK])
    expected_NKH = torch.cat([one.states_NKH for one in alone])
    torch.testing.assert_close(together.states_NKH[mask_NK], expected_NKH[mask_NK], atol=1e-5, rtol=1e-5)
    # The law of a token is said one position before it.
    laws_NK = together.plan.positions_NK[mask_NK]
    assert torch.equal(batch.tokens_BT.flatten()[laws_NK + 1], together.plan.labels_NK[mask_NK])


@pytest.mark.parametrize("layout", ["plain", "kvshare"])
def test_layouts_agree_at_depth_one_and_part_below(policy, layout):
    batch = batch_of(row_of(1, 14), row_of(2, 9))
    ttt, other = unrolled(policy, batch), unrolled(policy, batch, layout)
    mask_NK = ttt.plan.depth_mask_NK
    torch.testing.assert_close(other.states_NKH[:, 0], ttt.states_NKH[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(other.plan.positions_NK[mask_NK], ttt.plan.positions_NK[mask_NK])
    difference_NK = (other.states_NKH - ttt.states_NKH).abs().amax(-1)
    assert difference_NK[:, 1:][mask_NK[:, 1:]].min() > 1e-3


def test_plain_attends_its_own_depth_alone():
    """Depth 2 of the plain layout is the head run over the recycled vectors as over a sequence of its own."""
    policy = policy_of("qwen3_5")
    row = row_of(1, 12)
    tokens_1T = torch.tensor([[token for token, _ in row]])
    made = unrolled(policy, batch_of(row), "plain", num_depths=2)
    with torch.no_grad():
        hidden = policy.run_backbone(tokens_1T).draft_input_BTH
        first = policy.head(hidden[:, :-1], policy.embed(tokens_1T[:, 1:]), torch.arange(11)[None])
        second = policy.head(first.recycle_BTH[:, :-1], policy.embed(tokens_1T[:, 2:]), torch.arange(1, 11)[None])
    anchors = made.plan.anchors_BA[made.plan.is_real_BA]
    counted = made.plan.depth_mask_NK[:, 1]
    expected = second.output_BTH[0, anchors[counted]]
    torch.testing.assert_close(made.states_NKH[counted, 1], expected, atol=1e-5, rtol=1e-5)


def test_kvshare_reads_committed_keys_alone():
    """With kvshare the keys of a deeper depth do not exist: it is one query on the depth-1 cache of the anchor."""
    policy = policy_of("eagle")
    row = row_of(1, 8)
    tokens = [token for token, _ in row]
    made = unrolled(policy, batch_of(row), "kvshare", num_depths=2)
    anchor = made.plan.anchors_BA[0, 1].item()
    from transformers import DynamicCache

    class ReadOnly(DynamicCache):
        def update(self, key_states, value_states, layer_idx, *args, **kwargs):
            return self.layers[0].keys, self.layers[0].values

    with torch.no_grad():
        tokens_1T = torch.tensor([tokens])
        hidden = policy.run_backbone(tokens_1T).draft_input_BTH
        cache = DynamicCache()
        first = policy.head(
            hidden[:, : anchor + 1],
            policy.embed(tokens_1T[:, 1 : anchor + 2]),
            torch.arange(anchor + 1)[None],
            cache=cache,
        )
        cache.__class__ = ReadOnly
        second = policy.head(
            first.recycle_BTH[:, -1:],
            policy.embed(tokens_1T[:, anchor + 2 : anchor + 3]),
            torch.tensor([[anchor + 1]]),
            cache=cache,
        )
    torch.testing.assert_close(made.states_NKH[1, 1], second.output_BTH[0, 0], atol=1e-5, rtol=1e-5)


def test_labels_and_laws_follow_the_alignment():
    """Depth k at anchor i predicts token i+k+1, compared with the law at position i+k; the first anchor may see the
    prompt's last token as its input, and a chain keeps the depths before it leaves what the policy wrote."""
    row = row_of(1, 10, prompt=4, gap=(7,))
    tokens = [token for token, _ in row]
    plan = plan_chains(batch_of(row_of(9, 12), row), 3)
    row_N, _ = plan.is_real_BA.nonzero(as_tuple=True)
    mine_N = row_N == 1
    anchors = plan.anchors_BA[plan.is_real_BA][mine_N].tolist()
    assert anchors == [2, 3, 4, 6, 7]
    counted = plan.depth_mask_NK[mine_N].sum(-1).tolist()
    assert counted == [3, 2, 1, 2, 1]
    for chain, anchor in enumerate(anchors):
        for depth in range(1, counted[chain] + 1):
            assert plan.labels_NK[mine_N][chain, depth - 1] == tokens[anchor + depth + 1]
            assert plan.positions_NK[mine_N][chain, depth - 1] == 12 + anchor + depth


def test_gradients_flow_through_the_chain_and_the_committed_keys():
    """The last depth's loss alone reaches every parameter of the head; the backbone's are not part of it."""
    policy = policy_of("qwen3_5")
    policy.backbone.requires_grad_(False)
    batch = batch_of(row_of(1, 14), row_of(2, 9))
    made = unroll(policy, hidden_of(policy, batch), plan_chains(batch, DEPTHS), LAYOUTS["ttt"])
    made.states_NKH[:, -1].square().sum().backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in policy.head.parameters())
    assert all(one.grad is None for one in policy.backbone.parameters())


def test_recomputation_keeps_a_fraction_of_the_activations():
    """What autograd holds on to between forward and backward, parameters left out."""
    policy = policy_of("qwen3_5")
    policy.backbone.requires_grad_(False)
    batch = batch_of(row_of(1, 40), row_of(2, 33), row_of(3, 38))
    hidden_BTH, plan = hidden_of(policy, batch), plan_chains(batch, DEPTHS)
    parameters = {one.untyped_storage().data_ptr() for one in policy.head.parameters()}

    def kept_bytes(recompute):
        kept = {}

        def keep(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            made = unroll(policy, hidden_BTH, plan, LAYOUTS["ttt"], recompute=recompute)
        assert made.states_NKH.requires_grad
        return sum(kept.values())

    assert kept_bytes(recompute=True) < 0.1 * kept_bytes(recompute=False)


def test_the_gradient_is_that_of_finite_differences():
    policy = policy_of("qwen3_5")
    # In float64 but for the norms, which transformers computes in float32: hence steps of 1e-3.
    policy.backbone.double().requires_grad_(False)
    policy.head.double()
    batch = batch_of(row_of(1, 8), row_of(2, 6))
    plan = plan_chains(batch, 3)
    hidden_BTH = hidden_of(policy, batch)
    weights_NKH = torch.randn(unroll(policy, hidden_BTH, plan, LAYOUTS["ttt"]).states_NKH.shape, dtype=torch.double)

    def value():
        return (unroll(policy, hidden_BTH, plan, LAYOUTS["ttt"]).states_NKH * weights_NKH).sum()

    value().backward()
    for parameter in (policy.head.fuse.weight, policy.head.layer.self_attn.k_proj.weight):
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter.add_(direction, alpha=1e-3)
            above = value()
            parameter.add_(direction, alpha=-2e-3)
            below = value()
            parameter.add_(direction, alpha=1e-3)
        slope = (above - below) / 2e-3
        torch.testing.assert_close((parameter.grad * direction).sum(), slope, rtol=1e-2, atol=1e-2)


def test_the_heads_own_attention_is_back_after_an_unroll(policy):
    before = policy.head.config._attn_implementation
    unrolled(policy, batch_of(row_of(1, 8)))
    assert policy.head.config._attn_implementation == before
