"""Packing is an optimisation, never an approximation: logits, gradients and decoding equal those of each sequence alone."""

import copy
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from safetylib.study import attention as a
from safetylib.study.generate import advance
from safetylib.study.tiny import tiny_llama

calm = settings(max_examples=25, deadline=None, derandomize=True)
tokens = st.integers(2, 250)
families = st.tuples(
    st.lists(tokens, max_size=11), st.lists(st.lists(tokens, min_size=1, max_size=19), min_size=1, max_size=6)
).map(lambda drawn: [drawn[0] + own for own in drawn[1]])

SHARED = list(range(20, 33))
CASES = {
    "one sequence": [[5, 6, 7]],
    "one token": [[9]],
    "nothing shared, equal lengths": [[3, 4, 5, 6], [7, 8, 9, 10]],
    "nothing shared, different lengths": [[3, 4], list(range(40, 61)), [7] * 9],
    "a shared prefix, different lengths": [[*SHARED, 3], [*SHARED, *range(50, 70)], [*SHARED, 8, 9, 10]],
    "two the same": [[*SHARED, 4, 5], [*SHARED, 4, 5]],
    "two the same beside another": [[*SHARED, 4, 5], [6, 7, 8], [*SHARED, 4, 5]],
    "one is the beginning of another": [SHARED, [*SHARED, 3, 4, 5], SHARED[:4]],
    "one token is the beginning of all": [[20], SHARED],
    "lengths round to the same multiple": [[*SHARED, *range(100, 100 + n)] for n in (1, 8, 5, 9, 16, 17)],
}


def sharpened(model):
    """Attention of freshly drawn weights is nearly flat, and forgives mistakes; this one looks hard at single tokens."""
    with torch.no_grad():
        for layer in model.model.layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                projection.weight.mul_(12)
    return model


def tiny(key_heads: int):
    config = {**tiny_llama(torch.float32)[0].config.to_dict(), "num_key_value_heads": key_heads}
    torch.manual_seed(key_heads)
    model = LlamaForCausalLM(LlamaConfig(**config, attn_implementation=a.NAME))
    return sharpened(model.float().eval())


@pytest.fixture(scope="module", params=[4, 2, 1], ids=lambda heads: f"4 query heads on {heads} key heads")
def pair(request):
    """A model under packed attention, and transformers' own attention over the same weights."""
    return with_reference(tiny(request.param))


@pytest.fixture(scope="module")
def grouped():
    return with_reference(tiny(2))


def with_reference(model):
    reference = copy.deepcopy(model)
    reference.set_attn_implementation("eager")
    assert model.config._attn_implementation == a.NAME
    return SimpleNamespace(model=model, reference=reference)


def packed_logits(model, sequences):
    packed = a.pack(sequences)
    logits = model(
        input_ids=packed.input_ids, position_ids=packed.position_ids, packing=packed.packing, use_cache=False
    ).logits[0]
    return [logits[places] for places in packed.places]


def alone(model, sequence):
    return model(input_ids=torch.tensor([sequence]), use_cache=False).logits[0]


def prefilled(model, sequences):
    packed, store = a.pack(sequences), a.KeyValueStore()
    model(
        input_ids=packed.input_ids,
        position_ids=packed.position_ids,
        past_key_values=store,
        packing=packed.packing,
    )
    return packed, store


def assert_close(got, expected, tolerance=1e-5):
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=1e-5)


# --- the layout -------------------------------------------------------------------------------------------------------


@given(families)
@calm
def test_every_sequence_can_be_read_back_from_the_row_at_its_own_positions(sequences):
    packed = a.pack(sequences)
    for sequence, places in zip(sequences, packed.places, strict=True):
        assert packed.input_ids[0, places].tolist() == sequence
        assert packed.position_ids[0, places].tolist() == list(range(len(sequence)))


@given(families)
@calm
def test_what_all_share_is_stored_once_and_each_keeps_a_token_of_its_own(sequences):
    packed = a.pack(sequences)
    prefix = packed.packing.prefix
    own = [set(places[prefix:].tolist()) for places in packed.places]
    assert all(own) and sum(map(len, own)) == len(set().union(*own))
    assert all(places[:prefix].tolist() == list(range(prefix)) for places in packed.places)
    longer_prefix_is_shared = len({tuple(sequence[: prefix + 1]) for sequence in sequences}) == 1
    assert not longer_prefix_is_shared or prefix == min(map(len, sequences)) - 1
    row = prefix + sum(count * length for count, length in packed.packing.groups)
    assert packed.input_ids.shape == packed.position_ids.shape == (1, row)
    assert row - prefix - sum(map(len, own)) < 8 * len(sequences)


@pytest.mark.parametrize(
    ("name", "prefix", "groups"),
    [
        ("one sequence", 2, ((1, 8),)),
        ("one token", 0, ((1, 8),)),
        ("nothing shared, equal lengths", 0, ((2, 8),)),
        ("nothing shared, different lengths", 0, ((1, 8), (1, 16), (1, 24))),
        ("a shared prefix, different lengths", 13, ((2, 8), (1, 24))),
        ("two the same", 14, ((2, 8),)),
        ("one is the beginning of another", 3, ((1, 8), (2, 16))),
        ("one token is the beginning of all", 0, ((1, 8), (1, 16))),
        ("lengths round to the same multiple", 13, ((3, 8), (2, 16), (1, 24))),
    ],
)
def test_layouts_known_by_hand(name, prefix, groups):
    assert a.pack(CASES[name]).packing == a.Packing(prefix, groups)


@pytest.mark.parametrize("sequences", [[], [[]], [[1, 2], []]], ids=["none", "only an empty one", "one empty"])
def test_nothing_cannot_be_packed(sequences):
    with pytest.raises(ValueError, match="at least one sequence, and none may be empty"):
        a.pack(sequences)


# --- the forward and backward pass ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sequences", CASES.values(), ids=CASES)
@torch.inference_mode()
def test_packed_logits_equal_those_of_each_sequence_alone(pair, sequences):
    for got, sequence in zip(packed_logits(pair.model, sequences), sequences, strict=True):
        assert_close(got, alone(pair.reference, sequence))


@given(families)
@calm
@torch.inference_mode()
def test_packed_logits_equal_those_of_each_sequence_alone_whatever_the_sequences(grouped, sequences):
    for got, sequence in zip(packed_logits(grouped.model, sequences), sequences, strict=True):
        assert_close(got, alone(grouped.reference, sequence))


@pytest.mark.parametrize("sequences", CASES.values(), ids=CASES)
def test_packed_gradients_equal_the_sum_of_each_sequences_own(pair, sequences):
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(len(s), pair.model.config.vocab_size, generator=generator) for s in sequences]

    def gradients(model, logits):
        model.zero_grad()
        sum((way * own).sum() for way, own in zip(directions, logits, strict=True)).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    got = gradients(pair.model, packed_logits(pair.model, sequences))
    expected = gradients(pair.reference, [alone(pair.reference, sequence) for sequence in sequences])
    assert got.keys() == expected.keys()
    for name in expected:
        scale = expected[name].abs().max().item()
        assert_close(got[name], expected[name], 2e-5 * scale + 1e-7)


@torch.inference_mode()
def test_neighbours_in_the_row_do_not_see_each_other(grouped):
    one, other = [*SHARED, 3, 4, 5], [*SHARED, 90, 91, 92]
    (mine, _), (again, _) = (
        packed_logits(grouped.model, [one, other]),
        packed_logits(grouped.model, [one, SHARED + one]),
    )
    assert_close(mine, again)


def test_a_prefix_that_is_not_shared_is_refused():
    with pytest.raises(ValueError, match="share 2 tokens, not 3"):
        a.pack([[1, 2, 3, 4], [1, 2, 5, 6]], prefix=3)
    packed = a.pack([[1, 2, 3, 4], [1, 2, 5, 6]], prefix=1)
    assert packed.packing.prefix == 1 and packed.input_ids[0, packed.places[1]].tolist() == [1, 2, 5, 6]


# --- decoding from branches -------------------------------------------------------------------------------------------

BRANCHES = {  # (row of the packed sequences, tokens kept)
    "at the ends": [(0, 17), (1, 22), (2, 14)],
    "all over": [(1, 22), (1, 3), (0, 15), (2, 1), (1, 13), (0, 15)],
    "a single one": [(1, 7)],
}


@pytest.mark.parametrize("branches", BRANCHES.values(), ids=BRANCHES)
@torch.inference_mode()
def test_ragged_decoding_equals_recomputing_everything(pair, branches, monkeypatch):
    monkeypatch.setattr(a, "_ROOM", 2)  # so that the cache grows on the way
    sequences = [SHARED + list(range(60, 64)), SHARED + list(range(70, 79)), [*SHARED, 80]]
    packed, store = prefilled(pair.model, sequences)
    texts = [sequences[row][:kept] for row, kept in branches]
    cache = store.branch([packed.places[row][:kept] for row, kept in branches])
    assert cache.lengths.tolist() == [kept for _, kept in branches]
    assert cache.get_seq_length() == max(kept for _, kept in branches)
    for turn in range(4):
        new = [100 + 10 * turn + place for place in range(len(texts))]
        texts = [[*text, token] for text, token in zip(texts, new, strict=True)]
        for got, text in zip(advance(pair.model, cache, new), texts, strict=True):
            assert_close(got, alone(pair.reference, text)[-1])


@torch.inference_mode()
def test_rows_can_leave_the_cache_and_the_others_go_on(grouped, monkeypatch):
    monkeypatch.setattr(a, "_ROOM", 2)  # so that what is left grows afterwards
    sequences = [SHARED, [*SHARED, 5, 6, 7], [8, 9], [*SHARED, 30], list(range(60, 80))]
    packed, store = prefilled(grouped.model, sequences)
    cache = store.branch(packed.places)
    advance(grouped.model, cache, [100, 101, 102, 103, 104])
    left = [3, 1, 4]
    cache.keep(left)
    texts = [[*sequences[row], 100 + row] for row in left]
    for turn in range(3):
        new = [110 + 10 * turn + row for row in left]
        texts = [[*text, token] for text, token in zip(texts, new, strict=True)]
        for got, text in zip(advance(grouped.model, cache, new), texts, strict=True):
            assert_close(got, alone(grouped.reference, text)[-1])


@torch.inference_mode()
def test_branches_do_not_write_into_each_other_or_the_store(grouped):
    packed, store = prefilled(grouped.model, [SHARED])
    before = [keys.clone() for keys, _ in store.layers]
    first, second = (store.branch([packed.places[0]]) for _ in range(2))
    advance(grouped.model, first, [200])
    assert_close(advance(grouped.model, second, [201])[0], alone(grouped.reference, [*SHARED, 201])[-1])
    assert all(torch.equal(now, then) for (now, _), then in zip(store.layers, before, strict=True))


@torch.inference_mode()
def test_several_caches_advance_together_as_each_by_itself(pair, monkeypatch):
    """Of different lengths and numbers of rows; one grows on the way, one loses a row, one leaves."""
    monkeypatch.setattr(a, "_ROOM", 2)
    sequences = [[*SHARED, 5, 6, 7], [8, 9], list(range(60, 90)), [*SHARED, 30]]
    packed, store = prefilled(pair.model, sequences)
    groups = [[0, 1], [2], [3, 1, 0]]
    caches = [store.branch([packed.places[row] for row in rows]) for rows in groups]
    texts = [[sequences[row] for row in rows] for rows in groups]
    for turn in range(5):
        if turn == 2:
            caches[2].keep([0, 2])
            texts[2] = [texts[2][0], texts[2][2]]
        if turn == 4:
            caches.pop(0)
            texts.pop(0)
        together = a.SeveralCaches(caches)
        assert together.get_seq_length() == max(len(text) for rows in texts for text in rows)
        new = [100 + 10 * turn + place for place in range(sum(map(len, texts)))]
        given = iter(new)
        texts = [[[*text, next(given)] for text in rows] for rows in texts]
        flat = [text for rows in texts for text in rows]
        for got, text in zip(advance(pair.model, together, new), flat, strict=True):
            assert_close(got, alone(pair.reference, text)[-1])
        assert together.lengths.tolist() == [len(text) for text in flat]


def test_what_a_row_attends_to_does_not_depend_on_the_other_caches_to_the_bit():
    generator = torch.Generator().manual_seed(3)

    def cache(rows, capacity, longest):
        keys, values = (torch.randn(rows, 2, capacity, 16, generator=generator).bfloat16() for _ in range(2))
        return a.RaggedCache([(keys, values)], torch.arange(longest - rows + 1, longest + 1))

    caches = [cache(3, 40, 31), cache(2, 90, 77)]
    query = torch.randn(5, 4, 1, 16, generator=generator).bfloat16()
    keys, values = (tuple(cache.layers[0][which] for cache in caches) for which in (0, 1))
    call = {"module": torch.nn.Identity(), "attention_mask": None, "sliding_window": 50}
    joined, _ = a.attention(query=query, key=keys, value=values, rows=a.SeveralCaches(caches), **call)
    apart = [
        a.attention(query=query[rows], key=keys[which], value=values[which], rows=caches[which], **call)[0]
        for which, rows in enumerate((slice(0, 3), slice(3, 5)))
    ]
    assert torch.equal(joined, torch.cat(apart)) and not torch.equal(joined[0], joined[1])


# --- what it does not cover -------------------------------------------------------------------------------------------


def test_soft_caps_are_refused():
    states = torch.zeros(1, 4, 8, 16)
    call = {"attention_mask": None, "packing": a.Packing(0, ((1, 8),))}
    assert a.attention(torch.nn.Identity(), states, states, states, **call)[0].shape == (1, 8, 4, 16)
    with pytest.raises(ValueError, match="does not cover soft caps"):
        a.attention(torch.nn.Identity(), states, states, states, **call, softcap=30.0)


@pytest.mark.parametrize("window", [1, 5, 12, 13, 40])
def test_a_sliding_window_hides_what_lies_further_back(window):
    """Packed and ragged, against one mask over a sequence by itself: 13 shared tokens, 7 own ones."""
    generator = torch.Generator().manual_seed(2)
    query, key, value = (torch.randn(1, heads, 20, 16, generator=generator) for heads in (4, 2, 2))
    distance = torch.arange(20)[:, None] - torch.arange(20)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=(distance >= 0) & (distance < window), enable_gqa=True
    ).transpose(1, 2)
    call = {"module": torch.nn.Identity(), "attention_mask": None, "sliding_window": window}
    packed, _ = a.attention(query=query, key=key, value=value, packing=a.Packing(13, ((1, 7),)), **call)
    assert_close(packed, expected)
    for length in (1, 9, 20):
        last, _ = a.attention(
            query=query[:, :, length - 1 : length],
            key=key,
            value=value,
            rows=a.RaggedCache([(key, value)], torch.tensor([length - 1])),
            **call,
        )
        assert_close(last, expected[:, length - 1 : length])


def test_scores_beyond_float16_do_not_overflow():
    """Phi-2 and Qwen2 have such scores; their product is taken in float32."""
    query = torch.full((1, 1, 8, 64), 100.0, dtype=torch.float16)
    value = torch.arange(8, dtype=torch.float16)[None, None, :, None].expand(1, 1, 8, 64)
    got, _ = a.attention(torch.nn.Identity(), query, query, value, None, 1.0, a.Packing(0, ((1, 8),)))
    assert got.dtype == torch.float16 and torch.equal(got[0, :, 0, 0], torch.arange(8).half() / 2)


def test_an_unpacked_call_is_refused_rather_than_computed_without_a_mask(grouped):
    with pytest.raises(ValueError, match="needs `packing` or `rows`"):
        grouped.model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=False)


@pytest.mark.parametrize("scaling", [None, 0.5])
def test_the_scale_is_the_callers_or_one_over_the_root_of_the_head_dimension(scaling):
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(1, heads, 8, 16, generator=generator) for heads in (4, 2, 2))
    got, _ = a.attention(torch.nn.Identity(), query, key, value, None, scaling, a.Packing(0, ((1, 8),)))
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, enable_gqa=True
    )
    assert_close(got, expected.transpose(1, 2))
