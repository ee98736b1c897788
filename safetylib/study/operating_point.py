"""The operating point: one recipe for every arm, chosen on validation prompts by a rule.

    python -m safetylib.study.operating_point      # measure the candidates, store the table, say what the rule picks

The rule. Candidates differ in the weight of the benign anchors, which trades refusals for usefulness.
Each is trained once on the cyclic arm, which sees the fewest refusals without a prefix of all arms that see any regularly,
with a seed that the study does not use, and measured on validation prompts alone: refusal of harmful ones at depth 0,
over-refusal of plain benign ones. A candidate is admissible if it refuses at least 90 % of the harmful and at most 10 % of
the plain ones. Among the admissible ones the rule takes the lowest mean over-refusal; if there is none, the candidate whose
worst violation of the two bounds is smallest. Ties go to the candidate listed first. Test prompts are never looked at.

How it came about. The two bounds and the tie-breaking stood before any measurement; the rest did not. About twenty
trials on validation prompts (other rates, decays, weights, batches, lengths of a refusal, optimiser settings, on several arms)
led to this recipe and these candidates. In a first round, on another split, candidates differed in rate and weight and none
was admissible; that round's results have been replaced. The weight 2 was added when its neighbours had been seen to miss one
bound each. Validation rates of the chosen candidate are therefore optimistic; test rates are not.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import tyro

from safetylib.study import command, models
from safetylib.study.diagnostics import LEAST_REFUSAL, MOST_OVER_REFUSAL
from safetylib.study.presets import Preset, Recipe, preset
from safetylib.study.results import ROOT
from safetylib.study.units import Study

ARMS = ("cyclic",)
SEED = 100
CANDIDATES: dict[str, dict[str, float]] = {
    f"weight {weight:g}": {"anchor_weight": weight} for weight in (1.5, 2.0, 2.5, 4.0)
}


def rule(table: pd.DataFrame) -> str:
    """The candidate that the rule picks from a table of validation rates (one row per candidate and arm)."""
    by_candidate = table.groupby("candidate", sort=False)
    shortfall = (LEAST_REFUSAL - by_candidate["harmful"].min()).clip(lower=0)
    excess = (by_candidate["plain"].max() - MOST_OVER_REFUSAL).clip(lower=0)
    violation = pd.concat([shortfall, excess], axis=1).max(axis=1)
    admissible = violation[violation == 0].index
    if len(admissible):
        return str(by_candidate["plain"].mean()[admissible].idxmin())
    return str(violation.idxmin())


def chosen(plan: Preset, table: pd.DataFrame) -> Recipe:
    """The plan's recipe with what the rule picks from a table."""
    return replace(plan.recipe, **CANDIDATES[rule(table)])


def measure(plan: Preset, into: Path, silent: bool = False) -> pd.DataFrame:
    """Train and measure every candidate; finished ones are not repeated."""
    rows = []
    for candidate, settings in CANDIDATES.items():
        study = Study(replace(plan, recipe=replace(plan.recipe, **settings), arms=ARMS, seeds=(SEED,)), into, silent)
        with study.store.held():
            for arm in ARMS:
                rows.append({"candidate": candidate, **settings, "arm": arm, **study.validation_rates(arm, SEED)})
                if not silent:
                    print({key: value for key, value in rows[-1].items() if key not in settings}, flush=True)
    return pd.DataFrame(rows)


def main(preset_name: str = "cpu", /) -> None:
    """Measure the candidates of a preset on validation prompts and store the table in results/PRESET.

    Parameters
    ----------
    preset_name
        The study plan.
    """
    plan = preset(preset_name)
    if models.process()[1] > 1:
        raise ValueError(
            "the operating point is work for one process: start it with python, not with accelerate launch"
        )
    table = measure(plan, ROOT.parent / "runs" / plan.name)
    folder = ROOT / plan.name
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "operating_point.csv", index=False, float_format="%.4f")
    print(f"The rule picks: {rule(table)}. The preset's recipe must say the same (a test looks).")


if __name__ == "__main__":
    with command.told("operating point"):
        tyro.cli(main, prog="python -m safetylib.study.operating_point")
