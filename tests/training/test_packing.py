"""Packing loses no token, wastes little, and leaves every sequence as if it were alone."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
)

from bebop.models.tiny import tiny_config, tiny_hybrid_config
from bebop.tasks.chat import Transcript
from bebop.training.packing import can_be_packed, decoder_inputs, first_fit, laid_out, packs, positions_in_sequence
from bebop.training.samples import Sample

SIZES = {
    "vocab_size": 53,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def sample(number, length):
    generator = torch.Generator().manual_seed(number)
    tokens = torch.randint(3, 53, (length,), generator=generator).tolist()
    return Sample(id=str(number), transcript=Transcript(tokens, [place >= 2 for place in range(length)]))


LENGTHS = [30, 4, 17, 9, 12, 25, 6, 6, 19]
SAMPLES = [sample(number, length) for number, length in enumerate(LENGTHS)]


def test_every_sequence_lies_where_its_place_says():
    made = packs(SAMPLES, token_budget=60)
    assert sorted(one.id for pack in made for one in pack.members) == sorted(one.id for one in SAMPLES)
    assert len(made) > 1
    for pack in made:
        batch = pack.batch
        assert batch.tokens_BT.numel() <= 60
        for one, place in zip(pack.members, pack.places, strict=True):
            mine = slice(place.start, place.start + one.num_tokens)
            assert batch.tokens_BT[place.row, mine].tolist() == one.transcript.tokens
            assert batch.is_target_BT[place.row, mine].tolist() == one.transcript.is_model
            if batch.starts_BT is not None:
                assert (batch.starts_BT[place.row, mine] == place.start).all()
                assert positions_in_sequence(batch.starts_BT)[place.row, mine].tolist() == list(range(one.num_tokens))
        assert batch.num_targets == sum(sum(one.transcript.is_model) for one in pack.members)


def test_rows_are_filled():
    rows = first_fit(LENGTHS, max(LENGTHS))
    assert sorted(number for row in rows for number in row) == list(range(len(LENGTHS)))
    sums = [sum(LENGTHS[number] for number in row) for row in rows]
    assert max(sums) <= 30 and len(rows) == 5
    padding = 1 - sum(LENGTHS) / (30 * len(rows))
    assert padding < 0.2
    one_a_row = 1 - sum(LENGTHS) / (30 * len(LENGTHS))
    assert one_a_row > 0.5


def test_a_sequence_longer_than_the_budget_is_alone():
    assert [len(pack.members) for pack in packs([sample(0, 9), sample(1, 9)], token_budget=1)] == [1, 1]
    assert packs([sample(0, 9)], token_budget=1)[0].batch.starts_BT is None


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SIZES),
        Qwen2Config(**SIZES),
        Qwen3_5TextConfig(**SIZES, head_dim=16, layer_types=["full_attention"] * 2),
    ],
    ids=lambda one: one.model_type,
)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_backbone_sees_packed_sequences_as_if_alone(config, implementation):
    torch.manual_seed(0)
    assert can_be_packed(config)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()
    pack = laid_out([SAMPLES[:3], SAMPLES[3:5]])
    given = decoder_inputs(pack.batch, torch.float32)
    with torch.no_grad():
        together = model(
            input_ids=pack.batch.tokens_BT, position_ids=given.positions_BT, attention_mask=given.mask_B1TT
        ).logits
        for one, place in zip(pack.members, pack.places, strict=True):
            alone = model(input_ids=torch.tensor([one.transcript.tokens])).logits[0]
            mine = together[place.row, place.start : place.start + one.num_tokens]
            torch.testing.assert_close(mine, alone, atol=1e-5, rtol=1e-5)


def test_backbones_that_carry_state_or_look_through_a_window_are_not_packed():
    assert can_be_packed(tiny_config())
    assert not can_be_packed(tiny_hybrid_config())
    assert not can_be_packed(MistralConfig(**SIZES, sliding_window=8))


def test_padding_is_inert_on_a_hybrid_backbone():
    """Nothing in a causal backbone may look to the right, so a padded row equals the row alone."""
    torch.manual_seed(0)
    model = Qwen3_5ForCausalLM(tiny_hybrid_config()).float().eval()
    tokens_BT = torch.randint(3, 1000, (1, 12))
    padded_BT = torch.cat([tokens_BT, torch.zeros(1, 7, dtype=torch.long)], dim=1)
    with torch.no_grad():
        alone, padded = model(input_ids=tokens_BT).logits, model(input_ids=padded_BT).logits
    torch.testing.assert_close(padded[:, :12], alone, atol=1e-5, rtol=1e-5)
