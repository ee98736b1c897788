"""Shortcuts in decoding change nothing: the same tokens come out as from one prompt and one depth at a time."""

import copy
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from safetylib.study import generate as g
from safetylib.study.tiny import tiny_llama

NO_EOS = -1
calm = settings(max_examples=12, deadline=None, derandomize=True)
PROMPTS = [[1, 10, 11, 12, *range(30 + n, 30 + n + length)] for n, length in enumerate([3, 17, 9, 9, 1, 30, 8, 4])]


@pytest.fixture(scope="module")
def pair():
    """A model whose greedy answers vary (fresh weights repeat one token), and transformers' attention over its weights."""
    model, _ = tiny_llama(torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name:
                weight.mul_(8)
    reference = copy.deepcopy(model)
    reference.set_attn_implementation("eager")
    return SimpleNamespace(model=model, reference=reference)


def alone(reference, prompt, limit, eos):
    """transformers' own greedy answer to one prompt: (tokens without eos, ended)."""
    out = reference.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=limit,
        eos_token_id=None if eos == NO_EOS else eos,
        pad_token_id=0,
    )[0, len(prompt) :].tolist()
    return (out[:-1], True) if out[-1] == eos else (out, False)


@calm
@given(going_on=st.lists(st.booleans(), min_size=1, max_size=20))
def test_a_batch_closes_up_with_as_few_moves_as_there_are_gaps(going_on):
    order = g.closed_up(going_on)
    assert sorted(order) == [place for place, stays in enumerate(going_on) if stays]
    moved = [place for place, origin in enumerate(order) if place != origin]
    assert len(moved) == going_on[: len(order)].count(False)


def plain(response):
    return response.tokens, response.ended


@pytest.fixture(scope="module")
def untold(pair):
    """Long greedy answers that nothing ends."""
    return [alone(pair.reference, prompt, 48, NO_EOS)[0] for prompt in PROMPTS]


@pytest.fixture(scope="module")
def some_eos(untold):
    """A token that ends some of the answers early, one of them late, and others not at all within 40 tokens."""

    def ends(token):
        return [answer.index(token) if token in answer[:40] else None for answer in untold]

    for token in sorted({token for answer in untold for token in answer}):
        found = ends(token)
        if None in found and len({place for place in found if place is not None}) >= 3:
            return token
    raise AssertionError("no token can play the end of sequence; the fixture's model is too dull")


# --- whole answers ----------------------------------------------------------------------------------------------------


def test_the_answers_under_test_are_varied(untold):
    assert len({tuple(answer) for answer in untold}) == len(PROMPTS)
    assert all(len(set(answer[:20])) > 5 for answer in untold)


@pytest.mark.parametrize("limit", [1, 2, 12, 40])
def test_answers_equal_transformers_greedy_decoding(pair, limit):
    expected = [alone(pair.reference, prompt, limit, NO_EOS) for prompt in PROMPTS]
    assert [plain(r) for r in g.answer(pair.model, PROMPTS, limit, NO_EOS)] == expected
    assert {len(tokens) for tokens, _ in expected} == {limit}


def test_answers_that_end_early_stop_there_and_the_others_go_on(pair, some_eos):
    expected = [alone(pair.reference, prompt, 40, some_eos) for prompt in PROMPTS]
    assert {ended for _, ended in expected} == {True, False}
    assert [plain(r) for r in g.answer(pair.model, PROMPTS, 40, some_eos)] == expected


def test_an_answer_may_be_nothing_but_its_end(pair, untold):
    first = untold[2][0]
    found = g.answer(pair.model, PROMPTS, 10, first)
    assert plain(found[2]) == ([], True)
    assert [plain(r) for r in found] == [alone(pair.reference, prompt, 10, first) for prompt in PROMPTS]


def test_the_limit_is_reached_or_the_answer_has_ended(pair, untold):
    """The end-of-sequence token at the very limit ends; one place later it is not seen."""
    answer = untold[0]
    place = next(place for place in range(3, 40) if answer[place] not in answer[:place])
    eos = answer[place]
    assert plain(g.answer(pair.model, PROMPTS[:1], place + 1, eos)[0]) == (answer[:place], True)
    assert plain(g.answer(pair.model, PROMPTS[:1], place, eos)[0]) == (answer[:place], False)


def test_small_batches_give_the_same_answers_in_the_callers_order(pair, untold, monkeypatch):
    done = []
    monkeypatch.setattr(g.chunks, "__defaults__", (3, 60))
    found = g.answer(pair.model, PROMPTS, 8, NO_EOS, done.append)
    assert [r.tokens for r in found] == [answer[:8] for answer in untold]
    assert sum(done) == len(PROMPTS) and len(done) > 2


def test_no_prompts_no_answers(pair):
    assert g.answer(pair.model, [], 8, NO_EOS) == []


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 6), st.integers(1, 120))
@calm
def test_chunks_hold_every_index_once_within_their_bounds(lengths, rows, tokens):
    sequences = [[0] * length for length in lengths]
    batches = list(g.chunks(sequences, rows, tokens))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= rows
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= tokens
    in_order = [lengths[index] for batch in batches for index in batch]
    assert in_order == sorted(in_order)


def test_what_is_read_and_not_kept_is_read_in_shorter_rows_than_what_is_decoded(pair):
    sequences = [[5] * 100] * 90
    assert [len(batch) for batch in g.chunks(sequences)] == [40, 40, 10]
    assert [len(batch) for batch in g.chunks(sequences, model=pair.model)] == [80, 10]


@torch.inference_mode()
def test_prefill_reads_logits_where_they_are_wanted(pair):
    wanted = [[0, 5], [len(PROMPTS[1]) - 1], []]
    _, _, logits = g.prefill(pair.model, PROMPTS[:3], wanted)
    for got, prompt, places in zip(logits, PROMPTS, wanted, strict=False):
        expected = pair.reference(input_ids=torch.tensor([prompt])).logits[0, places]
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "texts",
    [
        [[*range(20, 45), *range(60 + own, 60 + 2 * own)] for own in (3, 1, 17, 8, 8)],
        [[token, *range(30, 50)] for token in (3, 4, 5)],
        [[*range(20, 45)], [*range(20, 46)], [*range(20, 46)]],
        [[7, 8, 9]],
    ],
    ids=["a shared beginning", "none", "one text goes on where another ends", "a single text"],
)
def test_a_shared_beginning_is_read_once_for_all_batches(pair, monkeypatch, texts):
    monkeypatch.setattr(g, "READ_TOKENS", 60)
    read = []
    hook = pair.model.model.embed_tokens.register_forward_hook(lambda _, ids, __: read.append(ids[0].tolist()[0]))
    found = [
        (index, row) for batch, rows in g.next_logits(pair.model, texts) for index, row in zip(batch, rows, strict=True)
    ]
    hook.remove()
    assert sorted(index for index, _ in found) == list(range(len(texts))) and len(read) > len(texts) // 3
    for index, row in found:
        expected = pair.reference(input_ids=torch.tensor([texts[index]])).logits[0, -1]
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-5)
    shared = texts[0][: min(len(text) for text in texts) - 1]
    if texts[0][0] == texts[-1][0]:
        assert [ids[: len(shared)] == shared for ids in read] == [True] + [False] * (len(read) - 1)


def test_nothing_to_read_gives_no_logits(pair):
    assert list(g.next_logits(pair.model, [])) == []


def test_nothing_is_read_or_decoded_with_gradients(pair):
    """Memory for gradients that nobody asks for; and oneDNN multiplies a single row by the output layer hundreds of times
    slower when they might be."""
    modes = []
    watched = (pair.model.get_output_embeddings(), pair.model.model.layers[0].mlp)
    hooks = [part.register_forward_hook(lambda *_: modes.append(torch.is_inference_mode_enabled())) for part in watched]
    try:
        answers = g.answer(pair.model, PROMPTS, 8, NO_EOS)
        g.depth_responses(
            pair.model, PROMPTS, [answer.tokens for answer in answers], (0, 3), 4, 0, NO_EOS, lambda _: True
        )
    finally:
        for hook in hooks:
            hook.remove()
    assert len(modes) > 10 and all(modes)


# --- batches that go on together --------------------------------------------------------------------------------------


@pytest.fixture
def steps(monkeypatch):
    """Rows of every cache, at each decoding step."""
    seen, original = [], g.advance
    monkeypatch.setattr(
        g, "advance", lambda model, cache, tokens: seen.append(cache.counts) or original(model, cache, tokens)
    )
    return seen


def batches_of(pair, limits):
    """One batch a list of limits, with the response to a prompt for each; they are made when they are asked for."""
    prompts = iter(PROMPTS)
    for rows in limits:
        chosen = [next(prompts) for _ in rows]
        packed, store, logits = g.prefill(pair.model, chosen, [[len(prompt) - 1] for prompt in chosen])
        responses = [g.begin(int(row.argmax()), NO_EOS) for row in logits]
        done = [len(response.tokens) for response in responses]
        assert done == [1] * len(rows)
        yield g.Batch(
            store.branch(packed.places),
            responses,
            lambda row, rows=rows, responses=responses: len(responses[row].tokens) < rows[row],
        )


LIMITS = [[9, 4, 2], [1], [6, 3], [5, 5]]


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        pytest.param(0, [[3], [2], [2], *[[1]] * 5, [2], [2], [1], [1], [1], *[[2]] * 4], id="one after another"),
        pytest.param(1, [[3], [2], [2], *[[1, 2]] * 2, *[[1, 1]] * 3, *[[2]] * 4], id="beside one row"),
        pytest.param(2, [[3], *[[2, 2]] * 2, *[[1, 1, 2]] * 3, [1, 2], [1]], id="beside two rows"),
        pytest.param(9, [[3, 2, 2], [2, 2, 2], [2, 1, 2], [1, 1, 2], [1, 1], [1], [1], [1]], id="all at once"),
    ],
)
def test_the_next_batch_joins_as_soon_as_few_rows_are_left(pair, untold, steps, beside, expected):
    batches = []
    g.extend(pair.model, (batches.append(batch) or batch for batch in batches_of(pair, LIMITS)), NO_EOS, beside)
    assert steps == expected
    found = [response.tokens for batch in batches for response in batch.responses]
    wanted = [limit for rows in LIMITS for limit in rows]
    assert found == [answer[:limit] for answer, limit in zip(untold, wanted, strict=True)]


def test_no_batch_is_asked_for_before_there_is_room(pair):
    asked = []

    def batches():
        for place, batch in enumerate(batches_of(pair, [[9, 9], [2], [2]])):
            asked.append((place, [len(response.tokens) for response in first]))
            first.extend(batch.responses if not first else [])
            yield batch

    first = []
    g.extend(pair.model, batches(), NO_EOS, beside=1)
    assert asked == [(0, []), (1, [9, 9]), (2, [9, 9])]


def test_branches_of_several_chunks_are_decoded_together_and_few_at_a_time(pair, untold, monkeypatch, steps):
    monkeypatch.setattr(g, "_ROWS", 4)
    trunks = [altered(answer, {3, 12, 18}) for answer in untold]
    g.depth_responses(pair.model, PROMPTS, trunks, DEPTHS, WITHIN, AFTER, NO_EOS, lambda tokens: sum(tokens) % 2 == 0)
    assert max(map(len, steps)) > 1, "a batch goes on beside another"
    assert all(len(counts) == 1 or sum(counts[:-1]) <= 4 for counts in steps)
    assert max(max(counts) for counts in steps) == 4


# --- leaving the trunk ------------------------------------------------------------------------------------------------

EOS = 0


@pytest.mark.parametrize(
    ("choices", "trunk", "start", "within", "expected"),
    [
        pytest.param([1, 2, 3, 4], [1, 2, 3, 4], 0, 4, None, id="agrees throughout"),
        pytest.param([9, 2, 3, 4], [1, 2, 3, 4], 0, 4, 0, id="leaves at once"),
        pytest.param([1, 2, 9, 4], [1, 2, 3, 4], 0, 4, 2, id="leaves later"),
        pytest.param([1, 2, 9, 9], [1, 2, 3, 4], 0, 4, 2, id="the first place counts"),
        pytest.param([9, 2, 3, 4], [1, 2, 3, 4], 1, 3, None, id="what stood before the start is no matter"),
        pytest.param([9, 9, 3, 9], [1, 2, 3, 4], 2, 4, 3, id="the place is counted from the trunk's beginning"),
        pytest.param([1, 2, 9, 4], [1, 2, 3, 4], 0, 2, None, id="not within the window"),
        pytest.param([1, 2, 9, 4], [1, 2, 3, 4], 0, 3, 2, id="the window's last token counts"),
        pytest.param([1, 2, 3, 4], [1, 2, 3, 4], 2, 99, None, id="the trunk ends before the window"),
        pytest.param([1, 2, EOS], [1, 2, EOS], 0, 9, None, id="both end"),
        pytest.param([1, 2, 7], [1, 2, EOS], 0, 9, 2, id="goes on where the trunk ends"),
        pytest.param([1, EOS, 7], [1, 2, EOS], 0, 9, 1, id="ends where the trunk goes on"),
        pytest.param([1, 2], [1, 2], 2, 4, None, id="starts at the end"),
        pytest.param([1, 9], [1, 2], 0, 0, None, id="an empty window"),
    ],
)
def test_where_greedy_decoding_leaves_the_trunk(choices, trunk, start, within, expected):
    found = g.leaving_places(lambda places: [choices[place] for _, place in places], [trunk], [(0, start)], within)
    assert found == [None if expected is None else (expected, choices[expected])]


def test_the_model_is_asked_once_for_each_place_that_matters_and_for_many_at_a_time():
    choices, trunks = [[1, 2, 3, 9, 5, 6], [9, 2, 3, 4, 5, 6]], [[1, 2, 3, 4, 5, 6]] * 2
    asked = []

    def choose(places):
        asked.append(places)
        return [choices[trunk][place] for trunk, place in places]

    starts = [(0, 0), (0, 1), (1, 0), (1, 4)]
    assert g.leaving_places(choose, trunks, starts, 6) == [(3, 9), (3, 9), (0, 9), None]
    assert asked == [[(0, 0), (0, 1), (1, 0), (1, 4)], [(0, 2), (1, 5)], [(0, 3)]]


# --- every depth ------------------------------------------------------------------------------------------------------

WITHIN, AFTER = 6, 9
EVERY_DEPTH = tuple(range(31))
DEPTHS = (0, 1, 2, 3, 6, 9, 10, 11, 14, 20, 25, 26, 29)


@torch.inference_mode()
def greedily(reference, contexts, limit, eos):
    """Greedy answers with nothing kept between tokens: every row is read anew from its beginning at every step.

    Rows are padded behind their ends, where causal attention does not look.
    """
    rows = [list(context) for context in contexts]
    for _ in range(limit):
        grid = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for place, row in enumerate(rows):
            grid[place, : len(row)] = torch.tensor(row)
        hidden = reference.model(input_ids=grid, use_cache=False).last_hidden_state
        ends = hidden[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])]
        for row, token in zip(rows, reference.lm_head(ends).argmax(-1).tolist(), strict=True):
            row.append(token)
    answers = [row[len(context) :] for row, context in zip(rows, contexts, strict=True)]
    return [(answer[: answer.index(eos)], True) if eos in answer else (answer, False) for answer in answers]


def test_the_yardstick_agrees_with_transformers(pair, some_eos):
    contexts = [prompt[:n] for prompt in PROMPTS[:4] for n in (3, len(prompt))]
    for eos in (some_eos, NO_EOS):
        expected = [alone(pair.reference, context, 14, eos) for context in contexts]
        assert greedily(pair.reference, contexts, 14, eos) == expected


def assert_every_depth_is_right(pair, trunks, depths, eos, refused, prompts=PROMPTS):
    """The stopping rule, spelt out: ``WITHIN`` tokens of each depth's own answer, and ``AFTER`` more if those refuse."""
    prompts = prompts[: len(trunks)]
    found = g.depth_responses(pair.model, prompts, trunks, depths, WITHIN, AFTER, eos, refused)
    reach = [len(trunk) - (trunk[-1] == eos) for trunk in trunks]
    keys = [(row, depth) for row in range(len(prompts)) for depth in depths if depth < reach[row]]
    assert sorted(found) == keys
    contexts = [prompts[row] + trunks[row][:depth] for row, depth in keys]
    for key, (longest, at_last) in zip(keys, greedily(pair.reference, contexts, 2 * WITHIN + AFTER, eos), strict=True):
        response, wanted = found[key], WITHIN + AFTER * refused(longest[:WITHIN])
        assert response.tokens == longest[:wanted], (
            "exactly what the rule asks of this depth, whatever shares its branch"
        )
        if at_last and len(longest) < wanted:
            assert response.ended
        assert not response.ended or (at_last and response.tokens == longest)
    return found


def altered(answer, places, by=1):
    """A trunk that is not the model's own everywhere: tokens changed at these places."""
    return [2 + (token - 2 + by) % 250 if place in places else token for place, token in enumerate(answer)]


def never(_):
    return False


def off_trunk(trunks, rule):
    """A rule under which what a trunk itself says is no refusal (the study leaves such trunks out)."""
    said = {tuple(trunk[start : start + WITHIN]) for trunk in trunks for start in range(len(trunk))}
    return lambda tokens: tuple(tokens) not in said and rule(tokens)


def test_own_trunks_are_followed_at_every_depth(pair, untold):
    found = assert_every_depth_is_right(pair, untold[:4], EVERY_DEPTH, NO_EOS, never)
    assert {len(response.tokens) for response in found.values()} == {WITHIN}


@pytest.mark.parametrize("places", [{0}, {7}, {5, 6}, {3, 11, 20}, set(range(48)), {35}], ids=str)
def test_foreign_trunks_are_left_where_the_model_disagrees(pair, untold, places):
    trunks = [altered(answer, places) for answer in untold[:3]]
    assert_every_depth_is_right(pair, trunks, EVERY_DEPTH, NO_EOS, never)


@given(st.sets(st.integers(0, 40), max_size=8), st.integers(1, 240), st.integers(2, 6), st.integers(0, 6))
@calm
def test_every_depth_equals_decoding_it_by_itself(pair, untold, places, by, modulus, remainder):
    """With a rule that calls some responses refusals, none of them on the trunk itself."""
    trunks = [altered(answer, places, by) for answer in untold[:3]]
    refused = off_trunk(trunks, lambda tokens: sum(tokens) % modulus == remainder)
    assert_every_depth_is_right(pair, trunks, DEPTHS, NO_EOS, refused)


def test_refusals_are_followed_further_and_only_they(pair, untold):
    trunks = [altered(answer, {0, 10, 20}) for answer in untold]
    for refuses in (True, False):
        found = assert_every_depth_is_right(pair, trunks, (0, 10, 20), NO_EOS, lambda _, says=refuses: says)
        assert {len(response.tokens) for response in found.values()} == {WITHIN + AFTER * refuses}


def test_the_rule_reads_the_first_tokens_of_the_response_alone(pair, untold):
    trunks, seen = [altered(answer, {4, 13}) for answer in untold], []
    g.depth_responses(
        pair.model, PROMPTS, trunks, (2, 4, 13), WITHIN, AFTER, NO_EOS, lambda tokens: seen.append(tokens) or False
    )
    from_depths = [
        alone(pair.reference, prompt + trunk[:depth], WITHIN, NO_EOS)[0]
        for prompt, trunk in zip(PROMPTS, trunks, strict=True)
        for depth in (2, 4, 13)
    ]
    assert seen and all(tokens in from_depths for tokens in seen)


def closed(answer, eos):
    return answer[: answer.index(eos) + 1] if eos in answer else answer


def test_trunks_closed_by_the_end_of_sequence(pair, untold, some_eos):
    trunks = [closed(answer, some_eos) for answer in untold]
    assert len({trunk[-1] == some_eos for trunk in trunks}) == 2
    found = assert_every_depth_is_right(pair, trunks, DEPTHS, some_eos, never)
    assert {response.ended for response in found.values()} == {True, False}


@pytest.mark.parametrize("places", [{2, 9}, {5, 14, 25}], ids=str)
def test_foreign_trunks_closed_by_the_end_of_sequence(pair, untold, some_eos, places):
    """The model may end where the trunk goes on, and go on where the trunk ends."""
    trunks = [
        [*(token for token in altered(answer[:27], places) if token != some_eos), some_eos] for answer in untold[2:6]
    ]
    always = off_trunk(trunks, lambda tokens: True)
    for depths, refused in ((EVERY_DEPTH, never), ((0, 5), always)):
        assert_every_depth_is_right(pair, trunks, depths, some_eos, refused, PROMPTS[2:6])


def test_a_depth_that_the_trunk_does_not_reach_is_left_out(pair, untold):
    trunks = [untold[0][:5], [*untold[1][:5], 255], [255]]
    found = g.depth_responses(pair.model, PROMPTS[:3], trunks, (0, 4, 5, 6, 40), 2, 0, 255, never)
    assert set(found) == {(0, 0), (0, 4), (1, 0), (1, 4)}


def test_batches_do_not_change_depths(pair, untold, monkeypatch):
    trunks = [altered(answer, {3, 12, 18}) for answer in untold]
    call = (pair.model, PROMPTS, trunks, DEPTHS, WITHIN, AFTER, NO_EOS, lambda tokens: sum(tokens) % 2 == 0)
    whole = g.depth_responses(*call)
    monkeypatch.setattr(g.chunks, "__defaults__", (3, 200))
    monkeypatch.setattr(g, "_ROWS", 4)
    done = []
    assert g.depth_responses(*call, progress=done.append) == whole
    assert sum(done) == len(PROMPTS) and len(done) > 1
