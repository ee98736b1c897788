"""Laws along training: what generated the data is found again, and preferred; what did not is not."""

from dataclasses import replace

import numpy as np
import pytest
from made_results import given
from scipy.special import expit, logit

from safetylib import stats
from safetylib.chain import updates
from safetylib.study import laws

ALPHAS, GAMMAS, STEPS = (1.0, 2.0, 4.0), (0.85, 0.96), np.array([0, 1, 2, 4, 8, 16, 24])
RUNS = [(alpha, gamma) for alpha in ALPHAS for gamma in GAMMAS]
TRUTH = {"additive": (0.02, 0.016), "softmax": (0.02, 0.14), "cross-entropy": (0.02, 0.2)}


def trajectories(law, *, clock="step sizes", prompts=12, spread=0.0, truth=TRUTH, seed=0, between=()):
    """Runs that follow a law in one of the clocks, with prompts scattered about the class on the scale of logits; a seed for
    every entry of ``between``, whose rate is so many times higher (one seed by default)."""
    alpha, gamma = np.array(RUNS).T
    blank = np.zeros((1, len(RUNS), len(STEPS), prompts))
    made = laws.Trajectories("made", tuple(map(str, RUNS)), alpha, gamma, STEPS, blank)
    ticks = made.clock(clock)
    ticks = ticks * made.clock().max() / ticks.max()
    start, rate = truth[law]
    level = np.array([laws.curve(law, ticks, start, rate * factor) for factor in between or (1,)]).clip(1e-6, 1 - 1e-6)
    scatter = np.random.default_rng(seed).normal(0, spread, prompts)
    return laws.Trajectories(
        "made", made.runs, alpha, gamma, STEPS, expit(logit(level)[..., None] + scatter * (level[..., None] < 1))
    )


def table(data, split="another run", score="log score", **how):
    return {name: laws.scores(data, laws.forecasts(data, name, split, **how), score) for name in laws.FORECASTS}


# --- the laws themselves ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", laws.LAWS)
def test_a_curve_in_the_clock_is_the_closed_form_after_n_updates(law):
    steps, alpha, gamma, q0, rate = np.arange(9), 0.3, 0.9, 0.1, 0.4
    closed = {
        "additive": lambda: updates.proportional_escape(steps, escape_0=1 - q0, bias=rate, alpha=alpha, gamma=gamma),
        "softmax": lambda: updates.softmax_escape(steps, escape_0=1 - q0, gap=rate, alpha=alpha, gamma=gamma),
        "cross-entropy": lambda: updates.cross_entropy_escape(steps, escape_0=1 - q0, alpha=alpha * rate, gamma=gamma),
    }
    clock = alpha * updates.discount_sum(steps, gamma)
    assert laws.curve(law, clock, q0, rate) == pytest.approx(1 - closed[law](), abs=1e-12)


def test_known_values():
    assert laws.curve("additive", [0, 1, 9], 0.2, 0.1) == pytest.approx([0.2, 0.3, 1.0])
    assert laws.curve("softmax", [0, 1], 0.5, np.log(3)) == pytest.approx([0.5, 0.75])
    # m + e^m grows at rate 2b: from m = 0 it is 1, so at S = e/2 with b = 1 it is 1 + e, where m = 1
    assert laws.curve("cross-entropy", [0, np.e / 2], 0.5, 1.0) == pytest.approx([0.5, expit(1)])


# --- fits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", laws.LAWS)
def test_a_fit_finds_the_parameters_that_made_the_data(law):
    data = trajectories(law)
    values = data.values[0, ..., 0].reshape(1, -1)
    found = laws.fit(law, data.clock().ravel(), values)
    start, rate = TRUTH[law]
    assert found.start[0] == pytest.approx(start, rel=0.1) and found.rate[0] == pytest.approx(rate, rel=0.03)
    assert not found.at_edge[0]
    given = laws.fit(law, data.clock().ravel(), values, start=[start])
    assert given.start[0] == pytest.approx(start) and given.rate[0] == pytest.approx(rate, rel=0.02)
    assert found(data.clock())[0] == pytest.approx(data.values[0, ..., 0], abs=0.01)


def test_rows_are_fitted_on_their_own_and_cells_without_weight_are_not_seen():
    clock = np.linspace(0, 4, 9)
    values = np.array([laws.curve("softmax", clock, 0.1, rate) for rate in (0.5, 2.0)])
    weights = np.ones_like(values)
    values[0, 8], weights[0, 8] = 0.0, 0.0
    assert laws.fit("softmax", clock, values, weights).rate == pytest.approx([0.5, 2.0], rel=0.03)


def test_a_run_that_does_not_move_is_reported_at_the_edge():
    assert laws.fit("softmax", [0, 1, 2], [[0.3, 0.3, 0.3]], start=[0.3]).at_edge[0]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"clock": [0, 1], "values": [[0.1, 1.2]]}, r"values must lie in \[0, 1\], got 1.2"),
        ({"clock": [0, 1, 2], "values": [[0.1, 0.2]]}, "clock must be"),
        ({"clock": [0, 0], "values": [[0.1, 0.2]]}, "positive somewhere"),
        ({"clock": [0, 1], "values": [[0.1, 0.2]], "start": [0.0]}, r"start must lie in \(0, 1\), got 0"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        laws.fit("softmax", **arguments)


def test_the_monotone_curve_averages_ties_and_pools_what_falls():
    assert laws.monotone([0, 1, 1, 2], np.array([0, 0.2, 0.4, 0.1]), np.ones(4), [0, 1, 1.5, 9]) == pytest.approx(
        [0, 0.7 / 3, 0.7 / 3, 0.7 / 3]
    )


# --- forecasts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", laws.SPLITS)
def test_no_forecast_sees_what_it_forecasts(split):
    data = trajectories("softmax", spread=0.5)
    for name in laws.FORECASTS:
        told = laws.forecasts(data, name, split)
        held_out = ~np.isnan(told[0])
        for fitted, hidden in laws.SPLITS[split](data):
            assert not (fitted & hidden).any()
            changed = data.values.copy()
            changed[:, hidden] = 0.5
            other = laws.Trajectories("made", data.runs, data.alpha, data.gamma, data.steps, changed)
            assert laws.forecasts(other, name, split)[:, hidden] == pytest.approx(told[:, hidden], abs=1e-12)
        assert held_out[:, 0].sum() == 0


def test_a_prompt_is_forecast_from_the_others_unless_told_otherwise():
    data = trajectories("softmax", spread=0.5)
    changed = data.values.copy()
    changed[..., 0] = 0.5
    other = laws.Trajectories("made", data.runs, data.alpha, data.gamma, data.steps, changed)
    before, after = (laws.forecasts(one, "softmax")[0, ..., 0] for one in (data, other))
    assert np.nanmax(np.abs(before - after)) < 1e-12
    before, after = (laws.forecasts(one, "softmax", own=True)[0] for one in (data, other))
    assert np.nanmax(np.abs(before - after)[..., 1:]) < 1e-12 < np.nanmax(np.abs(before - after)[..., 0])


@pytest.mark.parametrize("split", laws.SPLITS)
@pytest.mark.parametrize("law", laws.LAWS)
def test_the_law_that_made_the_data_is_the_one_that_is_followed(law, split):
    comparison = laws.compare(table(trajectories(law, spread=0.2), split))
    assert (comparison.law, comparison.outcome) == (law, "followed")


@pytest.mark.parametrize("score", laws.SCORES)
def test_every_score_prefers_the_law_that_made_the_data(score):
    found = table(trajectories("cross-entropy", spread=0.1), score=score)
    assert min(laws.LAWS, key=lambda law: found[law].mean) == "cross-entropy"


@pytest.mark.parametrize("clock", ["steps", "decays"])
def test_runs_in_another_clock_are_forecast_badly_in_the_clock_of_step_sizes(clock):
    data = trajectories("softmax", clock=clock, spread=0.1)
    right, wrong = (laws.scores(data, laws.forecasts(data, "softmax", clock=kind)) for kind in (clock, "step sizes"))
    assert laws.difference(wrong - right).decided > 0


def test_a_law_that_no_run_follows_is_not_said_to_be_followed():
    data = trajectories("softmax", spread=0.1)
    plateau = laws.Trajectories("made", data.runs, data.alpha, data.gamma, data.steps, np.minimum(data.values, 0.4))
    assert laws.compare(table(plateau)).outcome in ("best of three", "none")
    random = np.random.default_rng(1).uniform(size=data.values.shape)
    random[:, :, 0] = random[0, 0, 0]
    noise = laws.Trajectories("made", data.runs, data.alpha, data.gamma, data.steps, random)
    assert laws.compare(table(noise)).outcome == "none"


@pytest.mark.parametrize(
    "by_run, decided",
    [
        ([0.02] * 6, 1),
        ([-0.02] * 6, -1),
        ([0.02, 0.02, 0.02, 0, 0, 0], 1),
        ([0.1, 0.1, 0, 0, 0, 0], 0),
        ([0.1, 0.1, 0.1, 0.1, -0.01, 0], 1),
        ([0.1, 0.1, 0.1, 0.1, -0.01, -0.01], 0),
        ([0.0009] * 6, 0),
    ],
)
def test_a_difference_is_decided_when_the_runs_agree(by_run, decided):
    prompts = np.random.default_rng(0).normal(0, 1e-4, 12)
    assert laws.difference(given(np.add.outer(by_run, prompts)[None])).decided == decided


def test_a_difference_that_varies_between_prompts_is_not_decided():
    assert laws.difference(given(np.tile(np.resize([0.3, -0.2], 12), (1, 6, 1)))).decided == 0


def test_a_difference_that_varies_between_seeds_is_not_decided():
    by_seed = np.array([0.01, 0.02, 0.12])
    table = np.add.outer(by_seed, np.add.outer(np.zeros(6), np.random.default_rng(0).normal(0, 1e-4, 12)))
    assert laws.difference(given(table[2:])).decided == 1, "one seed by itself would have been believed"
    together = laws.difference(given(table))
    assert together.decided == 0 and together.estimate.low < 0 < together.estimate.mean == pytest.approx(0.05, abs=1e-3)
    assert together.estimate.seeds == 3 and (together.ahead, together.behind, together.runs) == (6, 0, 6)


def test_a_run_counts_by_the_mean_of_its_seeds():
    contrary = np.zeros((3, 6, 12))
    contrary[0], contrary[1:] = -0.01, 0.02
    found = laws.difference(given(contrary))
    assert (found.ahead, found.behind) == (6, 0)


def test_three_standard_errors_of_few_seeds_are_not_enough():
    by_seed = np.array([0.03, 0.05, 0.07])
    found = laws.difference(given(np.broadcast_to(by_seed[:, None, None], (3, 6, 12))))
    margin = found.estimate.mean / found.estimate.standard_error
    assert margin > laws.LEAST_MARGIN and found.estimate.low > 0 and found.decided == 1
    wider = laws.difference(given(np.broadcast_to(by_seed[:, None, None] - 0.013, (3, 6, 12))))
    assert wider.estimate.mean > laws.LEAST_MARGIN * wider.estimate.standard_error and wider.estimate.low < 0
    assert wider.decided == 0


def test_a_forecast_is_fitted_to_the_mean_of_the_seeds_and_scored_on_each():
    data = trajectories("softmax", spread=0.3, between=(0.8, 1.0, 1.2))
    mean = laws.Trajectories(
        "made", data.runs, data.alpha, data.gamma, data.steps, data.values.mean(axis=0, keepdims=True)
    )
    for name in laws.FORECASTS:
        told = laws.forecasts(data, name)
        again = laws.forecasts(mean, name)
        assert told[0] == pytest.approx(again[0], nan_ok=True)
        assert told[4:] == pytest.approx(again[1:], nan_ok=True), "one seed cannot be left out"
        found = laws.scores(data, told)
        assert found.table.shape == (3, 6, 12)
        assert found.table.mean(axis=0) == pytest.approx(laws.scores(mean, again).table[0]), (
            "the log score is linear in what is measured"
        )
    assert laws.rates(data, "softmax")[1].rate == pytest.approx(laws.rates(mean, "softmax")[1].rate)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("name", laws.FORECASTS)
def test_what_is_left_out_is_seen_by_neither_fit_nor_mean(name, own):
    """Scores without a seed or a prompt are those of the trajectories that never had it."""
    data = trajectories("softmax", spread=0.3, prompts=5, between=(0.8, 1.0, 1.2))
    found = laws.scores(data, laws.forecasts(data, name, own=own))
    for seed in range(3):
        fewer = replace(data, values=np.delete(data.values, seed, axis=0))
        alone = laws.scores(fewer, laws.forecasts(fewer, name, own=own)).mean
        assert found.without_seed[seed] == pytest.approx(alone, abs=1e-12)
    for prompt in range(5):
        fewer = replace(data, values=np.delete(data.values, prompt, axis=3))
        alone = laws.scores(fewer, laws.forecasts(fewer, name, own=own)).mean
        assert found.without_prompt[prompt] == pytest.approx(alone, abs=1e-12)


def test_a_difference_that_hangs_on_which_prompts_were_fitted_is_not_decided():
    """Every score says the same, but leaving out a prompt moves them all: forecasts are fitted to few."""
    sure = given(np.full((1, 6, 12), 0.1))
    assert laws.difference(sure).decided == 1
    unsure = replace(sure, without_prompt=0.1 + np.resize([0.02, -0.02], 12))
    found = laws.difference(unsure)
    assert found.decided == 0 and found.estimate.low < 0 < found.estimate.mean
    uneven = given(np.tile(np.resize([0.5, -0.3], 12), (1, 6, 1)))
    steady = replace(uneven, without_prompt=np.full(12, uneven.mean))
    assert laws.difference(steady).decided == 0, "forecasts that hang on no prompt do not make few prompts many"
    assert found.estimate.standard_error == pytest.approx(np.sqrt(11 / 12 * 12 * 0.02**2))
    seeds = replace(given(np.full((3, 6, 12), 0.1)), without_seed=np.array([0.02, 0.1, 0.18]))
    assert laws.difference(seeds).decided == 0


def test_runs_can_be_left_out():
    data = trajectories("softmax")
    fewer = laws.without(data, [data.runs[1], data.runs[4]])
    assert fewer.runs == tuple(data.runs[i] for i in (0, 2, 3, 5)) and fewer.alpha.tolist() == [1, 2, 2, 4]
    assert (fewer.values == data.values[:, [0, 2, 3, 5]]).all()


def test_trajectories_must_begin_at_one_model():
    data = trajectories("softmax")
    values = data.values.copy()
    values[0, 0, 0] = 0.9
    two_seeds = np.concatenate([data.values, data.values])
    two_seeds[1, :, 0] = 0.9
    for wrong in (values, two_seeds):
        with pytest.raises(ValueError, match="same values"):
            laws.Trajectories("made", data.runs, data.alpha, data.gamma, data.steps, wrong)


# --- one rate for every step size -------------------------------------------------------------------------------------


@pytest.mark.parametrize("clock, exponent", [("step sizes", 0), ("decays", -1)])
def test_rates_agree_across_step_sizes_in_the_right_clock_only(clock, exponent):
    data = trajectories("softmax", clock=clock)
    together, alone = laws.rates(data, "softmax")
    found = laws.scaling([data], "softmax").exponent
    assert found.mean == pytest.approx(exponent, abs=0.15)
    assert found.low < exponent < found.high or found.high - found.low < 0.1
    assert (alone.start == together.start).all()


def test_the_exponents_interval_counts_seeds_and_prompts_and_not_runs_alone():
    """Seeds of which one runs in another clock: the mean's exponent is as sharp over runs, and hangs on which seeds there are."""
    one, other = trajectories("softmax", spread=0.5), trajectories("softmax", spread=0.5, clock="decays")

    def found(seeds):
        return laws.scaling([replace(one, values=np.concatenate([data.values for data in seeds]))], "softmax").exponent

    alike, mixed = found([one] * 3), found([one, one, other])
    assert (mixed.seeds, mixed.prompts) == (3, 12)
    assert -1 < mixed.mean < alike.mean
    assert mixed.standard_error > 3 * alike.standard_error and mixed.low < -0.5
    assert found([one, one, other] * 3).standard_error < 0.9 * mixed.standard_error, "more seeds say more"


def test_the_exponents_interval_counts_what_the_runs_leave_of_a_straight_line():
    data = trajectories("cross-entropy")
    assert laws.scaling([data], "cross-entropy").exponent.standard_error < 0.02
    assert laws.scaling([data], "softmax").exponent.standard_error > 0.03


@pytest.mark.parametrize(("error", "margin"), [(0.5, "2.5 SE"), (0.0, "no variation")])
def test_a_difference_is_printed_with_its_size_and_the_runs_of_either_sign(error, margin):
    one = laws.Difference(stats.Estimate(-1.25, -2.0, -0.5, error, 2.0, 16, 3), ahead=1, behind=4, runs=6)
    assert str(one) == f"-1.250 [-2.000, -0.500] ({margin}; + in 1, - in 4 of 6 runs)"


@pytest.mark.parametrize("steps, last", [((0, 1, 2, 4, 8, 16), 4), ((0, 4, 8, 16, 32, 64), 16)])
def test_later_steps_are_those_after_the_middle_one(steps, last):
    steps = np.array(steps)
    made = laws.Trajectories("made", ("a", "b"), np.ones(2), np.ones(2), steps, np.zeros((1, 2, len(steps), 3)))
    [(fitted, held_out)] = laws.later_steps(made)
    assert (fitted == (steps <= last)).all() and (held_out == ~fitted).all() and held_out.sum() == 4
