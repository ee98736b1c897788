"""Arguments of the chain's functions: intervals as mathematics writes them, and whole numbers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safetylib.chain.checks import check_count, check_range

INTERVALS = {
    "[0, 1]": lambda x: 0 <= x <= 1,
    "(0, 1]": lambda x: 0 < x <= 1,
    "[0, 1)": lambda x: 0 <= x < 1,
    "(-inf, inf)": lambda x: -np.inf < x < np.inf,
    "[0, inf)": lambda x: 0 <= x < np.inf,
    "(0, inf]": lambda x: 0 < x <= np.inf,
}
edges = st.sampled_from(
    [0.0, -0.0, 1.0, 5e-324, -5e-324, np.nextafter(1, 2), np.nextafter(1, 0), np.inf, -np.inf, np.nan]
)
numbers = st.floats() | edges


@given(st.sampled_from(sorted(INTERVALS)), st.lists(numbers, max_size=4) | numbers)
def test_a_range_admits_what_its_interval_holds_and_names_the_first_that_it_does_not(interval, value):
    outside = [x for x in np.atleast_1d(value) if not INTERVALS[interval](x)]
    if not outside:
        np.testing.assert_array_equal(check_range("x", value, interval), np.asarray(value, float))
        return
    with pytest.raises(ValueError) as refused:
        check_range("x", value, interval)
    assert str(refused.value) == f"x must lie in {interval}, got {outside[0]:g}"


@pytest.mark.parametrize("value", ["a", [1, "b"], [[1], [1, 2]], None, 1j], ids=repr)
def test_what_is_no_number_is_refused_by_name(value):
    with pytest.raises(ValueError, match="x must"):
        check_range("x", value, "[0, 1]")


@pytest.mark.parametrize(
    "value", [3, 3.0, np.int8(3), True, [0, 7], np.arange(4), np.arange(3, dtype=np.uint8), [2.0, 5.0], []], ids=repr
)
def test_whole_numbers_are_counts_whatever_their_type(value):
    found = check_count("n", value)
    assert found.dtype == float
    np.testing.assert_array_equal(found, np.asarray(value, float))


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (2.5, "n must be a whole number, got 2.5"),
        ([1, 2, 0.5, 1.5], "n must be a whole number, got 0.5"),
        ([3, -1], r"n must lie in \[0, inf\), got -1"),
        (np.array([4, -2]), r"n must lie in \[0, inf\), got -2"),
        (np.inf, r"n must lie in \[0, inf\), got inf"),
    ],
    ids=str,
)
def test_other_numbers_are_no_counts(value, says):
    with pytest.raises(ValueError, match=says):
        check_count("n", value)
    assert check_count("n", np.inf, infinite=True) == np.inf


@pytest.mark.parametrize("value", [1, np.array([3, 1])], ids=repr)
def test_a_count_may_have_to_be_larger(value):
    with pytest.raises(ValueError, match=r"n must lie in \[2, inf\), got 1"):
        check_count("n", value, at_least=2)
