"""The arms differ in where the refusal stands, and in nothing else."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safetylib.study import augment
from safetylib.study.presets import PRESETS, Recipe

ARMS = ("shallow", "deep", "random", "uniform", "cyclic")
calm = settings(max_examples=40, deadline=None, derandomize=True)

RECIPE = Recipe(
    steps=9,
    learning_rate=1e-3,
    decay=0.9,
    harmful_per_step=4,
    benign_per_step=6,
    anchor_tokens=5,
    anchor_weight=1.0,
    orbit=(0, 8, 16, 24),
    deep_position=20,
)

# Every token says where it comes from: prompts 1000s, answers 2000s, wordings 3000s, anchors 4000s to 7000s.
SEPARATOR, EOS = 9, 0
MATERIAL = augment.Material(
    harmful=[([1000 + n] * (2 + n % 3), [2000 + 100 * n + k for k in range(40)]) for n in range(7)],
    refusals=[
        (
            [3000 + 10 * n + k for k in range(n + 2)] + [EOS],
            [SEPARATOR] + [3000 + 10 * n + k for k in range(n + 2)] + [EOS],
        )
        for n in range(5)
    ],
    plain=[([4000 + n], [5000 + 10 * n + k for k in range(3 + 2 * n)]) for n in range(4)],
    borderline=[([6000 + n], [7000 + 10 * n + k for k in range(9)]) for n in range(3)],
)


def run(arm, seed=0, recipe=RECIPE, material=MATERIAL):
    return list(augment.batches(arm, recipe, material, seed))


def refusals(batches):
    return [example for batch in batches for example in batch if example.kind == "refusal"]


def anchors(batches):
    return [example for batch in batches for example in batch if example.kind == "anchor"]


def wording(example):
    """The refusal without what joins it to the answer before it."""
    return [token for token in example.target if token != SEPARATOR]


def places(arm, step=0, count=4, recipe=RECIPE, seed=0):
    return augment.positions(arm, recipe, step, count, np.random.default_rng(seed))


# --- where the refusal stands -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arm", "step", "orbit", "expected"),
    [
        ("shallow", 0, (0, 8, 16, 24), [0, 0, 0, 0]),
        ("shallow", 5, (3, 7), [0, 0, 0, 0]),
        ("deep", 0, (0, 8, 16, 24), [20, 20, 20, 20]),
        ("deep", 7, (0, 8), [20, 20, 20, 20]),
        ("cyclic", 0, (0, 8, 16, 24), [0, 0, 0, 0]),
        ("cyclic", 1, (0, 8, 16, 24), [8, 8, 8, 8]),
        ("cyclic", 3, (0, 8, 16, 24), [24, 24, 24, 24]),
        ("cyclic", 4, (0, 8, 16, 24), [0, 0, 0, 0]),
        ("cyclic", 4 * 1000 + 2, (0, 8, 16, 24), [16, 16, 16, 16]),
        ("cyclic", 2, (5, 1, 3), [3, 3, 3, 3]),
        ("cyclic", 3, (5, 1, 3), [5, 5, 5, 5]),
        ("cyclic", 6, (11,), [11, 11, 11, 11]),
        ("uniform", 6, (11,), [11, 11, 11, 11]),
    ],
)
def test_positions_known_by_hand(arm, step, orbit, expected):
    assert places(arm, step, recipe=replace(RECIPE, orbit=orbit)) == expected


@given(st.sampled_from(ARMS), st.integers(0, 200), st.integers(0, 12), st.integers(0, 99))
@calm
def test_there_is_one_integer_position_an_example_and_none_is_deeper_than_the_arm_goes(arm, step, count, seed):
    found = places(arm, step, count, seed=seed)
    assert len(found) == count and all(type(place) is int for place in found)
    assert all(0 <= place <= 24 for place in found)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6, unique=True), st.integers(0, 300))
@calm
def test_cyclic_walks_the_orbit_one_place_an_optimiser_step_and_comes_home_after_its_order(orbit, start):
    recipe = replace(RECIPE, orbit=tuple(orbit))
    walk = [set(places("cyclic", start + t, recipe=recipe)) for t in range(len(orbit) + 1)]
    assert all(len(step) == 1 for step in walk)
    assert walk[0] == walk[-1] and set.union(*walk) == set(orbit)
    after = dict(zip(orbit, orbit[1:] + orbit[:1], strict=True))
    assert all(later == {after[place] for place in earlier} for earlier, later in pairwise(walk))


@pytest.mark.parametrize("seed", range(3))
def test_uniform_draws_every_position_of_the_orbit_equally_often_and_no_other(seed):
    found = Counter(places("uniform", count=8000, seed=seed))
    assert set(found) == {0, 8, 16, 24}
    assert all(abs(count - 2000) < 5 * (8000 * 0.25 * 0.75) ** 0.5 for count in found.values())


def test_uniform_draws_examples_of_a_step_independently():
    pairs = Counter(tuple(places("uniform", count=2, seed=seed)) for seed in range(1600))
    assert len(pairs) == 16 and all(abs(count - 100) < 5 * 10 for count in pairs.values())


@pytest.mark.parametrize("seed", range(3))
def test_random_stands_at_the_beginning_half_of_the_time_and_else_anywhere_down_to_the_deepest(seed):
    found = Counter(places("random", count=24_000, seed=seed))
    assert set(found) == set(range(25))
    assert abs(found[0] - 12_000) < 5 * 6000**0.5
    assert all(abs(found[place] - 500) < 5 * 500**0.5 for place in range(1, 25))


@pytest.mark.parametrize("arm", ["base", "rotate", "Cyclic", ""])
def test_an_unknown_arm_is_refused_with_the_known_ones(arm):
    with pytest.raises(ValueError, match=f"no arm '{arm}'.*shallow, deep, random, uniform, cyclic"):
        places(arm)
    with pytest.raises(ValueError, match="no arm"):
        run(arm)


# --- what the arms share ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 12345])
@pytest.mark.parametrize("arm", ARMS[1:])
def test_arms_of_a_seed_share_prompts_wordings_and_anchors_step_by_step(arm, seed):
    for one, other in zip(run("shallow", seed), run(arm, seed), strict=True):
        assert anchors([one]) == anchors([other])
        for left, right in zip(refusals([one]), refusals([other]), strict=True):
            assert left.context == right.context[: len(right.context) - right.position]
            assert wording(left) == wording(right)


@pytest.mark.parametrize("arm", ARMS[1:])
def test_arms_differ_in_their_positions(arm):
    assert [e.position for e in refusals(run(arm))] != [e.position for e in refusals(run("shallow"))]


@pytest.mark.parametrize("arm", ARMS)
def test_arms_have_equally_many_tokens_under_the_loss_up_to_one_separator_an_example(arm):
    counts = [augment.token_counts(batch) for batch in run(arm)]
    least = [augment.token_counts(batch) for batch in run("shallow")]
    separators = [sum(example.position > 0 for example in refusals([batch])) for batch in run(arm)]
    for got, shallow, joined in zip(counts, least, separators, strict=True):
        assert got["refusal_tokens"] == shallow["refusal_tokens"] + joined
        assert got["anchor_tokens"] == shallow["anchor_tokens"]


def test_token_counts_known_by_hand():
    batch = [
        augment.Example([1, 2, 3], [4, 5], "refusal", 2),
        augment.Example([1], [4, 5, 6], "refusal"),
        augment.Example([7, 8], [9], "anchor"),
    ]
    assert augment.token_counts(batch) == {"refusal_tokens": 5, "anchor_tokens": 1, "context_tokens": 6}
    assert augment.token_counts([]) == {"refusal_tokens": 0, "anchor_tokens": 0, "context_tokens": 0}


# --- what an example is made of ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ARMS)
def test_a_refusal_follows_its_prompt_and_as_many_tokens_of_its_answer_as_its_position_says(arm):
    harmful = {prompt[0]: (prompt, answer) for prompt, answer in MATERIAL.harmful}
    for example in refusals(run(arm)):
        prompt, answer = harmful[example.context[0]]
        assert example.context == prompt + answer[: example.position]
        at_start, joined = zip(*MATERIAL.refusals, strict=True)
        assert example.target in (joined if example.position else at_start)


@pytest.mark.parametrize("arm", ARMS)
def test_nothing_of_a_harmful_prompt_or_prefix_is_learnt(arm):
    learnt = {token for example in refusals(run(arm)) for token in example.target}
    assert learnt and learnt <= {SEPARATOR, EOS, *range(3000, 4000)}
    assert not any(set(example.target) & set(range(1000, 3000)) for batch in run(arm) for example in batch)


@pytest.mark.parametrize("arm", ARMS)
def test_every_refusal_learns_to_end(arm):
    assert all(example.target[-1] == EOS for example in refusals(run(arm)))


@pytest.mark.parametrize("arm", ARMS)
def test_anchors_are_the_beginnings_of_answers_to_plain_and_borderline_prompts_in_turn(arm):
    for batch in run(arm):
        kinds = []
        for example in anchors([batch]):
            pool = MATERIAL.plain if example.context[0] < 6000 else MATERIAL.borderline
            kinds.append("plain" if pool is MATERIAL.plain else "borderline")
            assert (example.context, example.target) in [(prompt, answer[:5]) for prompt, answer in pool]
            assert example.position == 0
        assert kinds == ["plain", "borderline"] * 3


@pytest.mark.parametrize(
    "recipe", [RECIPE, replace(RECIPE, steps=1), PRESETS["cpu"].recipe], ids=["nine", "one", "cpu"]
)
@pytest.mark.parametrize("arm", ARMS)
def test_a_run_has_the_recipes_steps_and_every_step_its_examples(arm, recipe):
    batches = run(arm, recipe=recipe)
    assert len(batches) == recipe.steps
    kinds = {tuple(example.kind for example in batch) for batch in batches}
    assert kinds == {("refusal",) * recipe.harmful_per_step + ("anchor",) * recipe.benign_per_step}


def test_the_batches_of_cyclic_stand_together():
    assert [{e.position for e in refusals([batch])} for batch in run("cyclic")] == [
        {place} for place in (0, 8, 16, 24, 0, 8, 16, 24, 0)
    ]


@pytest.mark.parametrize("arm", ARMS)
def test_every_prompt_and_wording_is_used_once_before_any_is_used_again(arm):
    """Thirty-six refusals: five passes over seven prompts and one more, seven over five wordings and one more."""
    examples = refusals(run(arm))
    for pool, drawn in ((7, [e.context[0] for e in examples]), (5, [wording(e)[0] for e in examples])):
        for start in range(0, len(drawn) - pool + 1, pool):
            assert len(set(drawn[start : start + pool])) == pool


# --- seeds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("seed", [0, 7])
def test_a_seed_gives_the_same_batches_again(arm, seed):
    assert run(arm, seed) == run(arm, seed)


@pytest.mark.parametrize("arm", ARMS)
def test_seeds_differ_in_prompts_wordings_and_anchors(arm):
    for what in (
        lambda batches: [e.context[0] for e in refusals(batches)],
        lambda batches: [wording(e) for e in refusals(batches)],
        lambda batches: [e.target for e in anchors(batches)],
    ):
        assert len({str(what(run(arm, seed))) for seed in range(4)}) == 4


@pytest.mark.parametrize(
    ("arm", "different"), [("random", 4), ("uniform", 4), ("cyclic", 1), ("deep", 1), ("shallow", 1)]
)
def test_seeds_differ_in_positions_where_positions_are_drawn(arm, different):
    assert len({str([e.position for e in refusals(run(arm, seed))]) for seed in range(4)}) == different


@pytest.mark.parametrize("pool", ["harmful", "refusals", "plain", "borderline"])
def test_an_empty_pool_is_refused_by_name(pool):
    with pytest.raises(ValueError, match=f"nothing to draw {pool} examples from"):
        run("cyclic", material=replace(MATERIAL, **{pool: []}))


def test_a_pool_that_the_recipe_never_draws_from_may_be_empty():
    recipe = replace(RECIPE, benign_per_step=1)
    assert len(run("cyclic", recipe=recipe, material=replace(MATERIAL, borderline=[]))) == recipe.steps
