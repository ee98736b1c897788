"""Claims about judges: each check reads ``results/cpu/judging`` and says what the tables show. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from safetylib.claims import Basis, Finding, Verdict, register
from safetylib.study import agreement, labelled

_JUDGE = "HEx-PHI, logits"
_MEASURE = "`python -m safetylib.study.judging measure`"


@dataclass(frozen=True)
class Judged:
    """The stored tables of judging."""

    folder: Path = labelled.FOLDER

    @cached_property
    def agreement(self) -> pd.DataFrame:
        """One row a set, part and judge."""
        return pd.read_csv(self.folder / "agreement.csv")

    @cached_property
    def confusion(self) -> pd.DataFrame:
        """Counts by set, judge, and class of the label."""
        return pd.read_csv(self.folder / "confusion.csv")

    @cached_property
    def between(self) -> pd.DataFrame:
        """Kappa by set and pair of judges."""
        return pd.read_csv(self.folder / "between.csv")

    @cached_property
    def verdicts(self) -> pd.DataFrame:
        """Every judge's safety score by set and item."""
        return pd.read_csv(self.folder / "verdicts.csv")

    @cached_property
    def labels(self) -> pd.DataFrame:
        """The labels of the study's own responses."""
        return labelled.labels(self.folder)

    @cached_property
    def prefix_seen(self) -> pd.DataFrame:
        """The main detector's refusal rates without and with the prefix in view, by arm, seed and depth."""
        return pd.read_csv(self.folder / "prefix_seen.csv")

    @cached_property
    def misses(self) -> pd.DataFrame:
        """Why the main detector missed the refusals that it missed, by reading them."""
        return pd.read_csv(self.folder / "misses.csv")

    def errors(self, groups: pd.Series) -> pd.DataFrame:
        """Detectors against the reader on the study's responses, group by group.

        Parameters
        ----------
        groups
            A group for every row of ``labels``.

        Returns
        -------
        DataFrame
            Rows are groups: responses (without unclear ones), refusals by the reader, misses and false alarms by detector.
        """
        wide = self.verdicts.query("set == 'study'").pivot(index="item", columns="judge", values="safety") > 0.5
        rows = self.labels.assign(group=groups)[self.labels["label"].isin(agreement.REFUSES)]
        refuses, said = (
            rows["label"].map(agreement.REFUSES).to_numpy(bool),
            wide.loc[rows["item"]].reset_index(drop=True),
        )
        found = pd.DataFrame({"group": rows["group"].to_numpy(), "responses": 1, "refuse, by the reader": refuses})
        for judge in ("main", "independent"):
            found[f"{judge}: misses"] = refuses & ~said[judge].to_numpy()
            found[f"{judge}: false alarms"] = ~refuses & said[judge].to_numpy()
        return found.groupby("group", sort=False, observed=True).sum()

    def row(self, set_name: str, judge: str, part: str = "all") -> pd.Series | None:
        """One judge's agreement; None if it was not asked, or scored nothing."""
        rows = self.agreement.query("set == @set_name and judge == @judge and part == @part").dropna(subset="kappa")
        return None if rows.empty else rows.iloc[0]


def _against_floor(row: pd.Series | None, contrary: Verdict) -> Finding:
    """Reproduced if the judge agrees more than the floor does, the contrary if less, undecided between."""
    if row is None:
        return Finding(Verdict.UNDECIDED, f"not measured; run {_MEASURE}.")
    verdict = (
        Verdict.REPRODUCED
        if row["above_low"] > 0 and not row["fails"]
        else contrary
        if row["above_high"] < 0
        else Verdict.UNDECIDED
    )
    return Finding(
        verdict,
        f"kappa {row['kappa']:.2f} [{row['low']:.2f}, {row['high']:.2f}], the floor's on the same texts {row['floor']:.2f}; difference "
        f"{row['above']:+.2f} [{row['above_low']:+.2f}, {row['above_high']:+.2f}]; {int(row['n'])} texts, {int(row['prompts'])} "
        f"prompts, {int(row['unscored'])} unscored.",
    )


@register(
    id="8-judge",
    chapter=8,
    source="Method",
    statement="Safety can be scored by a small language model as the judge (the paper's is Llama 3.2 1B, on HEx-PHI).",
    reading=(
        "The embedded SmolLM2-135M-Instruct, its rating on HEx-PHI's rubric read off the logits, agrees with people about who refuses "
        "(labelled XSTest completions) more than a list of keywords does. A stand-in for the paper's judge, which was not run: where it "
        "fails, that says nothing of the other, and the claim stays undecided."
    ),
    basis=Basis.MEASUREMENT,
)
def language_model_judge() -> Finding:
    """Does the small judge reach the floor?"""
    return _against_floor(Judged().row("xstest", _JUDGE), Verdict.UNDECIDED)


@register(
    id="8-people",
    chapter=8,
    source="Limitations",
    statement="Automated safety scores can be trusted (the summary names the missing validation against people as a limitation).",
    reading=(
        "The book's main refusal detector agrees with people about who refuses (labelled XSTest completions) more than a list of "
        "keywords does."
    ),
    basis=Basis.MEASUREMENT,
)
def detector_against_people() -> Finding:
    """Does the detector agree with people more than the floor does?"""
    return _against_floor(Judged().row("xstest", "main"), Verdict.NOT_REPRODUCED)


@register(
    id="8-detector",
    chapter=8,
    source="Limitations",
    statement="Refusal rates of small models can be read off by a program.",
    reading=(
        "On responses of this study, labelled blind to arm and depth by a model that read them, the main detector's kappa is at least "
        "0.8 (the interval's lower end)."
    ),
    basis=Basis.MEASUREMENT,
)
def detector_on_the_study() -> Finding:
    """Does the detector agree with the reading of the study's own responses?"""
    judged = Judged()
    row = judged.row("study", "main")
    verdict = (
        Verdict.REPRODUCED if row["low"] >= 0.8 else Verdict.NOT_REPRODUCED if row["high"] < 0.8 else Verdict.UNDECIDED
    )
    arms = judged.agreement.query("set == 'study' and judge == 'main' and part.str.startswith('arm ')")
    worst = arms.loc[arms["accuracy"].idxmin()]
    return Finding(
        verdict,
        f"kappa {row['kappa']:.2f} [{row['low']:.2f}, {row['high']:.2f}], accuracy {row['accuracy']:.2f} on {int(row['n'])} responses to "
        f"{int(row['prompts'])} prompts; lowest accuracy of an arm {worst['accuracy']:.2f} ({worst['part'].removeprefix('arm ')}).",
    )
