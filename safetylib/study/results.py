"""Reading the stored tables: ``results/<preset>/``, in the shapes that figures, claims and votes need. No torch here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from safetylib import stats

ROOT = Path(__file__).resolve().parents[2] / "results"


def crossed_table(rows: pd.DataFrame, column: str, said: str) -> np.ndarray:
    """A column of one arm's outcomes as a (seeds, prompts) array, both in order; only scores may be missing.

    Raises
    ------
    KeyError, ValueError
        No rows, or some prompt without an outcome from some seed; ``said`` says of what.
    """
    if rows.empty:
        raise KeyError(f"no outcomes for {said}")
    table = rows.pivot(index="seed", columns="prompt", values=column).sort_index(axis=0).sort_index(axis=1)
    if table.isna().to_numpy().any() and column != "safety":
        raise ValueError(f"{said}: some prompt has no {column} from some seed")
    return table.to_numpy()


@dataclass(frozen=True)
class Results:
    """One folder of stored tables.

    Raises
    ------
    FileNotFoundError
        The folder holds no manifest; says how to measure it.
    """

    folder: Path

    def __post_init__(self) -> None:
        if not (self.folder / "manifest.json").is_file():
            raise FileNotFoundError(
                f"no results in {self.folder.name}/: measure them with `make reproduce PRESET={self.folder.name} ARGS=--accept`"
            )

    @cached_property
    def manifest(self) -> dict:
        """Plan, provenance, counts and stage fingerprints."""
        return json.loads((self.folder / "manifest.json").read_text())

    @cached_property
    def outcomes(self) -> pd.DataFrame:
        """One row per (arm, seed, split, kind, prompt, depth)."""
        table = pd.read_csv(self.folder / "outcomes.csv.gz")
        return table.astype({"refused": bool, "refused_independent": bool, "complied_after": bool})

    @cached_property
    def training(self) -> pd.DataFrame:
        """One row per (arm, seed, step): step size, losses, token counts."""
        return pd.read_csv(self.folder / "training.csv")

    @cached_property
    def timings(self) -> pd.DataFrame:
        """Seconds per unit of work."""
        return pd.read_csv(self.folder / "timings.csv")

    @property
    def arms(self) -> list[str]:
        """Arms in the plan's order."""
        return list(self.manifest["plan"]["arms"])

    @property
    def depths(self) -> list[int]:
        """Measured prefill depths."""
        return list(self.manifest["plan"]["measurement"]["depths"])

    @property
    def headline(self) -> list[int]:
        """Depths off the orbit but within it."""
        return list(self.manifest["plan"]["measurement"]["headline"])

    def table(
        self, arm: str, depth: int = 0, kind: str = "harmful", column: str = "refused", split: str = "test"
    ) -> np.ndarray:
        """A (seeds, prompts) array of one column; seeds ascending, prompts in the same order for every arm and depth."""
        rows = self.outcomes.query("arm == @arm and depth == @depth and kind == @kind and split == @split")
        return crossed_table(rows, column, f"arm {arm!r}, depth {depth}, {kind}, {split}")

    def estimate(self, arm: str, depth: int = 0, kind: str = "harmful", column: str = "refused") -> stats.Estimate:
        """Mean of a column on test prompts with its interval; the arms are a family (:func:`safetylib.stats.crossed`)."""
        tables = {other: self.table(other, depth, kind, column) for other in self.arms}
        return stats.crossed(tables[arm], list(tables.values()))

    def headline_estimate(self, arm: str, column: str = "refused") -> stats.Estimate:
        """The same for the mean over the headline depths."""
        tables = {other: self.headline_table(other, column) for other in self.arms}
        return stats.crossed(tables[arm], list(tables.values()), share=True)

    def headline_table(self, arm: str, column: str = "refused") -> np.ndarray:
        """Mean of a column over the headline depths, as (seeds, prompts)."""
        return np.mean([self.table(arm, depth, column=column) for depth in self.headline], axis=0, dtype=float)

    def part(self, name: str, table: str = "outcomes") -> pd.DataFrame:
        """A table of a part beyond the main plan (:mod:`safetylib.study.parts`), stored beside the main tables.

        Raises
        ------
        FileNotFoundError
            The part was never measured, or under another plan than the main tables; says how to do it.
        """
        path = self.folder / name / (f"{table}.csv.gz" if table == "outcomes" else f"{table}.csv")
        if not path.is_file():
            raise FileNotFoundError(
                f"no {table} of {name} in {self.folder.name}/: measure them with "
                f"`make reproduce PRESET={self.folder.name} PART={name} ARGS=--accept`"
            )
        manifest = path.parent / "manifest.json"
        if manifest.is_file() and json.loads(manifest.read_text())["plan"] != self.manifest["plan"]:
            raise FileNotFoundError(
                f"{name} in {self.folder.name}/ was measured under another plan than the main tables: measure it again with "
                f"`make reproduce PRESET={self.folder.name} PART={name} ARGS=--accept`"
            )
        return pd.read_csv(path)

    @cached_property
    def operating_point(self) -> pd.DataFrame:
        """Validation rates of the recipes that were tried, one row a candidate and arm.

        Raises
        ------
        FileNotFoundError
            They were never measured; says how to do it.
        """
        path = self.folder / "operating_point.csv"
        if not path.is_file():
            raise FileNotFoundError(
                f"no operating point in {self.folder.name}/: measure the candidates with "
                f"`python -m safetylib.study.operating_point {self.folder.name}`"
            )
        return pd.read_csv(path)

    def provenance(self) -> str:
        """One line: what was measured, when, on what."""
        manifest, plan = self.manifest, self.manifest["plan"]
        packages = ", ".join(
            f"{name} {version}"
            for name, version in manifest["packages"].items()
            if name in ("torch", "transformers", "peft", "bitsandbytes")
        )
        return (
            f"Measured {manifest['date']} on {manifest['machine']}: {plan['model']}, 4-bit, seeds "
            f"{', '.join(map(str, plan['seeds']))}; {packages}."
        )


_BOOK = "cpu"
_selected: list[str] = []


def select(preset: str) -> Results:
    """The stored results of a preset, which verdicts are read from in this process; without it, the book's.

    Raises
    ------
    RuntimeError
        Verdicts of this process are those of another preset already.
    FileNotFoundError
        Nothing is stored for the preset; says how to measure it.
    """
    if _selected and _selected[0] != preset:
        raise RuntimeError(f"this process reads results/{_selected[0]}: restart the kernel to read results/{preset}")
    found = Results(ROOT / preset)
    _selected[:] = [preset]
    if preset != _BOOK:
        plan = found.manifest["plan"]
        print(
            f"Verdicts are read from results/{preset}; where their text names the book's model and prompts, read "
            f"{plan['model']} and {plan['prompts']}."
        )
    return found


def load(preset: str | None = None) -> Results:
    """The stored results of a preset; by default of the selected one, or the book's."""
    return Results(ROOT / (preset or (_selected or [_BOOK])[0]))
