"""Claims about the measured chain: each reads the part ``chain``, ``longer`` or ``forced`` and says what it shows.

Laws, parameters, scores, splits, margins and the bounds below were fixed before any of these tables was looked at; they were
developed on made-up ones. Afterwards the range of rates searched was extended downwards (no verdict changed), and ``clock`` and
``steady`` of :func:`law_scores` were added; no verdict rests on them. Intervals became wider when all verdicts were known: forecasts
are fitted anew for every seed and prompt that is left out, and the one law claim that had been decided no longer is.
Training runs were made with one seed first, and with two more after their tables had been looked at; gradient descent's smallest
step size was added last, after others had blown up. The longer runs were planned after all of these had been looked at, and their claims
written before any of their tables was looked at. Intervals are over seeds and prompts. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd

from safetylib import stats
from safetylib.claims import Basis, Finding, Verdict, register
from safetylib.study import laws, lumpability, results
from safetylib.study.chain_tables import QUANTITIES, Forced, MeasuredRuns, forced, measured_runs

MOST_DIFFERENCE = 0.1  # a predicted depth curve agrees if it is off by no more than this, mean over arms and depths
MOST_GAP = 0.05  # lumping is harmless if it promises no more than this share of refusals that prompts do not give


@cache
def runs(part: str = "chain") -> MeasuredRuns:
    """The stored measured chain, read once: the part ``chain``, or ``longer``."""
    return measured_runs(part=part)


@cache
def prefixes() -> Forced:
    """The stored forced prefixes, read once."""
    return forced()


# --- which law --------------------------------------------------------------------------------------------------------


@cache
def law_scores(
    optimiser: str,
    quantity: str = "start",
    split: str = "another run",
    score: str = "log score",
    *,
    start: str = "fitted",
    own: bool = False,
    clock: str = "step sizes",
    steady: bool = False,
    part: str = "chain",
) -> dict[str, laws.Scores]:
    """Forecast -> scores of the steps held out, mean over the depths of the quantity.

    Arguments are those of :func:`safetylib.study.laws.forecasts` and of :func:`runs`; with ``steady``, runs that blew up with any
    seed are left out.
    """
    table = runs(part)
    series = [table.trajectories(optimiser, quantity, depth) for depth in table.depths(quantity)]
    if steady:
        series = [laws.without(one, [run for run, _ in blown_up(part)]) for one in series]
    return {
        name: laws.mean_scores(
            [laws.scores(one, _forecast(one, part, name, split, start, own, clock), score) for one in series]
        )
        for name in laws.FORECASTS
    }


_FORECASTS: dict[tuple, np.ndarray] = {}


def _forecast(
    series: laws.Trajectories, part: str, name: str, split: str, start: str, own: bool, clock: str
) -> np.ndarray:
    """Forecasts are costly and do not depend on the score: each is made once."""
    key = (part, series.name, *series.runs, name, split, start, own, clock)
    if key not in _FORECASTS:
        _FORECASTS[key] = laws.forecasts(series, name, split, start=start, own=own, clock=clock)
    return _FORECASTS[key]


def blown_up(part: str = "chain") -> list[tuple[str, int]]:
    """(run, seed) whose loss on refusals ends above where it began, mean of four steps each: training diverged."""
    losses = runs(part).training.pivot(index="step", columns=["run", "seed"], values="refusal_loss")
    return losses.columns[losses.tail(4).mean() > losses.head(4).mean()].tolist()


def mean_over_depths(optimiser: str, quantity: str = "start", part: str = "chain") -> laws.Trajectories:
    """A quantity along the runs of an optimiser, every prompt's mean over the depths at which it was measured."""
    table = runs(part)
    series = [table.trajectories(optimiser, quantity, depth) for depth in table.depths(quantity)]
    return replace(series[0], name=quantity, values=np.mean([one.values for one in series], axis=0))


def comparison(optimiser: str, quantity: str = "start", split: str = "another run", **how) -> laws.Comparison:
    """The best law of :func:`law_scores` against the rest."""
    return laws.compare(law_scores(optimiser, quantity, split, **how))


def law_verdict(table: dict[str, laws.Scores]) -> Verdict:
    """Does the probability follow the additive law of Theorem 4.5?

    Reproduced if it is the law that is followed; not reproduced if another law, the free monotone curve or even the constant
    beats it; else undecided.
    """
    found = laws.compare(table)
    if found.law == "additive" and found.outcome == "followed":
        return Verdict.REPRODUCED
    rivals = [name for name in laws.FORECASTS if name != "additive"]
    beaten = any(laws.difference(table["additive"] - table[rival]).decided > 0 for rival in rivals)
    return Verdict.NOT_REPRODUCED if beaten else Verdict.UNDECIDED


def law_in_words(found: laws.Comparison) -> str:
    """The outcome of a comparison as a clause."""
    beaten = found.beyond["monotone"].decided < 0
    if found.outcome == "followed":
        return f"{found.law} is followed"
    if found.beyond["constant"].decided <= 0:
        return f"no law is followed: {found.law} comes first and does not decidedly beat a constant"
    if beaten:
        return f"no law is followed: {found.law} comes first and a free monotone curve beats it"
    return f"{found.law} comes first, and another law is not decidedly behind"


_DESIGNS = {
    ("chain", "adamw"): "three learning rates, two decays",
    ("chain", "sgd"): "four learning rates, two decays",
    ("longer", "adamw"): "64 steps, two learning rates, with a slow decay and with none",
    ("longer", "sgd"): "64 steps, two learning rates, with a slow decay and with none",
}


def _law_claim(optimiser: str, quantity: str, statement: str, part: str = "chain") -> None:
    what, design = QUANTITIES[quantity], _DESIGNS[part, optimiser]

    @register(
        id=f"10-{'law' if part == 'chain' else part}-{quantity}-{optimiser}",
        chapter=10,
        source="Theorem 4.5",
        statement=statement,
        reading=(
            f"The probability that {what}, along {optimiser} runs (SmolLM2-135M-Instruct in 4 bits, {design}): the additive law in the clock of step sizes, stopped at one, forecasts runs held out better than the "
            "softmax and the cross-entropy law with as many parameters and than a constant, and not decidedly worse than a free monotone curve."
        ),
        basis=Basis.MEASUREMENT,
    )
    def check() -> Finding:
        table = law_scores(optimiser, quantity, part=part)
        rivals = [name for name in laws.FORECASTS if name != "additive"]
        seeds, _, prompts = table["additive"].table.shape
        listed = "; ".join(f"{name} {laws.difference(table['additive'] - table[name])}" for name in rivals)
        return Finding(
            law_verdict(table),
            f"{law_in_words(laws.compare(table))}. Log score in nats, additive minus the other (positive: the other is "
            f"better): {listed}; {prompts} prompts, {seeds} seeds.",
        )


_RULE = "Fine-tuning adds a discounted bias to transition probabilities, so escape falls as the step sizes add up."
_SELF = "Fine-tuning adds a discounted bias to the refusal state's self-transition, which makes it absorbing."
for _optimiser in ("adamw", "sgd"):
    _law_claim(_optimiser, "start", _RULE)
    _law_claim(_optimiser, "stop", _SELF)
    _law_claim(_optimiser, "start", _RULE, part="longer")


# --- one rate ---------------------------------------------------------------------------------------------------------


def scaling(optimiser: str, law: str | None = None, depths: tuple[int, ...] | None = None) -> laws.Scaling:
    """Exponent of alpha in the rates of Q(H_k, R), mean over depths, by default all; under a law, by default the one that comes first."""
    law = law or comparison(optimiser).law
    table = runs()
    return laws.scaling(
        [table.trajectories(optimiser, "start", depth) for depth in depths or table.depths("start")], law
    )


def _rate_claim(optimiser: str) -> None:
    @register(
        id=f"10-step-size-{optimiser}",
        chapter=10,
        source="Theorem 4.5",
        statement="The learning rate is the step size of the update: the bias does its work at the rate alpha gamma^t.",
        reading=(
            f"{optimiser}: with the clock running at alpha gamma^t, the rates fitted to single runs (Q(H_k, R), the law that "
            "forecasts best, mean over depths) do not depend on alpha: the exponent's 95 % interval holds 0 and not -1."
        ),
        basis=Basis.MEASUREMENT,
    )
    def check() -> Finding:
        law = comparison(optimiser).law
        try:
            found = scaling(optimiser, law)
        except ValueError as reason:
            return Finding(Verdict.UNDECIDED, f"{law}: {reason}.")
        verdict = {"one rate": Verdict.REPRODUCED, "undecided": Verdict.UNDECIDED}.get(
            found.outcome, Verdict.NOT_REPRODUCED
        )
        left_out = f"; left out, beyond the range searched: {', '.join(found.left_out)}" if found.left_out else ""
        return Finding(
            verdict,
            f"{law}: rate in proportion to alpha to the power {found.exponent}, over {found.runs} runs, {found.exponent.seeds} seeds and "
            f"{found.exponent.prompts} prompts{left_out}.",
        )


for _optimiser in ("adamw", "sgd"):
    _rate_claim(_optimiser)


# --- lumping ----------------------------------------------------------------------------------------------------------


def within_bound(interval: stats.Estimate, most: float) -> Verdict:
    """Reproduced if the whole interval lies below a bound, not reproduced if above, else undecided."""
    if interval.high <= most:
        return Verdict.REPRODUCED
    return Verdict.NOT_REPRODUCED if interval.low > most else Verdict.UNDECIDED


@register(
    id="10-depth-curve",
    chapter=10,
    source="Core contribution",
    statement="The chain's transition probabilities say how deep a refusal reaches.",
    reading=(
        "Probabilities read off by teacher forcing, multiplied along each prompt's own harmful answer, predict the share of "
        f"prompts that refuse within m tokens of a forced prefix to {MOST_DIFFERENCE}, mean absolute difference over arms and "
        "depths (the whole interval, over prompts and seeds)."
    ),
    basis=Basis.MEASUREMENT,
)
def depth_curve() -> Finding:
    """Do the chains of the prompts predict the generated depth curves?"""
    found = lumpability.agreement(prefixes())
    gap = found.difference
    return Finding(
        within_bound(gap, MOST_DIFFERENCE),
        f"mean absolute difference {gap.mean:.3f} [{gap.low:.3f}, {gap.high:.3f}], predicted minus generated {found.bias}, correlation "
        f"{found.correlation}; {found.cells} cells, {len(prefixes().prompts)} prompts, {prefixes().seeds} seeds.",
    )


@register(
    id="10-lumped",
    chapter=10,
    source="Mechanism 1",
    statement="A chain on a few states (harmful, refusal) with a transition matrix describes what the model does.",
    reading=(
        "Harmful answers of k tokens are one state: the product of mean transition probabilities promises at most "
        f"{MOST_GAP} more refusals than the mean of the prompts' products, over the measured positions of each window (whole interval, over "
        "prompts and seeds; mean over trained arms and headline depths)."
    ),
    basis=Basis.MEASUREMENT,
)
def lumped() -> Finding:
    """What does it cost to forget the prompt?"""
    table, headline = prefixes(), tuple(results.load().headline)
    gap = lumpability.product_gap(table, headline)
    by_arm = ", ".join(f"{arm} {lumpability.product_gap(table, headline, [arm])}" for arm in table.trained)
    share = pd.Series(
        {(arm, k): lumpability.prompt_share(table, arm, k).mean for arm in table.trained for k in headline}
    )
    return Finding(
        within_bound(gap, MOST_GAP),
        f"the lumped chain promises {gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}] more ({by_arm}); with forty prompts, before all were "
        "taken, this was undecided. Between prompts lies "
        f"{share.median():.2f} (median over arms and depths; {share.min():.2f} to {share.max():.2f}) of the variance that a "
        "state would have; 0 if it were one.",
    )
