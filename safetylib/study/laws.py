r"""Which law does a transition probability follow along training? Fits with two parameters, scored on what they did not see.

**Setting.** A probability :math:`q` of turning to refusal is measured along training runs that start from one model, on
several prompts. All laws run in the same clock, which is known and not fitted,

.. math:: S_t = \sum_{s<t} \alpha\gamma^s,

and each has the same two parameters, the start :math:`q_0` and a rate :math:`b`; with :math:`e = 1 - q`:

* *additive*: :math:`e_t = \max(0, e_0 - bS_t)`, the affine-geometric law of Theorem 4.5, stopped at zero;
* *softmax*: :math:`\operatorname{logit} q_t = \operatorname{logit} q_0 + bS_t`, a constant push on the logit;
* *cross-entropy*: :math:`m' = 2be` for the logit :math:`m`, the gradient's own push, which fades as refusal is learnt.

The formulas are those of :mod:`safetylib.chain.updates`. Two forecasts stand beside the laws. The *monotone* one is a
curve in the same clock that never falls and is free otherwise (isotonic regression): what any law in this clock could hope
for. The *constant* one knows nothing of training but its mean.

**Scores.** A forecast for one prompt in one run is fitted to the *other* prompts (their mean: the chain knows classes, not
prompts) on the training cells, which never hold the cell that is forecast: another run's, or a later step's. Fits
minimise the score that they are compared by, the cross-entropy :math:`-v\ln p - (1-v)\ln(1-p)` of the measured
:math:`v`; it is proper, so nothing is gained by a forecast that leans to either side. The squared error of the
probability, and of :math:`\tfrac{2}{\pi}\arcsin\sqrt p`, which is bounded and sees small probabilities, are given beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.special import expit, logit
from statsmodels.regression.linear_model import OLS

from safetylib import stats
from safetylib.chain import updates
from safetylib.chain.checks import check_range

LEAST = 1e-3
"""Forecasts are kept this far from 0 and 1: the search for openings of a refusal resolves no smaller probability."""


def _additive(start, rate, clock):
    return updates.proportional_escape(1, escape_0=1 - start, bias=rate, alpha=clock, gamma=1)


def _softmax(start, rate, clock):
    return updates.softmax_escape(1, escape_0=1 - start, gap=rate, alpha=clock, gamma=1)


def _cross_entropy(start, rate, clock):
    return updates.cross_entropy_escape(1, escape_0=1 - start, alpha=rate * clock, gamma=1)


LAWS: dict[str, Callable] = {"additive": _additive, "softmax": _softmax, "cross-entropy": _cross_entropy}
REFERENCES = ("monotone", "constant")
FORECASTS = (*LAWS, *REFERENCES)


def curve(law: str, clock, start, rate) -> np.ndarray:
    """The probability of refusal at ``clock`` under a law of ``LAWS``; arguments broadcast.

    One update with step size S is what n discounted ones come to: every law here depends on them through S alone.
    """
    return 1 - LAWS[law](*map(np.asarray, (start, rate, clock)))


# --- fitting ----------------------------------------------------------------------------------------------------------

_STARTS = np.linspace(-14, 7, 64)  # logits
_RATES = np.geomspace(1e-4, 1e4, 161)  # times the largest clock
_FINER = np.linspace(-1, 1, 9)


@dataclass(frozen=True)
class Fit:
    """One law fitted to every row of a table: ``start``, ``rate`` and mean ``loss``, each of shape (rows,).

    ``at_edge`` says where the rate lies at an end of the range that was searched, so that it is only known to lie beyond.
    """

    law: str
    start: np.ndarray
    rate: np.ndarray
    loss: np.ndarray
    at_edge: np.ndarray

    def __call__(self, clock: np.ndarray) -> np.ndarray:
        """Fitted probabilities, (rows, *clock.shape)."""
        clock = np.asarray(clock, dtype=float)
        own = (slice(None), *(None,) * clock.ndim)
        return curve(self.law, clock, self.start[own], self.rate[own])


def cross_entropy(values, forecasts) -> np.ndarray:
    """The score in nats, elementwise; forecasts are kept ``LEAST`` away from 0 and 1."""
    forecasts = np.clip(forecasts, LEAST, 1 - LEAST)
    return -values * np.log(forecasts) - (1 - values) * np.log1p(-forecasts)


def fit(law: str, clock, values, weights=None, start=None) -> Fit:
    """Fit a law to rows of measured probabilities: the same search for every law, on a grid that is refined twice.

    Parameters
    ----------
    law
        A key of ``LAWS``.
    clock
        (cells,) S at which the probabilities were measured.
    values, weights
        (rows, cells) probabilities, and how much each counts (equally by default). A cell with weight zero is not looked at.
    start
        (rows,) a start in (0, 1) that is given, not fitted.

    Raises
    ------
    ValueError
        A value outside [0, 1], shapes that do not match, or no cell with a positive clock.
    """
    values, clock = np.atleast_2d(check_range("values", values, "[0, 1]")), check_range("clock", clock, "[0, inf)")
    weights = np.ones_like(values) if weights is None else check_range("weights", weights, "[0, inf)")
    if clock.shape != values.shape[1:] or weights.shape != values.shape:
        raise ValueError(
            f"clock must be (cells,) and values, weights (rows, cells); got {clock.shape}, {values.shape}, {weights.shape}"
        )
    if not clock.any():
        raise ValueError("clock must be positive somewhere, or no rate can be seen")
    weights = weights / weights.sum(axis=1, keepdims=True)
    log_rates, rows = np.log(_RATES / clock.max()), np.arange(len(values))
    starts = _STARTS[None] if start is None else logit(check_range("start", start, "(0, 1)"))[:, None]
    coarse = _coarse(law, clock.tobytes(), starts.tobytes(), len(starts))
    best = _losses(coarse, values, weights).argmin(axis=1)
    place, rate = best // log_rates.size, best % log_rates.size
    log_start, log_rate = starts[0 if start is None else rows, place], log_rates[rate]
    step_start, step_rate = np.diff(_STARTS)[0] if start is None else 0.0, np.diff(log_rates)[0]
    for _ in range(2):
        near_start = log_start[:, None] + step_start * np.repeat(_FINER, _FINER.size)
        near_rate = log_rate[:, None] + step_rate * np.tile(_FINER, _FINER.size)
        near = curve(law, clock, expit(near_start)[..., None], np.exp(near_rate)[..., None])
        losses = _losses(_logs(near), values, weights)
        best = losses.argmin(axis=1)
        log_start, log_rate, loss = near_start[rows, best], near_rate[rows, best], losses[rows, best]
        step_start, step_rate = step_start / 4, step_rate / 4
    edge = np.abs(log_rate[:, None] - log_rates[[0, -1]]).min(axis=1) < 3 * np.diff(log_rates)[0]
    return Fit(law, expit(log_start), np.exp(log_rate), loss, edge)


@lru_cache(maxsize=8)
def _coarse(law: str, clock: bytes, starts: bytes, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """:func:`_logs` of the coarse grid's curves: the same for every series measured at these clocks."""
    clock, starts = np.frombuffer(clock), np.frombuffer(starts).reshape(rows, -1)
    rates = _RATES / clock.max()
    return _logs(curve(law, clock, expit(starts)[..., None, None], rates[:, None]).reshape(rows, -1, clock.size))


def _logs(curves) -> tuple[np.ndarray, np.ndarray]:
    """ln p and ln(1 - p), (rows or 1, cells, curves), of curves (rows or 1, curves, cells)."""
    curves = np.moveaxis(np.clip(curves, LEAST, 1 - LEAST), 1, 2)
    return np.log(curves), np.log1p(-curves)


def _losses(logs, values, weights) -> np.ndarray:
    """(rows, curves): mean score of each row's curves, from their :func:`_logs`."""
    parts = (values * weights)[:, None], ((1 - values) * weights)[:, None]
    if len(logs[0]) == 1:  # the same curves for every row
        return -(parts[0][:, 0] @ logs[0][0] + parts[1][:, 0] @ logs[1][0])
    return -(parts[0] @ logs[0] + parts[1] @ logs[1])[:, 0]


def monotone(clock, values, weights, at) -> np.ndarray:
    """Isotonic regression of ``values`` on ``clock``, read off at ``at``: linear between, constant beyond.

    All are one-dimensional; cells of one clock are averaged first, so that they share a value.
    """
    places, back = np.unique(np.round(clock, 12), return_inverse=True)
    mass = np.bincount(back, weights)
    seen = mass > 0
    means = np.bincount(back, weights * values)[seen] / mass[seen]
    return np.interp(at, places[seen], isotonic_regression(means, weights=mass[seen]).x)


# --- trajectories, and what is forecast from what ---------------------------------------------------------------------


@dataclass(frozen=True)
class Trajectories:
    """One probability along several runs from one start.

    Attributes
    ----------
    name
        What is measured.
    runs
        Names.
    alpha, gamma
        (runs,) step size and its decay.
    steps
        (steps,) numbers of optimiser steps; the first is 0, where every run stands at the same model.
    values
        (seeds, runs, steps, prompts): every run was made once a seed.
    """

    name: str
    runs: tuple[str, ...]
    alpha: np.ndarray
    gamma: np.ndarray
    steps: np.ndarray
    values: np.ndarray

    def __post_init__(self) -> None:
        check_range("values", self.values, "[0, 1]")
        if self.values.ndim != 4 or self.values.shape[1:3] != (len(self.runs), len(self.steps)):
            raise ValueError(f"values must be (seeds, runs, steps, prompts), got shape {self.values.shape}")
        if self.steps[0] != 0 or np.ptp(self.values[:, :, 0], axis=(0, 1)).any():
            raise ValueError("steps must begin with 0, at which all runs have the same values")

    def clock(self, kind: str = "step sizes") -> np.ndarray:
        """(runs, steps): the sum of step sizes so far; or of the decays alone; or the number of steps.

        Only the first is the theory's clock; the other two know nothing of alpha, or of gamma either.
        """
        sums = updates.discount_sum(self.steps, self.gamma[:, None])
        match kind:
            case "step sizes":
                return self.alpha[:, None] * sums
            case "decays":
                return sums
            case "steps":
                return np.broadcast_to(self.steps.astype(float), sums.shape)
        raise ValueError(f"kind must be 'step sizes', 'decays' or 'steps', got {kind!r}")


def without(trajectories: Trajectories, runs: list[str]) -> Trajectories:
    """The same without some runs."""
    kept = np.array([run not in runs for run in trajectories.runs])
    return Trajectories(
        trajectories.name,
        tuple(run for run in trajectories.runs if run not in runs),
        trajectories.alpha[kept],
        trajectories.gamma[kept],
        trajectories.steps,
        trajectories.values[:, kept],
    )


def other_runs(trajectories: Trajectories) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Folds that hold out one run each, with all of its seeds, as masks (runs, steps) of what is fitted and what is forecast."""
    for run in range(len(trajectories.runs)):
        held_out = np.zeros(trajectories.values.shape[1:3], dtype=bool)
        held_out[run] = True
        yield ~held_out, held_out & (trajectories.steps > 0)


def later_steps(trajectories: Trajectories) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One fold: all runs up to the middle one of the measured steps are fitted, what comes later is forecast."""
    last = trajectories.steps[len(trajectories.steps) // 2]
    early = np.broadcast_to(trajectories.steps <= last, trajectories.values.shape[1:3])
    yield early, ~early


SPLITS = {"another run": other_runs, "later steps": later_steps}


def forecasts(
    trajectories: Trajectories,
    forecast: str,
    split: str = "another run",
    *,
    clock: str = "step sizes",
    start: str = "fitted",
    own: bool = False,
) -> np.ndarray:
    """What a forecast says of every cell that is held out, for every prompt: fitted to the seeds' mean, the same for each seed.

    Parameters
    ----------
    forecast
        One of ``FORECASTS``.
    split
        A key of ``SPLITS``.
    clock
        As in :meth:`Trajectories.clock`.
    start
        ``"fitted"``, or ``"measured"``: then the laws have one parameter, the rate.
    own
        Whether a prompt is forecast from its own values in the training cells, instead of the other prompts' mean.

    Returns
    -------
    ndarray
        (1 + left out, runs, steps, prompts): from all seeds and prompts; then, for a jackknife, fitted anew without each
        seed in turn (if there are several), and without each prompt. nan where nothing is held out.
    """
    values = np.array([every.mean(axis=0) for every in _without_a_seed(trajectories.values)])
    known = values if own else _of_others(values)
    if not own:  # without prompt j, what is known of i is the mean of all but i and j
        known = np.concatenate([known, _of_others(values[:1], twice=True)])
    else:
        known = np.concatenate([known, np.repeat(values[:1], values.shape[-1], axis=0)])
    variants, *_, prompts = known.shape
    known = np.moveaxis(np.clip(known, 0, 1), 3, 1).reshape(variants * prompts, *known.shape[1:3])
    known, back = np.unique(known, axis=0, return_inverse=True)  # i without j is j without i: each is fitted once
    ticks, shape = trajectories.clock(clock), (len(known), -1)
    result = np.full((variants, *trajectories.values.shape[1:]), np.nan)
    for fitted, held_out in SPLITS[split](trajectories):
        weights = fitted.astype(float)
        weights[:, trajectories.steps == 0] /= fitted[:, 0].sum()  # one measurement, shared by the runs
        if forecast in LAWS:
            given = np.clip(known[:, 0, 0], LEAST, 1 - LEAST) if start == "measured" else None
            every = np.broadcast_to(weights, known.shape).reshape(shape)
            found = fit(forecast, ticks.ravel(), known.reshape(shape), every, given)(ticks[held_out])
        elif forecast == "monotone":
            cells = ticks.ravel(), weights.ravel(), ticks[held_out]
            found = np.array([monotone(cells[0], row.ravel(), *cells[1:]) for row in known])
        elif forecast == "constant":
            trained = weights * (trajectories.steps > 0)
            found = np.repeat((known * trained).sum(axis=(1, 2))[:, None] / trained.sum(), held_out.sum(), axis=1)
        else:
            raise ValueError(f"unknown forecast {forecast!r}; known: {', '.join(FORECASTS)}")
        result[:, held_out] = np.moveaxis(found[back.ravel()].reshape(variants, prompts, -1), 1, 2)
    return result


def _without_a_seed(values: np.ndarray) -> list[np.ndarray]:
    """All (seeds, ...) values, and then those without each seed in turn, if there are several."""
    return [values] + [np.delete(values, seed, axis=0) for seed in range(len(values)) if len(values) > 1]


def _of_others(values: np.ndarray, twice: bool = False) -> np.ndarray:
    """For every prompt the mean of the others, (tables, runs, steps, prompts); with ``twice``, of one table, a table for every
    prompt that is left out of all means."""
    prompts = values.shape[-1]
    rest = 1 - np.eye(prompts)
    if twice:
        rest = rest * rest[:, None]  # (left out, forecast, known)
        values = values[0]
        return np.einsum("rsp,jip->jrsi", values, rest / rest.sum(axis=2, keepdims=True))
    return values @ rest / (prompts - 1)


# --- scores -----------------------------------------------------------------------------------------------------------

SCORES: dict[str, Callable] = {
    "log score": cross_entropy,
    "squared error": lambda values, forecast: (values - forecast) ** 2,
    "squared error, arcsine": lambda values, forecast: (
        (2 / np.pi * (np.arcsin(np.sqrt(values)) - np.arcsin(np.sqrt(np.clip(forecast, 0, 1))))) ** 2
    ),
}


@dataclass(frozen=True)
class Scores:
    """Mean scores of a forecast, and what they are when a seed or a prompt is left out of fit and mean.

    Attributes
    ----------
    table
        (seeds, runs, prompts), mean over the steps that were forecast; smaller is better.
    without_seed, without_prompt
        (seeds,) and (prompts,) means over all that is left; one seed cannot be left out.
    """

    table: np.ndarray
    without_seed: np.ndarray
    without_prompt: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.table.mean())

    def __sub__(self, other: Scores) -> Scores:
        parts = ("table", "without_seed", "without_prompt")
        return Scores(*(getattr(self, part) - getattr(other, part) for part in parts))


def scores(trajectories: Trajectories, forecast: np.ndarray, score: str = "log score") -> Scores:
    """Scores of what :func:`forecasts` returns."""

    def table(values: np.ndarray, forecast: np.ndarray) -> np.ndarray:
        return np.nanmean(SCORES[score](values, forecast), axis=2)

    whole, *others = _without_a_seed(trajectories.values)
    by_seed, by_prompt = forecast[1 : len(others) + 1], forecast[len(others) + 1 :]
    return Scores(
        table(whole, forecast[0]),
        np.array([table(values, one).mean() for values, one in zip(others, by_seed, strict=True)]),
        np.array([np.delete(table(whole, one), prompt, axis=2).mean() for prompt, one in enumerate(by_prompt)]),
    )


def mean_scores(every: list[Scores]) -> Scores:
    """The mean of several series' scores, of the same seeds, runs and prompts."""
    parts = ("table", "without_seed", "without_prompt")
    return Scores(*(np.mean([getattr(one, part) for one in every], axis=0) for part in parts))


LEAST_MARGIN = 3.0
LEAST_DIFFERENCE = 1e-3


@dataclass(frozen=True)
class Difference:
    """Mean difference of two scores with its interval over seeds and prompts, and in how many runs it has which sign.

    ``ahead`` and ``behind`` count runs whose mean difference exceeds ``LEAST_DIFFERENCE``, or falls below minus that.
    """

    estimate: stats.Estimate
    ahead: int
    behind: int
    runs: int

    @property
    def decided(self) -> int:
        """1 if positive by three standard errors, with an interval that leaves out zero, in half of the runs or more, and
        the other way round in a sixth of them at most; -1 for the reverse; else 0.

        Standard errors and intervals are over seeds and prompts. Runs are a design, not a sample (in some of them all laws
        agree), so they are counted and not averaged over.
        """
        one = self.estimate
        if abs(one.mean) <= max(LEAST_MARGIN * one.standard_error, LEAST_DIFFERENCE) or one.low <= 0 <= one.high:
            return 0
        same, other = (self.ahead, self.behind) if self.estimate.mean > 0 else (self.behind, self.ahead)
        return int(np.sign(self.estimate.mean)) if 2 * same >= self.runs and 6 * other <= self.runs else 0

    def __str__(self) -> str:
        one = self.estimate
        margin = f"{abs(one.mean) / one.standard_error:.1f} SE" if one.standard_error else "no variation"
        signs = f"+ in {self.ahead}, - in {self.behind} of {self.runs} runs"
        return f"{one.mean:+.3f} [{one.low:+.3f}, {one.high:+.3f}] ({margin}; {signs})"


def difference(paired: Scores) -> Difference:
    """The mean of a difference of :class:`Scores`.

    Its interval is the wider of two: that of the seeds' and prompts' scores, and a jackknife's. The first takes the forecasts
    as given, although the same few seeds and prompts made them all; the second fits them anew.
    """
    seeds, _, prompts = paired.table.shape
    by_run = paired.table.mean(axis=(0, 2))
    ahead, behind = ((sign * by_run > LEAST_DIFFERENCE).sum() for sign in (1, -1))
    refitted = stats.from_left_out(paired.mean, [paired.without_seed, paired.without_prompt], prompts, seeds)
    both = stats.crossed(paired.table.mean(axis=1)), refitted
    return Difference(max(both, key=lambda one: one.high - one.low), int(ahead), int(behind), len(by_run))


@dataclass(frozen=True)
class Comparison:
    """How a law's scores lie to the others'. Differences are other minus law: positive favours the law.

    ``ahead`` holds the differences to the other laws, ``beyond`` those to the references.
    """

    law: str
    ahead: dict[str, Difference]
    beyond: dict[str, Difference]

    @property
    def outcome(self) -> str:
        """``followed``, ``best of three``, ``undecided`` or ``none``, by the rule of :func:`compare`."""
        best_of_three = all(rival.decided > 0 for rival in self.ahead.values())
        if self.beyond["constant"].decided <= 0:
            return "none"
        if self.beyond["monotone"].decided < 0:
            return "best of three" if best_of_three else "none"
        return "followed" if best_of_three else "undecided"


def compare(table: dict[str, Scores]) -> Comparison:
    """The law with the least mean score against the rest, by differences that are :attr:`Difference.decided`.

    =================  =================================================================================
    ``followed``       it beats both other laws and the constant, and the monotone curve does not beat it
    ``best of three``  it beats both other laws and the constant, but the monotone curve beats it
    ``undecided``      it beats the constant, the monotone curve does not beat it, another law is as good
    ``none``           it does not beat the constant; or the curve beats it, and another law is as good
    =================  =================================================================================

    Parameters
    ----------
    table
        Forecast -> scores, for all of ``FORECASTS``.
    """
    law = min(LAWS, key=lambda name: table[name].mean)

    def against(names) -> dict[str, Difference]:
        return {name: difference(table[name] - table[law]) for name in names if name != law}

    return Comparison(law, against(LAWS), against(REFERENCES))


# --- one rate for every step size? ------------------------------------------------------------------------------------


def rates(trajectories: Trajectories, law: str, clock: str = "step sizes") -> tuple[Fit, Fit]:
    """A law fitted to all runs together, and then to each run with that start: one row, and one row a run.

    The mean over seeds and prompts is fitted. If the clock is right, the runs' rates agree.
    """
    values, ticks = trajectories.values.mean(axis=(0, 3)), trajectories.clock(clock)
    weights = np.ones(values.shape)
    weights[:, 0] /= len(weights)
    together = fit(law, ticks.ravel(), values.reshape(1, -1), weights.reshape(1, -1))
    alone = [
        fit(law, ticks[run, 1:], values[run, None, 1:], start=together.start) for run in range(len(trajectories.runs))
    ]
    parts = [np.concatenate([getattr(one, part) for one in alone]) for part in ("start", "rate", "loss", "at_edge")]
    return together, Fit(law, *parts)


@dataclass(frozen=True)
class Scaling:
    """How fitted rates depend on alpha: rate proportional to alpha to this exponent.

    ``exponent`` has an interval over seeds, prompts and runs. ``runs`` are those used; ``left_out`` those whose rate is only known
    to lie beyond the range that was searched.
    """

    exponent: stats.Estimate
    runs: int
    left_out: tuple[str, ...]

    @property
    def outcome(self) -> str:
        """What the interval says: 0 is one rate for every alpha, -1 that steps count and their size does not."""
        one_rate, steps_alone = (self.exponent.low <= exponent <= self.exponent.high for exponent in (0, -1))
        if one_rate == steps_alone:
            return "undecided" if one_rate else "neither"
        return "one rate" if one_rate else "steps alone"


def scaling(series: list[Trajectories], law: str) -> Scaling:
    """Regress log rates of single runs on log alpha, with a level for every gamma (ordinary least squares).

    The interval counts three sources of variation: seeds and prompts by a jackknife that fits the law anew, and what the runs'
    rates leave of a straight line, by the regression's own standard error.

    Parameters
    ----------
    series
        One quantity along the same runs, at several depths: a run's log rate is the mean over them.
    law
        One of ``LAWS``.

    Raises
    ------
    ValueError
        Fewer runs with a rate inside the range searched than the regression has coefficients, plus one.
    """
    runs, alpha, gamma = series[0].runs, series[0].alpha, series[0].gamma
    kept = ~np.any([rates(one, law)[1].at_edge for one in series], axis=0)
    levels = np.unique(gamma[kept], return_inverse=True)[1]
    predictors = np.column_stack([np.log(alpha[kept]), np.eye(levels.max(initial=0) + 1)[levels]])
    if kept.sum() <= np.linalg.matrix_rank(predictors) or np.ptp(alpha[kept]) == 0:
        raise ValueError(f"{kept.sum()} runs with a rate inside the range searched are too few to scale with alpha")

    def regression(seeds: np.ndarray, prompts: np.ndarray):
        some = [replace(one, values=one.values[seeds][..., prompts]) for one in series]
        logs = np.mean([np.log(rates(one, law)[1].rate) for one in some], axis=0)
        return OLS(logs[kept], predictors).fit()

    seeds, prompts = series[0].values.shape[0], series[0].values.shape[3]
    whole = regression(np.arange(seeds), np.arange(prompts))
    exponent = stats.jackknife(
        lambda *some: float(regression(*some).params[0]),
        (seeds, prompts),
        prompts,
        seeds,
        (float(whole.bse[0] ** 2), float(whole.df_resid)),
    )
    return Scaling(exponent, int(kept.sum()), tuple(run for run, inside in zip(runs, kept, strict=True) if not inside))
