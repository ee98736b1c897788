"""Intervals, contrasts and agreement for prompts crossed with seeds (scipy and statsmodels do the work).

Every seed answers every prompt, so a rate over seeds and prompts has two sources of variation, and its sample size is
not their product. Intervals therefore resample both (a crossed bootstrap, after Owen and Eckles 2012, "pigeonhole").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval, its standard error, and what stands behind it."""

    mean: float
    low: float
    high: float
    standard_error: float
    prompts: int
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


def _resampled_means(values: np.ndarray, seed: int) -> np.ndarray:
    """Means of tables whose rows (seeds) and columns (prompts) are both drawn with replacement."""
    generator = np.random.default_rng(seed)
    seeds, prompts = values.shape
    row_weights = generator.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds
    column_weights = generator.multinomial(prompts, np.full(prompts, 1 / prompts), RESAMPLES) / prompts
    return np.einsum("rs,sp,rp->r", row_weights, values, column_weights)


def crossed(values: np.ndarray, seed: int = 0) -> Estimate:
    """Mean of a (seeds, prompts) table with a crossed-bootstrap interval.

    With one seed only prompts vary. A rate of exactly 0 or 1 over boolean outcomes gets the Wilson interval of its prompts,
    since resampling cannot see beyond it.

    Raises
    ------
    ValueError
        Not a table, empty, or holding values that are not finite.
    """
    is_rate = np.asarray(values).dtype == bool
    values = np.asarray(values, dtype=float)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"values must be a (seeds, prompts) table; got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("values holds entries that are not finite: leave unscored prompts out and say how many")
    seeds, prompts = values.shape
    means = _resampled_means(values, seed)
    low, high = np.quantile(means, [0.025, 0.975])
    if is_rate and np.ptp(values) == 0:
        low, high = proportion_confint(values.flat[0] * prompts, prompts, method="wilson")
    return Estimate(float(values.mean()), float(low), float(high), float(means.std(ddof=1)), prompts, seeds)


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
        error = self.difference.standard_error
        return abs(self.difference.mean) / error if error else float("inf")


def contrasts(pairs: dict[str, tuple[np.ndarray, np.ndarray]], seed: int = 0) -> list[Contrast]:
    """Paired contrasts of (seeds, prompts) tables, first minus second, with Holm's correction over all of them.

    The same prompts stand in the same columns. Seeds are matched by row where both tables have as many; a table of one
    row (an untuned model) is compared with every row. p-values are two-sided, from the bootstrap's standard error and a
    normal reference.
    """
    names, estimates, p_values = list(pairs), [], []
    for first, second in pairs.values():
        first, second = np.asarray(first, float), np.asarray(second, float)
        estimate = crossed(first - second, seed)
        error = estimate.standard_error
        z = abs(estimate.mean) / error if error else (np.inf if estimate.mean else 0.0)
        estimates.append(estimate)
        p_values.append(float(2 * stats.norm.sf(z)))
    holm = multipletests(p_values, method="holm")[1]
    return [Contrast(*row) for row in zip(names, estimates, p_values, map(float, holm), strict=True)]


def replication_band(tables: list[np.ndarray], alpha: float = 0.05) -> float:
    """Half-width within which an independent rerun's means should fall, for all of several cells at once.

    A *prediction* band for the difference of two independent means over the same prompts and as many fresh seeds:
    z * sqrt(2 s^2 / S), with s the between-seed standard deviation pooled over cells and z at level alpha / cells
    (Bonferroni, t reference with the pooled degrees of freedom). One 95 % confidence interval would be left by an
    independent replicate in 17 % of cases.

    Parameters
    ----------
    tables
        One (seeds, prompts) table a cell; at least two seeds each.
    """
    means = np.array([np.asarray(table, float).mean(axis=1) for table in tables])
    cells, seeds = means.shape
    if seeds < 2:
        raise ValueError("a replication band needs at least two seeds a cell")
    pooled = np.sqrt(means.var(axis=1, ddof=1).mean())
    # A rate cannot be read more finely than one prompt; without this floor, constant cells would allow no rerun at all.
    pooled = max(pooled, 1 / np.asarray(tables[0]).shape[1])
    return float(stats.t.isf(alpha / cells / 2, cells * (seeds - 1)) * np.sqrt(2 / seeds) * pooled)
