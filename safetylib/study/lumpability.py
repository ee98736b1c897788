r"""Is the number of harmful tokens given a state? Tests of the lumped chain under forced prefixes, and its depth curves.

The chain of the theory knows one number, :math:`q_k`: the probability that a refusal starts after k harmful tokens. The
model has one for every prompt and prefix. If the classes H_k are lumpable, all prompts share it. Then

* the variance of :math:`q_k` between prompts, as a share of :math:`\bar q_k(1-\bar q_k)`, the variance of a refusal that
  one number describes, is zero (it is one where the prompt alone decides);
* the probability that no refusal starts at several places, a *mean of products* :math:`\overline{\prod_j(1-q_j)}`, is
  the *product of means* :math:`\prod_j(1-\bar q_j)`. Where some prompts resist at every place, the first is larger: the
  lumped chain promises more refusals than there are.

These probabilities are read off the model, so they carry no sampling noise; intervals are a jackknife's over seeds of
training and prompts (:func:`safetylib.stats.jackknife`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from safetylib import stats
from safetylib.chain import depth as chain_depth
from safetylib.stats import Estimate
from safetylib.study.chain_tables import Forced


def estimate(forced: Forced, statistic: Callable[[Forced], float]) -> Estimate:
    """A statistic of forced prefixes, with its interval over seeds and prompts."""
    seeds, prompts = forced.seeds, len(forced.prompts)
    return stats.jackknife(lambda *kept: statistic(forced.only(*kept)), (seeds, prompts), prompts, seeds)


# --- predictions of the depth curve -----------------------------------------------------------------------------------


def lumped_within(forced: Forced, arm: str) -> np.ndarray:
    """(seeds, depths) refusal within m tokens from the class means alone: 1 less the product of 1 - mean q_j.

    Means at positions between the measured depths are interpolated linearly, beyond the last one kept; windows are those of
    :func:`safetylib.chain.depth.recovery`.
    """
    means = forced.immediate[arm].mean(axis=2)
    positions = np.arange(max(forced.depths) + forced.window)
    rho = np.array([np.interp(positions, forced.depths, row) for row in means])
    return chain_depth.recovery(rho, forced.window)[:, list(forced.depths)]


def depth_curves(forced: Forced, arm: str) -> dict[str, np.ndarray]:
    """Refusal within m tokens at every depth, (depths,): as generated, and as three readings of the chain predict it.

    ``each prompt's chain`` is the mean of products; ``its likelier side`` counts a prompt as refused if its own chain gives
    more than one half (answers are greedy, not sampled); ``lumped chain`` is the product of means.
    """
    return {
        "generated": forced.generated[arm].mean(axis=(0, 2)),
        "each prompt's chain": forced.within[arm].mean(axis=(0, 2)),
        "its likelier side": (forced.within[arm] > 0.5).mean(axis=(0, 2)),
        "lumped chain": lumped_within(forced, arm).mean(axis=0),
    }


@dataclass(frozen=True)
class Agreement:
    """How predicted depth curves agree with generated ones over the cells (arm, depth)."""

    correlation: Estimate
    difference: Estimate  # mean absolute
    bias: Estimate  # predicted minus generated
    cells: int


def agreement(forced: Forced, prediction: str = "each prompt's chain") -> Agreement:
    """Compare a prediction of :func:`depth_curves` with what was generated, over all arms and depths."""

    def curves(part: Forced) -> np.ndarray:
        found = [depth_curves(part, arm) for arm in part.immediate]
        return np.array([np.concatenate([curve[name] for curve in found]) for name in (prediction, "generated")])

    return Agreement(
        estimate(forced, lambda part: np.corrcoef(*curves(part))[0, 1]).within(-1, 1),
        estimate(forced, lambda part: np.abs(np.subtract(*curves(part))).mean()),
        estimate(forced, lambda part: np.subtract(*curves(part)).mean()),
        len(forced.immediate) * len(forced.depths),
    )


# --- lumpability ------------------------------------------------------------------------------------------------------


def prompt_share(forced: Forced, arm: str, depth: int) -> Estimate:
    """Variance of q_k between prompts over mean (1 - mean), mean over seeds: 0 if H_k is a state, 1 if prompts decide."""
    place = forced.depths.index(depth)

    def share(part: Forced) -> float:
        rows = part.immediate[arm][:, place]
        mean = rows.mean(axis=1)
        return float((rows.var(axis=1) / np.maximum(mean * (1 - mean), 1e-12)).mean())

    return estimate(forced, share).within(0, 1)


def repeats(forced: Forced, arm: str) -> Estimate:
    """Correlation of the prompts' deviations from the class mean with those of the other trained arms (their mean).

    Over all depths. Deviations that other models share belong to the prompt and its prefix, not to one training run.

    Raises
    ------
    ValueError
        There is no other trained arm.
    """
    others = [other for other in forced.trained if other != arm]
    if not others:
        raise ValueError(f"{arm} is the only trained arm: there is nothing to compare its deviations with")

    def correlation(part: Forced) -> float:
        means = [part.immediate[name].mean(axis=0) for name in (arm, *others)]
        own, rest = (rows - rows.mean(axis=1, keepdims=True) for rows in (means[0], np.mean(means[1:], axis=0)))
        return float(np.corrcoef(own.ravel(), rest.ravel())[0, 1])

    return estimate(forced, correlation).within(-1, 1)


def product_gap(forced: Forced, depths: tuple[int, ...], arms: list[str] | None = None) -> Estimate:
    """By how much the lumped chain promises more refusals than the prompts' own chains do, mean over arms and ``depths``.

    Product of means against mean of products, over the measured places from k to k + m - 1: nothing is interpolated, and
    nothing is generated. ``arms`` are the trained ones by default.
    """
    windows = [[place for place, depth in enumerate(forced.depths) if k <= depth < k + forced.window] for k in depths]

    def gap(part: Forced) -> float:
        gaps = []
        for arm in part.trained if arms is None else arms:
            harmful = 1 - part.immediate[arm]
            for places in windows:
                own, lumped = (
                    harmful[:, places].prod(axis=1).mean(),
                    harmful[:, places].mean(axis=2).prod(axis=1).mean(),
                )
                gaps.append(own - lumped)
        return float(np.mean(gaps))

    return estimate(forced, gap)
