"""Intervals, contrasts and agreement for prompts crossed with seeds (scipy and statsmodels do the work).

Every seed answers every prompt, so a mean over seeds and prompts has two sources of variation, and its sample size is
not their product. With A the variance of the seeds' means over their number, and B the variance of the prompts' means
over theirs, the squared standard error is A + B - C, where C is the share of the residual that both count (the two-way
random-effects estimate; a crossed bootstrap converges to it). Seeds are few, so intervals and p-values refer to Student's t with
Satterthwaite's degrees of freedom (A + B)^2 / (A^2/f + B^2/(P-1)). Where tables form a family (the arms at one depth, the
contrasts of one analysis), the between-seed variance can be a table's own, with f = S - 1, or be pooled over the family, with f
times the tables pooled, or what these are worth where they overlap (contrasts with one control). A table's own is known badly, the
pooled one assumes that all tables vary alike: the wider of the two intervals is taken, and its p-value.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

_RARE = 4  #: so many prompts with another outcome than all others are too few for a variance


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval, its standard error and degrees of freedom, and what stands behind it."""

    mean: float
    low: float
    high: float
    standard_error: float
    freedom: float
    prompts: int
    seeds: int

    def within(self, least: float, most: float) -> Estimate:
        """The estimate with its interval cut to what the quantity can be."""
        return replace(self, low=max(self.low, least), high=min(self.high, most))

    def p_value(self, value: float = 0.0) -> float:
        """Two-sided p-value against a mean of ``value``."""
        return float(2 * stats.t.sf(self.margin(value), self.freedom))

    def margin(self, value: float = 0.0) -> float:
        """Distance of the mean from ``value`` in standard errors: 0 if it is that, infinite for what never varies."""
        if self.mean == value:
            return 0.0
        return abs(self.mean - value) / self.standard_error if self.standard_error else float("inf")

    def __str__(self) -> str:
        mean, low, high = (round(value, 2) + 0.0 for value in (self.mean, self.low, self.high))  # no "-0.00"
        return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def _seed_variance(tables: list[np.ndarray]) -> tuple[float, int]:
    """Variance of seeds' means pooled over tables, and its degrees of freedom; tables of one seed say nothing."""
    means = [table.mean(axis=1) for table in tables if len(table) > 1]
    freedom = sum(len(mean) - 1 for mean in means)
    return (sum(((mean - mean.mean()) ** 2).sum() for mean in means) / freedom, freedom) if freedom else (0.0, 0)


def _error(values: np.ndarray, variance: float, seed_freedom: float) -> tuple[float, float]:
    """Standard error of a (seeds, prompts) table's mean, given the between-seed variance, and its degrees of freedom."""
    seeds, prompts = values.shape
    by_seed, by_prompt = variance / seeds, values.mean(axis=0).var(ddof=1) / prompts if prompts > 1 else 0.0
    if by_seed + by_prompt == 0:
        return 0.0, float("inf")
    shared = 0.0
    if seeds > 1 and prompts > 1:
        residual = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
        shared = (residual**2).sum() / ((seeds - 1) * (prompts - 1)) / (seeds * prompts)
    freedom = (by_seed + by_prompt) ** 2 / (
        (by_seed**2 / seed_freedom if seed_freedom else 0.0) + (by_prompt**2 / (prompts - 1) if prompts > 1 else 0.0)
    )
    return float(np.sqrt(max(by_seed + by_prompt - shared, by_seed, by_prompt))), float(freedom)


def _reach(error: float, freedom: float) -> float:
    """Half the width of a 95 % interval."""
    return float(stats.t.isf(0.025, freedom)) * error if error else 0.0


def crossed(
    values: np.ndarray,
    family: list[np.ndarray] | None = None,
    worth: float | None = None,
    share: bool | None = None,
) -> Estimate:
    """Mean of a (seeds, prompts) table with a 95 % interval over both.

    Parameters
    ----------
    values
        With one seed only prompts vary, and the interval says nothing about other seeds.
    family
        Tables, this one included, over which the between-seed variance is pooled if that gives the wider interval.
    worth
        How many independent tables the family is worth, where it overlaps.
    share
        Whether the mean is a share, as that of boolean outcomes is by default. The interval stays in [0, 1]; where all but at most
        four prompts have the same extreme outcome from every seed, it is the Wilson interval of the prompts, as a variance says little of
        what is that rare.

    Raises
    ------
    ValueError
        Not a table, empty, or holding values that are not finite.
    """
    share = np.asarray(values).dtype == bool if share is None else share
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"values must be a (seeds, prompts) table; got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("values holds entries that are not finite: leave unscored prompts out and say how many")
    seeds, prompts = values.shape
    variance, freedom = _seed_variance([values])
    ways = [_error(values, variance, freedom)]
    if family and seeds > 1:
        variance, freedom = _seed_variance([np.asarray(table, dtype=float) for table in family])
        ways.append(_error(values, variance, freedom * (worth or len(family)) / len(family)))
    error, freedom = max(ways, key=lambda way: _reach(*way))
    mean = float(values.mean())
    low, high = mean - _reach(error, freedom), mean + _reach(error, freedom)
    if share:
        low, high = max(low, 0.0), min(high, 1.0)
        if min((values != constant).any(axis=0).sum() for constant in (0, 1)) <= _RARE:
            low, high = proportion_confint(min(max(mean, 0.0), 1.0) * prompts, prompts, method="wilson")
    return Estimate(mean, float(low), float(high), error, freedom, prompts, seeds)


def jackknife(
    statistic: Callable[..., float],
    sources: tuple[int, ...],
    prompts: int,
    seeds: int,
    beside: tuple[float, float] | None = None,
) -> Estimate:
    r"""A statistic with the 95 % interval of a jackknife over several crossed sources of variation.

    One unit of one source is left out at a time, which gives :math:`\sum_i \frac{n-1}{n} (\theta_{-i} - \bar\theta)^2` for each.
    The sum over sources counts what they share twice and errs on the wide side; degrees of freedom are Satterthwaite's. A source
    of a single unit has nothing to leave out and varies nothing.

    Parameters
    ----------
    statistic
        Called with an array of indices a source: the units that are kept.
    sources
        Units of each source.
    prompts, seeds
        What the estimate says stands behind it.
    beside
        Variance and degrees of freedom of a further source, known otherwise.
    """
    whole = [np.arange(size) for size in sources]
    without = [
        np.array([statistic(*whole[:place], np.delete(units, i), *whole[place + 1 :]) for i in units if len(units) > 1])
        for place, units in enumerate(whole)
    ]
    return from_left_out(statistic(*whole), without, prompts, seeds, beside)


def from_left_out(
    mean: float,
    without: list[np.ndarray],
    prompts: int,
    seeds: int,
    beside: tuple[float, float] | None = None,
) -> Estimate:
    """The jackknife's estimate from a statistic and its values without each unit, an array a source; see :func:`jackknife`."""
    varying = [left for left in without if len(left) > 1]
    variances = [(len(left) - 1) / len(left) * ((left - left.mean()) ** 2).sum() for left in varying]
    freedoms = [len(left) - 1 for left in varying]
    if beside is not None:
        variances.append(beside[0])
        freedoms.append(beside[1])
    mean, total = float(mean), float(sum(variances))
    freedom = total**2 / sum(v**2 / f for v, f in zip(variances, freedoms, strict=True)) if total else float("inf")
    reach = _reach(total**0.5, freedom)
    return Estimate(mean, mean - reach, mean + reach, total**0.5, freedom, prompts, seeds)


@dataclass(frozen=True)
class Contrast:
    """A paired difference with its interval and its p-value, before and after Holm's correction."""

    name: str
    difference: Estimate
    p_value: float
    p_holm: float

    @property
    def margin(self) -> float:
        """The difference in standard errors."""
        return self.difference.margin()

    @property
    def p_shown(self) -> str:
        """Holm's p-value to three digits: ``"p = 0.012"`` or ``"p < 0.001"``."""
        return "p < 0.001" if self.p_holm < 0.001 else f"p = {self.p_holm:.3f}"


def _worth(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """How many independent differences these are worth for a pooled variance (Satterthwaite): two that share one of their
    tables correlate by one half, if seeds vary equally in all tables."""
    varying = [{table.tobytes() for table in pair if np.ptp(table.mean(axis=1))} for pair in pairs]
    squared = [len(one & other) ** 2 / max(len(one) * len(other), 1) for one in varying for other in varying]
    return len(pairs) ** 2 / max(sum(squared), 1.0)


def contrasts(pairs: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[Contrast]:
    """Paired contrasts of (seeds, prompts) tables, first minus second, with Holm's correction over all of them.

    The same prompts stand in the same columns. Seeds are matched by row where both tables have as many; a table of one
    row (an untuned model) is compared with every row. The contrasts are a family; those that share a table count for less. p-values
    are two-sided.
    """
    tables = [(np.asarray(first, float), np.asarray(second, float)) for first, second in pairs.values()]
    differences, worth = [first - second for first, second in tables], _worth(tables)
    estimates = [crossed(one, differences, worth) for one in differences]
    p_values = [estimate.p_value() for estimate in estimates]
    return [Contrast(*row) for row in zip(pairs, estimates, p_values, holm(p_values), strict=True)]


def holm(p_values: list[float]) -> list[float]:
    """The p-values of one family after Holm's correction."""
    return multipletests(p_values, method="holm")[1].tolist()


def replication_band(tables: list[np.ndarray], fresh_seeds: int | None = None, alpha: float = 0.05) -> np.ndarray:
    """Half-widths within which an independent rerun's means should fall, for all of several cells at once.

    A *prediction* band for the difference of two independent means over the same prompts, of S seeds and F fresh ones:
    t * sqrt(s^2 / S + s^2 / F), with t at level alpha / cells (Bonferroni). A cell's s is the larger of its own between-seed standard
    deviation and the one pooled over cells (three seeds say little about one cell, and cells vary unequally), and never less
    than one prompt's worth. Where cells vary unequally that is still too little: then a replicate leaves the band somewhat more often than in
    5 % of cases (tests show it). One 95 % confidence interval would be left in 17 %.

    Parameters
    ----------
    tables
        One (seeds, prompts) table a cell; at least two seeds each.
    fresh_seeds
        Seeds of the rerun; as many as the tables have by default.

    Returns
    -------
    ndarray
        One half-width a cell.

    Raises
    ------
    ValueError
        No cell, fewer than two seeds, or values that are not finite.
    """
    if not tables:
        raise ValueError("a replication band needs at least one cell")
    means = np.array([np.asarray(table, float).mean(axis=1) for table in tables])
    cells, seeds = means.shape
    if seeds < 2:
        raise ValueError("a replication band needs at least two seeds a cell")
    if not np.isfinite(means).all():
        raise ValueError("tables hold entries that are not finite")
    own = means.std(axis=1, ddof=1)
    pooled = np.sqrt((own**2).mean())
    deviation = np.maximum(np.maximum(own, pooled), 1 / np.asarray(tables[0]).shape[1])
    return (
        stats.t.isf(alpha / cells / 2, cells * (seeds - 1))
        * np.sqrt(1 / seeds + 1 / (fresh_seeds or seeds))
        * deviation
    )
