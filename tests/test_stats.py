"""Statistics of prompts crossed with seeds: intervals that cover, corrections that match statsmodels, honest refusals."""

import numpy as np
import pytest
from scipy.stats import t as student
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from safetylib import stats


def crossed_tables(count, seeds, prompts, between_seeds, between_prompts, rest, seed=0):
    """Tables with mean zero and three sources of variation."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        yield (
            generator.normal(0, between_seeds, (seeds, 1))
            + generator.normal(0, between_prompts, (1, prompts))
            + generator.normal(0, rest, (seeds, prompts))
        )


def coverage(count=400, **shape):
    estimates = [stats.crossed(table) for table in crossed_tables(count, **shape)]
    return np.mean([estimate.low <= 0 <= estimate.high for estimate in estimates])


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(
            {"seeds": 10, "prompts": 40, "between_seeds": 0.1, "between_prompts": 0.3, "rest": 0.4}, id="10x40"
        ),
        pytest.param(
            {"seeds": 3, "prompts": 100, "between_seeds": 0.05, "between_prompts": 0.3, "rest": 0.4}, id="3x100"
        ),
        pytest.param(
            {"seeds": 20, "prompts": 20, "between_seeds": 0.3, "between_prompts": 0.3, "rest": 0.3}, id="20x20"
        ),
        pytest.param({"seeds": 1, "prompts": 80, "between_seeds": 0, "between_prompts": 0.3, "rest": 0.4}, id="1x80"),
        pytest.param(
            {"seeds": 3, "prompts": 100, "between_seeds": 0.1, "between_prompts": 0.1, "rest": 0.2},
            id="seeds rule",
            marks=pytest.mark.xfail(strict=True, reason="three seeds of one table alone cover a little less than 90 %"),
        ),
    ],
)
def test_the_interval_covers_the_mean(shape):
    assert 0.90 <= coverage(**shape) <= 0.995


@pytest.mark.parametrize("between_seeds", [(0.1,) * 5, (0.02, 0.02, 0.02, 0.1, 0.2)], ids=["alike", "unequally"])
def test_three_seeds_cover_in_a_family_whether_its_tables_vary_alike_or_not(between_seeds):
    """Pooled, the variance between seeds rests on more seeds; a table that varies more than the others keeps its own."""
    tables = [list(crossed_tables(400, 3, 60, own, 0.1, 0.2, seed=n)) for n, own in enumerate(between_seeds)]
    estimates = [[stats.crossed(table, list(family)) for table in family] for family in zip(*tables, strict=True)]
    covered = np.array([[estimate.low <= 0 <= estimate.high for estimate in family] for family in estimates])
    assert (covered.mean(axis=0) >= 0.92).all()


def test_the_pooled_variance_alone_would_not_cover_a_table_that_varies_more():
    """Why the wider of the two intervals is taken."""
    shapes = [
        (own, list(crossed_tables(400, 3, 60, own, 0.1, 0.2, seed=n))) for n, own in enumerate((0.02,) * 4 + (0.2,))
    ]
    family = zip(*(tables for _, tables in shapes), strict=True)
    errors = []
    for tables in family:
        variance = np.mean([table.mean(axis=1).var(ddof=1) for table in tables])
        errors.append(abs(tables[-1].mean()) / np.sqrt(variance / 3 + tables[-1].mean(axis=0).var(ddof=1) / 60))
    assert np.mean(np.array(errors) <= student.isf(0.025, 10)) < 0.8


def test_the_wider_of_the_own_and_the_pooled_interval_is_taken():
    calm, wild = np.repeat([[-0.1], [0], [0.1]], 40, axis=1), np.repeat([[-1.0], [0], [1]], 40, axis=1)
    assert stats.crossed(wild, [calm, wild]) == stats.crossed(wild)
    pooled = stats.crossed(calm, [calm, wild])
    assert pooled.freedom == pytest.approx(4)
    assert pooled.standard_error == pytest.approx(np.sqrt((0.01 + 1) / 2 / 3))
    assert pooled.high == pytest.approx(student.isf(0.025, 4) * pooled.standard_error)


def test_an_interval_that_pools_seeds_and_prompts_would_not_cover():
    """Why the interval is crossed: with seeds that differ, prompts times seeds is no sample size."""
    shape = {"seeds": 10, "prompts": 40, "between_seeds": 0.3, "between_prompts": 0.1, "rest": 0.1}
    errors = [abs(table.mean()) / (table.std() / np.sqrt(table.size)) for table in crossed_tables(200, **shape)]
    assert np.mean(np.array(errors) <= 1.96) < 0.5


def test_the_standard_error_counts_both_sources():
    table = np.mean([*crossed_tables(1, 400, 400, 0.2, 0.3, 0.0, seed=3)], axis=0)
    expected = np.sqrt(0.2**2 / 400 + 0.3**2 / 400)
    assert stats.crossed(table).standard_error == pytest.approx(expected, rel=0.15)


def test_the_mean_and_what_stands_behind_it():
    estimate = stats.crossed(np.array([[1, 0, 1, 1], [1, 0, 0, 1]], bool))
    assert (estimate.mean, estimate.seeds, estimate.prompts) == (0.625, 2, 4)
    assert estimate.low <= 0.625 <= estimate.high
    assert str(stats.Estimate(0.5, 0.25, 0.751, 0.1, 9.0, 4, 2)) == "0.50 [0.25, 0.75]"
    assert str(stats.Estimate(-0.001, -0.004, 0.0, 0.1, 9.0, 4, 2)) == "0.00 [0.00, 0.00]"


def test_intervals_of_rates_stay_between_zero_and_one():
    table = np.zeros((3, 40), bool)
    table[0, :9] = True
    estimate = stats.crossed(table)
    assert estimate.low == 0 < estimate.mean < estimate.high < 1
    assert stats.crossed(table.astype(float)).low < 0
    assert stats.crossed(table.astype(float), share=True) == estimate
    assert stats.crossed(~table).high == 1 > stats.crossed(~table).mean


@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize("others", [1, 4])
def test_a_share_that_few_prompts_make_gets_the_wilson_interval_of_its_prompts(common, others):
    """One event of 300 says no more than none of them about prompts that were not asked: at most a few hundredths."""
    table = np.full((3, 100), common)
    table[0, :others] = not common
    estimate = stats.crossed(table)
    assert (estimate.low, estimate.high) == pytest.approx(proportion_confint(table.mean() * 100, 100, method="wilson"))
    assert estimate.high - estimate.low > 0.03
    table[1, 50:55] = not common
    assert (
        stats.crossed(table).standard_error
        and stats.crossed(table).high != proportion_confint(table.mean() * 100, 100, method="wilson")[1]
    ), "five more prompts: variances say enough"


def test_three_seeds_that_rule_leave_two_degrees_of_freedom():
    assert stats.crossed(np.repeat([[0.0], [1.0], [2.0]], 50, axis=1)).freedom == pytest.approx(2)
    assert stats.crossed(np.repeat(np.random.default_rng(0).random((1, 50)), 3, axis=0)).freedom == pytest.approx(49)


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("shape", [(1, 20), (3, 20), (5, 103)])
def test_a_rate_of_all_or_none_gets_the_wilson_interval_of_its_prompts(value, shape):
    estimate = stats.crossed(np.full(shape, value))
    expected = proportion_confint(shape[1] * value, shape[1], method="wilson")
    assert (estimate.low, estimate.high) == pytest.approx(expected)
    assert estimate.high - estimate.low > 0.03


def test_a_constant_score_is_no_rate():
    estimate = stats.crossed(np.full((3, 20), 1.0))
    assert (estimate.low, estimate.high) == pytest.approx((1, 1), abs=1e-12)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[0.5, np.nan]], "unscored"),
        ([[0.5, np.inf]], "not finite"),
        ([0.5, 0.5], r"shape \(2,\)"),
        (np.zeros((0, 3)), r"shape \(0, 3\)"),
        (np.zeros((2, 0)), r"shape \(2, 0\)"),
        (np.zeros((2, 2, 2)), "table"),
    ],
)
def test_what_is_no_table_of_numbers_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        stats.crossed(np.array(values))


# --- contrasts --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs():
    generator = np.random.default_rng(7)
    base = generator.normal(0, 1, (4, 50))
    return {
        f"shift {shift}": (base + shift + generator.normal(0, 0.3, base.shape), base)
        for shift in (0, 0.05, 0.08, 0.12, 1)
    }


def test_p_values_are_adjusted_as_statsmodels_does(pairs):
    rows = stats.contrasts(pairs)
    expected = multipletests([row.p_value for row in rows], method="holm")[1]
    assert [row.p_holm for row in rows] == pytest.approx(list(expected))
    assert any(row.p_holm > row.p_value for row in rows)
    assert [row.name for row in rows] == list(pairs)


def test_p_values_come_from_the_standard_error(pairs):
    for row in stats.contrasts(pairs):
        assert row.p_value == pytest.approx(2 * student.sf(row.margin, row.difference.freedom))
        assert row.margin == pytest.approx(abs(row.difference.mean) / row.difference.standard_error)


@pytest.mark.parametrize(("p_holm", "shown"), [(0.0124, "p = 0.012"), (0.001, "p = 0.001"), (0.00099, "p < 0.001")])
def test_small_p_values_are_not_shown_as_zero(p_holm, shown):
    assert stats.Contrast("one", None, p_holm, p_holm).p_shown == shown


def test_contrasts_are_paired(pairs):
    """What prompts and seeds share cancels: the interval is far narrower than that of either table."""
    first, second = pairs["shift 1"]
    (row,) = stats.contrasts({"one": (first, second)})
    assert row.difference == stats.crossed(first - second)
    assert row.difference.standard_error < stats.crossed(first).standard_error / 2


def test_a_difference_has_a_sign(pairs):
    first, second = pairs["shift 1"]
    there, back = stats.contrasts({"there": (first, second), "back": (second, first)})
    assert there.difference.mean == pytest.approx(1, abs=0.1) and back.difference.mean == -there.difference.mean
    assert there.p_holm < 1e-6


def test_an_untuned_model_of_one_row_is_compared_with_every_seed():
    tuned = np.array([[1, 1, 0.0], [1, 0, 0]])
    (row,) = stats.contrasts({"untuned": (tuned, np.array([[0, 0, 0.0]]))})
    assert (row.difference.mean, row.difference.seeds) == (0.5, 2)


@pytest.mark.parametrize(("first", "p_value"), [(0.0, 1), (1.0, 0)])
def test_differences_without_variation_are_decided_by_their_mean_alone(first, p_value):
    (row,) = stats.contrasts({"constant": (np.full((3, 9), first), np.zeros((3, 9)))})
    assert row.p_value == row.p_holm == p_value


def test_no_difference_is_not_many_standard_errors_wide():
    (row,) = stats.contrasts({"same": (np.ones((3, 9)), np.ones((3, 9)))})
    assert row.margin == 0


def test_contrasts_are_seldom_decided_by_chance_with_three_seeds(monkeypatch):
    """Of families of four contrasts without a difference, few hold one that Holm's correction lets pass."""
    monkeypatch.setattr(
        "gc.collect", lambda *_: 0
    )  # multipletests collects at every call: seconds, beside loaded models
    tables = list(crossed_tables(800, 3, 60, 0.1, 0.1, 0.2, seed=2))
    families = [dict(enumerate(tables[first : first + 4])) for first in range(0, len(tables), 4)]
    rows = [stats.contrasts({name: (table, 0 * table) for name, table in family.items()}) for family in families]
    assert np.mean([any(row.margin >= 3 and row.p_holm < 0.05 for row in family) for family in rows]) <= 0.08


def test_contrasts_with_one_control_are_worth_fewer_degrees_of_freedom():
    """Four differences of which any two correlate by one half: (trace)^2 / (squared entries) = 16 / 7 of S - 1."""
    generator = np.random.default_rng(3)
    control, *others = generator.normal(0, 1, (5, 6, 1)) * np.ones(40)  # prompts do not vary: f is the seeds' alone
    shared = stats.contrasts({str(n): (control, other.copy()) for n, other in enumerate(others)})
    assert {round(row.difference.freedom, 9) for row in shared} == {5, round(16 / 7 * 5, 9)}, "own, or pooled"
    apart = stats.contrasts({str(n): (other, np.zeros((6, 40))) for n, other in enumerate(others)})
    assert {round(row.difference.freedom, 9) for row in apart} == {5, 20}
    again = stats.contrasts({str(n): (control.copy(), other) for n, other in enumerate(others)})
    assert [row.p_value for row in again] == [row.p_value for row in shared], "a copy of a table is that table"


def test_four_contrasts_with_one_control_are_seldom_decided_by_chance(monkeypatch):
    monkeypatch.setattr("gc.collect", lambda *_: 0)
    tables = list(crossed_tables(1000, 5, 60, 0.1, 0.1, 0.2, seed=4))
    families = [tables[first : first + 5] for first in range(0, len(tables), 5)]
    rows = [stats.contrasts({str(n): (one, own[0]) for n, one in enumerate(own[1:])}) for own in families]
    assert np.mean([any(row.p_holm < 0.05 for row in family) for family in rows]) <= 0.07
    assert np.mean([row.difference.low <= 0 <= row.difference.high for family in rows for row in family]) >= 0.93


def test_a_p_value_is_against_the_value_that_is_asked_for():
    estimate = stats.Estimate(0.15, 0.1, 0.2, 0.02, 8.0, 100, 5)
    assert estimate.p_value(0.15) == 1 and estimate.margin(0.11) == pytest.approx(2)
    assert estimate.p_value(0.11) == pytest.approx(2 * student.sf(2, 8)) == pytest.approx(estimate.p_value(0.19))


# --- replication ------------------------------------------------------------------------------------------------------


# Three seeds cannot tell which of many cells vary more: a limit of the method, shown and not hidden.
UNEQUAL = pytest.mark.xfail(strict=True, reason="three seeds a cell cannot tell cells apart that vary unequally")


def inside(deviations, seeds=3, prompts=100, count=600):
    """How often an independent rerun keeps within the band in every cell; one between-seed deviation a cell."""
    generator, deviations = np.random.default_rng(1), np.array(deviations)[:, None]
    kept = 0
    for _ in range(count):
        stored, fresh = (generator.normal(0, 1, (len(deviations), seeds)) * deviations for _ in range(2))
        band = stats.replication_band([np.repeat(cell[:, None], prompts, axis=1) for cell in stored])
        kept += np.all(np.abs(fresh.mean(axis=1) - stored.mean(axis=1)) <= band)
    return kept / count


@pytest.mark.parametrize(
    "deviations",
    [
        pytest.param([0.05] * 20, id="alike"),
        pytest.param([0.05] * 2, id="two cells"),
        pytest.param([0.1] * 5 + [0.01] * 15, id="a quarter varies much", marks=UNEQUAL),
        pytest.param([0.1] * 10 + [0.02] * 50, id="a sixth varies much", marks=UNEQUAL),
    ],
)
def test_an_independent_rerun_stays_within_the_band_in_all_cells(deviations):
    assert 0.92 <= inside(deviations)


def test_the_band_of_cells_without_variation_is_that_of_one_prompt():
    constant = [np.ones((3, 50))] * 4
    single = [np.array([[-0.02], [0], [0.02]]) * np.ones((1, 50))] * 4  # a standard deviation of one prompt in 50
    assert stats.replication_band(constant) == pytest.approx(stats.replication_band(single))


def test_a_band_narrows_with_seeds_and_widens_with_cells():
    few, many = (np.tile([[-0.1], [0], [0.1]], (copies, 100)) for copies in (1, 10))
    assert (stats.replication_band([many] * 5) < stats.replication_band([few] * 5) / 2).all()
    assert stats.replication_band([many] * 500)[0] > stats.replication_band([many] * 5)[0]


def test_a_rerun_of_fewer_seeds_may_differ_by_more():
    tables = [np.tile([[-0.1], [0], [0.1], [0.2]], (1, 100))] * 5
    same, fewer, more = (stats.replication_band(tables, fresh) for fresh in (4, 1, 100))
    assert (same == stats.replication_band(tables)).all()
    assert fewer == pytest.approx(same * np.sqrt((1 / 4 + 1) / (1 / 4 + 1 / 4))) and (more < same).all()


@pytest.mark.parametrize(
    "tables",
    [
        [np.zeros((1, 5))],
        [],
        [np.array([[0, np.nan], [0, 1]])],
    ],
    ids=["one seed", "no cell", "nan"],
)
def test_no_band_is_drawn_from_too_little(tables):
    with pytest.raises(ValueError, match=r"seeds|cell|finite"):
        stats.replication_band(tables)


def test_a_jackknife_of_one_sources_mean_is_the_means_standard_error():
    values = np.random.default_rng(0).normal(size=12)
    found = stats.jackknife(lambda kept: values[kept].mean(), (12,), 12, 1)
    expected = stats.crossed(values[None])
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))
    assert found.freedom == pytest.approx(11)


def test_a_jackknife_adds_its_sources_and_one_unit_varies_nothing():
    first, second = np.array([0.0, 1, 5]), np.array([2.0, 4])

    def apart(one, other, alone):
        assert list(alone) == [0]
        return first[one].mean() - second[other].mean()

    found = stats.jackknife(apart, (3, 2, 1), 5, 1)
    variances = [values.var(ddof=1) / len(values) for values in (first, second)]
    assert found.mean == -1 and found.standard_error == pytest.approx(sum(variances) ** 0.5)
    assert found.freedom == pytest.approx(sum(variances) ** 2 / (variances[0] ** 2 / 2 + variances[1] ** 2))


def test_a_jackknife_adds_a_source_that_is_known_otherwise():
    values = np.random.default_rng(2).normal(0, 1, 12)
    alone = stats.jackknife(lambda kept: values[kept].mean(), (12,), 12, 1)
    found = stats.jackknife(lambda kept: values[kept].mean(), (12,), 12, 1, beside=(3 * alone.standard_error**2, 3.0))
    assert found.standard_error == pytest.approx(2 * alone.standard_error)
    assert found.freedom == pytest.approx(4**2 / (1 / 11 + 3**2 / 3))


def test_a_jackknife_of_what_never_varies_has_no_width():
    found = stats.jackknife(lambda kept: 0.5, (4,), 4, 1)
    assert (found.mean, found.low, found.high, found.freedom) == (0.5, 0.5, 0.5, float("inf"))
