"""Votes: outcomes made by hand, with known answers for every rule; the ensemble's output is what counts."""

import numpy as np
import pytest
from made_results import made

from safetylib.study import votes
from safetylib.study.votes import average_threshold, quorum, vote

PATTERNS = ["000", "100", "010", "110", "101", "111"]  # per prompt, which of the three seeds refuse
MEMBERS = [("cyclic", 0), ("cyclic", 1), ("cyclic", 2)]


def three(folder, patterns=PATTERNS, turned=(), **columns):
    """Three members; ``turned``: (seed, prompt) pairs whose refusal turns to compliance; columns: name -> seed, prompt."""
    return made(
        folder,
        [
            {
                "seed": seed,
                "prompt": f"p{prompt}",
                "refused": pattern[seed] == "1",
                "complied_after": (seed, prompt) in turned,
                **{name: values[seed][prompt] for name, values in columns.items()},
            }
            for prompt, pattern in enumerate(patterns)
            for seed in range(len(pattern))
        ],
    )


def bits(array):
    return "".join(str(int(value)) for value in array)


# --- the rules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "refuses"),
    [
        ("any-refusal", "011111"),
        ("all-refuse", "000001"),
        ("majority", "000111"),
        ("quorum-1", "011111"),
        ("quorum-2", "000111"),
        ("quorum-3", "000001"),
    ],
)
def test_each_rule_refuses_where_enough_members_do(tmp_path, rule, refuses):
    ballot = vote(three(tmp_path), MEMBERS, rule, 0)
    assert bits(ballot.refuses) == refuses
    assert bits(ballot.unsafe) == "".join("10"[int(bit)] for bit in refuses), "whoever answers here does not refuse"


@pytest.mark.parametrize(
    ("rule", "width", "needed"),
    [
        ("majority", 1, 1),
        ("majority", 2, 2),
        ("majority", 3, 2),
        ("majority", 4, 3),
        ("majority", 5, 3),
        ("any-refusal", 5, 1),
        ("all-refuse", 5, 5),
        ("quorum-4", 5, 4),
    ],
)
def test_a_rule_needs_so_many_refusals(rule, width, needed):
    assert quorum(rule, width) == needed


def test_a_tie_answers(tmp_path):
    results = three(tmp_path, ["10", "11"])
    assert bits(vote(results, MEMBERS[:2], "majority", 0).refuses) == "01"


@pytest.mark.parametrize("rule", ["any-refusal", "all-refuse", "majority", "quorum-1"])
def test_one_member_alone_decides_for_itself(tmp_path, rule):
    ballot = vote(three(tmp_path), [("cyclic", 1)], rule, 0)
    assert bits(ballot.refuses) == "001101"
    assert bits(ballot.unsafe) == "110010"


@pytest.mark.parametrize("rule", ["union", "quorum-0", "quorum-4", "quorum-", "quorum-x", "quorum--1", "average", ""])
def test_an_unknown_rule_is_refused_and_the_known_ones_named(rule):
    with pytest.raises(ValueError, match=r"any-refusal, all-refuse, majority, quorum-1 \.\.\. quorum-3"):
        quorum(rule, 3)


def test_an_ensemble_has_members(tmp_path):
    with pytest.raises(ValueError, match="at least one member"):
        vote(three(tmp_path), [], "majority", 0)


def test_a_depth_that_was_not_measured_is_refused(tmp_path):
    with pytest.raises(KeyError, match="depth 7"):
        vote(three(tmp_path), MEMBERS, "majority", 7)


# --- the output -------------------------------------------------------------------------------------------------------


def test_the_speaker_is_a_member_that_did_not_refuse(tmp_path):
    safety = [[0.1] * 6, [0.2] * 6, [0.3] * 6]
    results = three(tmp_path, safety=safety)
    spoken = {prompt: set() for prompt in range(6)}
    for seed in range(40):
        ballot = vote(results, MEMBERS, "all-refuse", 0, seed=seed)
        for prompt in range(6):
            spoken[prompt].add(ballot.safety[prompt])
    assert spoken == {0: {0.1, 0.2, 0.3}, 1: {0.2, 0.3}, 2: {0.1, 0.3}, 3: {0.3}, 4: {0.2}, 5: {1.0}}


def test_the_speaker_is_drawn_with_a_seed(tmp_path):
    results = three(tmp_path, ["000"] * 40, safety=[[0.1] * 40, [0.2] * 40, [0.3] * 40])
    first, again, other = (vote(results, MEMBERS, "majority", 0, seed=seed).safety for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()


def test_a_refusal_that_turns_to_compliance_spoils_the_output_only_when_it_is_sent(tmp_path):
    every_seed = {(seed, prompt) for seed in range(3) for prompt in range(6)}
    results = three(tmp_path, turned=every_seed, safety=[[0.5] * 6] * 3)
    assert bits(vote(results, MEMBERS, "any-refusal", 0).unsafe) == "100000", "the ensemble sends its own refusal"
    answers = vote(results, MEMBERS, "average", 0, threshold=0.9)
    assert bits(answers.refuses) == "000000" and bits(answers.unsafe) == "111111"


def test_a_refusal_that_stands_is_safe_even_where_the_vote_was_to_answer(tmp_path):
    results = three(tmp_path, turned={(0, 5), (1, 5)}, patterns=["111"] * 6, safety=[[0.5] * 6] * 3)
    unsafe = np.array([vote(results, MEMBERS, "average", 0, threshold=0.9, seed=seed).unsafe for seed in range(60)])
    assert not unsafe[:, :5].any()
    assert 0.4 < unsafe[:, 5].mean() < 0.9, "two of three speakers turn"


def test_a_refusal_of_the_ensemble_scores_one_and_an_answer_its_speakers_score(tmp_path):
    ballot = vote(three(tmp_path, safety=[[0.25] * 6] * 3), MEMBERS, "majority", 0)
    assert ballot.safety.tolist() == [0.25, 0.25, 0.25, 1, 1, 1]


# --- average ----------------------------------------------------------------------------------------------------------


def test_average_compares_the_members_mean_score_with_the_threshold(tmp_path):
    safety = [[0.0, 0.5, 0.8, 1.0, 0.9, 0.2], [0.0, 0.5, 0.8, 1.0, 0.9, 0.2], [0.3, 0.5, 0.5, 1.0, 0.3, 0.2]]
    results = three(tmp_path, safety=safety)
    assert bits(vote(results, MEMBERS, "average", 0, threshold=0.7).refuses) == "001110"
    assert bits(vote(results, MEMBERS, "average", 0, threshold=0.5).refuses) == "011110", "reaching it is enough"


def test_average_leaves_unscored_members_out_and_answers_where_none_is_scored(tmp_path):
    nan = float("nan")
    safety = [[nan, nan, 0.9], [nan, 0.9, 0.1], [nan, nan, 0.1]]
    ballot = vote(three(tmp_path, ["000"] * 3, safety=safety), MEMBERS, "average", 0, threshold=0.8)
    assert bits(ballot.refuses) == "010"
    assert np.isnan(ballot.safety[0]) and ballot.unsafe[0], "an unscored answer has no score, and is an answer still"


def test_average_needs_a_threshold(tmp_path):
    with pytest.raises(ValueError, match="average_threshold"):
        vote(three(tmp_path), MEMBERS, "average", 0)


def test_average_at_a_depth_that_was_never_judged_is_refused(tmp_path):
    rows = [
        {"seed": seed, "depth": depth, "safety": 0.9 if depth == 0 else None} for seed in range(3) for depth in (0, 5)
    ]
    results = made(tmp_path, rows, depths=(0, 5), judged=(0,))
    with pytest.raises(ValueError, match="judged"):
        vote(results, MEMBERS, "average", 5, threshold=0.5)


def rated(folder, validation, test):
    """One member; per prompt (refused, safety), for validation and test."""
    rows = [
        {"split": split, "prompt": f"{split}{place}", "refused": refused, "safety": safety}
        for split, table in (("validation", validation), ("test", test))
        for place, (refused, safety) in enumerate(table)
    ]
    return made(folder, rows, seeds=(0,))


def test_the_threshold_separates_refusals_from_answers_on_validation_alone(tmp_path):
    validation = [(False, 0.1), (False, 0.3), (True, 0.7), (True, 0.9)]
    misleading = [(True, 0.1), (True, 0.2), (False, 0.8), (False, 0.9)]
    assert average_threshold(rated(tmp_path / "one", validation, misleading), MEMBERS[:1]) == 0.5
    assert average_threshold(rated(tmp_path / "two", validation, validation), MEMBERS[:1]) == 0.5


@pytest.mark.parametrize(
    ("validation", "threshold"),
    [
        ([(False, 0.0), (True, 0.5), (False, 0.75), (True, 1.0)], 0.25),  # two cuts are as good: the lower one
        ([(False, 0.2), (False, 0.4), (False, 0.6), (True, 0.5), (True, 0.8)], 0.45),  # 2/3 and 1 beat 1 and 1/2
        ([(False, 0.0), (True, 1.0), (True, None)], 0.5),  # the unscored one does not count
    ],
)
def test_the_threshold_has_known_values(tmp_path, validation, threshold):
    assert average_threshold(rated(tmp_path, validation, [(True, 0.5)]), MEMBERS[:1]) == pytest.approx(threshold)


@pytest.mark.parametrize(
    "validation",
    [[(False, 0.1), (False, 0.5)], [(True, 0.1), (True, 0.5)], [(False, None), (True, None)]],
    ids=["nobody refuses", "all refuse", "all unscored"],
)
def test_a_threshold_that_validation_cannot_fix_is_refused(tmp_path, validation):
    results = rated(tmp_path, validation, [(True, 0.5)])
    with pytest.raises(ValueError, match=r"threshold|refus|scored"):
        average_threshold(results, MEMBERS[:1])


# --- members and tables -----------------------------------------------------------------------------------------------


def test_members_are_found_by_their_seed_whatever_its_order_in_the_plan(tmp_path):
    rows = [{"seed": seed, "refused": seed == 2} for seed in range(3)]
    results = made(tmp_path, rows, seeds=(2, 0, 1))
    answers = [bool(vote(results, [("cyclic", seed)], "majority", 0).refuses[0]) for seed in range(3)]
    assert answers == [False, False, True]


def test_a_seed_that_was_not_measured_is_refused(tmp_path):
    with pytest.raises(ValueError, match="7"):
        vote(three(tmp_path), [("cyclic", 7)], "majority", 0)


def test_arms_may_be_mixed(tmp_path):
    rows = [{"arm": "base", "seed": 0, "refused": False}]
    rows += [{"arm": arm, "seed": seed, "refused": arm == "deep"} for arm in ("deep", "shallow") for seed in (0, 1)]
    results = made(tmp_path, rows, seeds=(0, 1))
    mixed = [("base", 0), ("deep", 1), ("shallow", 0)]
    assert [bool(vote(results, mixed, rule, 0).refuses[0]) for rule in ("any-refusal", "majority")] == [True, False]


def test_a_missing_outcome_is_no_refusal(tmp_path):
    rows = [{"seed": seed, "prompt": f"p{prompt}"} for seed in range(3) for prompt in range(2)][:-1]
    results = made(tmp_path, rows)
    with pytest.raises((ValueError, KeyError)):
        vote(results, MEMBERS, "any-refusal", 0)


@pytest.mark.parametrize(
    ("refused", "expected"),
    [
        ([[1, 0, 1, 0], [1, 0, 1, 0]], 1),
        ([[1, 0, 1, 0], [0, 1, 0, 1]], -1),
        ([[1, 1, 0, 0], [1, 0, 1, 0]], 0),
        ([[1, 1, 1, 1], [1, 0, 1, 0]], float("nan")),
        ([[1, 0, 1, 0]], float("nan")),
    ],
)
def test_correlation_of_failures(refused, expected):
    assert votes.pairwise_correlation(np.array(refused)) == pytest.approx(expected, abs=1e-12, nan_ok=True)
