"""Arms compared at one over-refusal: what votes of their members reach."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safetylib.study import matched, results

calm = settings(max_examples=30, deadline=None, derandomize=True)
STORED = results.load("cpu")


def arm(harmful_rate, benign_rate, seed=0, members=5, prompts=60):
    generator = np.random.default_rng(seed)
    return (
        generator.random((3, members, prompts)) < harmful_rate,
        generator.random((members, prompts + 20)) < benign_rate,
    )


def test_the_frontier_of_two_members_by_hand():
    harmful = np.array([[[1, 1, 0, 0], [1, 0, 1, 0]]], bool)  # both refuse one of four prompts, one of them three
    benign = np.array([[1, 0, 0, 0], [1, 1, 0, 0]], bool)
    over, safe = matched.frontier(harmful, benign)
    assert over.tolist() == [0, 0.25, 0.5, 1] and safe.tolist() == [0, 0.25, 0.75, 1]
    assert matched.safe_at(harmful, benign, 0.25) == 0.25
    assert matched.safe_at(harmful, benign, 0.375) == 0.5, "a coin between both quorums"
    assert matched.safe_at(harmful, benign, 0.0) == 0 and matched.safe_at(harmful, benign, 1.0) == 1


def test_of_quorums_that_refuse_as_much_the_safest_counts():
    harmful, benign = np.array([[[1, 0], [1, 1]]], bool), np.zeros((2, 4), bool)
    assert matched.safe_at(harmful, benign, 0.0) == 1.0


@calm
@given(seed=st.integers(0, 99), harmful=st.floats(0.05, 0.95), benign=st.floats(0.05, 0.6), level=st.floats(0, 1))
def test_a_frontier_rises_and_an_arm_equals_itself(seed, harmful, benign, level):
    one = arm(harmful, benign, seed)
    over, safe = matched.frontier(*one)
    assert (np.diff(over) >= 0).all() and (np.diff(safe) >= 0).all()
    assert (over[0], safe[0], over[-1], safe[-1]) == (0, 0, 1, 1)
    same = matched.difference(one, one, level)
    assert (same.mean, same.low, same.high) == (0, 0, 0)


def test_an_arm_that_only_refuses_more_of_everything_is_not_ahead():
    """Refusals are thresholds on one score, the same for harmful and benign prompts: only the threshold differs."""
    generator = np.random.default_rng(1)
    scores = (
        generator.normal(0.8, 1, (1, 1, 400)) + generator.normal(0, 0.3, (1, 5, 400)),
        generator.normal(-0.8, 1, (1, 400)) + generator.normal(0, 0.3, (5, 400)),
    )
    eager, calm_arm = (tuple(score > threshold for score in scores) for threshold in (0.0, 0.7))
    assert eager[0].mean() > calm_arm[0].mean() + 0.15
    at_one = matched.difference(eager, calm_arm, 0.15)
    assert abs(at_one.mean) < 0.1 and at_one.low < 0 < at_one.high


def test_an_arm_that_is_safer_at_the_same_price_is_ahead():
    found = matched.difference(arm(0.9, 0.1, 1), arm(0.5, 0.1, 2), 0.1)
    assert found.low > 0.05 and found.seeds == 5 and found.prompts == 60


def test_the_interval_grows_with_each_source_of_variation():
    first, second = arm(0.8, 0.2, 3), arm(0.6, 0.2, 4)
    whole = matched.difference(first, second, 0.2)
    few = matched.difference(*((h[..., :15], b) for h, b in (first, second)), 0.2)
    fewer_seeds = matched.difference(*((h[:, :2], b[:2]) for h, b in (first, second)), 0.2)
    assert few.standard_error > whole.standard_error and fewer_seeds.standard_error > whole.standard_error
    assert fewer_seeds.freedom < whole.freedom


def test_a_source_of_n_has_n_minus_one_degrees_of_freedom_and_one_of_one_has_none():
    benign = np.arange(30)[None] < 9
    found = matched.difference((np.ones((1, 1, 1), bool), benign), (np.zeros((1, 1, 1), bool), benign), 0.2)
    assert found.mean == pytest.approx(0.2 / 0.3) and found.standard_error > 0 and found.freedom == pytest.approx(29)


def test_intervals_cover_the_difference_between_arms():
    """Two arms alike in truth: with seeds and prompts drawn anew, about one interval in twenty misses zero, or fewer."""
    missed = 0
    for turn in range(100):
        generator = np.random.default_rng(turn)
        eager = generator.normal(0, 0.3, (2, 5))
        hard, odd = generator.normal(0, 1, 40), generator.normal(-1.2, 1, 40)

        def drawn(own, generator=generator, hard=hard, odd=odd):
            noise = generator.normal(0, 0.5, (3, 5, 40)), generator.normal(0, 0.5, (5, 40))
            return own[None, :, None] + hard + noise[0] > -0.5, own[:, None] + odd + noise[1] > 0

        found = matched.difference(drawn(eager[0]), drawn(eager[1]), 0.15)
        missed += not found.low <= 0 <= found.high
    assert missed <= 8


@pytest.mark.parametrize("level", [-0.1, 1.5])
def test_a_level_that_is_no_share_is_refused(level):
    with pytest.raises(ValueError, match="between 0 and 1"):
        matched.safe_at(*arm(0.5, 0.2), level)


@pytest.mark.parametrize("kind", ["plain", "borderline"])
def test_the_stored_arms_are_compared_where_they_refuse_as_much(kind):
    at = matched.level(STORED, kind)
    found = {other: matched.contrast(STORED, other, kind) for other in ("uniform", "random", "shallow", "deep")}
    assert 0 < at < 0.5
    for other, estimate in found.items():
        both = [matched.safe_at(*matched.refusals(STORED, name, kind), at) for name in ("cyclic", other)]
        assert estimate.mean == pytest.approx(both[0] - both[1])
    assert found["shallow"].low > 0
