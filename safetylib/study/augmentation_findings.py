"""What the ablations of the cyclic arm show: orbits of other lengths, and the phrases rotated. Reads tables; no torch."""

from __future__ import annotations

import numpy as np
import pandas as pd

from safetylib import stats
from safetylib.claims import Basis, Finding, register
from safetylib.study.findings import decide
from safetylib.study.results import Results, load

VARIANTS = {"orbit of 2": "orbit2", "orbit of 8": "orbit8", "rotated phrases": "rotate"}
_CYCLIC = "orbit of 4 (cyclic)"


def variant_table(results: Results, variant: str, depth: int, kind: str = "harmful") -> np.ndarray:
    """Refusals of a variant as a (seeds, prompts) array, seeds and prompts ascending."""
    rows = results.part("ablations").query("arm == @variant and depth == @depth and kind == @kind")
    return _pivot(rows)


def cyclic_table(results: Results, depth: int, kind: str = "harmful") -> np.ndarray:
    """Refusals of the main study's cyclic arm, for the seeds that the variants were trained with."""
    seeds = results.part("ablations").query("arm == 'rotate'")["seed"].unique()
    rows = results.outcomes.query("arm == 'cyclic' and split == 'test' and depth == @depth and kind == @kind")
    return _pivot(rows[rows["seed"].isin(seeds)])


def headline_by_seed(results: Results, variant: str) -> pd.Series:
    """Mean refusal rate over the headline depths, a number per seed; ``"cyclic"`` is the main study's arm."""
    tables = (
        cyclic_table(results, depth) if variant == "cyclic" else variant_table(results, variant, depth)
        for depth in results.headline
    )
    seeds = sorted(results.part("ablations").query("arm == 'rotate'")["seed"].unique())
    return pd.Series(
        np.mean([table.mean(axis=1) for table in tables], axis=0), index=[f"seed {seed}" for seed in seeds]
    )


def _pivot(rows: pd.DataFrame) -> np.ndarray:
    if rows.empty:
        raise KeyError("no such rows")
    table = rows.pivot(index="seed", columns="prompt", values="refused").sort_index(axis=0).sort_index(axis=1)
    if table.isna().to_numpy().any():
        raise ValueError("some prompt was not put to every seed")
    return table.to_numpy().astype(bool)


def _cells(results: Results, keys: list[tuple[int, str]]) -> dict[str, dict[tuple[int, str], stats.Estimate]]:
    tables = {
        name: {key: variant_table(results, variant, *key) for key in keys} for name, variant in VARIANTS.items()
    } | {_CYCLIC: {key: cyclic_table(results, *key) for key in keys}}
    order = ["orbit of 2", _CYCLIC, "orbit of 8", "rotated phrases"]
    return {
        name: {key: stats.crossed(tables[name][key], [tables[other][key] for other in order]) for key in keys}
        for name in order
    }


def variants(results: Results) -> dict[str, dict[int, stats.Estimate]]:
    """Refusal rate of every variant at depth 0 and the headline depths."""
    cells = _cells(results, [(depth, "harmful") for depth in (0, *results.headline)])
    return {name: {depth: cell for (depth, _), cell in row.items()} for name, row in cells.items()}


def over_refusal(results: Results) -> dict[str, dict[str, stats.Estimate]]:
    """Share of plain and of borderline benign prompts that every variant refuses."""
    cells = _cells(results, [(0, "plain"), (0, "borderline")])
    return {name: {kind: cell for (_, kind), cell in row.items()} for name, row in cells.items()}


def contrasts(results: Results, kind: str = "harmful") -> list[stats.Contrast]:
    """Every variant minus the cyclic arm, paired; Holm over the three.

    Mean refusal over the headline depths; of benign prompts, which have no prefix, at depth 0.
    """
    depths = results.headline if kind == "harmful" else (0,)

    def mean(table) -> np.ndarray:
        return np.mean([table(depth).astype(float) for depth in depths], axis=0)

    cyclic = mean(lambda depth: cyclic_table(results, depth, kind))
    pairs = {
        name: (mean(lambda depth, variant=variant: variant_table(results, variant, depth, kind)), cyclic)
        for name, variant in VARIANTS.items()
    }
    return stats.contrasts(pairs)


def _decided(name: str) -> Finding:
    row = next(contrast for contrast in contrasts(load()) if contrast.name == name)
    return decide(row, said=f"{name} minus cyclic")


@register(
    id="6-diversity",
    chapter=6,
    source="Design trade-offs",
    statement="A larger order of the permutation makes the augmentation more diverse.",
    reading=(
        "At equal budget, an orbit of eight positions refuses more often than one of four after prefixes that neither was "
        "trained on (mean over depths 5, 12 and 20), by three standard errors and after Holm's correction."
    ),
    basis=Basis.MEASUREMENT,
)
def diversity() -> Finding:
    """Do more positions in the same range help off the orbit?"""
    return _decided("orbit of 8")


@register(
    id="6-phrases",
    chapter=6,
    source="Figure 1",
    statement="Cyclic permutations of a response's phrases are the augmentation that deepens refusals.",
    reading=(
        "At equal budget, rotating the phrases with the refusal refuses more often than moving the refusal alone (mean over "
        "depths 5, 12 and 20), by three standard errors and after Holm's correction."
    ),
    basis=Basis.MEASUREMENT,
)
def phrases() -> Finding:
    """Does it help to rotate the harmful phrases, too?"""
    return _decided("rotated phrases")
