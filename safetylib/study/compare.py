"""Does a fresh measurement agree with the stored one?"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from safetylib import stats
from safetylib.study.results import Results


def differences(fresh: Results, stored: Results) -> pd.DataFrame:
    """Mean refusal rates of both, cell by cell (arm and depth; over-refusal by kind), with their replication band.

    The band is a family-wise 95 % prediction band over all cells of trained arms (:func:`stats.replication_band`). The
    untuned model has no seeds to vary; it may differ by rounding alone and gets the narrowest band of the others. The fresh study
    may have another number of seeds, and the band then is as wide as that makes it.

    Raises
    ------
    ValueError
        The two were measured under different plans.
    """
    plans = [results.manifest["plan"] for results in (fresh, stored)]
    for key in ("arms", "measurement", "split", "prompts", "model", "recipe"):
        new, old = (plan.get(key) for plan in plans)
        if new != old:
            raise ValueError(f"the plans differ in {key}: {new} and {old}")
    cells = [("harmful", arm, depth) for arm in stored.arms for depth in stored.depths]
    cells += [(kind, arm, 0) for kind in ("plain", "borderline") for arm in stored.arms]
    rows, tables = [], {}
    for kind, arm, depth in cells:
        new, old = (results.table(arm, depth, kind) for results in (fresh, stored))
        rows.append({"kind": kind, "arm": arm, "depth": depth, "stored": old.mean(), "fresh": new.mean()})
        if arm != "base":
            tables[len(rows) - 1] = old
    table = pd.DataFrame(rows)
    table["difference"] = table["fresh"] - table["stored"]
    table.loc[list(tables), "band"] = stats.replication_band(
        list(tables.values()), len(fresh.manifest["plan"]["seeds"])
    )
    return table.fillna({"band": table["band"].min()})


def report(fresh: Path, stored: Path) -> str:
    """The comparison in words: which cells lie outside the band, and the largest difference."""
    try:
        table = differences(Results(fresh), Results(stored))
    except ValueError as error:
        return f"Not comparable with the stored results: {error}."
    outside = table[table["difference"].abs() > table["band"]]
    worst = table.loc[table["difference"].abs().idxmax()]
    widths = f"(+-{table['band'].min():.2f} to +-{table['band'].max():.2f})"
    verdict = (
        f"Agrees with the stored results: all {len(table)} cells lie within their replication bands {widths}"
        if outside.empty
        else f"DIFFERS from the stored results: {len(outside)} of {len(table)} cells lie outside their replication bands {widths}"
    )
    lines = [
        f"{verdict}; largest difference {worst['difference']:+.3f} ({worst['kind']}, {worst['arm']}, depth {worst['depth']})."
    ]
    lines += [
        f"  {row.kind:10} {row.arm:8} depth {row.depth:2}: stored {row.stored:.3f}, fresh {row.fresh:.3f}"
        for row in outside.itertuples()
    ]
    return "\n".join(lines)


def same_rows(first: pd.DataFrame, second: pd.DataFrame) -> pd.Series:
    """Which rows of two outcome tables agree: verdicts and counts exactly, scores to two digits."""
    scored = [column for column in ("safety", "value", "immediate", "within", "missed") if column in first.columns]
    exact = [column for column in first.columns if column not in (*scored, "unscored")]
    scores = [table[scored].round(2).fillna(-1) for table in (first, second)]
    return (first[exact].astype(str) == second[exact].astype(str)).all(axis=1) & (scores[0] == scores[1]).all(axis=1)
